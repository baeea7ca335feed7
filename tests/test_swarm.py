"""The load client itself: a tiny server feeds it known faults, and each must be counted right."""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import swarm as swarm_module
from tests.sse_client import EventStreamParser
from tests.swarm import Report, Swarm, SwarmError, compiled, need_swarm, payload


@pytest.fixture(autouse=True)
def _compiler() -> None:
    need_swarm()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
OPENING = b"retry: 2000\nid: 1000-0\n\n"
LAST_CHUNK = b"0\r\n\r\n"
PAUSE, RESET, HOLD = b"(pause)", b"(reset)", b"(hold)"


def chunk(data: bytes) -> bytes:
    """Frame one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(number: int, sequence: int | None = None) -> bytes:
    """Return the bytes of one numbered event, with the id 1000-<sequence>."""
    return (
        f"id: 1000-{number if sequence is None else sequence}\ndata: {payload(number)}\n\n".encode()
    )


Script = Callable[[int, bytes], list[bytes]]
"""What to send to a stream, given its number and its request."""


class TinyServer:
    """Serves each connection by a script, in a thread of its own, and keeps what it saw."""

    def __init__(self, script: Script) -> None:
        self.requests: list[tuple[int, bytes]] = []
        self.peers: list[str] = []
        self.goodbyes: dict[str, int] = defaultdict(int)
        self.sent: dict[int, int] = defaultdict(int)
        self.active = self.most_active = 0
        self._script = script
        self._lock = threading.Lock()
        self._let_go = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self._closed = False
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/stream?channel=s-%d"
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        while not self._closed:
            sock, (peer, _) = self._listener.accept()
            self.peers.append(peer)
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            request = b""
            while b"\r\n\r\n" not in request:
                data = sock.recv(4096)
                if not data:
                    return
                request += data
            match = re.search(rb"s-(\d+)", request)
            number = int(match[1]) if match else -1
            with self._lock:
                self.requests.append((number, request))
                self.active += 1
                self.most_active = max(self.active, self.most_active)
            try:
                for piece in self._script(number, request):
                    self._send(sock, number, piece)
            except OSError as error:
                self.goodbyes[type(error).__name__] += 1

    def _send(self, sock: socket.socket, number: int, piece: bytes) -> None:
        if piece == PAUSE:
            time.sleep(0.05)
            with self._lock:
                self.active -= 1
        elif piece == RESET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif piece == HOLD:
            self._hold(sock)
        else:
            sock.sendall(piece)
            self.sent[number] += len(piece)

    def _hold(self, sock: socket.socket) -> None:
        """Wait for the client to leave, or for the test's end."""
        sock.settimeout(0.05)
        while not self._let_go.is_set():
            try:
                if not sock.recv(1):
                    self.goodbyes["fin"] += 1
                    return
            except TimeoutError:
                continue
        sock.settimeout(None)

    def let_go(self) -> None:
        """Let all scripts go on after their HOLD."""
        self._let_go.set()

    def close(self) -> None:
        """Stop; the threads end with the connections."""
        self._closed = True
        self.let_go()
        socket.create_connection(("127.0.0.1", self.port)).close()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()


@contextmanager
def serving(script: Script | list[bytes]) -> Iterator[TinyServer]:
    """Run a tiny server; a list is sent to every stream alike."""
    server = TinyServer((lambda number, request: script) if isinstance(script, list) else script)
    try:
        yield server
    finally:
        server.close()


def run_to_end(pieces: list[bytes], *, cache: bool = True, http10: bool = False) -> Report:
    """Feed one stream and return the report at its end."""
    with serving(pieces) as server, Swarm(server.url, 1, cache=cache, http10=http10) as swarm:
        return swarm.wait_ended(10)


def test_a_good_run() -> None:
    """Of a faultless run everything is counted, and there are no faults."""
    pieces = [CHUNKED + chunk(OPENING), PAUSE, *(chunk(event(n)) for n in range(1, 21)), LAST_CHUNK]
    with serving(pieces) as server, Swarm(server.url, 40, expect=20) as swarm:
        opened = swarm.wait_open(10)
        report = swarm.wait_ended(10)
    assert (opened.open, opened.statuses) == (40, {"200": 40})
    assert report.faults == {}
    assert (report.events, report.events_least, report.events_most) == (800, 20, 20)
    assert (report.short_of_expected, report.unnumbered, report.without_id) == (0, 0, 0)
    assert (report.positions, report.retry_least, report.retry_most) == (40, 2000, 2000)
    assert (report.endings["terminated"], report.over, report.open) == (40, 40, 0)
    assert (report.latency_ms.count, report.opening_ms.count) == (800, 40)
    assert sorted(number for number, _ in server.requests) == list(range(40))


@pytest.mark.parametrize(
    ("numbers", "lost", "duplicates", "inversions"),
    [
        ([1, 2, 3, 4], 0, 0, 0),
        ([7, 8, 9], 0, 0, 0),
        ([1, 2, 5], 2, 0, 0),
        ([1, 2, 2, 3], 0, 1, 0),
        ([1, 2, 3, 1, 2, 3, 4], 0, 3, 0),
        ([1, 3, 2, 4], 0, 0, 1),
        ([1, 4, 2, 5], 1, 0, 1),
        ([5, 6, 4, 7], 0, 0, 1),
        ([1, 3, 2, 2, 4], 0, 1, 1),
        ([1, 100, 101], 98, 0, 0),
        ([1, 100, 50, 101], 97, 0, 1),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_numbers(
    numbers: list[int], lost: int, duplicates: int, inversions: int, joined: bool
) -> None:
    """Losses, duplicates and inversions are told apart, within 64 numbers."""
    events = [event(number, sequence) for sequence, number in enumerate(numbers, 1)]
    chunks = [chunk(b"".join(events))] if joined else [chunk(one) for one in events]
    report = run_to_end([CHUNKED, *chunks, LAST_CHUNK])
    assert (report.lost, report.duplicates, report.inversions) == (lost, duplicates, inversions)
    assert (report.id_duplicates, report.id_inversions) == (0, 0)
    assert bool(report.faults) == bool(lost or duplicates or inversions)


@pytest.mark.parametrize(
    ("ids", "duplicates", "inversions", "odd"),
    [
        ([b"1-0", b"1-1", b"2-0"], 0, 0, 0),
        ([b"1-9", b"1-10", b"1-9"], 0, 1, 0),
        ([b"1-1", b"1-1"], 1, 0, 0),
        ([b"2-0", b"1-5", b"3-0"], 0, 1, 0),
        ([b"5-0", b"1-0", b"2-0", b"6-0"], 0, 2, 0),
        ([b"1", b"a-b", b"1-", b"-1", b"1-1x", b""], 0, 0, 6),
    ],
)
def test_ids(ids: list[bytes], duplicates: int, inversions: int, odd: int) -> None:
    """Ids must grow; one that is not above the highest so far is counted."""
    chunks = [chunk(b"id: %b\ndata: seq %d \n\n" % (one, n)) for n, one in enumerate(ids)]
    report = run_to_end([CHUNKED, *chunks, LAST_CHUNK])
    counted = (report.id_duplicates, report.id_inversions, report.odd_ids)
    assert counted == (duplicates, inversions, odd)


def test_a_position_may_repeat_the_last_id() -> None:
    """A block with only an id may say the last event's id again, but not an older one."""
    good = [event(1), event(2), b"id: 1000-2\n\n", b"id: 1000-5\n\n", event(3, 6)]
    assert run_to_end([CHUNKED, *map(chunk, good), LAST_CHUNK]).faults == {}
    bad = [event(1), event(2), b"id: 1000-1\n\n", event(3)]
    assert run_to_end([CHUNKED, *map(chunk, bad), LAST_CHUNK]).faults == {"id_inversions": 1}
    stale = [b"id: 1000-5\n\n", event(5)]
    assert run_to_end([CHUNKED, *map(chunk, stale), LAST_CHUNK]).faults == {"id_duplicates": 1}


def test_numbers_within_json() -> None:
    """A number is found in the first string of a JSON object that begins with one."""
    wrapped = b'data: {"channel": "a", "pub": {"data": "seq 1 t 1 x"}}\n\n'
    others = b'data: {"connect": {}}\n\ndata: {\n\ndata: ["seq 2 "]\n\n'
    report = run_to_end([CHUNKED, chunk(wrapped), chunk(others), LAST_CHUNK])
    assert (report.events, report.unnumbered, report.latency_ms.count) == (4, 3, 1)


def test_streams_take_paths_in_turn() -> None:
    """Of several URLs each stream has one, whose %d is still the stream's number."""
    with serving([CHUNKED, LAST_CHUNK]) as server:
        urls = [f"{server.url}&other={name}" for name in "ab"]
        with Swarm(urls, 5) as swarm:
            swarm.wait_ended(10)
    taken = {number: re.findall(rb"&other=(.)", request) for number, request in server.requests}
    assert taken == {0: [b"a"], 1: [b"b"], 2: [b"a"], 3: [b"b"], 4: [b"a"]}


def test_what_is_not_an_ordinary_event() -> None:
    """Comments, stray blank lines, reserved events and events without number or id are counted."""
    stream = (
        b":\n: two\n\ndata: no number\n\nevent: $reset\ndata: {}\n\nevent:$ping\ndata: {}\n\n"
        b"event: x\nevent: y\ndata: seq 5 \ndata: seq 9 \n\nunknown: 1\nretry: 70\nretry: x\n\n"
    )
    report = run_to_end([CHUNKED, chunk(stream), LAST_CHUNK])
    assert (report.comments, report.comments_least, report.stray_blanks) == (2, 2, 1)
    assert (report.events, report.unnumbered, report.without_id) == (2, 1, 2)
    assert (report.specials, report.resets, report.positions) == (2, 1, 0)
    assert (report.retry_least, report.retry_most) == (70, 70)


@pytest.mark.parametrize(
    ("pieces", "ending", "faults"),
    [
        ([CHUNKED, chunk(event(1)), LAST_CHUNK], "terminated", {}),
        ([CHUNKED, chunk(event(1)), b"0\r\n", PAUSE, b"\r\n"], "terminated", {}),
        ([CHUNKED, chunk(event(1))], "fin", {}),
        ([CHUNKED, chunk(event(1)), PAUSE, RESET], "rst", {}),
        ([CHUNKED, chunk(event(1)), chunk(event(2))[:-9]], "fin", {"cut_chunks": 1}),
        ([CHUNKED, chunk(event(1)), b"5"], "fin", {"cut_chunks": 1}),
        ([CHUNKED, chunk(event(1)), b"0\r\n"], "fin", {"cut_chunks": 1}),
        ([CHUNKED, chunk(event(1)), b"5", PAUSE, RESET], "rst", {"cut_chunks": 1}),
        ([CHUNKED, chunk(event(1)[:-1]), LAST_CHUNK], "terminated", {"cut_events": 1}),
        ([CHUNKED, chunk(event(1)[:-9])], "fin", {"cut_events": 1}),
        ([CHUNKED, chunk(event(1)), b"5\nhello\n"], "framing", {"framing": 1}),
        ([CHUNKED, chunk(event(1)), b"5;x=y\r\nhello\r\n"], "framing", {"framing": 1}),
        ([CHUNKED, chunk(event(1)), b"123456789\r\n"], "framing", {"framing": 1}),
        ([CHUNKED, chunk(event(1)), b"\r\n"], "framing", {"framing": 1}),
        ([CHUNKED, chunk(event(1)), b"1\r\n:\n"], "framing", {"framing": 1}),
        ([CHUNKED, chunk(event(1)), b"1\r\n:\r\r"], "framing", {"framing": 1}),
        ([CHUNKED, chunk(event(1)), LAST_CHUNK + b"x"], "framing", {"framing": 1}),
        ([CHUNKED, chunk(event(1)), event(2)], "framing", {"framing": 1}),
        ([HEAD + b"\r\n", event(1)], "fin", {}),
        ([HEAD + b"\r\n", event(1)[:-1]], "fin", {"cut_events": 1}),
        ([HEAD + b"Content-Length: %d\r\n\r\n" % len(event(1)), event(1)], "length", {}),
    ],
)
def test_endings(pieces: list[bytes], ending: str, faults: dict[str, int]) -> None:
    """How a stream ended is told apart, and a cut chunk or event is noticed."""
    report = run_to_end(pieces)
    assert {name: count for name, count in report.endings.items() if count} == {ending: 1}
    assert report.faults == faults
    assert report.events == (0 if pieces[1] != chunk(event(1)) and "cut_events" in faults else 1)


@pytest.mark.parametrize(
    ("response", "ending", "status"),
    [
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "rejected", {"503": 1}),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "rejected", {"204": 1}),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n", "rejected", {"200": 1}),
        (b"HTTP/1.1 200 OK\r\n", "unanswered", {}),
        (b"SSH-2.0\r\n\r\n", "framing", {}),
    ],
)
def test_no_stream(response: bytes, ending: str, status: dict[str, int]) -> None:
    """Another status or type is a rejection, and none of them counts as open."""
    with serving([response]) as server, Swarm(server.url, 1) as swarm:
        with pytest.raises(SwarmError, match="only 0 of 1"):
            swarm.wait_open(10)
        report = swarm.wait_ended(10)
    assert (report.endings[ending], report.statuses, report.opening_ms.count) == (1, status, 0)


def test_nobody_listens() -> None:
    """A refused connection is a stream without an answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Swarm(f"http://127.0.0.1:{port}/", 3) as swarm:
        report = swarm.wait_ended(10)
    assert (report.endings["unanswered"], report.over) == (3, 3)


def counted(report: Report) -> tuple[object, ...]:
    """Return what a report counts, without times and without how the bytes came."""
    skipped = ("_ms", "_ns", "ms", "chunks", "seconds", "bytes")
    values = vars(report).items()
    return tuple((name, value) for name, value in values if not name.endswith(skipped))


LINES = [b"data: x", b"data: seq %d ", b"id: 5-%d", b": c", b"", b"", b"event: $reset", b"retry: 9"]


def random_stream(source: random.Random) -> bytes:
    """Return a stream of lines in any order and with any line ends."""
    ends = source.choice([[b"\n"], [b"\r\n"], [b"\r"], [b"\n", b"\r\n", b"\r"]])
    stream = b""
    for _ in range(source.randrange(200)):
        line = source.choice(LINES)
        stream += (line % source.randrange(50) if b"%d" in line else line) + source.choice(ends)
    return stream


def cut(data: bytes, source: random.Random, longest: int) -> list[bytes]:
    """Cut into random pieces."""
    pieces = []
    while data:
        size = source.randrange(1, longest)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@pytest.mark.parametrize("seed", range(12))
def test_cuts_and_cache_change_nothing(seed: int) -> None:
    """Whole, in random chunks, in random packets, cached or not: the counts are the same."""
    source = random.Random(seed)
    stream = random_stream(source)
    parser = EventStreamParser()
    events = parser.feed(stream)
    in_chunks = b"".join(map(chunk, cut(stream, source, 40)))
    ways = [
        run_to_end([HEAD + b"\r\n", stream], http10=True),
        run_to_end([CHUNKED, *([chunk(stream)] if stream else []), LAST_CHUNK], cache=False),
        run_to_end([CHUNKED, in_chunks, LAST_CHUNK]),
        run_to_end([*cut(CHUNKED + in_chunks + LAST_CHUNK, source, 7)]),
    ]
    for report in ways:
        report.endings.clear()  # type: ignore[attr-defined] # a dict, and not to be compared
    assert len({repr(counted(report)) for report in ways}) == 1
    report = ways[0]
    assert (report.events + report.specials, report.comments) == (len(events), len(parser.comments))
    assert report.stray_blanks == parser.stray_blank_lines
    assert report.cut_events == int(parser.inside_block)


def test_the_cache_is_used_and_is_right() -> None:
    """The same chunks on many streams are parsed once, and their faults counted for each."""
    stream = b"".join(chunk(event(n) + b":\n") for n in (1, 2, 2, 3, 5, 4)) * 2
    counts = []
    for cache in (True, False):
        pieces = [CHUNKED, stream, LAST_CHUNK]
        with serving(pieces) as server, Swarm(server.url, 20, cache=cache) as swarm:
            report = swarm.wait_ended(10)
        counts.append(counted(report))
        assert bool(report.cached_chunks) == cache
        # per stream: 1 2 2' 3 5 4" 1' 2' 2' 3' 5' 4'; the ids likewise
        assert report.faults == {
            "duplicates": 7 * 20,
            "inversions": 20,
            "id_duplicates": 2 * 20,
            "id_inversions": 6 * 20,
        }
    assert counts[0] == counts[1]


def run_of(first: int, last: int, ids: bool) -> bytes:
    """One chunk of contiguous events, with or without ids."""
    numbers = range(first, last + 1)
    return chunk(
        b"".join(event(n) if ids else b"data: %b\n\n" % payload(n).encode() for n in numbers)
    )


@pytest.mark.parametrize("ids", [False, True])
def test_runs_count_like_single_events(ids: bool) -> None:
    """A chunk of contiguous events is counted at once: next, repeated, late, and after a gap."""
    runs = [
        (1, 100),
        (101, 130),
        (131, 300),
        (131, 300),
        (290, 305),
        (401, 500),
        (1, 5),
        (501, 502),
    ]
    pieces = [CHUNKED, *(run_of(first, last, ids) for first, last in runs), LAST_CHUNK]
    counts = []
    for cache in (True, False):
        with serving(pieces) as server, Swarm(server.url, 10, cache=cache, expect=250) as swarm:
            report = swarm.wait_ended(10)
        counts.append((*counted(report), report.latency_ms.count))
        assert bool(report.cached_chunks) == cache
        assert (report.events, report.latency_ms.count) == (5930, 5930)
        assert (report.lost, report.short_of_expected) == (950, 0)
        assert report.without_id == (0 if ids else 5930)
    assert counts[0] == counts[1]


def test_large_chunks() -> None:
    """A chunk of a megabyte, a line of as much, and chunks in many packets are read."""
    big = b"data: seq 1 " + b"x" * 1_000_000 + b"\n\n" + event(2) * 1
    many = b"".join(event(n) for n in range(3, 5000))
    report = run_to_end([CHUNKED, chunk(big), chunk(many), LAST_CHUNK])
    assert report.faults == {}
    assert report.events == 4999


def test_latency_by_either_clock() -> None:
    """The publisher may put the monotonic or the real clock into its events."""
    past = 50_000_000
    times = [time.monotonic_ns() - past, time.time_ns() - past]
    stream = b"".join(b"data: seq %d t %d \n\n" % pair for pair in enumerate(times))
    report = run_to_end([CHUNKED, chunk(stream), LAST_CHUNK])
    assert report.latency_ms.count == 2
    assert 50 <= report.latency_ms.p50 <= report.latency_ms.max < 5000


def test_quantiles() -> None:
    """Percentiles are at most 3 % too high."""

    def script(number: int, request: bytes) -> list[bytes]:
        now = time.monotonic_ns()
        late = [b"data: seq %d t %d \n\n" % (n, now - n * 100_000_000) for n in range(1, 101)]
        return [CHUNKED, chunk(b"".join(late)), LAST_CHUNK]

    with serving(script) as server, Swarm(server.url, 1) as swarm:
        latency = swarm.wait_ended(10).latency_ms
    on_the_way = latency.max - 10_000  # the last event comes no sooner than the others
    assert 0 <= on_the_way < 3000
    for measured, true in ((latency.p50, 5000), (latency.p90, 9000), (latency.p99, 9900)):
        assert true <= measured < (true + on_the_way) * 1.04


REFUSAL = HEAD + b"Content-Length: 11\r\n\r\nretry: 50\n\n"


def test_soft_refusals_are_reopened() -> None:
    """A refused stream counts as such, and comes again after its retry time if asked to."""
    tries: dict[int, int] = defaultdict(int)

    def script(number: int, request: bytes) -> list[bytes]:
        tries[number] += 1
        accepted = [CHUNKED, chunk(OPENING), HOLD, chunk(event(1)), LAST_CHUNK]
        chunked_refusal = [CHUNKED, chunk(b"retry: 50\n\n"), LAST_CHUNK]
        return accepted if tries[number] == 3 else [[REFUSAL], chunked_refusal][tries[number] - 1]

    with serving(script) as server, Swarm(server.url, 10, reopen="refused") as swarm:
        report = swarm.wait_until(lambda report: report.positions == 10, 10)
        assert (report.endings["refused"], report.open, report.over) == (20, 10, 0)
        assert report.ms > 100
        server.let_go()
        report = swarm.wait_ended(10)
    assert (report.endings["terminated"], report.events, report.faults) == (10, 10, {})

    tries.clear()
    with serving(script) as server, Swarm(server.url, 10) as swarm:
        report = swarm.wait_ended(10)
    assert (report.endings["refused"], report.over) == (10, 10)


def test_resuming_streams() -> None:
    """Streams that are reopened whatever ended them send their last id, and count on."""
    starts: dict[int, int] = defaultdict(int)

    def script(number: int, request: bytes) -> list[bytes]:
        match = re.search(rb"Last-Event-ID: 1000-(\d+)\r\n", request)
        start = int(match[1]) if match else 0
        starts[number] += 1
        ends = {1: [LAST_CHUNK], 2: [PAUSE, RESET], 3: [b"5"]}.get(starts[number], [HOLD])
        if starts[number] == 4:
            return [b"HTTP/1.1 503 No\r\n\r\n"]
        return [CHUNKED, chunk(event(start + 1) + event(start + 2)), *ends]

    with serving(script) as server, Swarm(server.url, 5, reopen="ended", retry_cap_ms=9) as swarm:
        report = swarm.wait_until(lambda report: report.events_least == 8, 10)
    assert (report.lost, report.duplicates, report.open) == (0, 0, 5)
    assert report.endings["terminated"] == report.endings["rst"] == report.endings["fin"] == 5
    assert (report.endings["rejected"], report.faults) == (5, {"cut_chunks": 5})


def test_vanishing() -> None:
    """Streams leave by command with FIN or RST, and the server sees which."""
    with serving([CHUNKED, chunk(OPENING), HOLD]) as server, Swarm(server.url, 10) as swarm:
        swarm.wait_open(10)
        assert swarm.vanish(4, "fin") == 4
        assert swarm.vanish(3, "rst") == 3
        report = swarm.report()
        assert (report.endings["vanished"], report.open, report.first_end_ms) == (7, 3, -1)
        assert swarm.vanish(100) == 3
        deadline = time.monotonic() + 5
        while sum(server.goodbyes.values()) < 10 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.goodbyes == {"fin": 7, "ConnectionResetError": 3}


def test_stopped_readers() -> None:
    """Stopped readers leave bytes unread, others don't; once resumed they read all of them."""
    many = [chunk(b"".join(event(n) for n in range(k * 500 + 1, k * 500 + 501))) for k in range(80)]
    size = sum(map(len, many))
    pieces = [CHUNKED, HOLD, *many, LAST_CHUNK]
    with serving(pieces) as server, Swarm(server.url, 4, receive_buffer=4096) as swarm:
        swarm.wait_open(10)
        assert swarm.stop_reading(1) == 1
        server.let_go()
        report = swarm.wait_until(lambda report: report.endings["terminated"] == 3, 20)
        rows = swarm.streams()
        assert (report.stopped, report.open, report.events_least) == (1, 1, 0)
        assert [row.events for row in rows] == [40_000] * 3 + [0]
        assert server.sent[3] < size / 2 < size == server.sent[0] - len(CHUNKED) - len(LAST_CHUNK)
        assert swarm.resume() == 1
        report = swarm.wait_ended(20)
    assert (report.endings["terminated"], report.events_least) == (4, 40_000)
    assert report.faults == {}


def test_a_stopped_reader_is_reset() -> None:
    """A stopped reader that the server throws out is noticed at once."""
    with serving([CHUNKED, HOLD, chunk(event(1)), RESET]) as server, Swarm(server.url, 2) as swarm:
        swarm.wait_open(10)
        swarm.stop_reading(2)
        server.let_go()
        report = swarm.wait_ended(10)
    assert (report.endings["rst"], report.stopped_over, report.events) == (2, 2, 0)


def test_expecting_and_clearing() -> None:
    """Completeness is announced; after `clear` counts and numbers begin anew."""
    pieces = [CHUNKED, *(chunk(event(n)) for n in (1, 2, 3)), HOLD, chunk(event(9)), HOLD]
    with serving(pieces) as server, Swarm(server.url, 5, expect=3) as swarm:
        assert swarm.wait_complete(10).events == 15
        swarm.clear()
        swarm.expect(1)
        assert swarm.report().events == swarm.report().latency_ms.count == 0
        with pytest.raises(TimeoutError, match="not complete"):
            swarm.wait_complete(0.1)
        server.let_go()
        report = swarm.wait_complete(10)
    assert (report.events, report.events_least, report.lost) == (5, 1, 0)


def test_rows() -> None:
    """Each stream's state can be read."""

    def script(number: int, request: bytes) -> list[bytes]:
        return [CHUNKED, chunk(OPENING + b":\n" + event(1) + event(3)), *([] if number else [HOLD])]

    with serving(script) as server, Swarm(server.url, 2) as swarm:
        swarm.wait_until(lambda report: report.events == 4 and report.over == 1, 10)
        first, second = swarm.streams()
    assert (first.state, first.ended, first.events, first.lost) == ("open", "", 2, 1)
    assert (first.comments, first.retry, first.last_id, first.ended_ms) == (1, 2000, "1000-3", -1)
    assert (second.state, second.ended, second.ended_ms > 0) == ("ended", "fin", True)


def test_connects_in_flight() -> None:
    """No more streams wait for their response head than allowed."""
    pieces = [PAUSE, CHUNKED, chunk(OPENING), HOLD]
    with serving(pieces) as server, Swarm(server.url, 30, in_flight=5) as swarm:
        swarm.wait_open(10)
    assert server.most_active == 5


def test_connects_per_second() -> None:
    """Streams are opened at the given rate."""
    pieces = [CHUNKED, chunk(OPENING), HOLD]
    with serving(pieces) as server, Swarm(server.url, 60, rate=100, in_flight=60) as swarm:
        report = swarm.wait_open(10)
    assert 0.4 < (report.last_open_ms - report.first_connect_ms) / 1000 < 3
    assert report.opened_per_second < 150


def test_source_addresses() -> None:
    """Streams come from as many addresses as asked for."""
    with serving([CHUNKED, HOLD]) as server, Swarm(server.url, 6, sources=3) as swarm:
        swarm.wait_open(10)
    assert sorted(server.peers[:6]) == ["127.0.0.1"] * 2 + ["127.0.0.2"] * 2 + ["127.0.0.3"] * 2


def test_requests() -> None:
    """Path, query, HTTP version and headers are those asked for."""
    with serving([HEAD + b"\r\n", HOLD]) as server:
        url = f"http://127.0.0.1:{server.port}/a?channel=x&channel=s-%d"
        with Swarm(url, 1, http10=True, headers={"Last-Event-ID": "5-0", "X-Y": "z"}) as swarm:
            swarm.wait_open(10)
    lines = server.requests[0][1].decode().split("\r\n")
    assert lines[0] == "GET /a?channel=x&channel=s-0 HTTP/1.0"
    expected = {"Accept: text/event-stream", "Last-Event-ID: 5-0", "X-Y: z"}
    assert expected <= set(lines)


def test_it_is_fast() -> None:
    """The client takes in more than a million events per second of its own CPU time."""
    batch = chunk(b"".join(event(n) for n in range(1, 401)))
    with serving([CHUNKED, batch * 100, LAST_CHUNK]) as server, Swarm(server.url, 20) as swarm:
        report = swarm.wait_ended(30)
    assert report.events == 20 * 40_000
    assert report.events / report.cpu_seconds > 1_000_000


def test_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler tests are skipped loudly, but not on a CI machine."""
    monkeypatch.setattr(swarm_module, "COMPILER", "no-such-compiler")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="NOT TESTED"):
        need_swarm()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="compiler"):
        need_swarm()


def test_compile_errors_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler says about a bad source reaches the reader."""
    monkeypatch.setattr(swarm_module, "BUILD", tmp_path / "build")
    source = tmp_path / "bad.c"
    source.write_text("int main(void) { return nothing; }")
    with pytest.raises(SwarmError, match="nothing"):
        compiled(source)


def test_a_dead_client_is_an_error() -> None:
    """Asking a client that has died raises, and does not hang."""
    with serving([CHUNKED, HOLD]) as server, Swarm(server.url, 1) as swarm:
        swarm.wait_open(10)
        swarm.close()
        with pytest.raises(SwarmError):
            swarm.report()
