"""What openapi.json says of the values that come in bodies and answers."""

from __future__ import annotations

from typing import Any

from service.channels import NAME_PATTERN
from service.event import (
    CONTROL_CHARACTERS,
    ID_PATTERN,
    MAX_NAME_BYTES,
    RESERVED_NAMES,
    RETRY_RANGE_MILLISECONDS,
)
from service.publication import MAX_KEY_BYTES, TTL_RANGE_SECONDS
from service.routes.channels import MAX_PAGE_EVENTS
from service.routes.items import MAX_CHANNELS_PER_EVENT
from service.routes.status import REASONS

Schema = dict[str, Any]

EXAMPLE_ID = "1795338808466-0"
KEY_PATTERN = f"^[!-~]{{1,{MAX_KEY_BYTES}}}$"
RETRY = {"minimum": RETRY_RANGE_MILLISECONDS[0], "maximum": RETRY_RANGE_MILLISECONDS[1]}
TTL = {"minimum": TTL_RANGE_SECONDS[0], "maximum": TTL_RANGE_SECONDS[1]}


def ref(kind: str, name: str) -> Schema:
    """A reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


EVENT_NAME: Schema = {
    "description": f"Up to {MAX_NAME_BYTES} bytes without control characters",
    "type": "string",
    "pattern": f"^[^${CONTROL_CHARACTERS}][^{CONTROL_CHARACTERS}]*$",
    "maxLength": MAX_NAME_BYTES,
    "not": {"enum": sorted(RESERVED_NAMES)},
}


def schemas(max_event_bytes: int) -> dict[str, Schema]:
    """The named schemas."""
    return {
        "ChannelName": {"type": "string", "pattern": f"^{NAME_PATTERN}$", "examples": ["news"]},
        "EventId": {
            "description": "`<milliseconds>-<sequence>` of Redis's clock",
            "type": "string",
            "pattern": f"^{ID_PATTERN}$",
            "examples": [EXAMPLE_ID],
        },
        "EventName": EVENT_NAME,
        "Item": _item(max_event_bytes),
        "Receipt": _receipt(),
        "Upload": _object(
            events={"description": "Events published", "type": "integer", "minimum": 0},
            replayed={
                "description": "Those of them that an earlier request had published",
                "type": "integer",
                "minimum": 0,
            },
            last_id={"anyOf": [ref("schemas", "EventId"), {"type": "null"}]},
        ),
        "History": _object(
            channel=ref("schemas", "ChannelName"),
            events={
                "description": "Oldest first",
                "type": "array",
                "maxItems": MAX_PAGE_EVENTS,
                "items": _object(
                    id=ref("schemas", "EventId"), event={"type": "string"}, data={"type": "string"}
                ),
            },
            next={
                "description": "`after` of the next page; null on the last one",
                "anyOf": [ref("schemas", "EventId"), {"type": "null"}],
            },
        ),
        "Ticket": _object(
            ticket={"type": "string"},
            expires_in={"description": "Seconds", "type": "integer", "minimum": 1},
        ),
        "Live": _object(
            live={"const": True},
            version={"description": "Of the service", "type": "string"},
        ),
        "Ready": _object(
            ready={"type": "boolean"},
            reasons={
                "type": "array",
                "items": {"enum": list(REASONS)},
            },
        ),
    }


def _object(**properties: Schema) -> Schema:
    """An object that has all of these members."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _item(max_event_bytes: int) -> Schema:
    return {
        "type": "object",
        "required": ["data"],
        "anyOf": [
            {"required": ["channel"]},
            {"required": ["channels"], "properties": {"channels": {"minItems": 1}}},
        ],
        "additionalProperties": False,
        "properties": {
            "channel": ref("schemas", "ChannelName"),
            "channels": {
                "type": "array",
                "items": ref("schemas", "ChannelName"),
                "maxItems": MAX_CHANNELS_PER_EVENT,
            },
            "data": {
                "description": (
                    "A string as it is; anything else as JSON. In UTF-8 at most"
                    f" {max_event_bytes} bytes"
                ),
            },
            "event": {"anyOf": [ref("schemas", "EventName"), {"type": "null"}]},
            "retry": {"type": ["integer", "null"], **RETRY},
            "ttl": {"type": ["integer", "null"], **TTL},
            "history": {"description": "`false` delivers live only", "type": ["boolean", "null"]},
            "private": {
                "description": "`true`: only for streams with a grant",
                "type": ["boolean", "null"],
            },
            "idempotency_key": {"type": ["string", "null"], "pattern": KEY_PATTERN},
        },
    }


def _receipt() -> Schema:
    return {
        "type": "object",
        "required": ["id", "replayed"],
        "oneOf": [{"required": ["channel"]}, {"required": ["channels"]}],
        "properties": {
            "id": ref("schemas", "EventId"),
            "channel": ref("schemas", "ChannelName"),
            "channels": {"type": "array", "items": ref("schemas", "ChannelName"), "minItems": 2},
            "replayed": {
                "description": "An earlier request with the same key had published it",
                "type": "boolean",
            },
        },
    }
