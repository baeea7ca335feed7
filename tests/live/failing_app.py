"""The service with faults that requests ask for, so that it is seen what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import gevent
from flask import Flask, request

import service.app


def create_app() -> Flask:
    """The service; a header `Fail` says where a request is to fail."""
    app = service.app.create_app()
    application: Callable[..., Iterable[bytes]] = app.wsgi_app

    def fail_inside() -> None:
        if request.headers.get("Fail") == "inside":
            raise RuntimeError(f"{request.method} {request.url} can't be served")
        if request.headers.get("Fail") == "greenlet":
            gevent.spawn(failing, request.full_path, dict(request.headers)).join()

    def fail_outside(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("HTTP_FAIL") == "outside":
            raise RuntimeError(f"{environ['RAW_URI']} can't be served")
        return application(environ, start_response)

    app.before_request(fail_inside)
    app.wsgi_app = fail_outside  # type: ignore[method-assign]
    return app


def failing(path: str, headers: dict[str, str]) -> None:
    """Fail in a greenlet of its own."""
    raise RuntimeError(f"{path} of {headers['Host']} can't be served")
