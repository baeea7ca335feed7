"""What a request publishes: text with query parameters, or JSON items."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from werkzeug.wrappers import Request

from service.channels import check_channels
from service.errors import BadBody, BadParameter, EventTooLarge, PushlineError
from service.event import Event, is_larger
from service.publication import Publication, Receipt

MAX_BATCH_EVENTS = 1000
"""Events in one array of POST /publish."""

MAX_BATCH_DELIVERIES = 4000
"""Channels that the events of one array, or one call, may name in all."""

MAX_BATCH_FACTOR = 16
"""How many times MAX_EVENT_BYTES a body of POST /publish may be: it escapes, and holds several."""

MAX_CHANNELS_PER_EVENT = 64
"""Channels that one event may go to."""

PARAMETERS = frozenset({"event", "retry", "ttl", "history", "private"})
"""What the query of a text may say."""

FIELDS = frozenset({"channel", "channels", "data", "idempotency_key"}) | PARAMETERS
"""What an item may have."""

_KINDS = {str: "string", int: "whole number", bool: "truth value"}

Publish = Callable[[list[Publication]], list[Receipt]]
"""Sends events out in order, in one round trip, and returns their ids."""


# ------------------------------------------------------------------------------------- text


@dataclass(frozen=True, slots=True)
class TextOptions:
    """What the query says of a body of text, or of each line of one."""

    event: str | None = None
    retry: int | None = None
    ttl: int | None = None
    stored: bool = True
    private: bool = False

    @classmethod
    def of_request(cls, request: Request) -> Self:
        """Those of `request`. Raises BadParameter."""
        if not request.environ.get("QUERY_STRING"):
            return cls()
        unknown = request.args.keys() - PARAMETERS
        if unknown:
            known = ", ".join(sorted(PARAMETERS))
            raise BadParameter(f"{min(unknown)[:40]!r} is not known", fix=f"Known are {known}")
        stored = _switch(request, "history", "1", "history=0 delivers live only")
        private = _switch(request, "private", "0", "private=1 is for streams with a grant only")
        return cls(
            request.args.get("event"),
            _number(request, "retry"),
            _number(request, "ttl"),
            stored,
            private,
        )

    def publication(self, channel: str, text: str, key: str | None = None) -> Publication:
        """`text` as one event. Raises BadEvent."""
        event = Event(text, self.event, self.retry)
        return Publication(
            event,
            (channel,),
            stored=self.stored,
            ttl_seconds=self.ttl,
            key=key,
            private=self.private,
        )


def _switch(request: Request, name: str, default: str, fix: str) -> bool:
    said = request.args.get(name, default)
    if said not in ("0", "1"):
        raise BadParameter(f"{name} is neither 0 nor 1", fix=fix)
    return said == "1"


def _number(request: Request, name: str) -> int | None:
    text = request.args.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadParameter(f"{name} is not a whole number", fix=f"As in {name}=2000")
    return int(text)


# ------------------------------------------------------------------------------------- JSON


def parse(text: str) -> Any:
    """The value of a JSON text. Raises BadBody."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise BadBody("the JSON is nested too deeply") from None
    except ValueError as error:
        raise BadBody(f"it is not JSON: {error}", fix="POST text to /channels/NAME") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def publications(body: Any, max_event_bytes: int) -> list[Publication]:
    """The events of an array, or the only one. Raises for the first that can't be published."""
    if not isinstance(body, list):
        return [_located(body, "the body", max_event_bytes)]
    if not 1 <= len(body) <= MAX_BATCH_EVENTS:
        raise BadBody(f"the array holds {len(body)} events", fix=f"Send 1 to {MAX_BATCH_EVENTS}")
    items = [_located(item, f"item {n}", max_event_bytes) for n, item in enumerate(body)]
    deliveries = sum(len(item.channels) for item in items)
    if deliveries > MAX_BATCH_DELIVERIES:
        fix = f"Name at most {MAX_BATCH_DELIVERIES} in all"
        raise BadBody(f"the array's events name {deliveries} channels", fix=fix)
    return items


def _located(item: Any, where: str, max_event_bytes: int) -> Publication:
    try:
        return publication(item, max_event_bytes)
    except PushlineError as error:
        error.detail = f"{where}: {error.detail}"
        raise


def publication(item: Any, max_event_bytes: int) -> Publication:
    """One event. Raises BadBody, BadEvent, BadChannel, BadParameter or EventTooLarge."""
    if not isinstance(item, dict):
        raise BadBody("it is not an object", fix='Send {"channel": ..., "data": ...}')
    unknown = item.keys() - FIELDS
    if unknown:
        raise BadBody(f"the field {min(unknown)[:40]!r} is not known", fix=_known_fields())
    if "data" not in item:
        raise BadBody("the field data is missing", fix=_known_fields())
    data = item["data"]
    if not isinstance(data, str):
        data = _as_json(data)
    event = Event(data, _optional(item, "event", str), _optional(item, "retry", int))
    if is_larger(data, max_event_bytes):
        raise EventTooLarge(f"its data is larger than {max_event_bytes} bytes")
    return Publication(
        event,
        _channels(item),
        stored=_optional(item, "history", bool) is not False,
        ttl_seconds=_optional(item, "ttl", int),
        key=_optional(item, "idempotency_key", str),
        private=_optional(item, "private", bool) is True,
    )


def _as_json(data: Any) -> str:
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise BadBody("data holds a number too large for JSON") from None


def _channels(item: dict[str, Any]) -> tuple[str, ...]:
    named = [item["channel"]] if "channel" in item else []
    several = item.get("channels", [])
    if not isinstance(several, list) or not all(isinstance(one, str) for one in named + several):
        raise BadBody("channel is not a string, or channels not a list of strings")
    return check_channels(named + several, MAX_CHANNELS_PER_EVENT)


def _optional(item: dict[str, Any], field: str, kind: type) -> Any:
    value = item.get(field)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)  # to JSON 2000.0 is the same number as 2000
    if value is not None and type(value) is not kind:
        raise BadBody(f"the field {field} is not a {_KINDS[kind]}")
    return value


def _known_fields() -> str:
    return f"Known are {', '.join(sorted(FIELDS))}"
