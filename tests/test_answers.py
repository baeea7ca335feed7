"""Answers in JSON."""

from __future__ import annotations

from service.routes.answers import json_answer


def test_an_answer_in_json() -> None:
    """JSON that ends with a newline and that nobody keeps; 200 unless said otherwise."""
    response = json_answer({"a": [None]})
    assert (response.status_code, response.data) == (200, b'{"a": [null]}\n')
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert json_answer([], 503).status_code == 503
