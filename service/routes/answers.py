"""Answers in JSON."""

from __future__ import annotations

import json
from typing import Any

from flask import Response


def json_answer(body: Any, status: int = 200) -> Response:
    """`body` as JSON that nobody keeps; a newline ends it, for terminals."""
    headers = {"Cache-Control": "no-store"}
    return Response(json.dumps(body) + "\n", status, headers, content_type="application/json")
