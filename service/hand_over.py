"""Between gunicorn and the application: client sockets are offered, and answers are one packet."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import gevent

from service.lean_http import environ_of, is_hot, send_whole
from service.sockets import HAND_OVER, HANDED_OVER, SUPPORTED

Application = Callable[[MutableMapping[str, Any], Any], Iterable[bytes]]


def with_hand_over(application: Application) -> Application:
    """Offer the client's socket to `application`, and end the request quietly when it is taken.

    An answer with `Connection: close` closes the connection.

    Only a plain TCP or unix socket under HTTP/1 qualifies; every other stream is iterated.
    """

    def serve(environ: MutableMapping[str, Any], start_response: Any) -> Iterable[bytes]:
        client = environ.get("gunicorn.socket")
        if can_be_given(client):
            environ[HAND_OVER] = client
        body = application(environ, closing(start_response))
        if HANDED_OVER in environ:
            close = getattr(body, "close", None)
            if close is not None:
                close()
            raise StopIteration  # gunicorn then leaves the connection alone
        if type(body) is list and len(body) == 1:
            send_at_once(start_response.__self__, body[0])
            return ()
        return body

    return serve


def can_be_given(client: object) -> bool:
    """Whether a stream may take a client's socket over: TLS needs its wrapper."""
    return SUPPORTED and type(client) is gevent.socket.socket


def hot_environ(req: Any, sock: socket.socket, addr: Any) -> dict[str, Any] | None:
    """The environ of a plain publish or stream; None for all other requests."""
    if not (is_hot(req.method, req.path) and can_be_given(sock)):
        return None
    environ = environ_of(req, addr)
    if environ is not None:
        environ[HAND_OVER] = sock
    return environ


def send_at_once(response: Any, body: bytes) -> None:
    """Send gunicorn's `response` and its whole body in one packet; gunicorn itself makes two."""
    head = [
        *response.default_headers(),
        *(f"{name}: {value}\r\n" for name, value in response.headers),
    ]
    send_whole(response.sock, "".join([*head, "\r\n"]).encode("latin-1") + body)
    response.headers_sent = True
    response.sent = len(body)


def closing(start_response: Any) -> Any:
    """gunicorn's `start_response`, heeding a `Connection: close`, which gunicorn itself drops."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if ("Connection", "close") in headers:
            start_response.__self__.force_close()
        return start_response(status, headers, exc_info)

    return start
