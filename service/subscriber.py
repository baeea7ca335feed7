"""One client of this worker: its bounded outbox, and why its stream ended."""

from __future__ import annotations

import enum
import errno
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from service.batch import Batch
from service.encoding import Encoding
from service.event import FIRST_ID, EventId
from service.overflow import Overflow, Piece, thinned

if TYPE_CHECKING:
    from service.view import Selection, View

GONE = -1
"""The descriptor of a subscriber whose client is gone."""

SILENCE = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH})
"""Errors of a connection that was given up for lack of answers: the last two name a router's or
ARP's guess why (tcp(7)), and the kernel reports them only when its patience is at an end."""


class Ending(enum.Enum):
    """Why a stream ended; the values stand in logs and documentation."""

    CLIENT_LEFT = "client_left"
    TOO_SLOW = "too_slow"
    STALLED = "stalled"
    DRAINED = "drained"
    CHANNEL_ENDED = "channel_ended"
    NOT_RESUMED = "not_resumed"
    EXPIRED = "expired"
    REVOKED = "revoked"


class Outlet(Protocol):
    """Where a subscriber's bytes go: a handed-over socket, or the iterator of a WSGI response."""

    outbox_bytes: int

    def write(self, fd: int, data: bytes | memoryview, /) -> int:
        """Take bytes, return how many; raises BlockingIOError for none now, OSError for never."""

    def want_room(self, subscriber: Subscriber) -> None:
        """Call `subscriber.flush()` whenever bytes can be taken again, until it returns True."""

    def release(self, subscriber: Subscriber) -> None:
        """The subscriber has ended: let go of its descriptor, and tell the hub."""


class Subscriber:
    """One open stream. Every byte to its client goes through here, so none follows its end.

    `fd` is -1 once the client is gone; `ending` is set as soon as no event may follow. `address`
    is the client's, `user` whose credential it has shown, `number` this worker's for the stream.
    `request_id` is that of the request that has opened it.
    `opened_at` and `moved_at` (when a backlog last shrank) are monotonic seconds, `expires_at`
    seconds since 1970. `as_of` is that of its grant; unless said, as old as can be.
    """

    __slots__ = (
        "_bytes_before",
        "_events_before",
        "_head_sent",
        "_outbox",
        "_outlet",
        "address",
        "as_of",
        "encoding",
        "ending",
        "expires_at",
        "fd",
        "moved_at",
        "number",
        "opened_at",
        "overflow",
        "request_id",
        "selection",
        "unsent",
        "user",
        "view",
    )

    def __init__(
        self,
        outlet: Outlet,
        fd: int,
        selection: Selection,
        address: str,
        *,
        encoding: Encoding,
        overflow: Overflow = Overflow.CLOSE,
        user: str = "",
        number: int = 0,
        expires_at: float | None = None,
        as_of: EventId | None = FIRST_ID,
        request_id: str = "",
    ) -> None:
        self.fd = fd
        self.selection = selection
        self.address = address
        self.encoding = encoding
        self.overflow = overflow
        self.user = user
        self.number = number
        self.expires_at = expires_at
        self.as_of = as_of
        self.request_id = request_id
        self.opened_at = self.moved_at = time.monotonic()
        self.ending: Ending | None = None
        self.view: View | None = None
        self.unsent = 0
        self._outlet = outlet
        self._outbox: deque[Piece] | None = None
        self._head_sent = 0
        self._events_before = self._bytes_before = 0

    def joined(self, view: View, events: int, sent_bytes: int) -> None:
        """Note that `view` now sends to this stream, after so many of its events and bytes."""
        self.view = view
        self.selection = view.selection
        self._events_before = view.events - events
        self._bytes_before = view.sent_bytes - sent_bytes

    @property
    def events(self) -> int:
        """How many events were offered to this stream."""
        return 0 if self.view is None else self.view.events - self._events_before

    @property
    def sent_bytes(self) -> int:
        """How many bytes of events were offered to this stream, before HTTP's encoding."""
        return 0 if self.view is None else self.view.sent_bytes - self._bytes_before

    def offer(self, batch: Batch, more: bool = False) -> None:
        """Send `batch`, or keep it in the outbox; a full outbox is dealt with as `overflow` says.

        With `more` no stream is ended: a client can't have read what came before in the same pass.
        """
        if self.ending is not None:
            return
        if self._outbox is not None:
            self._append(batch, more)
            return
        data = self.encoding.encode(batch)
        try:
            sent = self._outlet.write(self.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.end(ending_for(error))
            return
        if sent != len(data):
            self._keep(batch, sent)

    def send(self, data: bytes) -> None:
        """Send finished bytes, as `offer` does; no overflow drops them."""
        self.offer(Batch.finished(data))

    def _keep(self, batch: Batch, sent: int) -> None:
        # A partly sent batch stays whole: cutting it would break chunks and gzip blocks.
        self._outbox = deque([self._piece(batch)])
        self._head_sent = sent
        self.unsent = len(self._outbox[0].data) - sent
        self.moved_at = time.monotonic()
        self._outlet.want_room(self)

    def _append(self, batch: Batch, more: bool) -> None:
        if self.unsent > self._outlet.outbox_bytes:
            self.flush()  # it may have read since, and only nobody has looked
            if self.unsent > self._outlet.outbox_bytes:
                self._overflow(more)
        if self._outbox is not None:
            self._outbox.append(self._piece(batch))
            self.unsent += len(self._outbox[-1].data)
        elif self.fd != GONE:
            self.offer(batch, more)

    def _piece(self, batch: Batch) -> Piece:
        # Who never drops anything has no use for the frames, and shouldn't keep them alive.
        frames = () if self.overflow is Overflow.CLOSE else batch.frames
        return Piece(self.encoding.encode(batch), frames, batch.fixed)

    def _overflow(self, more: bool) -> None:
        if self.overflow is Overflow.CLOSE:
            if not more:
                self.end(Ending.TOO_SLOW)
            return
        assert self._outbox is not None
        waiting = list(self._outbox)
        kept = 1 if self._head_sent else 0
        while kept < len(waiting) and waiting[kept].fixed:
            kept += 1
        limit, channels = self._outlet.outbox_bytes, self.selection.channels
        rest = thinned(waiting[kept:], self.overflow, limit, channels, self.encoding.encode)
        self._outbox = deque([*waiting[:kept], *rest])
        self.unsent = sum(len(piece.data) for piece in self._outbox) - self._head_sent

    def flush(self) -> bool:
        """Send what the outbox holds, as far as it goes; True when nothing is left to wait for."""
        while self._outbox:
            rest = memoryview(self._outbox[0].data)[self._head_sent :]
            try:
                sent = self._outlet.write(self.fd, rest)
            except BlockingIOError:
                return False
            except OSError as error:
                self.end(ending_for(error))
                return True
            self.unsent -= sent
            self.moved_at = time.monotonic()
            if sent < len(rest):
                self._head_sent += sent
                return False
            self._outbox.popleft()
            self._head_sent = 0
        self._outbox = None
        if self.ending is not None:
            self.end(self.ending)
        return True

    def finish(self, ending: Ending, farewell: bytes = b"") -> None:
        """End cleanly: after what is already in the outbox, `farewell` and the encoding's end."""
        if self.ending is not None:
            return
        self.send(self.encoding.end(farewell))
        if self.ending is None:
            self.ending = ending
            if self._outbox is None:
                self.end(ending)

    def end(self, ending: Ending) -> None:
        """End at once, whatever is unsent; the first reason given stays."""
        if self.fd == GONE:
            return
        self.ending = self.ending or ending
        self._outbox = None
        if self.view is not None:
            self.view.leave(self)
        self._outlet.release(self)


def ending_for(error: OSError) -> Ending:
    """Name what a failed write or a socket error means: silence for too long, or a client gone."""
    return Ending.STALLED if error.errno in SILENCE else Ending.CLIENT_LEFT
