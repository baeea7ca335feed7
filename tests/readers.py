"""Streams in the process of the tests, without HTTP: their clients, and a worker that has them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import gevent

from service.event import EventId
from service.frame import Frame
from service.hub import Hub
from service.overflow import Overflow
from service.reset import Loss
from service.resume import Resumer
from service.resumption import Start
from service.subscriber import GONE, Ending, Subscriber
from service.view import Selection
from tests.deliveries import deliver, reset
from tests.encodings import PLAIN
from tests.nodes import Node, make_rules
from tests.sse_client import ParsedEvent, parse_stream

WAIT_SECONDS = 4.0
"""How long a reader waits for what must come."""


class Reader:
    """A client that takes everything at once; also its outlet."""

    outbox_bytes = 1_000_000
    overflow = Overflow.CLOSE

    def __init__(self) -> None:
        self.taken = b""
        self.ending: Ending | None = None

    def write(self, fd: int, data: bytes | memoryview, /) -> int:
        """Take all of it."""
        self.taken += bytes(data)
        return len(data)

    def want_room(self, subscriber: Subscriber) -> None:
        """Never needed."""

    def release(self, subscriber: Subscriber) -> None:
        """The end."""
        subscriber.fd = GONE
        self.ending = subscriber.ending

    @property
    def events(self) -> list[ParsedEvent]:
        """What has come so far."""
        return parse_stream(self.taken)

    def expect(self, *data: str) -> None:
        """Wait until exactly these events, `$reset` by its name, have come in this order."""
        deadline = time.monotonic() + WAIT_SECONDS
        while len(self.told()) < len(data) and time.monotonic() < deadline:
            gevent.sleep(0.02)
        gevent.sleep(0.1)
        assert self.told() == list(data)

    def told(self) -> list[str]:
        """The data of the events, or the names of the service's own."""
        return [one.type if one.type.startswith("$") else one.data for one in self.events]


class StreamNode(Node):
    """A worker without HTTP: a node whose hub has streams. `obey` gets commands."""

    def __init__(
        self,
        url: str,
        *,
        always: Sequence[str] = (),
        obey: Callable[[Frame], None] = lambda _: None,
    ) -> None:
        super().__init__(url, always=always)
        self.hub = Hub(
            heartbeat_seconds=15,
            send_timeout_seconds=10,
            retry_milliseconds=2000,
            recent=self.recent,
            obey=obey,
        )
        self.resumer = Resumer(
            self.hub,
            self.broker,
            self.store,
            self.recent,
            make_rules().tail_seconds,
            replay_events=10_000,
            replay_bytes=8_388_608,
        )

    def _deliver(self, frames: Sequence[tuple[str, Frame]]) -> None:
        deliver(self.hub, frames)

    def _advance(self, position: EventId) -> None:
        self.hub.advance(position)

    def _reset(
        self, channels: Sequence[str], loss: Loss, oldest: EventId | None, until: EventId
    ) -> None:
        reset(self.hub, channels, loss, oldest, until)

    def open(self, selection: Selection, start: Start | None = None) -> Reader:
        """Open a stream, from now on or from `start`."""
        reader = Reader()
        self.broker.follow(selection.channels)
        subscriber = Subscriber(reader, 5, selection, "", encoding=PLAIN)
        if start is None:
            position = self.hub.position_of(selection.channels)
            self.hub.attach(subscriber, position)
        else:
            resumption = self.resumer.prepare(selection.channels, start)
            self.resumer.resume(subscriber, resumption)
        return reader
