"""The outlet of streams whose socket the service can't own: the iterator of a WSGI response."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gevent.event import Event as Wakeup

from service.subscriber import GONE, Ending, Subscriber

OPEN = 0
"""What stands in for a descriptor."""


class IteratorOutlet:
    """Hands one piece at a time to whoever iterates: the Flask test client, TLS, macOS.

    Bounds, order and endings are the Subscriber's, as for sockets; only this costs a greenlet.
    """

    def __init__(
        self, ended: Callable[[Subscriber], None], slow: set[Subscriber], *, outbox_bytes: int
    ) -> None:
        self.outbox_bytes = outbox_bytes
        self._ended = ended
        self._slow = slow
        self._piece: bytes | None = None
        self._wakeup = Wakeup()

    def write(self, fd: int, data: bytes | memoryview, /) -> int:
        """Take `data` whole, if the last piece is gone; else raise BlockingIOError."""
        if self._piece is not None:
            raise BlockingIOError
        self._piece = bytes(data)
        self._wakeup.set()
        return len(data)

    def want_room(self, subscriber: Subscriber) -> None:
        """Nothing to arrange: `pieces` flushes after each piece that is fetched."""
        self._slow.add(subscriber)

    def release(self, subscriber: Subscriber) -> None:
        """Make `pieces` stop, and tell the hub."""
        subscriber.fd = GONE
        self._slow.discard(subscriber)
        self._ended(subscriber)
        self._wakeup.set()

    def pieces(self, subscriber: Subscriber) -> Iterator[bytes]:
        """Yield the stream's bytes until it ends; closing this means that the client left."""
        try:
            while True:
                self._wakeup.wait()
                self._wakeup.clear()
                piece, self._piece = self._piece, None
                if piece:
                    yield piece
                if subscriber.fd == GONE and self._piece is None:
                    return
                if subscriber.flush():
                    self._slow.discard(subscriber)
        finally:
            subscriber.end(Ending.CLIENT_LEFT)
