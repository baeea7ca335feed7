"""Handed-over client sockets: one epoll for all of them, writes, and clients that vanish."""

from __future__ import annotations

import math
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import gevent
from gevent import monkey

from service.subscriber import GONE, Ending, Subscriber, ending_for

SEND_BUFFER_BYTES = 65_536
"""SO_SNDBUF: what a stopped reader may hold in the kernel (which doubles it); unset, about 4 MB."""

UNACKNOWLEDGED_FACTOR = 3
"""TCP_USER_TIMEOUT in send timeouts: a half-open connection ends 30 s after a heartbeat."""

EVENTS_PER_POLL = 512
"""How many ready sockets are looked at before other greenlets may run."""

EARLY_SECONDS = 5.0
"""How long after its listener was prepared a connection may have waited for somebody to accept it
since before that."""

HAND_OVER = "pushline.hand_over"
"""In a request's environ: the client's socket, if the service may take it over (worker.py)."""

HANDED_OVER = "pushline.handed_over"
"""In a request's environ: set when the socket is taken and the server must leave it alone."""

SUPPORTED = sys.platform == "linux"
"""Only Linux has epoll; elsewhere every stream goes through the iterator."""

_close = monkey.get_original("os", "close")
"""gevent's own makes a watcher for each call, and closes only when its loop wakes up next."""


class Sockets:
    """The outlet of streams whose socket the service owns: no greenlet or watcher for any of them.

    gevent sees one file descriptor, that of an epoll object that nests all sockets. `ended` is
    told each subscriber that has ended.
    """

    write = staticmethod(os.write)

    def __init__(
        self,
        ended: Callable[[Subscriber], None],
        slow: set[Subscriber],
        *,
        outbox_bytes: int,
        send_timeout_seconds: float,
    ) -> None:
        self.outbox_bytes = outbox_bytes
        self._ended = ended
        self._slow = slow
        self._user_timeout_ms = int(UNACKNOWLEDGED_FACTOR * send_timeout_seconds * 1000)
        self._subscribers: dict[int, Subscriber] = {}
        # After patching, select has no epoll: gevent keeps the original.
        self._epoll: select.epoll = monkey.get_original("select", "epoll")()
        self._early_until = math.inf
        self._holders = 0
        self._released: list[int] = []

    def prepare(self, listener: socket.socket) -> None:
        """Set what `take_over` counts on; Linux gives each connection its listener's options."""
        self._limit(listener)
        self._early_until = time.monotonic() + EARLY_SECONDS

    def _limit(self, one: socket.socket) -> None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if one.family != socket.AF_UNIX:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._user_timeout_ms)

    def _is_limited(self, one: socket.socket) -> bool:
        # The one option of them that nobody else sets, and whose value is a setting's.
        if one.family == socket.AF_UNIX:
            return False
        timeout = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        return timeout == self._user_timeout_ms

    def take_over(self, client: socket.socket) -> int:
        """Detach `client` from its owner, whose close() then does nothing; return its descriptor.

        A dup'd descriptor would not do: the old one's registration in epoll would stay alive.
        """
        if time.monotonic() < self._early_until and not self._is_limited(client):
            self._limit(client)
        return client.detach()  # one of gevent's never blocks

    def watch(self, subscriber: Subscriber) -> None:
        """Notice when the client leaves; errors and hang-ups are reported without asking.

        Never EPOLLIN: one byte that nobody reads would wake the worker for ever.
        """
        self._epoll.register(subscriber.fd, select.EPOLLRDHUP)
        self._subscribers[subscriber.fd] = subscriber

    def want_room(self, subscriber: Subscriber) -> None:
        """Flush `subscriber` whenever its socket takes bytes again."""
        self._slow.add(subscriber)
        self._epoll.modify(subscriber.fd, select.EPOLLRDHUP | select.EPOLLOUT)

    def release(self, subscriber: Subscriber) -> None:
        """Let the subscriber's socket go, and tell the hub."""
        fd, subscriber.fd = subscriber.fd, GONE
        self._slow.discard(subscriber)
        if self._subscribers.pop(fd, None) is not None:
            self._epoll.unregister(fd)
        self._released.append(fd)
        self._ended(subscriber)
        if self._holders == 0:
            self._close_released()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep the numbers of released descriptors from being reused while this lasts.

        A list of poll results may still name them: a stranger's stream would be ended.
        """
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if self._holders == 0:
                self._close_released()

    def _close_released(self) -> None:
        released, self._released = self._released, []
        for fd in released:
            _discard_input(fd)
            _close(fd)

    def run(self) -> None:
        """Serve what epoll reports, for ever; the body of the one greenlet for all sockets."""
        hub = gevent.get_hub()
        watcher = hub.loop.io(self._epoll.fileno(), 1)
        try:
            while True:
                hub.wait(watcher)
                self.poll()
                gevent.sleep(0)
        finally:
            watcher.close()

    def poll(self) -> None:
        """Serve what epoll reports now."""
        with self.holding():
            for fd, mask in self._epoll.poll(0, EVENTS_PER_POLL):
                subscriber = self._subscribers.get(fd)
                if subscriber is not None:
                    self._serve(subscriber, mask)

    def _serve(self, subscriber: Subscriber, mask: int) -> None:
        if mask & select.EPOLLERR:
            subscriber.end(ending_for(_socket_error(subscriber.fd)))
        elif mask & (select.EPOLLRDHUP | select.EPOLLHUP):
            subscriber.end(Ending.CLIENT_LEFT)
        elif subscriber.flush() and subscriber.fd != GONE:
            self._slow.discard(subscriber)
            self._epoll.modify(subscriber.fd, select.EPOLLRDHUP)


def _socket_error(fd: int) -> OSError:
    borrowed = socket.socket(fileno=fd)
    try:
        return OSError(borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "socket error")
    finally:
        borrowed.detach()


def _discard_input(fd: int) -> None:
    # Closing with unread input sends RST, which may destroy the last bytes on their way.
    with suppress(OSError):
        os.read(fd, SEND_BUFFER_BYTES)
