"""What openapi.json says of the parameters of routes, in path, query and headers."""

from __future__ import annotations

from typing import Any

from service.channel_end import FINISHED
from service.channels import SYS
from service.durations import DURATION_PATTERN
from service.event import CONTROL_CHARACTERS
from service.grants import MAX_USER_LETTERS
from service.overflow import Overflow
from service.routes.channels import MAX_PAGE_EVENTS, MAX_REASON_LETTERS, PAGE_EVENTS
from service.routes.cursors import MAX_LAST, SECONDS_PATTERN, TWINS
from service.routes.openapi_schemas import EXAMPLE_ID, KEY_PATTERN, RETRY, TTL, Schema, ref
from service.routes.stream import MAX_NAMES

SINCE: Schema = {
    "type": "string",
    "anyOf": [
        {"pattern": f"^(?:{DURATION_PATTERN}|{SECONDS_PATTERN})$"},
        {"format": "date-time"},
        {"format": "date"},
    ],
    "examples": ["10m", "1795338808", "2026-01-31T12:00:00Z", "2026-01-31"],
}


def _query(name: str, description: str, schema: Schema, **more: Any) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema, **more}


CHANNEL: Schema = {
    "name": "channel",
    "in": "path",
    "required": True,
    "schema": ref("schemas", "ChannelName"),
    "example": "news",
}


def named_channels(at_most: int) -> Schema:
    """`?channel=`, once for each."""
    schema = {
        "type": "array",
        "minItems": 1,
        "maxItems": at_most,
        "anyOf": [{"items": ref("schemas", "ChannelName")}, {"const": [SYS]}],
    }
    description = f"A channel; repeat it for several. `{SYS}` stands alone, for administrators"
    return _query("channel", description, schema, required=True, example=["news"])


def stream_parameters(max_channels: int) -> list[Schema]:
    """What a stream selects, where it begins and how it behaves."""
    names = {
        "type": "array",
        "items": {"anyOf": [ref("schemas", "EventName"), {"type": "string", "pattern": "^[$]"}]},
        "maxItems": MAX_NAMES,
    }
    cursor = {"type": "string"}
    return [
        named_channels(max_channels),
        _query("event", "Only events of this name; repeat it for several", names),
        *(_query(name, "The cursor, where no header can be set", cursor) for name in TWINS),
        {
            "name": "Last-Event-ID",
            "in": "header",
            "description": "The cursor, or `earliest`; it wins over the query",
            "schema": cursor,
        },
        _query(
            "last",
            "Begin with the last so many events",
            {"type": "integer", "minimum": 1, "maximum": MAX_LAST},
        ),
        _query(
            "since",
            "Begin with the events of the last `10m` (`s`, `m`, `h`, `d`), or since a time",
            SINCE,
        ),
        _query(
            "overflow",
            "What happens when the client reads too slowly",
            {"enum": [one.value for one in Overflow], "default": Overflow.CLOSE.value},
        ),
        _query(
            "ping",
            "How silence is broken",
            {"enum": ["comment", "event"], "default": "comment"},
        ),
    ]


def text_parameters() -> list[Schema]:
    """What the query says of a text that is published."""
    return [
        _query("event", "The event's name", ref("schemas", "EventName"), example="price"),
        _query("retry", "The clients' reconnection time, in ms", {"type": "integer", **RETRY}),
        _query("ttl", "A replay skips the event after so many seconds", {"type": "integer", **TTL}),
        _query("history", "`0` delivers live only", {"enum": ["0", "1"], "default": "1"}),
        _query(
            "private", "`1`: only for streams with a grant", {"enum": ["0", "1"], "default": "0"}
        ),
    ]


IDEMPOTENCY_KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A repeated request with the same key publishes nothing",
    "schema": {"type": "string", "pattern": KEY_PATTERN},
}

REASON = _query(
    "reason",
    "Why, in the data of `$end`",
    {
        "type": "string",
        "pattern": f"^[^{CONTROL_CHARACTERS}]*$",
        "maxLength": MAX_REASON_LETTERS,
        "default": FINISHED,
    },
)

PAGE_PARAMETERS = [
    _query("after", "Go on after this event", ref("schemas", "EventId"), example=EXAMPLE_ID),
    _query(
        "limit",
        "Events of a page",
        {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_EVENTS, "default": PAGE_EVENTS},
    ),
]

WHOSE_STREAMS = [
    _query(
        "user",
        "Close all streams of this user",
        {"type": "string", "minLength": 1, "maxLength": MAX_USER_LETTERS},
        example="ana",
    ),
    _query(
        "stream",
        "Close the stream that `Pushline-Stream` names so",
        {"type": "string", "minLength": 1, "maxLength": MAX_USER_LETTERS},
    ),
]
