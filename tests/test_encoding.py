"""One batch for streams of all kinds: the same text for each, made once for each kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from service.batch import LAST_CHUNK, Batch
from service.compression import HEADER
from service.counts import Counts
from service.encoding import Encoding, Encodings
from service.event import FIRST_ID, EventId
from service.fan_out import SLICE_WRITES
from service.frame import Frame
from service.hub import Hub
from service.sse import encode_retry
from service.subscriber import GONE, Ending, Subscriber
from service.view import Selection
from tests.deliveries import beat, deliver
from tests.encodings import CHUNKED, GZIP, GZIP_CHUNKED, PLAIN, gunzip
from tests.sse_client import ChunkedBody, End

KINDS = [PLAIN, CHUNKED, GZIP, GZIP_CHUNKED]
OPENING = b"retry: 1\n\n"


def text_of(encoding: Encoding, data: bytes, *, ended: bool = False) -> bytes:
    """What a client makes of a stream's bytes, framing first."""
    if encoding in (CHUNKED, GZIP_CHUNKED):
        body = ChunkedBody()
        data = body.feed(data)
        assert body.finished is (End.TERMINATED if ended else None)
    return gunzip(data) if encoding in (GZIP, GZIP_CHUNKED) else data


def frame(number: int, size: int = 1000) -> Frame:
    """An event with much to compress."""
    event_id = EventId(1, number)
    data = b"id: %b\ndata: %b\n\n" % (str(event_id).encode(), b"%d, " % number * (size // 4))
    return Frame(event_id, "message", data, prev=EventId(1, number - 1))


class Client:
    """A stream of a hub: all that it is sent, and how often `room` stops it."""

    outbox_bytes = 1_000_000

    def __init__(self, hub: Hub, encoding: Encoding, *channels: str) -> None:
        self.hub = hub
        self.encoding = encoding
        self.room = 1 << 30
        self.data = bytearray()
        self.writes: list[bytes | memoryview] = []
        selection = Selection(channels or ("a",))
        self.subscriber = Subscriber(self, 5, selection, "", encoding=encoding)
        self.subscriber.send(encoding.start(OPENING))
        hub.attach(self.subscriber, FIRST_ID)

    def write(self, fd: int, data: bytes | memoryview, /) -> int:
        """Take what there is room for."""
        if not self.room:
            raise BlockingIOError
        part = data[: self.room]
        self.room -= len(part)
        self.data += part
        self.writes.append(data)
        return len(part)

    def want_room(self, subscriber: Subscriber) -> None:
        """The test flushes."""

    def release(self, subscriber: Subscriber) -> None:
        """The end."""
        subscriber.fd = GONE
        self.hub.detach(subscriber)

    def text(self, *, ended: bool = False) -> bytes:
        """What has come."""
        return text_of(self.encoding, bytes(self.data), ended=ended)


@pytest.fixture
def hub() -> Hub:
    """A hub with the default settings."""
    return Hub(heartbeat_seconds=15, send_timeout_seconds=10, retry_milliseconds=2000)


@pytest.mark.parametrize("encoding", KINDS)
@pytest.mark.parametrize("farewell", [b"", b"retry: 5\n\n"])
def test_a_whole_stream(encoding: Encoding, farewell: bytes) -> None:
    """Start, batches and end are one body, with the last chunk where there are chunks."""
    data = encoding.start(OPENING) + encoding.encode(Batch(b"x" * 300)) + encoding.end(farewell)
    assert text_of(encoding, data, ended=True) == OPENING + b"x" * 300 + farewell


def test_a_batch_is_made_once_for_each_kind() -> None:
    """Later streams get the very same bytes; both kinds of gzip share one compression."""
    counts = Counts()
    encodings = Encodings(1, counts)
    batch = Batch(b"x" * 300)
    kinds = [encodings.of(gzip=g, chunked=c) for g, c in itertools.product([False, True], repeat=2)]
    for kind in kinds:
        assert kind.encode(batch) is kind.encode(batch)
    assert counts.compression_input_bytes == 300
    assert kinds[1].encode(batch) == b"12c\r\n" + b"x" * 300 + b"\r\n"


def test_streams_of_all_kinds_in_one_view(hub: Hub) -> None:
    """Each of them gets the same text, the same bytes go to all of a kind, and what is sent is
    compressed once; without a stream that takes gzip it isn't compressed at all.
    """
    counts = Counts()
    encodings = Encodings(256, counts)

    def clients(*, gzip: bool) -> list[Client]:
        return [
            Client(hub, encodings.of(gzip=gzip, chunked=chunked)) for chunked in (False, True) * 3
        ]

    plain = clients(gzip=False)
    deliver(hub, [("a", frame(1))])
    assert counts.compression_input_bytes == 0
    zipped = clients(gzip=True)
    before = counts.compression_input_bytes
    frames = [frame(number) for number in range(2, 90)]
    deliver(hub, [("a", one) for one in frames])
    joined = b"".join(one.data for one in frames)
    assert len(joined) > 65_536
    assert counts.compression_input_bytes - before == len(joined)
    for client in zipped:
        data = bytes(client.data)
        body = ChunkedBody().feed(data) if client.encoding is zipped[1].encoding else data
        assert gunzip(body) == OPENING + joined
        same = zipped[zipped.index(client) % 2]
        assert [id(one) for one in client.writes[1:]] == [id(one) for one in same.writes[1:]]
    assert bytes(plain[0].data) == OPENING + frame(1).data + joined


@pytest.mark.parametrize("step", [1, 7, 100])
def test_a_slow_reader_gets_whole_blocks(hub: Hub, step: int) -> None:
    """However little it takes at a time, also at its end; its backlog counts compressed."""
    client = Client(hub, GZIP_CHUNKED)
    client.room = 3
    frames = [frame(number) for number in range(1, 6)]
    for one in frames:
        deliver(hub, [("a", one)])
    farewell = encode_retry(9)
    client.subscriber.finish(Ending.DRAINED, farewell)
    unsent = client.subscriber.unsent
    expected = OPENING + b"".join(one.data for one in frames) + farewell
    assert unsent < len(expected) / 5
    taken = 0
    while client.subscriber.fd != GONE:
        client.room = step
        client.subscriber.flush()
        taken += step
    assert unsent <= taken < unsent + step
    assert client.text(ended=True) == expected


@pytest.mark.parametrize("encoding", KINDS)
def test_heartbeats_and_notices(hub: Hub, encoding: Encoding) -> None:
    """All that the service itself says fits in between."""
    client = Client(hub, encoding)
    beat(hub, 1e9)
    deliver(hub, [("a", frame(1))])
    beat(hub, 2e9)
    client.subscriber.finish(Ending.EXPIRED, b"event: $end\n\n")
    text = client.text(ended=True)
    beats = [text.index(b"\n:\n"), text.rindex(b"\n:\n")]
    assert text.startswith(OPENING)
    assert beats[0] < text.index(frame(1).data) < beats[1] < text.index(b"event: $end\n\n")


def test_private_events_are_compressed_apart() -> None:
    """Whether a private event is like a public one, or like another private one, makes no
    difference to the size of anything.
    """

    def size(*frames: tuple[bytes, bool]) -> int:
        made = []
        for data, private in frames:
            one = Frame(None, "message", data)
            one.private = frozenset("a") if private else None
            made.append(one)
        batch = Batch(b"".join(one.data for one in made), made)
        data = GZIP.encode(batch)
        assert gunzip(HEADER + data) == batch.plain
        return len(data)

    secret, guess, other = (b"token=%b;" % (letter * 300) for letter in (b"ab", b"ab", b"cd"))
    assert size((guess, False), (secret, False)) < size((other, False), (secret, False))
    for guessing in (True, False):
        assert size((guess, guessing), (secret, True)) == size((other, guessing), (secret, True))
        assert size((secret, True), (guess, guessing)) == size((secret, True), (other, guessing))
    assert size((guess, False), (guess, False), (secret, True)) < size(
        (guess, False), (secret, True), (guess, False)
    )


def test_a_pass_that_compresses_much_lets_others_run(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large batch counts as many writes: compressing one for each of many views takes long."""
    naps = count_naps(monkeypatch)
    monkeypatch.setattr("service.fan_out.SLICE_SECONDS", -1.0)
    for number in range(SLICE_WRITES // 2):
        Client(hub, GZIP, "a", str(number))
    deliver(hub, [("a", frame(1))])
    few = len(naps)
    deliver(hub, [("a", frame(number, 4000)) for number in range(2, 20)])
    assert len(naps) - few > SLICE_WRITES // 4


def count_naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collect the seconds of each nap of the hub."""
    naps: list[float] = []
    sleep: Callable[[float], None] = naps.append
    monkeypatch.setattr("gevent.sleep", sleep)
    return naps


def test_the_end_of_gzip_is_the_end_of_the_text() -> None:
    """No last block and no trailer: it would be a checksum of all that this one stream got."""
    assert GZIP.end(b"") == b""
    assert GZIP_CHUNKED.end(b"") == LAST_CHUNK
