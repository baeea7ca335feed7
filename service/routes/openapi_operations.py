"""What openapi.json says of routes: what each method takes, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import BadChannel, BadParameter, TooManyPublishes
from service.routes.items import MAX_BATCH_EVENTS, MAX_BATCH_FACTOR
from service.routes.metrics import OPENMETRICS
from service.routes.openapi_answers import (
    LOGIN,
    NAMED,
    OPEN,
    READ,
    SELECT,
    SHOW,
    UPLOAD,
    WHOLE,
    WRITE,
    Errors,
)
from service.routes.openapi_facts import Facts
from service.routes.openapi_parameters import (
    CHANNEL,
    IDEMPOTENCY_KEY,
    PAGE_PARAMETERS,
    REASON,
    WHOSE_STREAMS,
    named_channels,
    stream_parameters,
    text_parameters,
)
from service.routes.openapi_schemas import EXAMPLE_ID, Schema, ref
from service.routes.publish import NDJSON_TYPES
from service.version import VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A method of a route. `answers` are the good ones; `head_errors` where HEAD has fewer."""

    route: str
    name: str
    tag: str
    summary: str
    answers: dict[int, Schema]
    errors: Errors = ()
    head_errors: Errors | None = None
    parameters: Sequence[Schema] = ()
    body: Schema | None = None
    security: Sequence[Schema] = ()


def operations(facts: Facts) -> Iterator[Operation]:
    """All of them; a GET stands for its HEAD too."""
    yield from _streams(facts)
    yield from _texts(facts)
    yield from _items(facts)
    yield from _channels(facts)
    yield from _status()
    yield from _metrics(facts)
    yield from _files()


def _json(name: str, description: str, example: Any) -> Schema:
    content = {"schema": ref("schemas", name), "example": example}
    return {"description": description, "content": {"application/json": content}}


RECEIPT = {"id": EXAMPLE_ID, "channel": "news", "replayed": False}
UPLOADED = {"events": 2, "replayed": 0, "last_id": EXAMPLE_ID}


def _streams(facts: Facts) -> Iterator[Operation]:
    text = {"type": "string"}
    headers = {
        "Pushline-Stream": {"description": "Its name, for `DELETE /streams`", "schema": text},
        "Mercure-Last-Event-ID": {
            "description": "The cursor, or `earliest` where something may be missing",
            "schema": text,
        },
    }
    headers |= {
        "Content-Encoding": {"description": "Where gzip is accepted", "schema": {"const": "gzip"}},
        "Vary": {"description": "What else the answer depends on", "schema": text},
    }
    opening = {"schema": text, "example": f"retry: 1968\nid: {EXAMPLE_ID}\n\n"}
    stream = {
        "description": "The stream; without `Pushline-Stream` there is none now",
        "headers": headers,
        "content": {"text/event-stream": opening},
    }
    yield Operation(
        route="GET /stream",
        name="stream",
        tag="Streams",
        summary="Stream channels",
        answers={200: stream},
        errors=OPEN,
        head_errors=SELECT,
        parameters=stream_parameters(facts.max_channels),
        security=facts.reading,
    )
    ticket = {"ticket": "k3Jv9c1pUo7rT5mXq2LwZ8yB4nE6hA0sDfGiKjMlPtQ", "expires_in": 60}
    yield Operation(
        route="POST /tickets",
        name="issueTicket",
        tag="Streams",
        summary="Turn a credential into a short-lived `?ticket=` for streams",
        answers={200: _json("Ticket", "The ticket", ticket)},
        errors=(*SHOW, *WRITE, BadChannel, BadParameter),
        parameters=[named_channels(facts.max_channels)],
        security=facts.login("bearer", "cookie", anyone=facts.anyone_streams),
    )
    yield Operation(
        route="DELETE /streams",
        name="closeStreams",
        tag="Streams",
        summary="Close all streams of a user, or one stream: exactly one of them is named",
        answers={202: {"description": "All workers are told"}},
        errors=(*LOGIN, *WRITE, BadParameter),
        parameters=WHOSE_STREAMS,
        security=facts.login("bearer", anyone=facts.anyone_administrates),
    )


def _texts(facts: Facts) -> Iterator[Operation]:
    limit = f"UTF-8, at most {facts.max_event_bytes} bytes"
    whole = {"type": "string", "maxLength": facts.max_event_bytes}
    yield Operation(
        route="POST /channels/{channel}",
        name="publishText",
        tag="Publish",
        summary="Publish the body as one event",
        answers={200: _json("Receipt", "Redis has accepted the event", RECEIPT)},
        errors=(*NAMED, *WHOLE),
        parameters=[CHANNEL, *text_parameters(), IDEMPOTENCY_KEY],
        body={
            "description": f"Byte for byte, whatever its text type: {limit}",
            "content": {"text/plain": {"schema": whole, "example": "hello"}},
        },
        security=facts.publishing,
    )
    lines = {"schema": {"type": "string"}, "example": "one\ntwo\n"}
    yield Operation(
        route="PUT /channels/{channel}",
        name="uploadTexts",
        tag="Publish",
        summary="Publish each line of the body as one event, as it arrives",
        answers={200: _json("Upload", "All lines are published", UPLOADED)},
        errors=(*NAMED, *UPLOAD),
        parameters=[CHANNEL, *text_parameters()],
        body={
            "description": f"Lines that end with LF or CRLF; of each {limit}",
            "content": {"text/plain": lines},
        },
        security=facts.publishing,
    )


def _items(facts: Facts) -> Iterator[Operation]:
    item, receipt = ref("schemas", "Item"), ref("schemas", "Receipt")
    one = {"channel": "news", "event": "price", "data": {"eur": 42}}
    two = {"channels": ["news", "log"], "data": "hello", "private": True}
    array = {"type": "array", "items": item, "minItems": 1, "maxItems": MAX_BATCH_EVENTS}
    json_body = {
        "schema": {"oneOf": [item, array]},
        "examples": {"one": {"value": one}, "several": {"value": [one, two]}},
    }
    lines = {
        "schema": {"description": "One object per line", "type": "array", "items": item},
        "example": '{"channel": "news", "data": "one"}\n{"channel": "news", "data": "two"}\n',
    }
    upload = dict.fromkeys(NDJSON_TYPES, lines)
    answers = [receipt, {"type": "array", "items": receipt}, ref("schemas", "Upload")]
    told = {"schema": {"anyOf": answers}, "example": RECEIPT}
    yield Operation(
        route="POST /publish",
        name="publishItems",
        tag="Publish",
        summary="Publish one JSON object, or an array in order; lines of them as PUT does",
        answers={200: {"description": "As the body is", "content": {"application/json": told}}},
        errors=(*WHOLE, *UPLOAD),
        body={"required": True, "content": {"application/json": json_body, **upload}},
        security=facts.publishing,
    )
    yield Operation(
        route="PUT /publish",
        name="uploadItems",
        tag="Publish",
        summary="Publish the JSON object on each line, as it arrives",
        answers={200: _json("Upload", "All lines are published", UPLOADED)},
        errors=UPLOAD,
        body={
            "description": f"A line has at most {MAX_BATCH_FACTOR * facts.max_event_bytes} bytes",
            "content": upload,
        },
        security=facts.publishing,
    )


def _channels(facts: Facts) -> Iterator[Operation]:
    yield Operation(
        route="POST /channels/{channel}/end",
        name="endChannel",
        tag="Channels",
        summary="Finish the channel: its streams end, and it takes no more events",
        answers={200: _json("Receipt", "The id of `$end`", RECEIPT)},
        errors=(*NAMED, *LOGIN, *WRITE, BadParameter, TooManyPublishes),
        parameters=[CHANNEL, REASON],
        security=facts.publishing,
    )
    yield Operation(
        route="DELETE /channels/{channel}",
        name="forgetChannel",
        tag="Channels",
        summary="Forget the channel's history, and that it is finished",
        answers={204: {"description": "It is forgotten"}},
        errors=(*NAMED, *LOGIN, *WRITE),
        parameters=[CHANNEL],
        security=facts.publishing,
    )
    event = {"id": EXAMPLE_ID, "event": "price", "data": '{"eur":42}'}
    page = {"channel": "news", "events": [event], "next": None}
    yield Operation(
        route="GET /channels/{channel}/events",
        name="history",
        tag="Channels",
        summary="The history",
        answers={200: _json("History", "A page of it", page)},
        errors=(*NAMED, *SHOW, *READ, BadParameter),
        parameters=[CHANNEL, *PAGE_PARAMETERS],
        security=facts.reading,
    )


def _status() -> Iterator[Operation]:
    yield Operation(
        route="GET /livez",
        name="live",
        tag="Operations",
        summary="200 while the worker turns",
        answers={200: _json("Live", "It does", {"live": True, "version": VERSION})},
    )
    unready = {"ready": False, "reasons": ["draining"]}
    yield Operation(
        route="GET /readyz",
        name="ready",
        tag="Operations",
        summary="200 when streams and publishes will work",
        answers={
            200: _json("Ready", "They will", {"ready": True, "reasons": []}),
            503: _json("Ready", "They won't", unready),
        },
    )


def _metrics(facts: Facts) -> Iterator[Operation]:
    text = {"schema": {"type": "string"}}
    yield Operation(
        route="GET /metrics",
        name="metrics",
        tag="Operations",
        summary="The numbers of all workers, for Prometheus, with `METRICS_TOKEN` or claim `admin`",
        answers={200: {"description": "They", "content": {"text/plain": text, OPENMETRICS: text}}},
        errors=LOGIN,
        security=facts.login("bearer", anyone=facts.anyone_administrates),
    )


def _files() -> Iterator[Operation]:
    etag = {"ETag": {"required": True, "schema": {"type": "string"}}}
    for path, name, summary, media_type, schema in (
        ("/openapi.json", "openapi", "This document", "application/json", {"type": "object"}),
        ("/docs", "reference", "This document as a page", "text/html", {"type": "string"}),
        ("/", "page", "The demo page", "text/html", {"type": "string"}),
        ("/dashboard", "dashboard", "The dashboard", "text/html", {"type": "string"}),
    ):
        yield Operation(
            route=f"GET {path}",
            name=name,
            tag="Operations",
            summary=summary,
            answers={
                200: {
                    "description": "It",
                    "headers": etag,
                    "content": {media_type: {"schema": schema}},
                },
                304: {"description": "The client has it"},
            },
        )
