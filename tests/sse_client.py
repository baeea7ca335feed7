"""An independent client: a parser written from WHATWG HTML 9.2 and a strict little HTTP client.

It never imports the service, so that a mistake there cannot hide behind the same mistake here. The
client is blocking and uses plain sockets: it works as it is, and under gevent's monkey patching.
"""

from __future__ import annotations

import codecs
import enum
import re
import socket
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

RECEIVE_BYTES = 65536
"""How much one read takes at most."""

HEAD_BYTES = 65536
"""A response head above this is taken for a mistake."""

LINE_END = re.compile("\r\n|\n|\r")
CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")


# ------------------------------------------------------------------------------------ event streams


@dataclass(frozen=True)
class ParsedEvent:
    """One dispatched event, as a browser's MessageEvent would show it."""

    type: str
    data: str
    last_event_id: str


class EventStreamParser:
    """Bytes in, events out, as WHATWG HTML 9.2.5 and 9.2.6 say; the bytes may be cut anywhere.

    What is not an event can be read afterwards: `last_event_id`, the last valid `retry` in
    milliseconds, all `comments`, the `unknown_fields`, how many blocks had fields but no data
    (`quiet_blocks`), and how many blank lines ended no block at all (`stray_blank_lines`: some
    clients dispatch an empty event for each).
    """

    def __init__(self) -> None:
        self.last_event_id = ""
        self.retry: int | None = None
        self.comments: list[str] = []
        self.unknown_fields: list[str] = []
        self.quiet_blocks = 0
        self.stray_blank_lines = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True
        self._after_cr = False
        self._line = ""
        self._event_type = ""
        self._data: list[str] = []
        self._id = ""
        self._block_has_field = False
        self._events: list[ParsedEvent] = []

    @property
    def inside_block(self) -> bool:
        """Whether the stream, ending here, would lose an open line or block."""
        return bool(self._line) or self._block_has_field

    def feed(self, data: bytes) -> list[ParsedEvent]:
        """Take the next bytes and return the events that they complete."""
        text = self._decoder.decode(data)
        if text and self._at_start:
            self._at_start = False
            text = text.removeprefix("\ufeff")
        if text and self._after_cr:
            self._after_cr = False
            text = text.removeprefix("\n")
        self._after_cr = self._after_cr or text.endswith("\r")
        lines = LINE_END.split(self._line + text)
        self._line = lines.pop()
        for line in lines:
            self._take_line(line)
        events, self._events = self._events, []
        return events

    def _take_line(self, line: str) -> None:
        if not line:
            self._dispatch()
        elif line.startswith(":"):
            self.comments.append(line[1:])
        else:
            name, _, value = line.partition(":")
            self._take_field(name, value.removeprefix(" "))

    def _take_field(self, name: str, value: str) -> None:
        self._block_has_field = True
        if name == "event":
            self._event_type = value
        elif name == "data":
            self._data.append(value)
        elif name == "id":
            if "\0" not in value:
                self._id = value
        elif name == "retry":
            if value.isascii() and value.isdigit():
                self.retry = int(value)
        else:
            self.unknown_fields.append(name)

    def _dispatch(self) -> None:
        self.last_event_id = self._id
        if self._data:
            name = self._event_type or "message"
            self._events.append(ParsedEvent(name, "\n".join(self._data), self.last_event_id))
        elif self._block_has_field:
            self.quiet_blocks += 1
        else:
            self.stray_blank_lines += 1
        self._event_type = ""
        self._data = []
        self._block_has_field = False


def parse_stream(data: bytes) -> list[ParsedEvent]:
    """Return the events of a whole stream."""
    return EventStreamParser().feed(data)


# -------------------------------------------------------------------------------------- HTTP bodies


class FramingError(Exception):
    """The response breaks HTTP's framing."""


class StreamEndedError(Exception):
    """The stream is over, and nothing more can come."""


class End(enum.Enum):
    """How a response ended."""

    TERMINATED = "terminating chunk"
    LENGTH = "content length reached"
    FIN = "closed with FIN"
    RST = "closed with RST"


class Body(Protocol):
    """What undoes one way of framing a body."""

    finished: End | None
    sizes: list[int]

    @property
    def inside(self) -> bool:
        """Whether the wire stopped in the middle of the body's frame."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the wire and return those of the body."""


class EndlessBody:
    """A body that ends with the connection (HTTP/1.0)."""

    def __init__(self) -> None:
        self.finished: End | None = None
        self.inside = False
        self.sizes: list[int] = []

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the wire and return those of the body: the same."""
        return data


class LengthBody:
    """A body with a Content-Length."""

    def __init__(self, length: int) -> None:
        self.sizes: list[int] = []
        self._left = length
        self.inside = length > 0
        self.finished: End | None = None if length else End.LENGTH

    def feed(self, data: bytes) -> bytes:
        """Take bytes and return those of the body; more than announced is an error."""
        if len(data) > self._left:
            raise FramingError(f"bytes after the end of the body: {data[self._left :][:50]!r}")
        self._left -= len(data)
        self.inside = self._left > 0
        if not self._left:
            self.finished = End.LENGTH
        return data


class ChunkedBody:
    """A chunked body, read strictly: no extensions, no trailers, and nothing after it."""

    def __init__(self) -> None:
        self.finished: End | None = None
        self.sizes: list[int] = []
        self._rest = b""
        self._left = 0
        self._awaits = "size"

    @property
    def inside(self) -> bool:
        """Whether the wire stopped in the middle of a chunk or its frame."""
        return self._awaits != "size" or bool(self._rest)

    def feed(self, data: bytes) -> bytes:
        """Take bytes and return those of the body, also of a chunk that is not complete."""
        body = bytearray()
        rest = self._rest + data
        while rest and not self.finished:
            before = len(rest)
            if self._awaits == "data":
                body += rest[: self._left]
                rest = self._take_data(rest)
            else:
                rest = self._take_line(rest)
            if len(rest) == before:
                break
        self._rest = rest
        if self.finished and rest:
            raise FramingError(f"bytes after the last chunk: {rest[:50]!r}")
        return bytes(body)

    def _take_data(self, rest: bytes) -> bytes:
        taken = min(self._left, len(rest))
        self._left -= taken
        if not self._left:
            self._awaits = "end of chunk"
        return rest[taken:]

    def _take_line(self, rest: bytes) -> bytes:
        """Take a size line, or the empty line after a chunk; `rest` unchanged: not all here."""
        line, end, after = rest.partition(b"\r\n")
        if not end:
            limit = 9 if self._awaits == "size" else 1
            if len(rest) > limit or not CHUNK_SIZE.fullmatch(rest.removesuffix(b"\r") or b"0"):
                raise FramingError(f"no {self._awaits} in {rest[:50]!r}")
            return rest
        if self._awaits == "size":
            if not CHUNK_SIZE.fullmatch(line):
                raise FramingError(f"bad chunk size {line[:50]!r}")
            self._left = int(line, 16)
            self._awaits = "data" if self._left else "end of body"
            if self._left:
                self.sizes.append(self._left)
            return after
        if line:
            raise FramingError(f"no {self._awaits} in {rest[:50]!r}")
        if self._awaits == "end of body":
            self.finished = End.TERMINATED
        self._awaits = "size"
        return after


# --------------------------------------------------------------------------------------- the client


@dataclass(frozen=True)
class ResponseHead:
    """Status line and headers; header names in lower case, in the order of the wire."""

    version: str
    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, head: bytes) -> ResponseHead:
        """Read a response head, without the empty line after it."""
        first, *lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/(1\.[01]) (\d{3})(?: (.*))?", first)
        if match is None:
            raise FramingError(f"bad status line {first[:80]!r}")
        headers = []
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
                raise FramingError(f"bad header line {line[:80]!r}")
            headers.append((name.lower(), value.strip(" \t")))
        return cls(match[1], int(match[2]), match[3] or "", tuple(headers))

    def all(self, name: str) -> list[str]:
        """Return each value of the header."""
        return [value for known, value in self.headers if known == name.lower()]

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the header's only value; two of them are an error."""
        values = self.all(name)
        if len(values) > 1:
            raise FramingError(f"header {name} came {len(values)} times")
        return values[0] if values else default

    def body(self, method: str) -> Body:
        """Return what decodes the body that follows."""
        length = self.get("content-length")
        coding = self.get("transfer-encoding")
        if length is not None and coding is not None:
            raise FramingError("both Content-Length and Transfer-Encoding")
        if method == "HEAD" or self.status in (204, 304):
            return LengthBody(0)
        if coding is not None:
            if coding.lower() != "chunked" or self.version == "1.0":
                raise FramingError(f"Transfer-Encoding {coding} in HTTP/{self.version}")
            return ChunkedBody()
        return EndlessBody() if length is None else LengthBody(int(length))


class SseClient:
    """One streaming request over one socket. `connect` opens it; every wait has a deadline.

    `head` is the response head, `wire` all bytes after it, `body` those bytes unframed and, if the
    head says gzip, decompressed, `parser` the state of the event stream, `ended` how the stream
    ended (None: it goes on), `truncated` whether that cut a chunk.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.head = ResponseHead("1.1", 0, "", ())
        self.wire = bytearray()
        self.body = bytearray()
        self.parser = EventStreamParser()
        self.ended: End | None = None
        self.truncated = False
        self._framing: Body = EndlessBody()
        self._decode: Callable[[bytes], bytes] = bytes
        self._events: deque[ParsedEvent] = deque()

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        http10: bool = False,
        method: str = "GET",
        timeout: float = 10.0,
        receive_buffer: int | None = None,
        source: str | None = None,
    ) -> SseClient:
        """Open `http://host:port/path?query`, send the request and read the response head.

        `receive_buffer` bounds what the kernel takes in for a client that does not read; `source`
        is the local address.
        """
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"not an http:// address: {url}")
        address = (parts.hostname, parts.port or 80)
        client = cls(open_socket(address, timeout, receive_buffer, source))
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            client.request(
                parts.netloc, path, headers=headers, http10=http10, method=method, timeout=timeout
            )
        except BaseException:
            client.close()
            raise
        return client

    def request(
        self,
        host: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        http10: bool = False,
        method: str = "GET",
        timeout: float = 10.0,
    ) -> None:
        """Send the request over the open socket and read the response head."""
        fields = {
            "Host": host,
            "Accept": "text/event-stream",
            "Cache-Control": "no-cache",
            **(headers or {}),
        }
        lines = [
            f"{method} {path} HTTP/{'1.0' if http10 else '1.1'}",
            *(f"{k}: {v}" for k, v in fields.items()),
        ]
        self.sock.settimeout(timeout)
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode())
        deadline = time.monotonic() + timeout
        received = b""
        while b"\r\n\r\n" not in received:
            data = self._receive(deadline)
            received += data
            if not data or len(received) > HEAD_BYTES:
                raise StreamEndedError(f"no response head, {self.ended}: {received[:200]!r}")
        head, _, rest = received.partition(b"\r\n\r\n")
        self.head = ResponseHead.parse(head)
        self._framing = self.head.body(method)
        if self.header("Content-Encoding") == "gzip":
            self._decode = zlib.decompressobj(wbits=31).decompress
        self._take(rest)

    @property
    def status(self) -> int:
        """The response's status code."""
        return self.head.status

    def header(self, name: str) -> str | None:
        """Return the value of the response's header, which may occur once."""
        return self.head.get(name)

    @property
    def chunks(self) -> list[bytes]:
        """The payload of each complete chunk so far."""
        chunks, start = [], 0
        for size in self._framing.sizes:
            if start + size <= len(self.body):
                chunks.append(bytes(self.body[start : start + size]))
            start += size
        return chunks

    def read_some(self, timeout: float) -> bytes:
        """Wait for the next bytes of the body and return them; b"" when the stream ends instead."""
        return self._read_some(time.monotonic() + timeout)

    def next_event(self, timeout: float) -> ParsedEvent:
        """Return the next event, or raise TimeoutError, or StreamEndedError if none can come."""
        return self._next_event(time.monotonic() + timeout)

    def events(self, count: int, timeout: float) -> list[ParsedEvent]:
        """Return exactly `count` events that come within `timeout` seconds in all."""
        deadline = time.monotonic() + timeout
        events: list[ParsedEvent] = []
        try:
            while len(events) < count:
                events.append(self._next_event(deadline))
        except (TimeoutError, StreamEndedError) as error:
            raise type(error)(
                f"{error}, after {len(events)} of {count} events, the last {events[-1:]}"
            ) from None
        return events

    def events_within(self, seconds: float) -> list[ParsedEvent]:
        """Listen for `seconds`, or to the stream's end, and return what came."""
        deadline = time.monotonic() + seconds
        events: list[ParsedEvent] = []
        try:
            while True:
                events.append(self._next_event(deadline))
        except (TimeoutError, StreamEndedError):
            return events

    def read_until_end(self, timeout: float) -> list[ParsedEvent]:
        """Return all events up to the stream's end, which must come within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.ended is None:
            self._read_some(deadline)
        events = list(self._events)
        self._events.clear()
        return events

    def wait_body(self, part: bytes, timeout: float) -> None:
        """Wait until the body holds `part`."""
        deadline = time.monotonic() + timeout
        while part not in self.body:
            if not self._read_some(deadline) and self.ended is not None:
                raise StreamEndedError(f"{self.ended}, without {part!r}")

    def closing(self, timeout: float) -> End | None:
        """Say how the server closes the connection after the stream's end; None: not yet."""
        if self.ended in (End.FIN, End.RST):
            return self.ended
        self.sock.settimeout(timeout)
        try:
            extra = self.sock.recv(RECEIVE_BYTES)
        except TimeoutError:
            return None
        except ConnectionError:
            return End.RST
        if extra:
            raise FramingError(f"bytes after the end of the stream: {extra[:50]!r}")
        return End.FIN

    def close(self) -> None:
        """Leave with FIN (or RST, as the kernel does when unread bytes are left)."""
        self.sock.close()

    def abort(self) -> None:
        """Leave with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def __enter__(self) -> SseClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _next_event(self, deadline: float) -> ParsedEvent:
        while not self._events:
            if self.ended is not None:
                raise StreamEndedError(f"the stream ended: {self.ended.value}")
            self._read_some(deadline)
        return self._events.popleft()

    def _read_some(self, deadline: float) -> bytes:
        before = len(self.body)
        while self.ended is None and len(self.body) == before:
            data = self._receive(deadline)
            if data:
                self._take(data)
        return bytes(self.body[before:])

    def _receive(self, deadline: float) -> bytes:
        """Read once; b"" and `ended` set at the connection's end."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("nothing came in time")
        self.sock.settimeout(left)
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except TimeoutError:
            raise TimeoutError("nothing came in time") from None
        except ConnectionError:
            self._end(End.RST)
            return b""
        if not data:
            self._end(End.FIN)
        return data

    def _take(self, data: bytes) -> None:
        self.wire += data
        body = self._decode(self._framing.feed(data))
        self.body += body
        self._events.extend(self.parser.feed(body))
        if self._framing.finished is not None:
            self._end(self._framing.finished)

    def _end(self, how: End) -> None:
        self.ended = how
        self.truncated = self._framing.inside


def open_socket(
    address: tuple[str, int],
    timeout: float,
    receive_buffer: int | None = None,
    source: str | None = None,
) -> socket.socket:
    """Connect over TCP; a receive buffer must be set before, for the window to be as small."""
    family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source is not None:
            sock.bind((source, 0))
        sock.settimeout(timeout)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def event_data(events: Iterable[ParsedEvent]) -> list[str]:
    """Return only the data of each event, for comparisons."""
    return [event.data for event in events]
