"""The body of an upload: what has arrived comes at once, and lines are cut where they end."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import IO, Any

import gevent
import pytest
from gevent.queue import Queue
from gunicorn.http.body import Body, ChunkedReader, LengthReader
from gunicorn.http.unreader import SocketUnreader
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadBody, Draining, EventTooLarge
from service.routes.lines import HELD_BYTES, Arrivals, decode, split
from tests.raw_http import chunked


class Script:
    """A body whose pieces come when the test says; an exception among them is raised."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.queue: Queue[bytes | Exception] = Queue(items=pieces)
        self.reads = 0

    def read1(self, size: int) -> bytes:
        """Wait for the next piece."""
        self.reads += 1
        piece = self.queue.get()
        if isinstance(piece, Exception):
            raise piece
        return piece


def arrivals(stream: Any, length: int | None = None) -> Arrivals:
    """The arrivals of any kind of stream."""
    return Arrivals(stream, length)


def take_all(body: Arrivals) -> list[bytes]:
    """Everything up to the body's end."""
    taken = []
    while data := body.take():
        taken.append(data)
    return taken


# ----------------------------------------------------------------------------------- arrivals


def test_what_arrives_is_there_at_once() -> None:
    """One byte is taken as soon as it is there; the end comes after all of it, again and again."""
    script = Script()
    body = arrivals(script)
    for piece in (b"a", b"bc", b"\n"):
        gevent.spawn_later(0.01, script.queue.put, piece)
        assert body.take() == piece
    script.queue.put(b"")
    assert [body.take(), body.take()] == [b"", b""]


def test_what_arrives_meanwhile_comes_together() -> None:
    """Pieces that came while nobody asked are one; so a client's chunks don't matter."""
    script = Script(b"a")
    body = arrivals(script)
    assert body.take() == b"a"
    for piece in (b"b", b"c", b"d"):
        script.queue.put(piece)
    gevent.sleep(0.01)
    assert body.take() == b"bcd"


def test_nothing_is_read_before_it_is_asked_for() -> None:
    """A request that is refused before its body is looked at reads none of it."""
    script = Script(b"a")
    arrivals(script)
    gevent.sleep(0.01)
    assert script.reads == 0


def test_a_fast_client_has_to_wait() -> None:
    """Only so much is held; with room again reading goes on, and nothing is missing."""
    pieces = [bytes([65 + number]) * (HELD_BYTES // 4) for number in range(12)]
    script = Script(*pieces, b"")
    body = arrivals(script)
    taken = [body.take()]
    gevent.sleep(0.01)
    assert script.reads == 8, "four are taken, and four are held"
    taken += take_all(body)
    assert b"".join(taken) == b"".join(pieces)
    assert max(map(len, taken)) <= HELD_BYTES


def test_a_client_that_never_pauses_does_not_stop_the_worker() -> None:
    """Others run every few milliseconds, also when reading never has to wait."""

    class Endless:
        def read1(self, size: int) -> bytes:
            return b"x"

    body = arrivals(Endless())
    body.take()
    body.end()
    started = time.monotonic()
    for _ in range(10):
        gevent.sleep(0)
    assert time.monotonic() - started < 5
    body.discard(0)


@pytest.mark.parametrize("error", [ConnectionResetError(), ValueError("a bad chunk")])
def test_a_body_that_breaks_off(error: Exception) -> None:
    """What came before is taken first; then it is BadBody, every time."""
    body = arrivals(Script(b"a\nb", error))
    assert body.take() == b"a\nb"
    for _ in range(2):
        with pytest.raises(BadBody, match="broke off"):
            body.take()


def test_a_body_shorter_than_it_said() -> None:
    """An end before the Content-Length is no end."""
    body = arrivals(Script(b"abc", b""), 4)
    assert body.take() == b"abc"
    with pytest.raises(BadBody, match="3 of 4"):
        body.take()
    assert take_all(arrivals(Script(b"abcd", b""), 4)) == [b"abcd"]


def test_a_fault_of_ours_is_not_swallowed() -> None:
    """What else goes wrong while reading is raised where it is seen."""
    with pytest.raises(ZeroDivisionError):
        arrivals(Script(ZeroDivisionError())).take()


def test_an_end_from_outside() -> None:
    """Who waits is woken and told why, after what has arrived; the rest is dropped."""
    script = Script()
    body = arrivals(script)
    gevent.spawn_later(0.01, body.end, Draining())
    with pytest.raises(Draining):
        body.take()
    script = Script(b"a")
    body = arrivals(script)
    body.take()
    script.queue.put(b"b")
    gevent.sleep(0.01)
    body.end(Draining())
    script.queue.put(b"c")
    gevent.sleep(0.01)
    assert body.take() == b"b"
    with pytest.raises(Draining):
        body.take()


def test_an_end_from_outside_of_a_body_that_has_ended() -> None:
    """What is complete stays complete."""
    body = arrivals(Script(b"a", b""))
    assert body.take() == b"a"
    gevent.sleep(0.01)
    body.end(Draining())
    assert body.take() == b""


def test_an_end_from_outside_while_the_client_waits_for_room() -> None:
    """A body that is held back is ended too, and then read to its end without being kept."""
    script = Script(*[b"x" * HELD_BYTES] * 3, b"")
    body = arrivals(script)
    body.take()
    gevent.sleep(0.01)
    body.end(Draining())
    assert body.take() == b"x" * HELD_BYTES
    with pytest.raises(Draining):
        body.take()
    body.discard(1)
    assert script.queue.empty()


def test_discarding_lasts_as_long_as_the_client_sends() -> None:
    """Until its end, or until the time is up; also when nothing was read before."""
    script = Script(b"a", b"b", b"")
    started = time.monotonic()
    arrivals(script).discard(5)
    assert script.queue.empty()
    assert time.monotonic() - started < 4
    endless = Script(b"a")
    started = time.monotonic()
    arrivals(endless).discard(0.1)
    assert 0.09 < time.monotonic() - started < 4
    endless.queue.put(b"b")
    gevent.sleep(0.01)
    assert len(endless.queue) == 1, "nobody reads any more"


# ----------------------------------------------------------------------------- kinds of streams


@contextmanager
def over_socket(make: Any) -> Iterator[tuple[socket.socket, IO[bytes]]]:
    """gunicorn's body of a request whose client is a socket of the test."""
    client, server = socket.socketpair()
    with closing(client), closing(server):
        unreader = SocketUnreader(server)
        yield client, Body(make(unreader))  # type: ignore[misc]  # it is what Flask calls a stream


def chunked_reader(unreader: SocketUnreader) -> ChunkedReader:
    """gunicorn's reader of a chunked body."""
    request: Any = SimpleNamespace(limit_request_field_size=0, max_buffer_headers=0)
    return ChunkedReader(request, unreader)


def test_a_chunked_body_of_gunicorn() -> None:
    """A part of a chunk comes at once, chunks that arrive together come together."""
    with over_socket(chunked_reader) as (client, stream):
        body = arrivals(stream)
        client.sendall(b"5\r\na")
        assert body.take() == b"a"
        client.sendall(b"bcd")
        assert body.take() == b"bcd"
        client.sendall(b"e\r\n" + chunked(*[b"%d\n" % number for number in range(500)]))
        assert b"".join(take_all(body)).split() == [b"e0", *(b"%d" % n for n in range(1, 500))]


@pytest.mark.parametrize("wire", [b"", b"5", b"5\r\nabc", b"3\r\nabcX", b"3\r\nabc\r\n", b"zz\r\n"])
def test_a_chunked_body_of_gunicorn_that_breaks_off(wire: bytes) -> None:
    """Without its last chunk a body isn't whole."""
    with over_socket(chunked_reader) as (client, stream):
        client.sendall(wire)
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(BadBody, match="broke off or is badly chunked"):
            take_all(arrivals(stream))


def test_a_body_of_gunicorn_with_a_length() -> None:
    """It comes as it arrives, in whatever parts, and ends with its length."""
    with over_socket(lambda unreader: LengthReader(unreader, 300_003)) as (client, stream):
        body = arrivals(stream, 300_003)
        client.sendall(b"abc")
        assert body.take() == b"abc"
        sending = gevent.spawn(client.sendall, b"x" * 300_000)
        assert b"".join(take_all(body)) == b"x" * 300_000
        sending.get()


def test_the_next_request_is_left_to_gunicorn() -> None:
    """What has arrived behind a body isn't part of it, and stays where gunicorn looks for it."""
    with over_socket(lambda unreader: LengthReader(unreader, 5)) as (client, stream):
        client.sendall(b"abcdeGET / HTTP/1.1")
        assert take_all(arrivals(stream, 5)) == [b"abcde"]
        reader: Any = stream
        assert reader.reader.unreader.take_buffered() == b"GET / HTTP/1.1"


def test_bodies_of_other_servers() -> None:
    """A stream with `read1` gives what it has, any other comes line by line."""
    lines = b"a\nbc\nd"
    assert take_all(arrivals(io.BytesIO(lines))) == [lines]

    class OnlyLines:
        def __init__(self) -> None:
            self.readline = io.BytesIO(lines).readline

    assert b"".join(take_all(arrivals(OnlyLines()))) == lines


# -------------------------------------------------------------------------------------- lines


def lines_of(*pieces: bytes, max_bytes: int = 100) -> list[list[bytes]]:
    """The lines of pieces that arrive one by one."""
    waiting = iter([*pieces, b""])
    return list(split(lambda: next(waiting), max_bytes))


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ((), []),
        ((b"a",), [[b"a"]]),
        ((b"a\n",), [[b"a"]]),
        ((b"a\r\n",), [[b"a"]]),
        ((b"a\nb\r\nc",), [[b"a", b"b"], [b"c"]]),
        ((b"a", b"b\n", b"c\n"), [[b"ab"], [b"c"]]),
        ((b"a\r", b"\nb\n"), [[b"a", b"b"]]),
        ((b"\n\n", b"\n"), [[b"", b""], [b""]]),
        ((b"\r\n\r\n",), [[b"", b""]]),
        ((b"a\rb\n",), [[b"a\rb"]]),
        ((b"a\r\r\n",), [[b"a\r"]]),
        ((b"a\r",), [[b"a\r"]]),
        ((b"\xc3", b"\xa4\n"), [[b"\xc3\xa4"]]),
        ((b"a\x0bb\x0cc\x85d\n",), [[b"a\x0bb\x0cc\x85d"]]),
    ],
)
def test_lines_end_with_lf_or_crlf(pieces: tuple[bytes, ...], lines: list[list[bytes]]) -> None:
    """Nothing else ends one; the last needs no end; those that arrive together come together."""
    assert lines_of(*pieces) == lines


@given(st.lists(st.binary(max_size=20)), st.sampled_from([b"\n", b"\r\n"]))
def test_cutting_a_body_anywhere_changes_nothing(pieces: list[bytes], end: bytes) -> None:
    """The lines are those of the whole body, however it arrives."""
    cut = [piece.replace(b"x", end) for piece in pieces]
    whole = b"".join(cut)
    expected = [line.removesuffix(b"\r") for line in whole.split(b"\n")[:-1]]
    rest = whole.rpartition(b"\n")[2]
    got = [line for lines in lines_of(*filter(None, cut), max_bytes=1000) for line in lines]
    assert got == expected + [rest] * bool(rest)


def test_a_line_that_never_ends_is_not_kept() -> None:
    """Over the limit it comes unfinished, and nothing after it: memory is bounded."""
    taken: list[int] = []

    def endless() -> bytes:
        taken.append(1)
        return b"a\n" + b"x" * 30

    assert list(split(endless, 29)) == [[b"a"], [b"x" * 30]]
    assert len(taken) == 1


def test_the_end_of_a_line_is_not_counted() -> None:
    """A line just at the limit may still get its CR and LF."""
    assert lines_of(b"x" * 10, b"\r", b"\n", b"y\n", max_bytes=10) == [[b"x" * 10], [b"y"]]
    assert lines_of(b"x" * 10, b"\r", b"y\n", max_bytes=10) == [[b"x" * 10 + b"\ry"]]
    assert lines_of(b"x" * 11, b"\ny\n", max_bytes=10) == [[b"x" * 11]]


def test_lines_are_text() -> None:
    """UTF-8 within the limit, counted in bytes."""
    assert decode("ü\r\0".encode(), 4) == "ü\r\0"
    with pytest.raises(EventTooLarge, match="longer than 3 bytes"):
        decode("üü".encode(), 3)
    with pytest.raises(BadBody, match="byte 1 is not UTF-8"):
        decode(b"a\xff", 4)
