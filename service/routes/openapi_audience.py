"""What openapi.json says of the routes that count and list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.errors import BadParameter
from service.grants import MAX_USER_LETTERS
from service.routes.audience import AFTER, LISTED, MAX_LISTED
from service.routes.openapi_answers import NAMED, READ, SHOW
from service.routes.openapi_facts import Facts
from service.routes.openapi_operations import Operation
from service.routes.openapi_parameters import CHANNEL
from service.routes.openapi_schemas import EXAMPLE_ID, Schema, ref

NUMBER: Schema = {"type": "integer", "minimum": 0}
LAST_ID: Schema = {"anyOf": [ref("schemas", "EventId"), {"type": "null"}]}

LIMIT: Schema = {
    "name": "limit",
    "in": "query",
    "description": "How many are listed at most",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LISTED, "default": LISTED},
}
AFTER_USER: Schema = {
    "name": AFTER,
    "in": "query",
    "description": "Go on after this user",
    "schema": {"type": "string", "maxLength": MAX_USER_LETTERS},
    "example": "ana",
}

ONE = {"channel": "news", "streams": 2, "last_id": EXAMPLE_ID, "events": 7, "ended": False}
ANA = {"user": "ana", "info": {"name": "Ana"}, "streams": 1}


def audience_schemas() -> dict[str, Schema]:
    """The named schemas."""
    user = _object(
        user={"type": "string"},
        info={"description": "What the credential says of the user; any JSON"},
        streams=NUMBER,
    )
    return {
        "Channel": _object(
            channel=ref("schemas", "ChannelName"),
            streams=NUMBER,
            last_id={"description": "Of the last stored event", **LAST_ID},
            events={"description": "How many are kept", **NUMBER},
            ended={"type": "boolean"},
        ),
        "Channels": _object(
            channels=_list(ref("schemas", "Channel"), "Those with most streams first"),
            total={"description": "How many channels have streams", **NUMBER},
            streams={"description": "Their streams, one for each of its channels", **NUMBER},
        ),
        "Presence": _object(
            channel=ref("schemas", "ChannelName"),
            users=_list(user, "In the order of their names"),
            total={"description": "How many users are there", **NUMBER},
            anonymous={"description": "Streams without a user", **NUMBER},
            last_id={
                "description": "The cursor from which `$join` and `$leave` go on",
                **ref("schemas", "EventId"),
            },
            next={
                "description": "`after` of the next page; null on the last one",
                "type": ["string", "null"],
            },
        ),
    }


def audience_operations(facts: Facts) -> Iterator[Operation]:
    """All of them; a GET stands for its HEAD too."""
    yield Operation(
        route="GET /channels",
        name="listChannels",
        tag="Channels",
        summary="Of the channels that the credential names, those with most streams",
        answers={200: _json("Channels", {"channels": [ONE], "total": 1, "streams": 2})},
        errors=(*SHOW, *READ, BadParameter),
        parameters=[LIMIT],
        security=facts.listing,
    )
    yield Operation(
        route="GET /channels/{channel}",
        name="channel",
        tag="Channels",
        summary="How many streams the channel has over all workers, and what it keeps",
        answers={200: _json("Channel", ONE)},
        errors=(*NAMED, *SHOW, *READ),
        parameters=[CHANNEL],
        security=facts.reading,
    )
    listed = {"users": [ANA], "total": 1, "anonymous": 1, "last_id": EXAMPLE_ID, "next": None}
    yield Operation(
        route="GET /channels/{channel}/presence",
        name="presence",
        tag="Channels",
        summary="Who is on the channel; wants what streaming its companion `:presence` wants",
        answers={200: _json("Presence", {"channel": "news", **listed})},
        errors=(*NAMED, *SHOW, *READ, BadParameter),
        parameters=[CHANNEL, LIMIT, AFTER_USER],
        security=facts.reading,
    )


def _json(name: str, example: Any) -> Schema:
    content = {"schema": ref("schemas", name), "example": example}
    return {"description": "The numbers", "content": {"application/json": content}}


def _list(items: Schema, description: str) -> Schema:
    return {"description": description, "type": "array", "maxItems": MAX_LISTED, "items": items}


def _object(**properties: Schema) -> Schema:
    """An object that has all of these members."""
    return {"type": "object", "required": list(properties), "properties": properties}
