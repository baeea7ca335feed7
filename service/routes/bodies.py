"""Request bodies: read whole within limits of size and time, and decoded."""

from __future__ import annotations

import gevent
from flask import request
from gunicorn.http.errors import ParseException

from service.errors import BadBody, BodyTooSlow, EventTooLarge, UnsupportedBody

BODY_SECONDS = 10.0
"""How long a body may take; gunicorn itself never cuts a slow one."""

REFUSED_TYPES = ("multipart/", "application/octet-stream")


def read_text(at_most_bytes: int) -> str:
    """The request's body as text.

    Raises EventTooLarge, BodyTooSlow, UnsupportedBody, and BadBody for what isn't UTF-8.
    """
    _check_type()
    try:
        return _read(at_most_bytes).decode()
    except UnicodeDecodeError as error:
        raise BadBody(f"byte {error.start} of the body is not UTF-8", fix="Send UTF-8") from None


def _check_type() -> None:
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
    try:
        with gevent.Timeout(BODY_SECONDS, BodyTooSlow(f"it took over {BODY_SECONDS:.0f} s")):
            while left and (part := request.stream.read(left)):
                parts.append(part)
                left -= len(part)
    except (OSError, ValueError, ParseException) as error:  # gunicorn's, for bad chunks
        raise BadBody(f"the body broke off or is badly chunked: {type(error).__name__}") from error
    if not left:
        raise too_large
    body = b"".join(parts)
    if len(body) < (request.content_length or 0):  # gunicorn reads such a body without a word
        raise BadBody(f"the body broke off: {len(body)} of {request.content_length} bytes came")
    return body
