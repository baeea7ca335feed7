"""The test client itself, against tables made by hand after WPT's eventsource/format-* files."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.sse_client import (
    ChunkedBody,
    End,
    EventStreamParser,
    FramingError,
    LengthBody,
    ParsedEvent,
    ResponseHead,
    SseClient,
    StreamEndedError,
    event_data,
    parse_stream,
)

LONG = b"x" * 2000

DATA_TABLE: dict[str, tuple[bytes, list[str]]] = {
    "bom": (b"\xef\xbb\xbfdata:1\n\n\xef\xbb\xbfdata:2\n\ndata:3\n\n", ["1", "3"]),
    "bom-2": (b"\xef\xbb\xbf\xef\xbb\xbfdata:1\n\ndata:2\n\ndata:3\n\n", ["2", "3"]),
    "comments": (
        b"data:1\r:\0\n:\r\ndata:2\n:" + LONG + b"\rdata:3\n:data:fail\r:" + LONG + b"\ndata:4\n\n",
        ["1\n2\n3\n4"],
    ),
    "data-before-final-empty-line": (b"retry:1000\ndata:test1\n\nid:test\ndata:test2", ["test1"]),
    "data-before-final-newline": (b"data:test1\n\ndata:test2\n", ["test1"]),
    "field-data": (b"data:\n\ndata\ndata\n\ndata:test\n\n", ["", "\n", "test"]),
    "field-parsing": (
        b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n"
        b" data:32\ndata:4\n\n",
        ["\0\n 2\n1\n3\n\n4"],
    ),
    "field-retry": (b"retry:03000\ndata:x\n\n", ["x"]),
    "field-unknown": (
        b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n",
        ["test\n\ntest"],
    ),
    "leading-space": (b"data:\ttest\rdata: \ndata:test\n\n", ["\ttest\n\ntest"]),
    "newlines": (b"data:test\r\ndata\ndata:test\r\n\r", ["test\n\ntest"]),
    "all-cr": (b"data:1\r\rdata:2\r\r", ["1", "2"]),
    "all-crlf": (b"data:1\r\n\r\ndata:2\r\n\r\n", ["1", "2"]),
    "lf-cr-is-two-ends": (b"data:1\n\rdata:2\n\n", ["1", "2"]),
    "null-character": (b"data:\0\n\n\n\n", ["\0"]),
    "utf-8": ("data:ok…\n\n".encode(), ["ok…"]),
    "bad-utf-8": (b"data:\xff\xe2\x80\n\n", ["��"]),
    "not-line-ends": (
        "data:a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\n\n".encode(),
        ["a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"],
    ),
    "colon-in-value": (b"data:a:b: c\n\n", ["a:b: c"]),
    "bom-later-in-value": (b"data:\xef\xbb\xbf1\n\n", ["\ufeff1"]),
    "only-blank-lines": (b"\n\n\r\n\r\r", []),
    "empty": (b"", []),
}


@pytest.mark.parametrize("name", DATA_TABLE)
def test_data_of_each_event(name: str) -> None:
    """The data of each event is what the specification says."""
    stream, expected = DATA_TABLE[name]
    assert event_data(parse_stream(stream)) == expected


@pytest.mark.parametrize("name", DATA_TABLE)
def test_cuts_change_nothing(name: str) -> None:
    """A stream in two pieces, cut anywhere, or byte by byte, gives the same events."""
    stream, _ = DATA_TABLE[name]
    stream = stream.replace(LONG, b"x")
    whole = parse_stream(stream)
    for cut in range(len(stream) + 1):
        parser = EventStreamParser()
        assert parser.feed(stream[:cut]) + parser.feed(stream[cut:]) == whole
    parser = EventStreamParser()
    assert [event for byte in stream for event in parser.feed(bytes([byte]))] == whole


@pytest.mark.parametrize(
    ("stream", "types"),
    [
        (b"event:test\ndata:x\n\ndata:x\n\n", ["test", "message"]),
        (b"event: \ndata:data\n\n", ["message"]),
        (b"event\ndata:data\n\n", ["message"]),
        (b"event:one\nevent:two\ndata:x\n\n", ["two"]),
        (b"event:lost\n\ndata:x\n\n", ["message"]),
        (b"event:  spaced\ndata:x\n\n", [" spaced"]),
        (b"Event:x\ndata:x\n\n", ["message"]),
    ],
)
def test_types(stream: bytes, types: list[str]) -> None:
    """An event's type is its last `event` field, else `message`, and ends with its block."""
    assert [event.type for event in parse_stream(stream)] == types


@pytest.mark.parametrize(
    ("stream", "ids"),
    [
        (b"id:1\ndata:x\n\ndata:x\n\n", ["1", "1"]),
        (b"id:1\ndata:x\n\nid:2\ndata:x\n\nid\ndata:x\n\n", ["1", "2", ""]),
        (b"id:1\n\ndata:x\n\n", ["1"]),
        (b"id: 1\nid: 2\ndata:x\n\n", ["2"]),
        (b"id:\xe2\x80\xa6\ndata:x\n\n", ["…"]),
        *[
            (b"id:1\nid:" + bad + b"\ndata:x\n\n", ["1"])
            for bad in (b"\0\0", b"x\0", b"\0x", b"x\0x", b" \0")
        ],
    ],
)
def test_ids(stream: bytes, ids: list[str]) -> None:
    """The id persists, changes, is reset by an empty one, and one with a NUL is ignored whole."""
    assert [event.last_event_id for event in parse_stream(stream)] == ids


def test_id_counts_only_after_the_blank_line() -> None:
    """The last event id changes when a block ends, also of a block without data."""
    parser = EventStreamParser()
    parser.feed(b"id:1\n")
    assert (parser.last_event_id, parser.quiet_blocks, parser.inside_block) == ("", 0, True)
    parser.feed(b"\n")
    assert (parser.last_event_id, parser.quiet_blocks, parser.inside_block) == ("1", 1, False)


@pytest.mark.parametrize(
    ("stream", "retry"),
    [
        (b"retry:3000\n", 3000),
        (b"retry:03000\n", 3000),
        (b"retry: 3000\n", 3000),
        (b"retry:3000\nretry:1000x\n", 3000),
        (b"retry:3000\nretry:  1000\n", 3000),
        (b"retry:3000\nretry:-1\n", 3000),
        (b"retry:3000\nretry:1.5\n", 3000),
        ("retry:3000\nretry:\u0661\n".encode(), 3000),
        (b"retry\ndata:x\n\n", None),
        (b"retry:\ndata:x\n\n", None),
        (b"retry:0\n", 0),
        (b"retry:1000", None),
    ],
)
def test_retry(stream: bytes, retry: int | None) -> None:
    """Only ASCII digits set the reconnection time, at the line's end already."""
    parser = EventStreamParser()
    parser.feed(stream)
    assert parser.retry == retry


def test_what_is_no_event_is_counted() -> None:
    """Comments, unknown fields, blocks without data and stray blank lines can be seen."""
    parser = EventStreamParser()
    assert parser.feed(b":\n: two\nfoo:1\nretry:5\n\n\n:\n\ndata:x\n") == []
    assert parser.comments == ["", " two", ""]
    assert parser.unknown_fields == ["foo"]
    assert (parser.quiet_blocks, parser.stray_blank_lines, parser.inside_block) == (1, 2, True)


# --------------------------------------------------------------------------------------------- HTTP


def test_chunks_cut_anywhere() -> None:
    """Chunked framing is undone whatever the cuts, and the chunks' sizes are kept."""
    wire = b"5\r\nhello\r\n1\r\n\n\r\n00A\r\n0123456789\r\n0\r\n\r\n"
    for cut in range(len(wire) + 1):
        body = ChunkedBody()
        assert body.feed(wire[:cut]) + body.feed(wire[cut:]) == b"hello\n0123456789"
        assert (body.finished, body.sizes) == (End.TERMINATED, [5, 1, 10])
    body = ChunkedBody()
    assert b"".join(body.feed(bytes([byte])) for byte in wire) == b"hello\n0123456789"


@pytest.mark.parametrize(
    "wire",
    [
        b"5\nhello\n",
        b"5;a=b\r\nhello\r\n",
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b" 5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"123456789\r\n",
        b"5\r\nhello!\r\n",
        b"5\r\nhell\r\n0\r\n",
        b"0\r\nTrailer: x\r\n\r\n",
        b"0\r\n\r\nmore",
        b"data: no framing at all\n\n",
    ],
)
def test_bad_chunks(wire: bytes) -> None:
    """Framing that is not exact is an error, in one piece as well as byte by byte."""
    with pytest.raises(FramingError):
        ChunkedBody().feed(wire)
    body = ChunkedBody()
    with pytest.raises(FramingError):
        list(map(body.feed, (bytes([byte]) for byte in wire)))


@pytest.mark.parametrize(
    ("wire", "inside"),
    [
        (b"", False),
        (b"1", True),
        (b"1\r\n", True),
        (b"1\r\nx", True),
        (b"1\r\nx\r", True),
        (b"1\r\nx\r\n", False),
        (b"0\r\n", True),
    ],
)
def test_inside_a_chunk(wire: bytes, inside: bool) -> None:
    """It is known whether the wire stopped in the middle of a chunk."""
    body = ChunkedBody()
    body.feed(wire)
    assert body.inside == inside


def test_length_body() -> None:
    """A body with a length ends there, and more is an error."""
    body = LengthBody(3)
    assert (body.feed(b"ab"), body.inside, body.finished) == (b"ab", True, None)
    assert (body.feed(b"c"), body.inside, body.finished) == (b"c", False, End.LENGTH)
    with pytest.raises(FramingError):
        body.feed(b"d")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2 200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\nspace : x",
        b"HTTP/1.1 200 OK\r\n folded",
    ],
)
def test_bad_heads(head: bytes) -> None:
    """A malformed response head is an error."""
    with pytest.raises(FramingError):
        ResponseHead.parse(head)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3",
    ],
)
def test_ambiguous_framing(head: bytes) -> None:
    """A response whose body could be read in two ways is an error."""
    with pytest.raises(FramingError):
        ResponseHead.parse(head).body("GET")


def test_head_fields() -> None:
    """Status, reason and headers are read; names don't depend on case."""
    head = ResponseHead.parse(b"HTTP/1.1 503 Not Now\r\nRetry-After:  5 \r\nX-Y: a\r\nx-y: b")
    assert (head.version, head.status, head.reason) == ("1.1", 503, "Not Now")
    assert (head.get("retry-after"), head.get("nothing"), head.all("X-Y")) == (
        "5",
        None,
        ["a", "b"],
    )


CHUNKED_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
PLAIN_HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
PAUSE = b"(pause)"
RESET = b"(reset)"
HOLD = b"(hold)"


class ScriptedServer:
    """A server for one connection that sends the given pieces and then closes."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.request = b""
        self._pieces = pieces
        self._done = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/stream?channel=a"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        sock, _ = self._listener.accept()
        with sock:
            while b"\r\n\r\n" not in self.request:
                self.request += sock.recv(4096)
            for piece in self._pieces:
                if piece == PAUSE:
                    time.sleep(0.02)
                elif piece == RESET:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif piece == HOLD:
                    self._done.wait(10)
                else:
                    sock.sendall(piece)

    def close(self) -> None:
        """Let a holding server go on, and wait for its end."""
        self._done.set()
        self._thread.join(10)
        self._listener.close()


@contextmanager
def scripted(*pieces: bytes) -> Iterator[ScriptedServer]:
    """Run a scripted server."""
    server = ScriptedServer(list(pieces))
    try:
        yield server
    finally:
        server.close()


def test_a_stream_event_by_event() -> None:
    """Events come as they are sent; a terminated stream says so, and so does the connection."""
    pieces = [
        CHUNKED_HEAD,
        b"d\r\ndata: 1\n\ndata",
        PAUSE,
        b"\r\n",
        b"8\r\n:2\nid:7\n\r\n",
        PAUSE,
        b"1\r\n\n\r\n",
    ]
    with scripted(*pieces, PAUSE, b"0\r\n\r\n") as server, SseClient.connect(server.url) as client:
        assert (client.status, client.header("Content-Type")) == (200, "text/event-stream")
        assert client.next_event(5) == ParsedEvent("message", "1", "")
        assert client.events(1, 5) == [ParsedEvent("message", "2", "7")]
        with pytest.raises(StreamEndedError):
            client.next_event(5)
        assert (client.ended, client.truncated) == (End.TERMINATED, False)
        assert client.chunks == [b"data: 1\n\ndata", b":2\nid:7\n", b"\n"]
        assert client.closing(5) is End.FIN
        assert client.wire.endswith(b"0\r\n\r\n")


def test_the_request_line_and_headers() -> None:
    """The request is what EventSource sends, with the HTTP version and headers given."""
    with scripted(PLAIN_HEAD, b"data: x\n\n") as server:
        with SseClient.connect(server.url, http10=True, headers={"Last-Event-ID": "5-0"}) as client:
            assert event_data(client.read_until_end(5)) == ["x"]
            assert (client.ended, client.truncated) == (End.FIN, False)
        lines = server.request.decode().split("\r\n")
    assert lines[0] == "GET /stream?channel=a HTTP/1.0"
    assert "Accept: text/event-stream" in lines
    assert "Last-Event-ID: 5-0" in lines


@pytest.mark.parametrize(
    ("pieces", "ended", "truncated"),
    [
        ([CHUNKED_HEAD, b"9\r\ndata: 1\n\n\r\n"], End.FIN, False),
        ([CHUNKED_HEAD, b"9\r\ndata: 1\n\n\r\n9\r\ndata"], End.FIN, True),
        ([CHUNKED_HEAD, b"9\r\ndata: 1\n\n\r\n", PAUSE, RESET], End.RST, False),
        ([CHUNKED_HEAD, b"9\r\ndata: 1\n\n\r\n9", PAUSE, RESET], End.RST, True),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ndata: 1\n\n"], End.LENGTH, False),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\ndata: 1\n\n"], End.FIN, True),
    ],
)
def test_how_a_stream_ended(pieces: list[bytes], ended: End, truncated: bool) -> None:
    """A clean end, a FIN and a RST are told apart, and whether a chunk was cut."""
    with scripted(*pieces) as server, SseClient.connect(server.url) as client:
        assert event_data(client.read_until_end(5)) == ["1"]
        assert (client.ended, client.truncated) == (ended, truncated)


def test_deadlines() -> None:
    """Waits end at their deadline, say what came, and lose nothing of it."""
    with (
        scripted(CHUNKED_HEAD, b"9\r\ndata: 1\n\n\r\n", HOLD) as server,
        SseClient.connect(server.url) as client,
    ):
        started = time.monotonic()
        with pytest.raises(TimeoutError, match="after 1 of 2 events"):
            client.events(2, 0.1)
        with pytest.raises(TimeoutError):
            client.read_until_end(0.1)
        assert client.events_within(0.1) == []
        assert time.monotonic() - started < 2
        assert client.ended is None
        assert client.closing(0.05) is None


def test_waiting_for_raw_bytes() -> None:
    """Bytes that are no event can be awaited."""
    pieces = [CHUNKED_HEAD, PAUSE, b"2\r\n:\n\r\n", PAUSE, b"0\r\n\r\n"]
    with scripted(*pieces) as server, SseClient.connect(server.url) as client:
        client.wait_body(b":\n", 5)
        assert client.read_some(5) == b""
        assert client.ended is End.TERMINATED
        with pytest.raises(StreamEndedError):
            client.wait_body(b"never", 5)


def test_no_response() -> None:
    """A server that closes without a response head is an error at once."""
    with scripted(b"HTTP/1.1 200 OK\r\n") as server, pytest.raises(StreamEndedError):
        SseClient.connect(server.url)


def test_leaving_with_fin_or_reset() -> None:
    """`close` leaves with FIN, `abort` with RST."""
    for leave, expected in ((SseClient.close, b""), (SseClient.abort, None)):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sock = socket.create_connection(listener.getsockname())
            peer, _ = listener.accept()
            with peer:
                leave(SseClient(sock))
                peer.settimeout(5)
                if expected is None:
                    with pytest.raises(ConnectionResetError):
                        peer.recv(1)
                else:
                    assert peer.recv(1) == expected
