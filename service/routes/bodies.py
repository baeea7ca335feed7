"""Request bodies: which are taken, which broke off; read whole within limits of size and time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gevent
from flask import request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected

from service.errors import BadBody, BodyTooSlow, EventTooLarge, UnsupportedBody

BODY_SECONDS = 10.0
"""How long a body may take; gunicorn itself never cuts a slow one."""

REFUSED_TYPES = ("multipart/", "application/octet-stream")


def read_text(at_most_bytes: int) -> str:
    """The request's body as text.

    Raises EventTooLarge, BodyTooSlow, UnsupportedBody, and BadBody for what isn't UTF-8.
    """
    check_type()
    try:
        return _read(at_most_bytes).decode()
    except UnicodeDecodeError as error:
        raise BadBody(f"byte {error.start} of the body is not UTF-8", fix="Send UTF-8") from None


def check_type() -> None:
    """Raise UnsupportedBody for a type, charset or encoding that is no plain UTF-8."""
    kind = request.mimetype
    if kind.startswith(REFUSED_TYPES):
        raise UnsupportedBody(f"the body's type is {kind}", fix="Send text, or JSON to /publish")
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedBody(f"the body's charset is {charset[:40]!r}", fix="Send UTF-8")
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedBody(
            f"the body's encoding is {encoding[:40]!r}", fix="Send it uncompressed"
        )


def _read(at_most_bytes: int) -> bytes:
    # Reading one byte more tells too large from just fitting, also without a Content-Length.
    too_large = EventTooLarge(f"the body is larger than {at_most_bytes} bytes")
    if (request.content_length or 0) > at_most_bytes:
        raise too_large
    parts: list[bytes] = []
    left = at_most_bytes + 1
    slow = BodyTooSlow(f"it took over {BODY_SECONDS:.0f} s")
    with breaking_off(), gevent.Timeout(BODY_SECONDS, slow):
        while left and (part := request.stream.read(left)):
            parts.append(part)
            left -= len(part)
    if not left:
        raise too_large
    body = b"".join(parts)
    check_length(len(body), request.content_length)
    return body


@contextmanager
def breaking_off() -> Iterator[None]:
    """Turn what reading raises, when the client leaves or sends bad chunks, into BadBody."""
    try:
        yield
    except (OSError, ValueError, ParseException, ClientDisconnected) as error:
        name = type(error).__name__
        raise BadBody.broken_off(f"the body broke off or is badly chunked: {name}") from error


def check_length(count: int, expected: int | None) -> None:
    """Raise BadBody for a body of too few bytes: gunicorn reads such a one without a word."""
    if count < (expected or 0):
        raise BadBody.broken_off(f"the body broke off: {count} of {expected} bytes came")
