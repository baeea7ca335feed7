"""The two hot routes, publishing a text and opening a stream, in front of Flask.

Flask takes about as long for a request as all the rest of a publish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, Response
from werkzeug.routing import Rule
from werkzeug.wrappers import Request

from service.lean_http import CHANNEL, STREAM, Answer, hot_channel
from service.logs import REQUEST_ID
from service.routes.answers import JSON_HEADERS
from service.routes.headers import HEADERS, harden
from service.routes.lazy_request import LazyRequest
from service.routes.origins import Origins
from service.routes.problems import Problems
from service.routes.request_ids import HEADER, RequestIds

PUBLISHED = tuple({**JSON_HEADERS, **HEADERS}.items())


class Front:
    """A WSGI application that serves the hot routes itself and leaves all others to `app`."""

    def __init__(
        self,
        app: Flask,
        publish: Callable[[Request, str], bytes],
        stream: Callable[[Request], Response | None],
        origins: Origins,
        problems: Problems,
        start: Callable[[], None],
        request_ids: RequestIds,
    ) -> None:
        self._flask = app.wsgi_app
        self._publish = publish
        self._stream = stream
        self._origins = origins
        self._problems = problems
        self._start = start
        self._request_ids = request_ids
        # So that Flask knows them too: it lists the methods of a path in a 405.
        app.url_map.add(Rule(CHANNEL + "<channel>", methods=["POST"], endpoint="publish.text"))
        app.url_map.add(Rule(STREAM, methods=["GET"], endpoint="stream.open"))

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve a request; whoever answers it, the answer has its id."""
        environ[REQUEST_ID] = request_id = self._request_ids.of(environ)

        def start_named(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start_response(status, [*headers, (HEADER, request_id)], *more)

        return self._route(environ, start_named)

    def _route(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        # As Werkzeug reads them, or else one of these routes would get to Flask.
        path = "/" + environ["PATH_INFO"].lstrip("/")
        method = environ["REQUEST_METHOD"].upper()
        channel = hot_channel(method, path)
        if channel:
            answer = self._serve_publish(channel, environ)
            start_response(answer.status, list(answer.headers))
            return [answer.body]
        if path == STREAM and method in ("GET", "HEAD"):
            response = self._serve_stream(environ)
            return () if response is None else response(environ, start_response)
        return self._flask(environ, start_response)

    def answer(self, environ: dict[str, Any]) -> Answer | None:
        """Serve a hot request whose socket is offered; None when a stream has taken it."""
        environ[REQUEST_ID] = request_id = self._request_ids.of(environ)
        channel = hot_channel(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if channel:
            answer = self._serve_publish(channel, environ)
        else:
            response = self._serve_stream(environ)
            if response is None:
                return None
            answer = _whole(response, environ)
        return answer._replace(headers=[*answer.headers, (HEADER, request_id)])

    def _serve_publish(self, channel: str, environ: dict[str, Any]) -> Answer:
        request = LazyRequest(environ)
        try:
            self._admit(request)
            body = self._publish(request, channel)
        except Exception as error:
            return _whole(self._refuse(request, error), environ)
        headers = [("Content-Length", str(len(body))), *PUBLISHED]
        return Answer("200 OK", [*headers, *self._origins.headers(request).items()], body)

    def _serve_stream(self, environ: dict[str, Any]) -> Response | None:
        request = LazyRequest(environ)
        try:
            self._admit(request)
            return self._stream(request)
        except Exception as error:
            return self._refuse(request, error)

    def _admit(self, request: Request) -> None:
        self._start()
        self._origins.check_host(request)

    def _refuse(self, request: Request, error: Exception) -> Response:
        return harden(self._origins.allow(request, self._problems.answer(request, error)))


def _whole(response: Response, environ: dict[str, Any]) -> Answer:
    body, status, headers = response.get_wsgi_response(environ)
    return Answer(status, headers, b"".join(body))
