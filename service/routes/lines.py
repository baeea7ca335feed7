"""The body of an upload: read as it arrives, and cut into lines."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from typing import IO

import gevent
from gevent.event import Event
from gunicorn.http.body import Body, ChunkedReader, LengthReader

from service.errors import BadBody, EventTooLarge
from service.routes.bodies import breaking_off, check_length, take_held

HELD_BYTES = 262_144
"""What may wait to be published; beyond it the client is made to wait."""

PIECE_BYTES = 65_536
"""What is read at once where the server isn't gunicorn, which has a limit of its own, 1 MiB."""

SLICE_SECONDS = 0.005
"""Other greenlets run at least this often while a client sends without a pause."""


class Arrivals:
    """A request's body, read by a greenlet of its own from the first call of `take` on.

    So what arrives while events are published is there together afterwards, however it was
    chunked, and who waits for the client can be interrupted.
    """

    def __init__(self, stream: IO[bytes], length: int | None) -> None:
        """`length` is the Content-Length, if there is one."""
        self._pieces = _pieces(stream, length)
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._news = Event()
        self._room = Event()
        self._ended = False
        self._error: Exception | None = None
        self._reader: gevent.Greenlet[[], None] = gevent.Greenlet(self._read)

    def take(self) -> bytes:
        """All that has arrived since the last call, as soon as there is any; nothing at the end.

        Raises, once all that came before is taken, BadBody where the body broke off, or the error
        of `end`.
        """
        self._reader.start()
        self._news.wait()
        data = b"".join(self._held)
        if self._ended:
            if self._error is not None and not data:
                raise self._error
        else:
            self._news.clear()
        self._held.clear()
        self._held_bytes = 0
        self._room.set()
        return data

    def end(self, error: Exception | None = None) -> None:
        """Let `take` come to the end, or raise `error`: what arrives from now on is dropped."""
        if not self._ended:
            self._ended, self._error = True, error
        self._news.set()
        self._room.set()

    def discard(self, seconds: float) -> None:
        """Read on for so long, unless the client ends before, and drop it all."""
        self.end()
        self._reader.start()
        self._reader.join(seconds)
        self._reader.kill()

    def _read(self) -> None:
        error: Exception | None = None
        slice_began = time.perf_counter()
        try:
            for piece in self._pieces:
                self._hold(piece)
                if time.perf_counter() - slice_began > SLICE_SECONDS:
                    gevent.sleep(0)
                    slice_began = time.perf_counter()
        except Exception as caught:  # for the request, whatever it is
            error = caught
        self.end(error)

    def _hold(self, piece: bytes) -> None:
        if self._ended:
            return
        self._held.append(piece)
        self._held_bytes += len(piece)
        self._news.set()
        if self._held_bytes >= HELD_BYTES:
            self._room.clear()
            self._room.wait()


def _pieces(stream: IO[bytes], length: int | None) -> Iterator[bytes]:
    """The body in pieces, each as it arrives. Raises BadBody when it breaks off."""
    count = 0
    with breaking_off():
        while piece := _arrived(stream):
            count += len(piece)
            yield piece
    check_length(count, length)


def _arrived(stream: IO[bytes]) -> bytes:
    """Wait until something has arrived and return that; nothing at the end.

    gunicorn's own read(n) waits for all of n bytes, so its reader is asked for the first byte,
    which makes it receive once, and what it then holds is taken from its buffer.
    """
    if not isinstance(stream, Body):
        read = getattr(stream, "read1", None) or stream.readline
        piece: bytes = read(PIECE_BYTES)
        return piece
    reader = stream.reader
    first = reader.read(1)
    rest = b""
    if isinstance(reader, ChunkedReader):
        rest = reader.buf.getvalue()
        reader.buf = io.BytesIO()
    elif isinstance(reader, LengthReader):
        rest = take_held(reader)
    return first + rest


def split(take: Callable[[], bytes], max_bytes: int) -> Iterator[list[bytes]]:
    """The lines of what `take` returns, without LF or CRLF; those that arrive together in a list.

    The last one needs no end. One over `max_bytes` may come unfinished, as the last: `decode`
    refuses it.
    """
    unfinished = bytearray()
    while data := take():
        head, newline, tail = data.rpartition(b"\n")
        if newline:
            lines = (bytes(unfinished) + head).split(b"\n")
            yield [line.removesuffix(b"\r") for line in lines]
            unfinished = bytearray(tail)
        else:
            unfinished += data
        if len(unfinished) - unfinished.endswith(b"\r") > max_bytes:
            break
    if unfinished:
        yield [bytes(unfinished)]


def decode(line: bytes, max_bytes: int) -> str:
    """`line` as text. Raises EventTooLarge, and BadBody for what isn't UTF-8."""
    if len(line) > max_bytes:
        raise EventTooLarge(f"it is longer than {max_bytes} bytes")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BadBody(f"its byte {error.start} is not UTF-8", fix="Send UTF-8") from None
