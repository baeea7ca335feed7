"""What a stream skips that is read too slowly, and how it says so."""

from __future__ import annotations

import itertools
import json

import pytest

from service.batch import Batch, joined
from service.event import Event, EventId
from service.frame import Frame
from service.overflow import Overflow, Piece, thinned
from service.sse import encode, encode_id
from service.subscriber import GONE, Ending, Subscriber
from service.view import Selection
from tests.encodings import CHUNKED, framing
from tests.sse_client import ChunkedBody, ParsedEvent, parse_stream

OUTBOX_BYTES = 1000
CHANNELS = ("a", "b")


def frame(number: int, name: str | None = None, size: int = 100) -> Frame:
    """An event with the id 1-`number` whose data begins with the number."""
    before, after = encode(Event(f"{number} ".ljust(size, "x"), name))
    event_id = EventId(1, number)
    return Frame(event_id, name or "message", before + encode_id(event_id) + after)


class SlowClient:
    """A client whose kernel takes only as many bytes as it is given room for."""

    outbox_bytes = OUTBOX_BYTES

    def __init__(self, overflow: Overflow, *, chunked: bool = False, room: int = 0) -> None:
        self.room = room
        self.chunked = chunked
        self.taken = b""
        self.subscriber = Subscriber(
            self, 7, Selection(CHANNELS), "192.0.2.1", encoding=framing(chunked), overflow=overflow
        )

    def write(self, fd: int, data: bytes | memoryview, /) -> int:
        """Take what there is room for."""
        if not self.room:
            raise BlockingIOError
        part = bytes(data[: self.room])
        self.room -= len(part)
        self.taken += part
        return len(part)

    def want_room(self, subscriber: Subscriber) -> None:
        """Nothing: the test flushes."""

    def release(self, subscriber: Subscriber) -> None:
        """The end."""
        subscriber.fd = GONE

    def read_all(self) -> list[ParsedEvent]:
        """Make room for everything and return all events that the client got."""
        self.room = 1_000_000
        self.subscriber.flush()
        body = ChunkedBody().feed(self.taken) if self.chunked else self.taken
        return parse_stream(body)


def offer(client: SlowClient, numbers: range, names: tuple[str | None, ...] = (None,)) -> None:
    """Offer events one by one, their names taking turns."""
    for number, name in zip(numbers, itertools.cycle(names), strict=False):
        client.subscriber.offer(Batch(frame(number, name).data, (frame(number, name),)))


def numbers_of(events: list[ParsedEvent]) -> list[int]:
    """The numbers of the events, without the service's own."""
    return [int(event.data.split()[0]) for event in events if not event.type.startswith("$")]


@pytest.mark.parametrize("chunked", [True, False])
def test_drop_oldest_keeps_the_newest(chunked: bool) -> None:
    """The newest events that fit are kept, in order; one `$reset` stands before them, with the id
    of the last event dropped, so that a client that comes back isn't told again.
    """
    client = SlowClient(Overflow.DROP_OLDEST, chunked=chunked)
    offer(client, range(100))
    events = client.read_all()

    kept = numbers_of(events)
    assert kept == list(range(kept[0], 100))
    assert 5 < len(kept) < 15
    assert [event.type for event in events].count("$reset") == 1
    assert json.loads(events[0].data) == {
        "channels": list(CHANNELS),
        "reason": "skipped",
        "oldest": None,
    }
    assert events[0].last_event_id == f"1-{kept[0] - 1}"


def test_conflate_keeps_the_newest_of_each_name() -> None:
    """Of all that was dropped, the newest event of each name comes after the `$reset`."""
    client = SlowClient(Overflow.CONFLATE)
    offer(client, range(99), ("price", "volume", None))
    events = client.read_all()

    assert events[0].type == "$reset"
    assert [event.type for event in events].count("$reset") == 1
    names = [event.type for event in events[1:]]
    assert set(names[:3]) == {"price", "volume", "message"}
    assert numbers_of(events) == sorted(numbers_of(events))
    assert numbers_of(events)[-3:] == [96, 97, 98]
    assert len(events) < 20


def test_conflate_is_bounded_however_many_names_there_are() -> None:
    """The newest names stay; what is kept leaves room, so that not each event conflates."""
    client = SlowClient(Overflow.CONFLATE)
    offer(client, range(300), tuple(f"name{n}" for n in range(200)))
    assert client.subscriber.unsent <= OUTBOX_BYTES + 300
    events = client.read_all()
    assert numbers_of(events) == sorted(numbers_of(events))
    assert numbers_of(events)[-1] == 299
    assert 3 <= len(numbers_of(events)) <= 10


@pytest.mark.parametrize("overflow", [Overflow.DROP_OLDEST, Overflow.CONFLATE])
@pytest.mark.parametrize("sent", [1, 60, 119, 120, 121, 300])
def test_a_half_sent_batch_is_never_dropped(overflow: Overflow, sent: int) -> None:
    """Whatever was sent of a batch is followed by the rest of it: no event is ever cut."""
    client = SlowClient(overflow, chunked=True, room=sent)
    offer(client, range(100))
    events = client.read_all()

    numbers = numbers_of(events)
    assert numbers[0] == 0
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 99


@pytest.mark.parametrize("overflow", [Overflow.DROP_OLDEST, Overflow.CONFLATE])
def test_finished_bytes_are_never_dropped(overflow: Overflow) -> None:
    """The response head and the opening block are no events: they come whatever overflows."""
    client = SlowClient(overflow)
    client.subscriber.send(b"retry: 1\n\n")
    offer(client, range(100))
    client.read_all()

    assert client.taken.startswith(b"retry: 1\n\nevent: $reset\n")


def test_memory_stays_bounded() -> None:
    """However much is offered, no more is kept than the limit and one batch."""
    for overflow in (Overflow.DROP_OLDEST, Overflow.CONFLATE):
        client = SlowClient(overflow)
        for number in range(1000):
            offer(client, range(number, number + 1))
            assert client.subscriber.unsent <= OUTBOX_BYTES + 400
        assert client.subscriber.ending is None


def test_close_ends_the_stream() -> None:
    """By default a slow stream is ended, so that its client comes back and loses nothing."""
    client = SlowClient(Overflow.CLOSE)
    offer(client, range(100))

    assert client.subscriber.ending is Ending.TOO_SLOW


def test_bytes_stay_shared() -> None:
    """What is kept are the very batches that all streams share, not copies."""
    batches = list(joined([frame(number, size=40_000) for number in range(6)]))
    waiting = [Piece(CHUNKED.encode(batch), batch.frames) for batch in batches]
    kept = thinned(waiting, Overflow.DROP_OLDEST, 100_000, CHANNELS, CHUNKED.encode)

    assert [id(piece.data) for piece in kept[1:]] == [
        id(CHUNKED.encode(one)) for one in batches[-2:]
    ]
