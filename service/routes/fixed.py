"""An answer that is the same for as long as the process lives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from flask import Response
from werkzeug.wrappers import Request


class FixedAnswer:
    """A text with an ETag: clients ask each time, as it may be another after a deploy."""

    def __init__(self, text: str, content_type: str, headers: Mapping[str, str] | None = None):
        self._text = text
        self._type = content_type
        self._headers = {"Cache-Control": "no-cache", **(headers or {})}
        self._etag = hashlib.sha256(text.encode()).hexdigest()[:32]

    def to(self, request: Request) -> Response:
        """The text, or 304 for who has it."""
        # Not make_conditional: it reads dates too, and fails at absurd ones.
        if request.if_none_match.contains_weak(self._etag):
            response = Response(status=304, headers=self._headers)
        else:
            response = Response(self._text, headers=self._headers, content_type=self._type)
        response.set_etag(self._etag)
        return response
