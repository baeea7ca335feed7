"""Asking somebody else who may stream what: all that they may answer, or not, and how often."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme

import service.authorizer
from service.authorizer import MAX_QUESTIONS, Authorizer
from service.endpoint import MAX_ANSWER_BYTES
from service.errors import (
    CannotAuthorize,
    ConfigError,
    NotGranted,
    PushlineError,
    RedisDown,
    Unauthorized,
)
from service.event import EventId
from service.grants import Grant
from tests.fault_proxy import FaultProxy
from tests.live_server import until
from tests.valkey import free_port

CHANNELS = ("a", "b")
ALL_OF_THEM = Grant(subscribe=CHANNELS)
LONG_SECONDS = 60.0
SHORT_SECONDS = 0.3
"""A timeout that tests wait for."""

CLOCK = EventId(1_700_000_000_000, 3)
"""The last id that Redis has given out."""

Write = Callable[[bytes], int]
Answer = bytes | Callable[[Write], object]
"""What a backend says, byte for byte."""


def http(status: int, body: bytes | str = b"", *headers: str) -> bytes:
    """An answer with its length."""
    body = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def granting(**said: Any) -> bytes:
    """A 200 with this JSON object."""
    return http(200, json.dumps(said), "Content-Type: application/json")


NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass(frozen=True)
class Asked:
    """A request as it arrived: path and query, and headers with lower-case names."""

    target: str
    headers: tuple[tuple[str, str], ...]


class Backend(ThreadingHTTPServer):
    """Gives the same answer to all, and remembers what it was asked."""

    request_queue_size = 300

    def __init__(self, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)
        self.port: int = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/who"
        self.answer: Answer = NO_CONTENT
        self.asked: list[Asked] = []
        self.answering = self.most_answering = 0
        self.go_on = threading.Event()
        self.surprises: list[BaseException | None] = []

    def hang(self, write: Write) -> None:
        """An answer that comes only once `go_on` is set."""
        self.go_on.wait(LONG_SECONDS)
        write(NO_CONTENT)

    def trickle(self, write: Write) -> None:
        """An answer that goes on for long, a byte at a time."""
        while not self.go_on.is_set():
            write(b"1")
            self.go_on.wait(0.02)

    def await_answers(self, count: int) -> None:
        """Wait until so many questions are being answered."""
        until(lambda: self.answering == count, LONG_SECONDS / 4, f"{count} are being answered")

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gives up is what some tests are about."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            self.surprises.append(error)


class Handler(BaseHTTPRequestHandler):
    """Reads one request, writes the backend's answer and closes."""

    server: Backend

    def do_GET(self) -> None:
        """Answer."""
        headers = tuple((name.lower(), value) for name, value in self.headers.items())
        self.server.asked.append(Asked(self.path, headers))
        self.server.answering += 1
        self.server.most_answering = max(self.server.most_answering, self.server.answering)
        try:
            if isinstance(self.server.answer, bytes):
                self.wfile.write(self.server.answer)
            else:
                self.server.answer(self.wfile.write)
        finally:
            self.server.answering -= 1


@contextlib.contextmanager
def serving(backend: Backend) -> Iterator[Backend]:
    """A backend that runs, and is gone afterwards."""
    thread = threading.Thread(target=backend.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield backend
        backend.go_on.set()
        backend.await_answers(0)
        assert backend.surprises == []
    finally:
        backend.go_on.set()
        backend.shutdown()
        thread.join()
        backend.server_close()


@pytest.fixture
def backend() -> Iterator[Backend]:
    """A backend on this machine."""
    with serving(Backend()) as backend:
        yield backend


def make(
    url: str, *, timeout_seconds: float = LONG_SECONDS, cache_seconds: float = 0
) -> Authorizer:
    """An authorizer that waits long and remembers nothing, unless told otherwise."""
    return Authorizer(
        url, clock=lambda: CLOCK, timeout_seconds=timeout_seconds, cache_seconds=cache_seconds
    )


@pytest.fixture
def authorizer(backend: Backend) -> Authorizer:
    """One that asks the backend."""
    return make(backend.url)


def check_in_time(authorizer: Authorizer) -> None:
    """The authorizer gives up soon after its timeout, and says that this is why."""
    began = time.monotonic()
    with pytest.raises(CannotAuthorize, match="did not answer in time"):
        authorizer.ask({}, CHANNELS)
    assert SHORT_SECONDS * 0.9 < time.monotonic() - began < LONG_SECONDS / 4


# ------------------------------------------------------------------------------------ the question


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("", "/?channel=orders%3A1&channel=b"),
        ("/who", "/who?channel=orders%3A1&channel=b"),
        ("/who?", "/who?channel=orders%3A1&channel=b"),
        ("/who?key=x%26y&z", "/who?key=x%26y&z&channel=orders%3A1&channel=b"),
        ("/who?key=x#part", "/who?key=x&channel=orders%3A1&channel=b"),
    ],
)
def test_the_channels_are_added_to_the_query(backend: Backend, path: str, target: str) -> None:
    """The URL's own path and query stay as they are; each channel is a parameter."""
    make(f"http://127.0.0.1:{backend.port}{path}").ask({}, ("orders:1", "b"))
    assert [asked.target for asked in backend.asked] == [target]


def test_headers_are_sent_on(backend: Backend, authorizer: Authorizer) -> None:
    """The backend sees the client's headers as they are, and only the few that HTTP needs else."""
    headers = {
        "Authorization": "Bearer abc",
        "Cookie": 'session=1; name="J\xfcrgen"',
        "Origin": "https://example.com",
        "User-Agent": "",
        "Accept-Language": "de,\ten;q=0.5",
        "X-Forwarded-For": "2001:db8::1",
    }
    authorizer.ask(headers, CHANNELS)
    assert dict(backend.asked[0].headers) == {
        **{name.lower(): value for name, value in headers.items()},
        "host": f"127.0.0.1:{backend.port}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "connection": "close",
    }
    assert len(backend.asked[0].headers) == len(headers) + 4


@pytest.mark.parametrize(
    "name",
    ["Connection", "keep-alive", "Proxy-Authorization", "Proxy-Authenticate", "TE", "Trailer",
     "Transfer-Encoding", "UPGRADE", "Host", "Content-Length", "Expect", "Accept-Encoding"],
)  # fmt: skip
def test_headers_of_the_connection_stay(
    backend: Backend, authorizer: Authorizer, name: str
) -> None:
    """What belongs to the client's own connection is no header of the question."""
    authorizer.ask({name: "chunked", "Cookie": "a=1"}, CHANNELS)
    assert [value for _, value in backend.asked[0].headers if value == "chunked"] == []
    assert ("cookie", "a=1") in backend.asked[0].headers


@pytest.mark.parametrize(
    "value",
    ["x\r\nX-Evil: 1", "x\nX-Evil: 1", "x\rX-Evil: 1", "x\r\n\r\nGET /evil HTTP/1.1", "x\n folded",
     "\n", "x\0", "x\x7f", "x\x1b[0m", "snow\u2603man", "x\u2028y"],
)  # fmt: skip
def test_no_header_can_be_smuggled_in(backend: Backend, authorizer: Authorizer, value: str) -> None:
    """A value that is no single line of Latin-1 isn't sent at all; the other headers are."""
    authorizer.ask({"Cookie": value, "Origin": "https://example.com"}, CHANNELS)
    (asked,) = backend.asked
    assert len(asked.headers) == 5
    assert not {"cookie", "x-evil"} & dict(asked.headers).keys()
    assert ("origin", "https://example.com") in asked.headers


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nX-Evil", "a\n", "\xe4", "Cookie\r"])
def test_no_header_name_can_be_smuggled_in(
    backend: Backend, authorizer: Authorizer, name: str
) -> None:
    """A name that is none isn't sent."""
    authorizer.ask({name: "1", "Origin": "https://example.com"}, CHANNELS)
    assert len(backend.asked[0].headers) == 5


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:80", "//host/x", "ftp://host/", "http://", "http:///x", "http://:80/",
     "http://host:99999/", "http://host:x/", "http://[::1/", "http://ho st/", "http://host/\n",
     "http://host/\xe4", f"http://{'a' * 64}.test/", "http://user:secret@host/"],
)  # fmt: skip
def test_bad_urls_are_refused(url: str) -> None:
    """What can't be asked is found at the start; the message does not give the URL away."""
    with pytest.raises(ConfigError, match=r"^AUTHORIZE_URL must be") as caught:
        make(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://backend.test/", ("backend.test", 80)),
        ("https://backend.test/", ("backend.test", 443)),
        ("HTTP://BACKEND.test:81", ("backend.test", 81)),
        ("https://backend.test:8443/x", ("backend.test", 8443)),
        ("http://[::1]/", ("::1", 80)),
        ("https://[::1]/", ("::1", 443)),
        ("http://[::1]:81/", ("::1", 81)),
    ],
)
def test_where_it_connects(
    monkeypatch: pytest.MonkeyPatch, url: str, address: tuple[str, int]
) -> None:
    """Host and port are the URL's, the port by default its scheme's."""
    connected = []

    def connect(address: tuple[str, int], *_: object) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(CannotAuthorize):
        make(url).ask({}, CHANNELS)
    assert connected == [address]


def test_ipv6() -> None:
    """A backend may have an IPv6 address; the Host header has it in brackets."""
    with serving(Backend(("::1", 0))) as backend:
        make(f"http://[::1]:{backend.port}/").ask({}, CHANNELS)
        assert dict(backend.asked[0].headers)["host"] == f"[::1]:{backend.port}"


# -------------------------------------------------------------------------------------- the answer


@pytest.mark.parametrize(
    "answer",
    [
        NO_CONTENT,
        http(200),
        http(200, " \r\n"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + http(200),
    ],
)
def test_an_empty_answer_allows_what_was_asked_for(
    backend: Backend, authorizer: Authorizer, answer: bytes
) -> None:
    """204, or 200 without a body: these channels and no others, for nobody in particular."""
    backend.answer = answer
    assert authorizer.ask({}, CHANNELS) == ALL_OF_THEM


@pytest.mark.parametrize(
    ("said", "grant"),
    [
        ({"channels": ["a"]}, Grant(subscribe=("a",))),
        ({"channels": []}, Grant()),
        ({"channels": ["*"], "user": "42"}, Grant(subscribe=("*",), user="42")),
        ({"channels": ["orders.*", "b"], "more": [1]}, Grant(subscribe=("orders.*", "b"))),
        ({"channels": ["a"], "user": "J\xfcrgen \u2603"}, Grant(subscribe=("a",), user="Jürgen ☃")),
        ({"channels": [], "user": "x" * 256}, Grant(user="x" * 256)),
        ({"channels": ["a"], "user": None, "expires_in": None}, Grant(subscribe=("a",))),
        ({"channels": ["https://example.com/{id}", "", "a"]}, Grant(subscribe=("a",))),
        ({"channels": ["a"], "publish": ["*"], "admin": True}, Grant(subscribe=("a",))),
        ({"channels": ["a"], "pushline": {"publish": ["*"]}}, Grant(subscribe=("a",))),
        ({"channels": ["x"] * 1000}, Grant(subscribe=("x",) * 1000)),
    ],
)
def test_an_answer_may_say_more(
    backend: Backend, authorizer: Authorizer, said: dict[str, Any], grant: Grant
) -> None:
    """Patterns of channels and a user; more than to stream can't be granted this way."""
    backend.answer = granting(**said)
    assert authorizer.ask({}, CHANNELS) == grant


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_every_framing_of_a_body(backend: Backend, authorizer: Authorizer, framing: str) -> None:
    """A body counts with its length, in chunks, and up to the end of the connection."""
    body = b'\xef\xbb\xbf{"channels": ["x"]}'  # a byte order mark is no harm
    backend.answer = {
        "length": http(200, body),
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;x=y\r\n" + body[:5] + b"\r\n%x\r\n" % len(body[5:]) + body[5:] + b"\r\n0\r\n\r\n",
        "close": b"HTTP/1.1 200 OK\r\n\r\n" + body,
    }[framing]
    assert authorizer.ask({}, CHANNELS) == Grant(subscribe=("x",))


@pytest.mark.parametrize(("status", "error"), [(401, Unauthorized), (403, NotGranted)])
@pytest.mark.parametrize(
    "rest",
    [b"Content-Length: 0\r\n\r\n", b"Content-Length: 999\r\n\r\n", b'\r\n{"channels": ["*"]}'],
)
def test_refusals(
    backend: Backend,
    authorizer: Authorizer,
    status: int,
    error: type[PushlineError],
    rest: bytes,
) -> None:
    """401 and 403 are passed on as they are, whatever stands in them."""
    backend.answer = b"HTTP/1.1 %d Status\r\n" % status + rest
    with pytest.raises(error) as caught:
        authorizer.ask({}, CHANNELS)
    assert type(caught.value) is error


@pytest.mark.parametrize("status", [201, 202, 206, 300, 304, 400, 404, 407, 429, 500, 502, 503])
def test_other_statuses_say_nothing(backend: Backend, authorizer: Authorizer, status: int) -> None:
    """What is neither yes nor no opens no stream, and the client may come back."""
    backend.answer = http(status, b'{"channels": ["*"]}')
    with pytest.raises(CannotAuthorize, match=f"status {status}$"):
        authorizer.ask({}, CHANNELS)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(backend: Backend, authorizer: Authorizer, status: int) -> None:
    """A login page that would answer with 200 grants nothing: it is never asked."""
    backend.answer = http(status, b"", f"Location: {backend.url}")
    with pytest.raises(CannotAuthorize, match=f"status {status}$"):
        authorizer.ask({"Cookie": "a=1"}, CHANNELS)
    assert len(backend.asked) == 1


@pytest.mark.parametrize(
    "body",
    ["null", "true", "1", '"a"', '["a"]', "{}", "{", "<html>", "channels=a", "{}{}", "\0",
     '{"channels": null}', '{"channels": "a"}', '{"channels": {"a": 1}}', '{"channels": [1]}',
     '{"channels": ["a", null]}', '{"channels": [["a"]]}', '{"Channels": ["a"]}',
     '{"channels": ["a"]', '{"channels": ["a"], "user": 42}', '{"channels": ["a"], "user": []}',
     '{"channels": ["a"], "user": false}', '{"channels": ["a"], "user": "\\ud800"}',
     '{"channels": ["a"], "user": "x\\r\\n"}', json.dumps({"channels": ["a"], "user": "x" * 257}),
     b'{"channels": ["a"], "user": "\xff"}', b"\xff\xfe", b"\x1f\x8b\x08\x00",
     "[" * 60_000, '{"a":' * 12_000, "1" * 60_000, json.dumps({"channels": ["a"] * 1001})],
)  # fmt: skip
def test_bodies_that_are_no_grant(
    backend: Backend, authorizer: Authorizer, body: bytes | str
) -> None:
    """A 200 with a body that isn't understood grants nothing at all."""
    backend.answer = http(200, body)
    with pytest.raises(CannotAuthorize, match=r"no grant$"):
        authorizer.ask({}, CHANNELS)


@pytest.mark.parametrize(
    "text",
    ["0", "-0.0", "-1", "NaN", "Infinity", "-Infinity", "1e999", "true", "false", '"60"', "[60]",
     "{}", "1" + "0" * 400],
)  # fmt: skip
def test_bad_expiries(backend: Backend, authorizer: Authorizer, text: str) -> None:
    """An end that is no time to come makes the whole answer worth nothing: no stream would else
    be the one to live for ever.
    """
    backend.answer = http(200, f'{{"channels": ["a"], "expires_in": {text}}}')
    with pytest.raises(CannotAuthorize, match=r"no grant$"):
        authorizer.ask({}, CHANNELS)


@pytest.mark.parametrize("seconds", [0.001, 1, 59.5, 3600, 10**12])
def test_a_grant_expires(backend: Backend, authorizer: Authorizer, seconds: float) -> None:
    """`expires_in` counts from the answer on; whole and broken seconds will do."""
    backend.answer = granting(channels=["a"], expires_in=seconds)
    before = time.time()
    expires_at = authorizer.ask({}, CHANNELS).expires_at
    assert expires_at is not None
    assert before + seconds <= expires_at <= time.time() + seconds


@pytest.mark.parametrize(
    ("size", "fits"),
    [(MAX_ANSWER_BYTES - 1, True), (MAX_ANSWER_BYTES, True), (MAX_ANSWER_BYTES + 1, False)],
)
@pytest.mark.parametrize("sized", [True, False])
def test_large_answers(
    backend: Backend, authorizer: Authorizer, size: int, fits: bool, sized: bool
) -> None:
    """64 KiB are taken, one byte more is too much."""
    body = b'{"channels": ["a"]}'.ljust(size)
    backend.answer = http(200, body) if sized else b"HTTP/1.1 200 OK\r\n\r\n" + body
    if fits:
        assert authorizer.ask({}, CHANNELS) == Grant(subscribe=("a",))
    else:
        with pytest.raises(CannotAuthorize, match="over 65536 bytes"):
            authorizer.ask({}, CHANNELS)


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
     b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 ", b""],
)  # fmt: skip
def test_endless_answers(backend: Backend, authorizer: Authorizer, head: bytes) -> None:
    """An answer without an end is left where it has become too long, not when the time is over."""

    def flood(write: Write) -> None:
        write(head)
        while not backend.go_on.is_set():
            write(b"x" * 4096)

    backend.answer = flood
    with pytest.raises(CannotAuthorize, match=r"over 65536 bytes|in whole"):
        authorizer.ask({}, CHANNELS)


@pytest.mark.parametrize(
    "answer",
    [b"", b"\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 twohundred OK\r\n\r\n",
     b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
     b"HTTP/1.1 200 OK\r\n\r\n",
     b"HTTP/1.1 200 OK\r\n\r\n\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n" + b'{"channels": ["a"]}',
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n13\r\n" + b'{"channels": ["a"]}'],
)  # fmt: skip
def test_answers_that_may_be_cut_off(
    backend: Backend, authorizer: Authorizer, answer: bytes
) -> None:
    """A backend that dies in the middle of its answer has allowed nothing. An empty 200 would, so
    it must say that it is empty.
    """
    backend.answer = answer
    with pytest.raises(CannotAuthorize, match=r"in whole$"):
        authorizer.ask({}, CHANNELS)


# ------------------------------------------------------------------------------- nothing in time


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "])
@pytest.mark.parametrize("trickling", [False, True])
def test_slow_answers(backend: Backend, head: bytes, trickling: bool) -> None:
    """The timeout is for all of it: no byte that comes in between makes it longer."""

    def answer(write: Write) -> None:
        write(head)
        (backend.trickle if trickling else backend.hang)(write)

    backend.answer = answer
    check_in_time(make(backend.url, timeout_seconds=SHORT_SECONDS))
    if trickling:
        backend.await_answers(0)  # the connection is closed


def test_endless_interim_answers(backend: Backend) -> None:
    """A backend that says 100 Continue for ever is left in time too."""

    def answer(write: Write) -> None:
        while not backend.go_on.wait(0.01):
            write(b"HTTP/1.1 100 Continue\r\n\r\n")

    backend.answer = answer
    check_in_time(make(backend.url, timeout_seconds=SHORT_SECONDS))


def test_a_backend_that_accepts_nobody() -> None:
    """Connecting is part of the time: here the queue of new connections is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        check_in_time(make(url, timeout_seconds=SHORT_SECONDS))


def test_a_handshake_that_never_ends() -> None:
    """TLS is part of the time, and its socket is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        check_in_time(make(url, timeout_seconds=SHORT_SECONDS))
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(LONG_SECONDS)
            while accepted.recv(65536):
                pass


def test_a_slow_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is part of the time."""

    class SlowResolver:
        def getaddrinfo(self, *_: object) -> list[object]:
            gevent.sleep(LONG_SECONDS)
            return []

    monkeypatch.setattr(gevent.get_hub(), "resolver", SlowResolver())
    check_in_time(make("http://backend.test/", timeout_seconds=SHORT_SECONDS))


def test_nobody_listens() -> None:
    """A refused connection is known at once."""
    with pytest.raises(CannotAuthorize, match="can't be reached"):
        make(f"http://127.0.0.1:{free_port()}").ask({}, CHANNELS)


def test_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that nobody knows is known at once."""

    class EmptyResolver:
        def getaddrinfo(self, *_: object) -> list[object]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(gevent.get_hub(), "resolver", EmptyResolver())
    with pytest.raises(CannotAuthorize, match="can't be reached"):
        make("http://backend.test/").ask({}, CHANNELS)


def test_a_backend_that_resets(backend: Backend) -> None:
    """A connection that breaks off in the middle is a failure like any other."""
    with FaultProxy(("127.0.0.1", backend.port)) as proxy:
        backend.answer = backend.hang
        asking = gevent.spawn(make(f"http://127.0.0.1:{proxy.port}/").ask, {}, CHANNELS)
        backend.await_answers(1)
        proxy.cut()
        asking.join(LONG_SECONDS)
        assert isinstance(asking.exception, CannotAuthorize)


# --------------------------------------------------------------------------------------------- TLS


@pytest.mark.parametrize(
    ("name", "trusted"), [("localhost", True), ("127.0.0.1", False), ("localhost", False)]
)
def test_certificates_are_checked(
    backend: Backend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    trusted: bool,
) -> None:
    """https:// wants a certificate of a known authority and for that name; there is no way round.
    SSL_CERT_FILE adds an authority.
    """
    authority, stranger = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("localhost")
    chain, key, known = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "known.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    knows_it = trusted or name != "localhost"
    (authority if knows_it else stranger).cert_pem.write_to_path(known)
    monkeypatch.setenv("SSL_CERT_FILE", str(known))
    with FaultProxy(("127.0.0.1", backend.port), tls=(chain, key)) as proxy:
        authorizer = make(f"https://{name}:{proxy.port}/who")
        if trusted:
            assert authorizer.ask({}, CHANNELS) == ALL_OF_THEM
        else:
            with pytest.raises(CannotAuthorize, match="TLS"):
                authorizer.ask({"Cookie": "secret"}, CHANNELS)
            assert backend.asked == []


def test_tls_with_a_server_that_has_none(backend: Backend) -> None:
    """A server that doesn't speak TLS is asked nothing."""
    with pytest.raises(CannotAuthorize, match="TLS"):
        make(f"https://127.0.0.1:{backend.port}").ask({}, CHANNELS)


# ----------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    "answer", [http(500, "its-answer"), http(200, "its-answer"), b"its-answer"]
)
def test_nothing_is_given_away(
    backend: Backend, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients learn no more than what kind of failure it was, the log has the host as well."""
    backend.answer = answer
    authorizer = make(f"http://127.0.0.1:{backend.port}/its-path?key=its-secret")
    with pytest.raises(CannotAuthorize) as caught:
        authorizer.ask({"Cookie": "its-cookie"}, ("its-channel",))
    assert "its-" not in caught.value.detail
    assert str(backend.port) not in caught.value.detail
    assert "its-" not in caplog.text
    assert [one.levelname for one in caplog.records] == ["WARNING"]
    assert f"(127.0.0.1:{backend.port})" in caplog.text


def test_failures_are_logged_now_and_then(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in a while, however many streams are refused; refusals that were meant have none."""
    monkeypatch.setattr(service.authorizer, "WARNING_SECONDS", LONG_SECONDS)
    backend.answer = http(500)
    authorizer, other = make(backend.url), make(backend.url)
    for _ in range(5):
        with pytest.raises(CannotAuthorize):
            authorizer.ask({}, CHANNELS)
    assert len(caplog.records) == 1
    monkeypatch.setattr(service.authorizer, "WARNING_SECONDS", 0.0)
    for _ in range(3):
        with pytest.raises(CannotAuthorize):
            other.ask({}, CHANNELS)
    assert len(caplog.records) == 4
    backend.answer = http(403)
    with pytest.raises(NotGranted), caplog.at_level(logging.DEBUG):
        other.ask({}, CHANNELS)
    assert len(caplog.records) == 4


# ------------------------------------------------------------------------------- what is remembered


@pytest.mark.parametrize(
    ("answer", "error"),
    [(NO_CONTENT, None), (granting(channels=["a"], expires_in=LONG_SECONDS), None),
     (http(401), Unauthorized), (http(403), NotGranted)],
)  # fmt: skip
def test_an_answer_counts_for_a_while(
    backend: Backend, answer: bytes, error: type[PushlineError] | None
) -> None:
    """The same question is asked once; yes and no are remembered alike."""
    backend.answer = answer
    authorizer = make(backend.url, cache_seconds=LONG_SECONDS)
    for _ in range(3):
        with pytest.raises(error) if error else contextlib.nullcontext():
            authorizer.ask({"Cookie": "a=1"}, CHANNELS)
    assert len(backend.asked) == 1


def test_an_answer_is_forgotten(backend: Backend) -> None:
    """Once its time is over, the next one comes from the backend, and counts as long."""
    authorizer = make(backend.url, cache_seconds=0.2)
    for status, error in ((401, Unauthorized), (403, NotGranted)):
        backend.answer = http(status)
        with pytest.raises(error):
            authorizer.ask({}, CHANNELS)
        time.sleep(0.25)
    assert len(backend.asked) == 2


def test_no_answer_outlives_its_grant(backend: Backend) -> None:
    """`expires_in` ends what is remembered, too."""
    backend.answer = granting(channels=["a"], expires_in=0.2)
    authorizer = make(backend.url, cache_seconds=LONG_SECONDS)
    first = authorizer.ask({}, CHANNELS)
    time.sleep(0.25)
    second = authorizer.ask({}, CHANNELS)
    assert first.expires_at is not None
    assert second.expires_at is not None
    assert second.expires_at > first.expires_at
    assert len(backend.asked) == 2


def test_failures_are_not_remembered(backend: Backend) -> None:
    """As soon as the backend is back, streams open."""
    backend.answer = http(500)
    authorizer = make(backend.url, cache_seconds=LONG_SECONDS)
    with pytest.raises(CannotAuthorize):
        authorizer.ask({}, CHANNELS)
    backend.answer = NO_CONTENT
    assert authorizer.ask({}, CHANNELS) == ALL_OF_THEM


def test_remembering_nothing(backend: Backend, authorizer: Authorizer) -> None:
    """With a time of 0 each question is asked."""
    for _ in range(3):
        authorizer.ask({}, CHANNELS)
    assert len(backend.asked) == 3
    assert len(authorizer._answers) == 0


@pytest.mark.parametrize(
    ("headers", "channels"),
    [
        ({}, CHANNELS),
        ({"Cookie": "a=2"}, CHANNELS),
        ({"Authorization": "a=1"}, CHANNELS),
        ({"Cookie": "a=1", "Authorization": "x"}, CHANNELS),
        ({"Cookie": "a=1", "Origin": "https://evil.test"}, CHANNELS),
        ({"Cookie": "a=1", "X-Forwarded-For": "192.0.2.1"}, CHANNELS),
        ({"Cookie": "a=1"}, ("a",)),
        ({"Cookie": "a=1"}, ("a", "b", "c")),
    ],
)
def test_an_answer_is_for_one_question(
    backend: Backend, headers: dict[str, str], channels: tuple[str, ...]
) -> None:
    """Whatever the backend may have looked at, another client's answer is not this one's."""
    authorizer = make(backend.url, cache_seconds=LONG_SECONDS)
    authorizer.ask({"Cookie": "a=1"}, CHANNELS)
    backend.answer = http(403)
    with pytest.raises(NotGranted):
        authorizer.ask(headers, channels)
    assert authorizer.ask({"Cookie": "a=1", "Connection": "close"}, CHANNELS) == ALL_OF_THEM
    assert len(backend.asked) == 2


def test_the_order_of_headers_is_no_difference(backend: Backend) -> None:
    """The same headers are the same question."""
    authorizer = make(backend.url, cache_seconds=LONG_SECONDS)
    authorizer.ask({"Cookie": "a=1", "Origin": "https://example.com"}, CHANNELS)
    authorizer.ask({"Origin": "https://example.com", "Cookie": "a=1"}, CHANNELS)
    assert len(backend.asked) == 1


def test_memory_has_a_bound(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many answers, the one used longest ago goes first."""
    monkeypatch.setattr(service.authorizer, "MAX_ANSWERS", 3)
    authorizer = make(backend.url, cache_seconds=LONG_SECONDS)
    for channel in "abcadaca":
        authorizer.ask({}, (channel,))
        assert len(authorizer._answers) <= 3
    assert [asked.target[-1] for asked in backend.asked] == list("abcd")
    authorizer.ask({}, ("b",))
    assert len(backend.asked) == 5


def test_no_credential_stays_in_memory(backend: Backend) -> None:
    """What is remembered is a hash of the question, and what it is remembered for."""
    authorizer = make(backend.url, cache_seconds=LONG_SECONDS)
    authorizer.ask({"Cookie": "its-cookie", "Authorization": "its-token"}, CHANNELS)
    ((key, _),) = authorizer._answers.items()
    assert len(key) == 32
    assert "its-" not in repr(authorizer._answers) + repr(authorizer._asking)


# --------------------------------------------------------------------------------- what is shared


@pytest.mark.parametrize("cache_seconds", [0, LONG_SECONDS])
def test_equal_questions_are_asked_once(backend: Backend, cache_seconds: float) -> None:
    """200 streams that open at the same time share one question, and its answer."""
    backend.answer = backend.hang
    authorizer = make(backend.url, cache_seconds=cache_seconds)
    asking = [gevent.spawn(authorizer.ask, {"Cookie": "a=1"}, CHANNELS) for _ in range(200)]
    backend.await_answers(1)
    gevent.idle()
    backend.go_on.set()
    gevent.joinall(asking, timeout=LONG_SECONDS, raise_error=True)
    assert [one.get() for one in asking] == [ALL_OF_THEM] * 200
    assert len(backend.asked) == 1
    authorizer.ask({"Cookie": "a=1"}, CHANNELS)
    assert len(backend.asked) == (1 if cache_seconds else 2)


@pytest.mark.parametrize(
    ("answer", "error"), [(http(500), CannotAuthorize), (http(403), NotGranted)]
)
def test_a_failure_is_shared(backend: Backend, answer: bytes, error: type[PushlineError]) -> None:
    """It is asked once however it ends; each gets an error of its own, with its own traceback."""
    authorizer = make(backend.url)

    def late(write: Write) -> None:
        backend.go_on.wait(LONG_SECONDS)
        write(answer)

    def ask() -> PushlineError:
        with pytest.raises(error) as caught:
            authorizer.ask({}, CHANNELS)
        return caught.value

    backend.answer = late
    asking = [gevent.spawn(ask) for _ in range(20)]
    backend.await_answers(1)
    backend.go_on.set()
    errors = [one.get(timeout=LONG_SECONDS) for one in asking]
    assert len({id(one) for one in errors}) == 20
    assert len(backend.asked) == 1


def test_who_asked_first_may_leave(backend: Backend) -> None:
    """The question goes on without the one who began it, and nothing of it is left behind."""
    backend.answer = backend.hang
    authorizer = make(backend.url)
    first, second = (gevent.spawn(authorizer.ask, {}, CHANNELS) for _ in range(2))
    backend.await_answers(1)
    first.kill()
    backend.go_on.set()
    assert second.get(timeout=LONG_SECONDS) == ALL_OF_THEM
    assert len(backend.asked) == 1
    assert authorizer._asking == {}


def test_a_shared_question_ends_in_time(backend: Backend) -> None:
    """Who joins a question waits no longer than the one who began it; then it is asked anew."""
    backend.answer = backend.hang
    authorizer = make(backend.url, timeout_seconds=SHORT_SECONDS)
    asking = [gevent.spawn(authorizer.ask, {}, CHANNELS) for _ in range(3)]
    gevent.joinall(asking, timeout=LONG_SECONDS / 4)
    assert [type(one.exception) for one in asking] == [CannotAuthorize] * 3
    assert authorizer._asking == {}


@pytest.mark.parametrize("count", [2, 3, 4])
def test_questions_at_a_time_are_bounded(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Different questions beyond the bound wait for one that is done, and are asked then."""
    monkeypatch.setattr(service.authorizer, "MAX_QUESTIONS", 3)
    backend.answer = backend.hang
    authorizer = make(backend.url)
    asking = [gevent.spawn(authorizer.ask, {}, (f"c{number}",)) for number in range(count)]
    backend.await_answers(min(3, count))
    time.sleep(0.1)
    backend.go_on.set()
    gevent.joinall(asking, timeout=LONG_SECONDS, raise_error=True)
    assert len(backend.asked) == count
    assert backend.most_answering <= 3


def test_waiting_for_a_turn_is_part_of_the_time(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions that get no turn in time fail all at once, and take no turn away."""
    monkeypatch.setattr(service.authorizer, "MAX_QUESTIONS", 1)
    backend.answer = backend.hang
    authorizer = make(backend.url, timeout_seconds=SHORT_SECONDS)
    began = time.monotonic()
    asking = [gevent.spawn(authorizer.ask, {}, (f"c{number}",)) for number in range(40)]
    gevent.joinall(asking, timeout=LONG_SECONDS)
    assert time.monotonic() - began < 20 * SHORT_SECONDS
    assert [type(one.exception) for one in asking] == [CannotAuthorize] * 40
    backend.go_on.set()
    assert authorizer.ask({}, ("d",)) == Grant(subscribe=("d",))
    assert MAX_QUESTIONS == 100


# ------------------------------------------------------------------------------------- its moment


def test_an_answer_is_of_the_moment_before_it(backend: Backend) -> None:
    """It has the last id from before the question: what is revoked meanwhile may not be known
    there. So has an answer that is remembered.
    """
    ids = iter((EventId(1, 0), EventId(2, 0)))
    authorizer = Authorizer(
        backend.url, clock=lambda: next(ids), timeout_seconds=LONG_SECONDS, cache_seconds=60
    )
    assert [authorizer.ask({}, CHANNELS).as_of for _ in range(2)] == [EventId(1, 0)] * 2


def test_without_redis_nothing_is_asked(backend: Backend) -> None:
    """When Redis doesn't say what its clock is, nobody can tell."""

    def fail() -> EventId:
        raise RedisDown("it is gone")

    authorizer = Authorizer(backend.url, clock=fail, timeout_seconds=1, cache_seconds=0)
    with pytest.raises(CannotAuthorize, match="it is gone"):
        authorizer.ask({}, CHANNELS)
    assert backend.asked == []
