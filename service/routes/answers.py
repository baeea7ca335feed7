"""Answers in JSON."""

from __future__ import annotations

import json
from typing import Any

from flask import Response

JSON_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}


def json_answer(body: Any, status: int = 200) -> Response:
    """`body` as JSON that nobody keeps."""
    return Response(json_bytes(body), status, JSON_HEADERS)


def json_bytes(body: Any) -> bytes:
    """`body` as JSON; a newline ends it, for terminals."""
    return json.dumps(body).encode() + b"\n"
