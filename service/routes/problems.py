"""Errors as application/problem+json (RFC 9457), and soft refusals for EventSource."""

from __future__ import annotations

import json
import logging
import random

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from service.errors import (
    BadBody,
    BadRequest,
    Draining,
    NoSuchPage,
    Overloaded,
    PushlineError,
    WrongMethod,
)
from service.hub import Hub
from service.routes.headers import STREAM_TYPE
from service.sse import encode_retry

log = logging.getLogger("pushline.http")


def register_error_handlers(app: Flask, hub: Hub) -> None:
    """Answer every error of `app` with problem+json; nothing is told that isn't the client's."""

    def answer_bad_body(error: BadBody) -> Response:
        # At the end of a drain no more is read from connections: the client did nothing wrong.
        if not (error.broke_off and hub.draining):
            return answer(error)
        draining = Draining()
        draining.members = error.members
        return answer(draining)

    app.register_error_handler(PushlineError, answer)
    app.register_error_handler(BadBody, answer_bad_body)
    app.register_error_handler(HTTPException, _answer_http)
    app.register_error_handler(Exception, _answer_failure)


def answer(error: PushlineError) -> Response:
    """The response to `error`.

    An EventSource gives up for ever on any status but 200, so overload tells it to come back.
    """
    if error.status == 204:
        return Response(status=204)
    if isinstance(error, Overloaded) and wants_event_stream():
        return soft_refusal(error)
    return problem(error)


def wants_event_stream() -> bool:
    """Whether the client is an EventSource or says that it is like one."""
    return request.method == "GET" and "text/event-stream" in request.headers.get("Accept", "")


def soft_refusal(error: Overloaded) -> Response:
    """200, a jittered `retry:` and a clean end."""
    body = encode_retry(random.randint(*error.retry_range_milliseconds))
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(body, 200, headers, content_type=STREAM_TYPE)


def problem(error: PushlineError) -> Response:
    """`error` as a problem document."""
    body: dict[str, object] = {
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
    }
    if error.fix:
        body["fix"] = error.fix
    if any(error.published):
        body["published"] = list(error.published)
    body.update(error.members)
    response = Response(
        json.dumps(body) + "\n", error.status, content_type="application/problem+json"
    )
    response.headers["Cache-Control"] = "no-store"
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(error.retry_after_seconds)
    if error.challenge is not None:
        response.headers["WWW-Authenticate"] = error.challenge
    return response


def _answer_http(error: HTTPException) -> Response:
    if error.response is not None or (error.code or 500) < 400:
        return Response(error.get_response().get_data(), error.code or 500)
    if isinstance(error, NotFound):
        return problem(NoSuchPage())
    if isinstance(error, MethodNotAllowed):
        response = problem(WrongMethod())
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return response
    wrapped = BadRequest(error.description or "")
    wrapped.status = error.code or 400
    return problem(wrapped)


def _answer_failure(error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    return problem(PushlineError("The log of the service has the details"))
