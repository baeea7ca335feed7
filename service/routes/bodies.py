"""Request bodies: which are taken, which broke off; read whole within limits of size and time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
from gunicorn.http.body import LengthReader
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected
from werkzeug.http import parse_options_header
from werkzeug.wrappers import Request

from service.errors import BadBody, BodyTooSlow, EventTooLarge, UnsupportedBody
from service.routes.headers import header

BODY_SECONDS = 10.0
"""How long a body may take; gunicorn itself never cuts a slow one."""

REFUSED_TYPES = ("multipart/", "application/octet-stream")


def read_text(request: Request, at_most_bytes: int) -> str:
    """The body of `request` as text.

    Raises EventTooLarge, BodyTooSlow, UnsupportedBody, and BadBody for what isn't UTF-8.
    """
    check_type(request)
    try:
        return _read(request, at_most_bytes).decode()
    except UnicodeDecodeError as error:
        raise BadBody(f"byte {error.start} of the body is not UTF-8", fix="Send UTF-8") from None


def check_type(request: Request) -> None:
    """Raise UnsupportedBody for a type, charset or encoding that is no plain UTF-8."""
    _check_content_type(request.environ.get("CONTENT_TYPE", ""))
    encoding = (header(request, "Content-Encoding") or "identity").lower()
    if encoding != "identity":
        raise UnsupportedBody(
            f"the body's encoding is {encoding[:40]!r}", fix="Send it uncompressed"
        )


@functools.lru_cache(maxsize=256)
def _check_content_type(content_type: str) -> None:
    kind, parameters = parse_options_header(content_type)
    kind = kind.lower()
    if kind.startswith(REFUSED_TYPES):
        raise UnsupportedBody(f"the body's type is {kind}", fix="Send text, or JSON to /publish")
    charset = parameters.get("charset", "utf-8").lower()
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedBody(f"the body's charset is {charset[:40]!r}", fix="Send UTF-8")


def _read(request: Request, at_most_bytes: int) -> bytes:
    reader = getattr(request.environ["wsgi.input"], "reader", None)
    held = b""
    if isinstance(reader, LengthReader) and reader.length <= at_most_bytes:
        held = take_held(reader)
        if not reader.length:
            return held
    return _read_on(request, at_most_bytes, held)


def take_held(reader: LengthReader) -> bytes:
    """What of the rest of a body gunicorn has received already."""
    held: bytes = reader.unreader.take_buffered()
    taken = held[: reader.length]
    if len(taken) < len(held):
        reader.unreader.unread(held[len(taken) :])
    reader.length -= len(taken)
    return taken


def _read_on(request: Request, at_most_bytes: int, held: bytes) -> bytes:
    length, stream = request.content_length, request.stream
    if (length or 0) > at_most_bytes:
        raise _too_large(at_most_bytes)
    parts = [held]
    # Without a Content-Length, one byte more tells too large from just fitting.
    left = (at_most_bytes + 1 if length is None else length) - len(held)
    slow = BodyTooSlow(f"it took over {BODY_SECONDS:.0f} s")
    with breaking_off(), gevent.Timeout(BODY_SECONDS, slow):
        while left and (part := stream.read(left)):
            parts.append(part)
            left -= len(part)
    body = b"".join(parts)
    if len(body) > at_most_bytes:
        raise _too_large(at_most_bytes)
    check_length(len(body), length)
    return body


def _too_large(at_most_bytes: int) -> EventTooLarge:
    return EventTooLarge(f"the body is larger than {at_most_bytes} bytes")


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
