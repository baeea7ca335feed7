"""What openapi.json says of errors: the problem document, and which error each route may tell."""

from __future__ import annotations

from collections.abc import Iterator

from service import errors
from service.error_codes import codes_of, kinds, problem_codes
from service.errors import BadRequest, PushlineError, RedisRefused
from service.routes.openapi_schemas import Schema, ref

Errors = tuple[type[PushlineError], ...]

TOO_LONG = (414, 431)
"""What gunicorn says, with `bad_request`, to a request line and to headers that are too long."""

ANY: Errors = (BadRequest, errors.ForeignHost, PushlineError)
"""What any route may answer."""

LOGIN: Errors = (
    errors.Unauthorized,
    errors.BadCredential,
    errors.ExpiredCredential,
    errors.NotGranted,
    errors.ForeignOrigin,
    errors.CannotAuthorize,
)

SHOW: Errors = (*LOGIN, errors.TooManyConnects)
"""Of a credential for streams, which an address may show so often."""

NAMED: Errors = (errors.BadChannel, errors.NoSuchPage, errors.WrongMethod)
"""Of a path with a channel in it: with a slash in its name it is another path."""

READ: Errors = (errors.RedisError, errors.RedisDown, errors.RedisPoolBusy, RedisRefused)

WRITE: Errors = (*READ, errors.RedisChanged, errors.OutcomeUnknown)

PUBLISH: Errors = (
    *LOGIN,
    *WRITE,
    errors.BadBody,
    errors.BadChannel,
    errors.BadEvent,
    errors.BadParameter,
    errors.EventTooLarge,
    errors.UnsupportedBody,
    errors.IdempotencyConflict,
    errors.ChannelEnded,
)

WHOLE: Errors = (*PUBLISH, errors.BodyTooSlow, errors.TooManyPublishes)
"""Of a body that is read whole."""

UPLOAD: Errors = (*PUBLISH, errors.Draining)
"""Of a body that is published as it arrives."""

SELECT: Errors = (*SHOW, errors.BadChannel, errors.BadParameter, errors.BadEvent)
"""Of a stream, before it is opened."""

OPEN: Errors = (
    *SELECT,
    errors.NothingToCome,
    errors.TooManyStreams,
    errors.TooManyStreamsFromAddress,
    errors.TooManyStreamsOfUser,
    errors.Draining,
    errors.NotFollowing,
    errors.Overloaded,
)

HEADERS: dict[int, Schema] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    405: {"Allow": {"required": True, "schema": {"type": "string"}}},
}
RETRY_AFTER: Schema = {
    "Retry-After": {
        "description": "Seconds",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    }
}


def problem_schema() -> Schema:
    """The document that tells of any error."""
    return {
        "description": "A problem document (RFC 9457)",
        "type": "object",
        "required": ["title", "status", "code", "detail"],
        "properties": {
            "title": {"type": "string"},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "code": {"enum": problem_codes()},
            "detail": {"type": "string"},
            "fix": {"description": "How to mend it", "type": "string"},
            "published": {
                "description": "Of an array: the id of each event that went out, else null",
                "type": "array",
                "items": {"anyOf": [ref("schemas", "EventId"), {"type": "null"}]},
            },
            "line": {
                "description": "Of an upload: the first line that isn't published for certain",
                "type": "integer",
                "minimum": 1,
            },
            "events": {
                "description": "Of an upload: how many are published",
                "type": "integer",
                "minimum": 0,
            },
        },
    }


def problems() -> Iterator[tuple[str, Schema]]:
    """For each status the answer that is a problem with one of its codes."""
    statuses = {kind.status for kind in kinds() if kind.status >= 400}
    for status in sorted(statuses.union(TOO_LONG)):
        same = [kind for kind in kinds() if kind.status == status] or [BadRequest]
        told = {"status": {"const": status}, "code": {"enum": codes_of(same)}}
        schema = {"allOf": [ref("schemas", "Problem"), {"properties": told}]}
        later = all(kind.retry_after_seconds is not None for kind in same)
        yield (
            _name(status),
            {
                "description": "\n".join(
                    f"- `{', '.join(codes_of([kind]))}`: {kind.title}" for kind in same
                ),
                "headers": RETRY_AFTER if later else HEADERS.get(status, {}),
                "content": {"application/problem+json": {"schema": schema}},
            },
        )


def told(some: Errors) -> Iterator[tuple[int, Schema]]:
    """The answers to errors; their descriptions list the codes that a status may have here."""
    some = (*ANY, *some)
    for status in sorted({kind.status for kind in some}.union(TOO_LONG)):
        same = [kind for kind in some if kind.status == status] or [BadRequest]
        codes = ", ".join(f"`{code}`" for code in codes_of(same))
        if status < 400:
            yield status, {"description": f"{codes}: {same[0].title}"}
        else:
            yield status, {**ref("responses", _name(status)), "description": codes}


def _name(status: int) -> str:
    return f"Problem{status}"
