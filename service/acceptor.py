"""Takes connections from a listening socket, and leaves nobody in its queue when it closes."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from gevent.pool import Pool
from gevent.server import StreamServer

from service.fan_out import SLICE_SECONDS, give_way


class Address:
    """What gunicorn asks a listener for with each connection, also when that has closed since."""

    def __init__(self, listener: Any) -> None:
        self._name = listener.getsockname()

    def getsockname(self) -> Any:
        """Where it listened."""
        return self._name


class Acceptor(StreamServer):
    """A server as gunicorn's gevent worker makes it, with `handle(address, client, peer)`.

    `alone` tells that no other process takes connections from the same listener. Those that come
    together are served by one greenlet, in turn: each new one costs some 15 µs. As soon as it has
    to wait for anything, another one takes the rest.
    """

    def __init__(
        self,
        handle: Callable[[Any, Any, Any], None],
        listener: Any,
        *,
        alone: bool,
        spawn: Pool,
        ssl_context: Any = None,
        **_unused: Any,
    ) -> None:
        options = {} if ssl_context is None else {"ssl_context": ssl_context}
        if not alone:
            self.max_accept = 1  # so that one of them doesn't take all
        self._handle_from = functools.partial(handle, Address(listener))
        self._greenlets = spawn
        self._accepted: deque[tuple[Any, ...]] = deque()
        self._awaited = False
        """Whether a greenlet has been started, or will be, that is to look at `_accepted`."""
        self._unstarted = False
        """Whether that greenlet is in the pool already."""
        self._pausing = False
        """Whether a greenlet that looks at it gives way to others for a moment."""
        super().__init__(listener, spawn=spawn, **options)

    def handle(self, client: Any, peer: Any) -> None:
        """Serve a connection; a method, as gevent forgets a function when it closes."""
        self._handle_from(client, peer)

    def do_read(self) -> Any:
        """Accept a connection; None where nobody has come, or no greenlet is left for one more."""
        size = self._greenlets.size
        if size is not None:
            # Who has not started, or goes on in a moment, takes one without a place of its own.
            left = self._greenlets.free_count() + (self._unstarted or self._pausing)
            if len(self._accepted) >= left:
                return None
        return super().do_read()

    def do_handle(self, *connection: Any) -> None:
        """Have a connection that was accepted served."""
        self._accepted.append(connection)
        if not (self._awaited or self._pausing):
            self._start_one()

    def _start_one(self) -> None:
        self._greenlets.spawn(self._serve)
        self._awaited = self._unstarted = True

    def _serve(self) -> None:
        self._awaited = self._unstarted = False
        handle = self.wrap_socket_and_handle if self.ssl_enabled else self.handle
        began = time.monotonic()
        while self._accepted and not self._pausing:
            if time.monotonic() - began > SLICE_SECONDS:
                self._pause()
                began = time.monotonic()
            connection = self._accepted.popleft()
            if self._accepted and not self._awaited:
                self._awaited = True
                self.loop.run_callback(self._succeed)
            try:
                handle(*connection)
            finally:
                self.do_close(*connection)

    def _succeed(self) -> None:
        # do_read has left room for it.
        self._awaited = False
        if self._accepted and not self._pausing:
            self._start_one()

    def _pause(self) -> None:
        self._pausing = True
        try:
            give_way()
        finally:
            self._pausing = False

    def close(self) -> None:
        """Close the listener; who has connected is served, as far as there is room: a close alone
        would reset them.
        """
        with contextlib.suppress(OSError):
            while not self.closed and not self.full() and (accepted := self.do_read()):
                self.do_handle(*accepted)
        super().close()
