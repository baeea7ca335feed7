"""10 000 malformed requests: none is answered with 5xx, holds a worker up, or ends it."""

from __future__ import annotations

import os
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.live_server import LiveService, until
from tests.processes import open_files
from tests.raw_http import chunked
from tests.sse_client import SseClient
from tests.valkey import Valkey

pytestmark = pytest.mark.live

REQUESTS = 10_000
AT_ONCE = 24
SLOWEST_SECONDS = 5.0
SPARE_FILES = 10
"""What a worker may have open more than right after its start: its connections to Redis."""

NOT_IMPLEMENTED = 501
"""What RFC 9112, section 6.1, asks for when a transfer coding is unknown; gunicorn says it."""

STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3}) [A-Za-z]")

HEAD = b" HTTP/1.1\r\nHost: 127.0.0.1\r\n"
STREAM = (
    b"GET /stream?channel=a&channel=b&event=tick&ping=event"
    + HEAD
    + (
        b"Accept: text/event-stream\r\nCache-Control: no-cache\r\nLast-Event-ID: 17-0\r\n"
        b"Origin: https://app.example\r\nCookie: a=b; c=d\r\nX-Forwarded-For: 10.0.0.1, ::1\r\n"
        b"\r\n"
    )
)
PUBLISH = (
    b"POST /channels/a?event=tick&retry=1000"
    + HEAD
    + (b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 11\r\n\r\nhello=world")
)
CHUNKED = (
    b"POST /channels/a"
    + HEAD
    + (b"Content-Type: text/plain; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n")
    + chunked(b"hello", b"\xc3\xa4 world\n" * 20)
)
JSON = (
    b"POST /publish"
    + HEAD
    + (
        b"Content-Type: application/json\r\nContent-Length: 69\r\nExpect: 100-continue\r\n\r\n"
        b'[{"channel":"a","data":{"n":[1,null]}},{"channels":["a","b"],"data":"x"}'[:68]
        + b"]"
    )
)

VALID = [
    STREAM,
    STREAM.replace(b"GET", b"HEAD"),
    STREAM.replace(b"GET", b"OPTIONS"),
    STREAM.replace(b"HTTP/1.1", b"HTTP/1.0"),
    PUBLISH,
    CHUNKED,
    JSON,
    b"GET /" + HEAD + b"Accept: */*\r\nIf-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n",
    b"GET /static/pushline.js" + HEAD + b'Range: bytes=0-10\r\nIf-None-Match: "x"\r\n\r\n',
    b"GET /livez" + HEAD + b"\r\n",
    b"GET /readyz" + HEAD + b"Connection: keep-alive\r\n\r\n",
    b"DELETE /channels/a" + HEAD + b"\r\n",
    b"GET /channels" + HEAD + b"\r\n",
]

OTHER_PROTOCOLS = [
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3" + bytes(range(256)) * 2,
    b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c\0\0\0\0\0\0\0\0\0\0\0\0",
    b"*1\r\n$4\r\nPING\r\n",
    b"GET /livez\r\n",
    b"EHLO x\r\n",
    b"\n" * 5000,
    b"\0" * 5000,
    b"",
]

TOKENS = [
    b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\x80", b"\xff", b"\xc3\xa4", b"\xed\xa0\x80", b"%",
    b"%00", b"%0d%0a", b"%zz", b"%ff", b"..", b"/../../etc/passwd", b"//", b"?", b"&", b"=", b";",
    b"#", b":", b" ", b"\t", b"\x7f", b"'", b'"', b"{", b"[" * 3000, b"A" * 9000, b"-1", b"1_0",
    b"0x10", b"+5", b"99999999999999999999", b"1e9", b"NaN", b"\\ud800", b"$reset", b"*", b"\\",
]  # fmt: skip

HEADERS = [
    b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 1_0", b"Content-Length: +5",
    b"Content-Length: 99999999999999999999", b"Content-Length: 0, 5", b"Content-Length:",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: x",
    b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding : chunked", b"Host: a", b"Host:",
    b"Host: a b\xff", b"Host: [::1", b"Host: x:99999999", b"Expect: 100-continue", b"Expect: y",
    b"Upgrade: websocket\r\nConnection: Upgrade",
    b"Upgrade: h2c\r\nConnection: upgrade, http2-settings",
    b"Connection: close", b"Connection: \xff", b"Content-Encoding: gzip", b"Content-Encoding: \xff",
    b"Content-Type: multipart/form-data; boundary=", b"Content-Type: \xff/\xff; charset=\xff",
    b"Content-Type: text/plain; charset=utf-7", b"Content-Type: ;;;=", b"Origin: \xff",
    b"Origin: http://[::1", b"Origin: http://a:b@c:d/", b"Last-Event-ID: \xff\xfe",
    b"Last-Event-ID: " + b"9" * 7000, b"X-Forwarded-For: ::1%eth0, , \xff, 1.2.3.4.5",
    b"X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off", b"Script-Name: /x", b"Cookie: =;=\xff;",
    b" folded: x", b"No colon", b": no name", b"Range: bytes=9-1", b"If-Range: \xff",
    b"\r\n".join(b"H%d: x" % n for n in range(150)), b"Long: " + b"x" * 9000, b"Accept: \xff",
    b"If-Modified-Since: Sun, 06 Nov 19941994199419941994 08:49:37 GMT",
    b"If-Modified-Since: Sun, 99 Nov 99999 99:99:99 GMT", b"Accept: " + b"," * 8000,
    b"SCRIPT_NAME: /",
]  # fmt: skip

METHODS = [b"get", b"GETT", b"P\xffST", b"CONNECT", b"TRACE", b"PUT", b"PATCH", b"", b"G" * 5000]

TARGETS = [
    b"*", b"", b"livez", b"http://evil/livez", b"http://[::1/livez", b"//livez", b"/%", b"/\xff",
    b"/stream?" + b"channel=a&" * 300, b"/stream?channel=%ff%fe", b"/stream?" + b"&" * 3000,
    b"/channels/%00", b"/channels/" + b"a" * 3900, b"/channels/a/../../x", b"/channels/a;b=c",
    b"/static/../app.py", b"/static/%2e%2e/%2e%2e/etc/passwd", b"/static//etc/passwd",
    b"/static/\0",
    b"/static/%00", b"/static/" + b"a/" * 1900, b"/channels/a?event=%ff",
    b"/stream?channel=a&event=\xff",
    b"/stream?channel=a&last_event_id=%ff", b"/x" * 2000, b"x" * 9000, b"127.0.0.1:80", b"/?#",
]  # fmt: skip

CHUNK_SIZES = [
    b"",
    b"-1",
    b"0x5",
    b"5;" + b"x" * 5000,
    b"fffffffffffffffff",
    b"5 ",
    b"\xff",
    b"_5",
    b"G",
]


# -------------------------------------------------------------------------------- mutations

Mutation = Callable[[random.Random, bytes], bytes]


def flip(rng: random.Random, request: bytes) -> bytes:
    """Change single bytes."""
    changed = bytearray(request)
    for _ in range(rng.randint(1, 8)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def insert(rng: random.Random, request: bytes) -> bytes:
    """Put something unwanted in somewhere."""
    at = rng.randint(0, len(request))
    return request[:at] + rng.choice(TOKENS) * rng.choice((1, 1, 2)) + request[at:]


def cut_out(rng: random.Random, request: bytes) -> bytes:
    """Leave something out."""
    start = rng.randint(0, len(request))
    return request[:start] + request[start + rng.randint(1, 30) :]


def truncate(rng: random.Random, request: bytes) -> bytes:
    """Stop in the middle."""
    return request[: rng.randint(0, len(request))]


def repeat(rng: random.Random, request: bytes) -> bytes:
    """Say something twice."""
    start = rng.randint(0, len(request))
    part = request[start : start + rng.randint(1, 200)]
    return request[:start] + part * rng.randint(2, 5) + request[start + len(part) :]


def replace_method(rng: random.Random, request: bytes) -> bytes:
    """Ask in another way."""
    return rng.choice(METHODS) + b" " + request.partition(b" ")[2]


def replace_target(rng: random.Random, request: bytes) -> bytes:
    """Ask for something else."""
    method, _, rest = request.partition(b" ")
    return method + b" " + rng.choice(TARGETS) + b" " + rest.partition(b" ")[2]


def replace_version(rng: random.Random, request: bytes) -> bytes:
    """Speak another version of HTTP."""
    other = rng.choice(
        (b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/9", b"HTTP/", b"http/1.1", b"")
    )
    return request.replace(b"HTTP/1.1", other, 1)


def add_header(rng: random.Random, request: bytes) -> bytes:
    """Add headers, contradicting ones among them."""
    lines = request.split(b"\r\n")
    for _ in range(rng.randint(1, 3)):
        lines.insert(rng.randint(1, max(1, min(4, len(lines) - 1))), rng.choice(HEADERS))
    return b"\r\n".join(lines)


def shuffle_lines(rng: random.Random, request: bytes) -> bytes:
    """Mix the lines up."""
    lines = request.split(b"\r\n")
    rng.shuffle(lines)
    return b"\r\n".join(lines)


def bare_newlines(rng: random.Random, request: bytes) -> bytes:
    """End lines with LF or CR alone."""
    return request.replace(b"\r\n", rng.choice((b"\n", b"\r")), rng.randint(1, 10))


def break_chunk(rng: random.Random, request: bytes) -> bytes:
    """Give a chunk a size that is none."""
    size, content = rng.choice(CHUNK_SIZES), rng.choice(TOKENS)
    return (
        CHUNKED.partition(b"\r\n\r\n")[0]
        + b"\r\n\r\n"
        + size
        + b"\r\n"
        + content
        + b"\r\n"
        + request
    )


def pipeline(rng: random.Random, request: bytes) -> bytes:
    """Let another request follow, or garbage."""
    return request + rng.choice([*VALID, *OTHER_PROTOCOLS, rng.randbytes(500)])


def garbage(rng: random.Random, request: bytes) -> bytes:
    """Send random bytes after a good first line."""
    return request[: rng.choice((0, 10, 40))] + rng.randbytes(rng.randint(1, 5000))


MUTATIONS: list[Mutation] = [
    flip, insert, cut_out, truncate, repeat, replace_method, replace_target, replace_version,
    add_header, shuffle_lines, bare_newlines, break_chunk, pipeline, garbage,
]  # fmt: skip


def malformed(rng: random.Random, count: int) -> Iterator[bytes]:
    """Valid requests, each broken in one to three ways, and some that were never HTTP."""
    yield from VALID
    yield from OTHER_PROTOCOLS
    for _ in range(count - len(VALID) - len(OTHER_PROTOCOLS)):
        request = rng.choice(VALID)
        for mutation in rng.choices(MUTATIONS, k=rng.choice((1, 1, 2, 3))):
            request = mutation(rng, request)
        yield request


# -------------------------------------------------------------------------------- the test


def exchange(port: int, request: bytes) -> tuple[list[int], float, bytes]:
    """Send `request` and the connection's end; return the statuses, the seconds, and what came."""
    started = time.monotonic()
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), SLOWEST_SECONDS) as sock:
        try:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(65_536):
                received += data
        except TimeoutError:
            pass  # the time tells
        except OSError:
            pass  # the service may close while the rest is on the way
    statuses = [int(status) for status in STATUS_LINE.findall(received)]
    return statuses, time.monotonic() - started, bytes(received)


def exchange_unhindered(port: int, request: bytes) -> tuple[list[int], float, bytes]:
    """As `exchange`, and once more after a 503: Redis may have stood still for a moment."""
    found = exchange(port, request)
    if {status for status in found[0] if status >= 500} != {503}:
        return found
    time.sleep(2)
    return exchange(port, request)


def no_more_files(pid: int, most: int) -> bool:
    """Whether a worker has at most so many open files."""
    return open_files(pid) <= most


def meet_both(service: LiveService, seen: set[str]) -> bool:
    """Open a stream, and tell whether both workers have had one; a quiet log does not."""
    with SseClient.connect(f"{service.url}/stream?channel=fine") as client:
        seen.add(str(client.header("pushline-stream")).partition("-")[0])
    return len(seen) == 2


def test_malformed_requests(valkey: Valkey) -> None:
    """Broken requests get 4xx or nothing, each within 5 s; workers live on and leak nothing."""
    seed = int(os.environ.get("TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"TEST_SEED={seed}")
    rng = random.Random(seed)
    with LiveService(valkey.url, WEB_CONCURRENCY=2, LOG_LEVEL="error") as service:
        seen_workers: set[str] = set()
        until(partial(meet_both, service, seen_workers), 20, "both workers serve")
        workers = service.worker_pids()
        files = [open_files(pid) for pid in workers]
        seen: Counter[int] = Counter()

        wrong: list[tuple[float, bytes, bytes]] = []

        def check(request: bytes) -> None:
            statuses, seconds, received = exchange_unhindered(service.port, request)
            seen.update(statuses)
            failed = any(status >= 500 and status != NOT_IMPLEMENTED for status in statuses)
            if failed or seconds > SLOWEST_SECONDS:
                wrong.append((seconds, received[:1000], request[:1000]))

        started = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(check, malformed(rng, REQUESTS)):
                assert len(wrong) < 10, wrong
        print(f"{REQUESTS} requests in {time.monotonic() - started:.1f} s: {dict(seen)}")

        assert not wrong, wrong
        assert service.worker_pids() == workers
        assert seen[400] > REQUESTS / 10
        assert seen[200] > REQUESTS / 20
        assert service.log_lines(level="error") == []
        for n in range(8):  # both workers
            with SseClient.connect(f"{service.url}/stream?channel=fine") as client:
                service.publish("fine", str(n))
                assert client.next_event(5).data == str(n)
        for pid, before in zip(workers, files, strict=True):
            until(
                partial(no_more_files, pid, before + SPARE_FILES),
                20,
                f"worker {pid} closes what is left of {before} open files",
            )
