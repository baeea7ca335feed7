"""Errors as application/problem+json (RFC 9457), and soft refusals for EventSource."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.wrappers import Request

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
from service.logs import ERROR_CODE, REQUEST_ID
from service.routes.headers import STREAM_TYPE, header
from service.sse import encode_retry

log = logging.getLogger("pushline.http")


class Problems:
    """Answers every error, and counts it by code; nothing is told that isn't the client's."""

    def __init__(self, hub: Hub, refused: Counter[str]) -> None:
        self._hub = hub
        self._refused = refused

    def register(self, app: Flask) -> None:
        """Answer all errors of `app`'s requests."""
        app.register_error_handler(Exception, lambda error: self.answer(request, error))

    def answer(self, request: Request, error: Exception) -> Response:
        """The response to `error`."""
        if isinstance(error, HTTPException) and _is_answer(error):
            return Response(error.get_response().get_data(), error.code or 500)
        if not isinstance(error, (HTTPException, PushlineError)):
            fields = {"request_id": request.environ.get(REQUEST_ID, "")}
            log.error("a request failed", exc_info=error, extra={"fields": fields})
        own = self._as_own(error)
        if own.status == 204:
            return Response(status=204)
        request.environ[ERROR_CODE] = own.code
        self._refused[own.code] += 1
        response = _refusal(request, own)
        if isinstance(error, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return response

    def _as_own(self, error: Exception) -> PushlineError:
        # At the end of a drain no more is read from connections: the client did nothing wrong.
        if isinstance(error, BadBody) and error.broke_off and self._hub.draining:
            draining = Draining()
            draining.members = error.members
            return draining
        if isinstance(error, PushlineError):
            return error
        if isinstance(error, HTTPException):
            return _own_of_http(error)
        return PushlineError("The log of the service has the details")


def _is_answer(error: HTTPException) -> bool:
    return error.response is not None or (error.code or 500) < 400


def _own_of_http(error: HTTPException) -> PushlineError:
    if isinstance(error, NotFound):
        return NoSuchPage()
    if isinstance(error, MethodNotAllowed):
        return WrongMethod()
    wrapped = BadRequest(error.description or "")
    wrapped.status = error.code or 400
    return wrapped


def _refusal(request: Request, error: PushlineError) -> Response:
    """An EventSource gives up for ever on any status but 200: overload tells it to come back."""
    if isinstance(error, Overloaded) and wants_event_stream(request):
        return soft_refusal(error)
    return problem(error)


def wants_event_stream(request: Request) -> bool:
    """Whether the client is an EventSource or says that it is like one."""
    return request.method == "GET" and "text/event-stream" in (header(request, "Accept") or "")


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
