"""Streams through the iterator of a WSGI response: the same bounds, order and endings."""

from __future__ import annotations

import gevent
import pytest

from service.batch import Batch
from service.event import FIRST_ID
from service.iterator import OPEN, IteratorOutlet
from service.subscriber import GONE, Ending, Subscriber
from service.view import Selection, View
from tests.encodings import PLAIN

OUTBOX_BYTES = 100


class Stream:
    """A stream through an iterator, with a record of its end."""

    def __init__(self) -> None:
        self.ended: list[Subscriber] = []
        self.slow: set[Subscriber] = set()
        outlet = IteratorOutlet(self.ended.append, self.slow, outbox_bytes=OUTBOX_BYTES)
        self.subscriber = Subscriber(outlet, OPEN, Selection(("a",)), "", encoding=PLAIN)
        self.pieces = outlet.pieces(self.subscriber)


@pytest.fixture
def stream() -> Stream:
    """An open stream."""
    return Stream()


def test_pieces_come_in_order(stream: Stream) -> None:
    """What is sent is yielded, in order, also when the reader is behind."""
    for data in (b"one", b"two", b"three"):
        stream.subscriber.offer(Batch(data))
    assert [next(stream.pieces) for _ in range(3)] == [b"one", b"two", b"three"]
    stream.subscriber.offer(Batch(b"four"))
    assert next(stream.pieces) == b"four"


def test_the_reader_waits_without_work(stream: Stream) -> None:
    """A reader with nothing to read lets the others run, and wakes up with the first byte."""
    reader = gevent.spawn(next, stream.pieces)
    gevent.sleep(0.01)
    assert not reader.ready()
    stream.subscriber.offer(Batch(b"x"))
    assert reader.get(timeout=1) == b"x"


def test_a_slow_reader_is_known_and_ended(stream: Stream) -> None:
    """A reader with a backlog is among the slow ones; one that lets OUTBOX_BYTES pile up ends."""
    stream.subscriber.offer(Batch(b"first"))
    assert stream.slow == set()
    stream.subscriber.offer(Batch(b"x" * (OUTBOX_BYTES + 1)))
    assert stream.slow == {stream.subscriber}

    stream.subscriber.offer(Batch(b"too much"))

    assert stream.subscriber.ending is Ending.TOO_SLOW
    assert stream.ended == [stream.subscriber]
    assert stream.slow == set()
    assert list(stream.pieces) == [b"first"]


def test_a_reader_that_catches_up_is_not_slow(stream: Stream) -> None:
    """Once the backlog is read, the stream is no longer watched for a stall."""
    stream.subscriber.offer(Batch(b"a"))
    stream.subscriber.offer(Batch(b"b"))
    assert stream.slow == {stream.subscriber}
    assert [next(stream.pieces), next(stream.pieces)] == [b"a", b"b"]
    assert stream.slow == set()
    assert stream.subscriber.unsent == 0


def test_the_moment_of_reading_counts_as_moving(stream: Stream) -> None:
    """A reader that takes its time, but takes, isn't stalled."""
    stream.subscriber.offer(Batch(b"a"))
    stream.subscriber.offer(Batch(b"b"))
    stream.subscriber.moved_at = 0.0
    assert [next(stream.pieces), next(stream.pieces)] == [b"a", b"b"]
    assert stream.subscriber.moved_at > 0.0


@pytest.mark.parametrize("waiting", [[], [b"a"], [b"a", b"b", b"c"]])
def test_a_clean_end_comes_after_all_that_waits(stream: Stream, waiting: list[bytes]) -> None:
    """A finished stream yields what waits and its farewell, and stops."""
    for data in waiting:
        stream.subscriber.offer(Batch(data))
    stream.subscriber.finish(Ending.DRAINED, b"bye")
    assert list(stream.pieces) == [*waiting, b"bye"]
    assert stream.ended == [stream.subscriber]
    assert stream.subscriber.ending is Ending.DRAINED


def test_an_empty_farewell_is_just_the_end(stream: Stream) -> None:
    """Nothing to say is no piece: some servers take an empty one for the end of the body."""
    stream.subscriber.finish(Ending.DRAINED)
    assert list(stream.pieces) == []


def test_the_last_piece_before_an_empty_farewell_is_read(stream: Stream) -> None:
    """A stream that ends between two pieces still gives the one that was written before the end:
    it is the `$end` of a finished channel.
    """
    stream.subscriber.send(b"opening")
    assert next(stream.pieces) == b"opening"
    stream.subscriber.offer(Batch(b"last"))
    stream.subscriber.finish(Ending.CHANNEL_ENDED)
    assert list(stream.pieces) == [b"last"]
    assert stream.subscriber.ending is Ending.CHANNEL_ENDED


def test_an_ended_stream_stops_its_reader(stream: Stream) -> None:
    """A reader that waits is let go when its stream ends."""
    reader = gevent.spawn(list, stream.pieces)
    gevent.sleep(0)
    stream.subscriber.end(Ending.STALLED)
    assert reader.get(timeout=1) == []
    assert stream.subscriber.ending is Ending.STALLED


def test_closing_means_that_the_client_left(stream: Stream) -> None:
    """A server closes the iterator when its client is gone; that ends the stream once."""
    view = View(Selection(("a",)))
    view.join(stream.subscriber, FIRST_ID)
    stream.subscriber.offer(Batch(b"x"))
    assert next(stream.pieces) == b"x"

    stream.pieces.close()  # type: ignore[attr-defined]  # it is a generator

    assert stream.subscriber.ending is Ending.CLIENT_LEFT
    assert stream.subscriber.fd == GONE
    assert stream.ended == [stream.subscriber]
    assert view.subscribers == set()
