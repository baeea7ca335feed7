"""One stream's outbox: what is kept, what is never cut, and what ends it."""

from __future__ import annotations

import errno
import time

import pytest

from service.batch import LAST_CHUNK, Batch, chunk
from service.subscriber import GONE, Ending, Subscriber, ending_for
from service.view import Selection, View
from tests.encodings import framing
from tests.sse_client import ChunkedBody, End

OUTBOX_BYTES = 100


class Pipe:
    """An outlet with room for so many bytes; `error` is raised instead of taking any."""

    outbox_bytes = OUTBOX_BYTES

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.taken = b""
        self.writes = 0
        self.waiting = 0
        self.released: list[Subscriber] = []
        self.error: OSError | None = None

    def write(self, fd: int, data: bytes | memoryview, /) -> int:
        """Take what there is room for."""
        assert fd != GONE
        self.writes += 1
        if self.error is not None:
            raise self.error
        if not self.room:
            raise BlockingIOError
        part = bytes(data[: self.room])
        self.room -= len(part)
        self.taken += part
        return len(part)

    def want_room(self, subscriber: Subscriber) -> None:
        """Count the calls."""
        self.waiting += 1

    def release(self, subscriber: Subscriber) -> None:
        """Note the end, once for each subscriber."""
        subscriber.fd = GONE
        self.released.append(subscriber)


def open_stream(room: int = 1_000_000, *, chunked: bool = False) -> tuple[Subscriber, Pipe]:
    """A stream whose client's kernel takes `room` bytes."""
    pipe = Pipe(room)
    return Subscriber(pipe, 7, Selection(("a",)), "192.0.2.1", encoding=framing(chunked)), pipe


def test_an_idle_stream_costs_one_write() -> None:
    """With room, each batch is one write, nothing is kept and nothing is waited for."""
    subscriber, pipe = open_stream()
    subscriber.offer(Batch(b"one"))
    subscriber.offer(Batch(b"two"))
    assert (pipe.taken, pipe.writes, pipe.waiting, subscriber.unsent) == (b"onetwo", 2, 0, 0)


def test_chunks_only_for_chunked_streams() -> None:
    """HTTP/1.1 streams get each batch as a chunk, HTTP/1.0 streams get it bare."""
    for chunked, expected in ((True, b"5\r\nhello\r\n"), (False, b"hello")):
        subscriber, pipe = open_stream(chunked=chunked)
        subscriber.offer(Batch(b"hello"))
        assert pipe.taken == expected


def test_what_does_not_fit_waits_in_order() -> None:
    """Without room, batches wait in the outbox; they leave it in order, none lost, none twice."""
    subscriber, pipe = open_stream(room=4)
    for data in (b"first", b"second", b"third"):
        subscriber.offer(Batch(data))
    assert (pipe.taken, subscriber.unsent, pipe.waiting) == (b"firs", 12, 1)

    for room in (1, 2, 0, 100):
        pipe.room = room
        done = subscriber.flush()

    assert done
    assert (pipe.taken, subscriber.unsent) == (b"firstsecondthird", 0)
    subscriber.offer(Batch(b"!"))
    assert pipe.taken.endswith(b"third!")


def test_flush_tells_whether_more_is_to_come() -> None:
    """`flush` is True only when nothing waits any more."""
    subscriber, pipe = open_stream(room=0)
    subscriber.offer(Batch(b"abc"))
    assert not subscriber.flush()
    pipe.room = 2
    assert not subscriber.flush()
    pipe.room = 2
    assert subscriber.flush()
    assert subscriber.flush()


def test_a_slow_stream_is_ended_when_a_batch_comes() -> None:
    """Too slow is a stream with more than OUTBOX_BYTES unsent when another batch arrives: the
    batch that crosses the limit is still taken, whatever its size.
    """
    subscriber, pipe = open_stream(room=0)
    subscriber.offer(Batch(b"x" * OUTBOX_BYTES))
    subscriber.offer(Batch(b"y" * 10 * OUTBOX_BYTES))
    assert pipe.released == []
    assert subscriber.unsent == 11 * OUTBOX_BYTES

    subscriber.offer(Batch(b"z"))

    assert subscriber.ending is Ending.TOO_SLOW
    assert pipe.released == [subscriber]


def test_a_backlog_of_exactly_the_limit_is_not_too_slow() -> None:
    """At OUTBOX_BYTES a stream may still catch up; only above it ends."""
    subscriber, pipe = open_stream(room=0)
    subscriber.offer(Batch(b"x" * OUTBOX_BYTES))
    subscriber.offer(Batch(b"y"))
    pipe.room = OUTBOX_BYTES + 1
    assert subscriber.flush()
    assert pipe.taken == b"x" * OUTBOX_BYTES + b"y"
    assert subscriber.ending is None


def test_what_was_sent_counts_no_more() -> None:
    """A stream that catches up in time is not too slow."""
    subscriber, pipe = open_stream(room=0)
    subscriber.offer(Batch(b"x" * (OUTBOX_BYTES + 1)))
    pipe.room = 1
    assert not subscriber.flush()
    subscriber.offer(Batch(b"y"))
    assert subscriber.ending is None


def test_a_partly_sent_batch_is_never_cut() -> None:
    """Wherever the kernel stops taking bytes, the client reads whole chunks and the last chunk."""
    for step in range(1, 12):
        subscriber, pipe = open_stream(room=step, chunked=True)
        subscriber.offer(Batch(b"0123456789"))
        subscriber.offer(Batch(b"abc"))
        subscriber.finish(Ending.DRAINED, b"retry: 5\n\n")
        for _ in range(60):
            pipe.room = step
            subscriber.flush()
        reader = ChunkedBody()
        assert reader.feed(pipe.taken) == b"0123456789abcretry: 5\n\n"
        assert reader.finished is End.TERMINATED
        assert reader.sizes == [10, 3, 10]


def test_moved_at_tells_when_the_backlog_last_shrank() -> None:
    """A backlog that shrinks counts as moving, one that only grows doesn't."""
    subscriber, pipe = open_stream(room=0)
    before = time.monotonic()
    subscriber.moved_at = 0.0
    subscriber.offer(Batch(b"abc"))
    assert subscriber.moved_at >= before

    subscriber.moved_at = 0.0
    subscriber.offer(Batch(b"def"))
    assert not subscriber.flush()
    assert subscriber.moved_at == 0.0
    pipe.room = 1
    assert not subscriber.flush()
    assert subscriber.moved_at >= before


def test_finish_waits_for_the_outbox() -> None:
    """A stream that is ended cleanly first gets what is waiting, then the farewell and the end."""
    subscriber, pipe = open_stream(room=2, chunked=True)
    subscriber.offer(Batch(b"hello"))
    subscriber.finish(Ending.DRAINED, b"bye")
    assert subscriber.ending is Ending.DRAINED
    assert pipe.released == []
    subscriber.offer(Batch(b"after the end"))
    subscriber.finish(Ending.DRAINED, b"again")

    pipe.room = 1000
    assert subscriber.flush()

    assert pipe.taken == chunk(b"hello") + chunk(b"bye") + LAST_CHUNK
    assert pipe.released == [subscriber]


@pytest.mark.parametrize(
    ("chunked", "farewell", "expected"),
    [
        (True, b"bye", b"3\r\nbye\r\n0\r\n\r\n"),
        (True, b"", b"0\r\n\r\n"),
        (False, b"bye", b"bye"),
        (False, b"", b""),
    ],
)
def test_finish_is_a_clean_end(chunked: bool, farewell: bytes, expected: bytes) -> None:
    """A chunked stream ends with the last chunk, any other with the connection."""
    subscriber, pipe = open_stream(chunked=chunked)
    subscriber.finish(Ending.DRAINED, farewell)
    assert pipe.taken == expected
    assert pipe.released == [subscriber]


def test_finishing_a_stream_with_a_full_outbox() -> None:
    """A stream that is too slow for its farewell is ended as too slow."""
    subscriber, pipe = open_stream(room=0)
    subscriber.offer(Batch(b"x" * (OUTBOX_BYTES + 1)))
    subscriber.finish(Ending.DRAINED, b"bye")
    assert subscriber.ending is Ending.TOO_SLOW
    assert pipe.released == [subscriber]


@pytest.mark.parametrize(
    ("number", "ending"),
    [
        (errno.EPIPE, Ending.CLIENT_LEFT),
        (errno.ECONNRESET, Ending.CLIENT_LEFT),
        (errno.ETIMEDOUT, Ending.STALLED),
        (errno.EHOSTUNREACH, Ending.STALLED),
        (errno.ENETUNREACH, Ending.STALLED),
    ],
)
def test_a_failed_write_ends_the_stream(number: int, ending: Ending) -> None:
    """A client that is gone is noticed by a write, at once or from the outbox, and named."""
    subscriber, pipe = open_stream()
    pipe.error = OSError(number, "x")
    subscriber.offer(Batch(b"hello"))
    assert subscriber.ending is ending
    assert pipe.released == [subscriber]

    subscriber, pipe = open_stream(room=1)
    subscriber.offer(Batch(b"hello"))
    pipe.error = OSError(number, "x")
    assert subscriber.flush()
    assert subscriber.ending is ending
    assert pipe.released == [subscriber]
    assert ending_for(pipe.error) is ending


def test_no_byte_follows_the_end() -> None:
    """After its end nothing is written for a stream: its descriptor may be a stranger's by now."""
    subscriber, pipe = open_stream()
    subscriber.end(Ending.CLIENT_LEFT)
    writes = pipe.writes

    subscriber.offer(Batch(b"x"))
    subscriber.send(b"y")
    subscriber.flush()
    subscriber.finish(Ending.DRAINED, b"z")
    subscriber.end(Ending.STALLED)

    assert pipe.writes == writes
    assert pipe.released == [subscriber]
    assert subscriber.ending is Ending.CLIENT_LEFT


def test_the_first_reason_stays() -> None:
    """A client that leaves while its stream is being finished doesn't change why it ended."""
    subscriber, pipe = open_stream(room=0)
    subscriber.offer(Batch(b"x"))
    subscriber.finish(Ending.DRAINED, b"bye")
    subscriber.end(Ending.CLIENT_LEFT)
    assert subscriber.ending is Ending.DRAINED
    assert pipe.released == [subscriber]


def test_an_ended_subscriber_has_left_its_view() -> None:
    """Ending a stream takes it out of its view before the outlet tells the hub."""
    subscriber, _ = open_stream()
    view = View(Selection(("a",)))
    view.join(subscriber, view.last_id)
    subscriber.end(Ending.CLIENT_LEFT)
    assert view.subscribers == set()


def test_endings_have_stable_names() -> None:
    """The names of endings stand in logs and documents."""
    assert {ending.value for ending in Ending} == {
        "client_left",
        "too_slow",
        "stalled",
        "drained",
        "channel_ended",
        "not_resumed",
        "expired",
        "revoked",
    }


def test_subscribers_are_small() -> None:
    """A subscriber has slots and no dictionary: there are twenty thousand of them."""
    subscriber, _ = open_stream()
    assert not hasattr(subscriber, "__dict__")


def test_a_burst_of_one_pass_does_not_end_a_reader() -> None:
    """Further batches of a pass aren't judged: nobody can read between them. The next pass is."""
    subscriber, pipe = open_stream(room=0)
    subscriber.offer(Batch(b"x" * OUTBOX_BYTES))
    for _ in range(3):
        subscriber.offer(Batch(b"x" * OUTBOX_BYTES), more=True)

    assert (subscriber.ending, subscriber.unsent) == (None, 4 * OUTBOX_BYTES)
    subscriber.offer(Batch(b"next pass"))
    assert subscriber.ending is Ending.TOO_SLOW
    assert pipe.released == [subscriber]


@pytest.mark.parametrize("room", [OUTBOX_BYTES, 10 * OUTBOX_BYTES])
def test_a_reader_that_has_read_meanwhile_is_not_too_slow(room: int) -> None:
    """Before a stream is ended as too slow it is looked at once more: it may have read what is
    in its outbox, partly or all, since the kernel was last asked.
    """
    subscriber, pipe = open_stream(room=0)
    subscriber.offer(Batch(b"x" * 2 * OUTBOX_BYTES))
    pipe.room = room
    subscriber.offer(Batch(b"y"))
    assert subscriber.ending is None
    pipe.room = 10 * OUTBOX_BYTES
    assert subscriber.flush()
    assert pipe.taken == b"x" * 2 * OUTBOX_BYTES + b"y"
