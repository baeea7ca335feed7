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

    `alone` tells that no other process takes connections from the same listener. A greenlet serves
    one connection after the other, as a new one costs more than a tenth of opening a stream. When
    it has to wait, a second one takes the rest.
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
        self._handle_at = functools.partial(handle, Address(listener))
        self._greenlets = spawn
        self._accepted: deque[tuple[Any, ...]] = deque()
        self._successor = False
        """Whether a greenlet will be started for what is in `_accepted`."""
        self._pause = False
        """Whether one gives way only for a moment, and goes on itself."""
        super().__init__(listener, spawn=spawn, **options)

    def handle(self, client: Any, peer: Any) -> None:
        """Serve a connection; a method, as gevent forgets a function when it closes."""
        self._handle_at(client, peer)

    def do_handle(self, *connection: Any) -> None:
        """Have a connection that was accepted served."""
        self._accepted.append(connection)
        if not self._successor:
            self._successor = True
            self._greenlets.spawn(self._serve)

    def _serve(self) -> None:
        self._successor = False
        handle = self.wrap_socket_and_handle if self.ssl_enabled else self.handle
        began = time.monotonic()
        while self._accepted:
            connection = self._accepted.popleft()
            if self._accepted and not self._successor:
                self._successor = True
                self.loop.run_callback(self._succeed)
            try:
                handle(*connection)
            finally:
                self.do_close(*connection)
            if self._accepted and time.monotonic() - began > SLICE_SECONDS:
                self._pause = True
                give_way()
                self._pause = False
                began = time.monotonic()

    def _succeed(self) -> None:
        # If the pool is full, its greenlets find the rest when they are done.
        self._successor = bool(self._accepted) and not (self._pause or self._greenlets.full())
        if self._successor:
            self._greenlets.spawn(self._serve)

    def close(self) -> None:
        """Close the listener; who has connected is served: a close alone would reset them."""
        with contextlib.suppress(OSError):
            while not self.closed and not self.full() and (accepted := self.do_read()):
                self.do_handle(*accepted)
        super().close()
