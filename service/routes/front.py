"""The two hot routes, publishing a text and opening a stream, in front of Flask.

Flask takes about as long for a request as all the rest of a publish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, Response
from werkzeug.routing import Rule
from werkzeug.wrappers import Request

from service.logs import REQUEST_ID
from service.routes.answers import JSON_HEADERS
from service.routes.headers import HEADERS, harden
from service.routes.origins import Origins
from service.routes.problems import Problems
from service.routes.request_ids import HEADER, RequestIds

CHANNEL = "/channels/"
STREAM = "/stream"

ANSWER_HEADERS = {**JSON_HEADERS, **HEADERS}


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
        if method == "POST" and path.startswith(CHANNEL):
            channel = path[len(CHANNEL) :]
            if channel and "/" not in channel:
                return self._serve_publish(channel, environ, start_response)
        elif path == STREAM and method in ("GET", "HEAD"):
            return self._serve_stream(environ, start_response)
        return self._flask(environ, start_response)

    def _serve_publish(
        self, channel: str, environ: dict[str, Any], start_response: Any
    ) -> Iterable[bytes]:
        request = Request(environ)
        try:
            self._admit(request)
            body = self._publish(request, channel)
        except Exception as error:
            return self._refuse(request, error, start_response)
        length = {"Content-Length": str(len(body))}
        headers = {**length, **ANSWER_HEADERS, **self._origins.headers(request)}
        start_response("200 OK", list(headers.items()))
        return [body]

    def _serve_stream(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        try:
            self._admit(request)
            response = self._stream(request)
        except Exception as error:
            return self._refuse(request, error, start_response)
        return () if response is None else response(environ, start_response)

    def _admit(self, request: Request) -> None:
        self._start()
        self._origins.check_host(request)

    def _refuse(self, request: Request, error: Exception, start_response: Any) -> Iterable[bytes]:
        response = self._origins.allow(request, self._problems.answer(request, error))
        return harden(response)(request.environ, start_response)
