"""POST /channels/<channel> and POST /publish."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

from flask import Blueprint, Response, request

from service.channels import check_channel, check_channels
from service.errors import BadBody, BadParameter, EventTooLarge, PushlineError
from service.event import Event
from service.publication import Publication, Receipt
from service.routes.bodies import read_text
from service.routes.origins import Origins

MAX_BATCH_EVENTS = 1000
"""Events in one array of POST /publish."""

MAX_BATCH_DELIVERIES = 4000
"""Channels that the events of one array may name in all: Redis does it in one go."""

MAX_BATCH_FACTOR = 16
"""How many times MAX_EVENT_BYTES a body of POST /publish may be: it escapes, and holds several."""

MAX_CHANNELS_PER_EVENT = 64
"""Channels that one event may go to."""

_PARAMETERS = frozenset({"event", "retry", "ttl", "history"})
_FIELDS = frozenset(
    {"channel", "channels", "data", "event", "retry", "ttl", "history", "idempotency_key"}
)

_KINDS = {str: "string", int: "whole number", bool: "truth value"}

Publish = Callable[[list[Publication]], list[Receipt]]


def publish_routes(publish: Publish, origins: Origins, max_event_bytes: int) -> Blueprint:
    """The publishing routes; `publish` sends events out in order and returns their ids."""
    routes = Blueprint("publish", __name__)

    @routes.before_request
    def check_origin() -> None:
        origins.check_publish()

    @routes.after_request
    def allow_origin(response: Response) -> Response:
        return origins.allow(response)

    @routes.post("/channels/<channel>", provide_automatic_options=False)
    def publish_body(channel: str) -> Response:
        """Publish the body, byte for byte, as one event."""
        check_channel(channel)
        _check_parameters()
        event = Event(read_text(max_event_bytes), request.args.get("event"), _number("retry"))
        publication = Publication(
            event,
            (channel,),
            stored=request.args.get("history") != "0",
            ttl_seconds=_number("ttl"),
            key=request.headers.get("Idempotency-Key"),
        )
        (receipt,) = publish([publication])
        return _json(_told(publication, receipt))

    @routes.post("/publish", provide_automatic_options=False)
    def publish_json() -> Response:
        """Publish one JSON object, or each of an array, in order."""
        body = _parse(read_text(max_event_bytes * MAX_BATCH_FACTOR))
        publications = _publications(body, max_event_bytes)
        receipts = list(map(_told, publications, publish(publications)))
        return _json(receipts if isinstance(body, list) else receipts[0])

    @routes.route("/publish", methods=["OPTIONS"])
    def preflight() -> Response:
        """Answer a page's preflight; no event is published."""
        return origins.preflight("OPTIONS, POST")

    @routes.route("/channels/<channel>", methods=["OPTIONS"])
    def preflight_channel(channel: str) -> Response:
        """The same for a channel, which routes/channels.py can forget."""
        return origins.preflight("DELETE, OPTIONS, POST")

    return routes


def _check_parameters() -> None:
    unknown = request.args.keys() - _PARAMETERS
    if unknown:
        known = ", ".join(sorted(_PARAMETERS))
        raise BadParameter(f"{min(unknown)[:40]!r} is not known", fix=f"Known are {known}")
    if request.args.get("history", "1") not in ("0", "1"):
        raise BadParameter("history is neither 0 nor 1", fix="history=0 delivers live only")


def _number(name: str) -> int | None:
    text = request.args.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadParameter(f"{name} is not a whole number", fix=f"As in {name}=2000")
    return int(text)


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise BadBody("the JSON is nested too deeply") from None
    except ValueError as error:
        raise BadBody(f"the body is not JSON: {error}", fix="POST text to /channels/NAME") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _publications(body: Any, max_event_bytes: int) -> list[Publication]:
    if not isinstance(body, list):
        return [_publication(body, "the body", max_event_bytes)]
    if not 1 <= len(body) <= MAX_BATCH_EVENTS:
        raise BadBody(f"the array holds {len(body)} events", fix=f"Send 1 to {MAX_BATCH_EVENTS}")
    items = [_publication(item, f"item {n}", max_event_bytes) for n, item in enumerate(body)]
    deliveries = sum(len(item.channels) for item in items)
    if deliveries > MAX_BATCH_DELIVERIES:
        fix = f"Name at most {MAX_BATCH_DELIVERIES} in all"
        raise BadBody(f"the array's events name {deliveries} channels", fix=fix)
    return items


def _publication(item: Any, where: str, max_event_bytes: int) -> Publication:
    try:
        return _checked_publication(item, max_event_bytes)
    except PushlineError as error:
        error.detail = f"{where}: {error.detail}"
        raise


def _checked_publication(item: Any, max_event_bytes: int) -> Publication:
    if not isinstance(item, dict):
        raise BadBody("it is not an object", fix='Send {"channel": ..., "data": ...}')
    unknown = item.keys() - _FIELDS
    if unknown:
        raise BadBody(f"the field {min(unknown)[:40]!r} is not known", fix=_known_fields())
    if "data" not in item:
        raise BadBody("the field data is missing", fix=_known_fields())
    data = item["data"]
    if not isinstance(data, str):
        data = _as_json(data)
    event = Event(data, _optional(item, "event", str), _optional(item, "retry", int))
    if len(data.encode()) > max_event_bytes:
        raise EventTooLarge(f"its data is larger than {max_event_bytes} bytes")
    return Publication(
        event,
        _channels(item),
        stored=_optional(item, "history", bool) is not False,
        ttl_seconds=_optional(item, "ttl", int),
        key=_optional(item, "idempotency_key", str),
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
    if value is not None and type(value) is not kind:
        raise BadBody(f"the field {field} is not a {_KINDS[kind]}")
    return value


def _known_fields() -> str:
    return f"Known are {', '.join(sorted(_FIELDS))}"


def _told(item: Publication, receipt: Receipt) -> dict[str, Any]:
    to = {"channel": item.channels[0]} if len(item.channels) == 1 else {"channels": item.channels}
    return {"id": str(receipt.id), **to, "replayed": receipt.replayed}


def _json(body: Any) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(json.dumps(body) + "\n", 200, headers, content_type="application/json")
