"""The gunicorn worker: start, hand-over of client sockets, drain.

gunicorn's master imports this before any patching, so Flask and redis must stay out of it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import signal
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import gevent
from gunicorn.http.errors import ParseException
from gunicorn.workers.ggevent import GeventWorker

from service.acceptor import Acceptor
from service.fan_out import SLICE_SECONDS, give_way
from service.hand_over import hot_environ, with_hand_over
from service.lean_http import Answer, send
from service.logs import hold_lines, log_request, noted
from service.routes.headers import HEADERS

if TYPE_CHECKING:
    from service.service import Service

log = logging.getLogger("pushline.worker")

Answers = Callable[[dict[str, Any]], Answer | None]
"""Front.answer."""

APPLICATION_FAULTS = ("InvalidResponseHeader", "InvalidResponseHeaderName")
"""What gunicorn counts among them though the application did it."""

STATUS_OF = {
    "LimitRequestLine": 414,
    "LimitRequestHeaders": 431,
    "ExpectationFailed": 417,
    "UnsupportedTransferCoding": 501,
}
"""The status of what gunicorn can't read, where it isn't 400."""

NOTICE_SECONDS = 1.0
"""How long connections that are kept open get answers with `Connection: close`, before they are
closed: a request that crosses the close would fail."""

FRESH_SECONDS = 1.0
"""How long a new connection isn't idle: its first request may still be on the way."""


class PushlineWorker(GeventWorker):
    """A gevent worker that gives stream sockets away, and ends all streams before it exits."""

    service: Service
    _answer: Answers | None
    _stopping = False
    _turn = 0
    _turn_began = 0.0

    def load_wsgi(self) -> None:
        """Load the application and put the hand-over around it."""
        super().load_wsgi()
        # gunicorn looks up some 20 settings for each request, by two calls of functions each. Those
        # of a worker never change: a reload starts new ones.
        vars(self.cfg).update({name: one.get() for name, one in self.cfg.settings.items()})
        app: Any = self.wsgi
        self.service = app.extensions["pushline"]
        # Whoever has put something around the front sees every request.
        self._answer = getattr(app.wsgi_app, "answer", None)
        self.wsgi = with_hand_over(app)
        self._idle_from: dict[socket.socket, float] = {}
        # gunicorn calls this for each listener.
        acceptor: Any = functools.partial(Acceptor, self.handle, alone=self.cfg.workers == 1)
        self.server_class = acceptor  # type: ignore[misc]  # a class to gunicorn, our handle is a method

    def run(self) -> None:
        """Start the service, serve until told to stop, and stop it."""
        hub: Any = gevent.get_hub()
        hub.print_exception = log_failure
        self.service.start(failed=self._give_up)
        if self.service.sockets is not None:
            for listener in self.sockets:
                self.service.sockets.prepare(listener)
        hold_lines(gevent.spawn_later)
        try:
            super().run()
        finally:
            self.service.stop()
            hold_lines(None)

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve a connection, which is idle but for the requests on it."""
        self._idle_from[client] = time.monotonic() + FRESH_SECONDS
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle_from.pop(client, None)

    def handle_request(self, listener_name: Any, req: Any, sock: socket.socket, addr: Any) -> bool:
        """Serve one request of a connection."""
        self._idle_from.pop(sock, None)
        if self._stopping:
            req.force_close()
        environ = hot_environ(req, sock, addr) if self._answer else None
        if self._answer and environ is not None:
            with contextlib.suppress(gevent.GreenletExit):  # the end of a stop: as gunicorn does
                self._reply(self._answer, environ, req, sock)
        else:
            super().handle_request(listener_name, req, sock, addr)
        self._idle_from[sock] = now = time.monotonic()
        self._let_others_run(now)
        return True

    def _let_others_run(self, now: float) -> None:
        """Give way if nobody has looked at sockets for a slice: a client that sends request after
        request, none of which waits for anything, would else have the worker to itself.
        """
        turn = gevent.get_hub().loop.iteration
        if turn != self._turn:
            self._turn, self._turn_began = turn, now
        elif now - self._turn_began > SLICE_SECONDS:
            give_way()

    def _reply(
        self, answers: Answers, environ: dict[str, Any], req: Any, sock: socket.socket
    ) -> None:
        """Answer a hot request; raises StopIteration when the connection ends or is given away."""
        started = time.monotonic()
        answer = answers(environ)
        if answer is None:
            raise StopIteration
        closes = not self.alive or not self.cfg.keepalive or req.should_close()
        try:
            send(sock, answer, closes=closes)
        finally:
            log_request(
                address=environ["REMOTE_ADDR"],
                method=req.method,
                path=req.path,
                status=int(answer.status[:3]),
                sent_bytes=len(answer.body),
                seconds=time.monotonic() - started,
                **noted(environ),
            )
        if closes:
            raise StopIteration

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer what is no HTTP request with a problem; its bytes stay out of the log."""
        name = type(exc).__name__
        if not isinstance(exc, ParseException) or name in APPLICATION_FAULTS:
            super().handle_error(req, client, addr, exc)
            return
        self.log.warning("no HTTP request: %s", name)
        status = STATUS_OF.get(name, 400)
        with contextlib.suppress(OSError):
            client.sendall(unreadable(status))

    def _give_up(self) -> None:
        self.log.error("a part of the worker has failed: it drains, and another takes its place")
        self.handle_exit(signal.SIGTERM, None)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """On the first SIGTERM start to drain; more of them change nothing."""
        if not self.booted:
            super().handle_exit(sig, frame)
        elif not self._stopping:
            self._stopping = True
            gevent.spawn(self._drain_and_stop)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """On SIGINT or SIGQUIT end all streams cleanly, but at once."""
        self._stopping = True
        gevent.spawn(self._quit, sig, frame)

    def _quit(self, sig: int, frame: Any) -> None:
        self.service.drain(0)
        super().handle_quit(sig, frame)

    def _drain_and_stop(self) -> None:
        noticed_at = time.monotonic() + NOTICE_SECONDS
        try:
            self.service.drain()
            while self._idle_from and time.monotonic() < noticed_at:
                gevent.sleep(0.05)
        finally:
            self.alive = False
            self._close_idle_connections()

    def _close_idle_connections(self) -> None:
        # gunicorn would wait `keepalive` seconds for each, until its own master kills the worker.
        # Only reading is shut: a request that has just come in is still answered.
        while True:
            now = time.monotonic()
            for client in [one for one, idle_from in self._idle_from.items() if idle_from <= now]:
                _end_reading(client)
            gevent.sleep(0.1)


def log_failure(context: object, kind: Any, error: Any, trace: Any) -> None:
    """Log why a greenlet has failed; gevent itself would print its arguments too."""
    log.error("a greenlet failed", exc_info=(kind, error, trace))


def unreadable(status: int) -> bytes:
    """The whole answer to bytes that gunicorn can't read as a request."""
    reason = HTTPStatus(status).phrase
    problem = {
        "title": "The request can't be read",
        "status": status,
        "code": "bad_request",
        "detail": reason,
        "fix": "Send HTTP/1.1 with a request line and headers of at most 8190 bytes each",
    }
    body = json.dumps(problem) + "\n"
    head = [
        f"HTTP/1.1 {status} {reason}",
        "Connection: close",
        "Content-Type: application/problem+json",
        "Cache-Control: no-store",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in HEADERS.items()),
    ]
    return "\r\n".join([*head, "", body]).encode()


def _end_reading(client: socket.socket) -> None:
    # gevent's own shutdown would fail the waiting read, which gunicorn logs as an error.
    with contextlib.suppress(OSError):
        borrowed = socket.socket(fileno=client.fileno())
        try:
            borrowed.shutdown(socket.SHUT_RD)
        finally:
            borrowed.detach()
