"""The gunicorn worker in this process: real HTTP over TCP, the hand-over, the drain."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import gunicorn.workers.ggevent
import pytest
from gunicorn.config import Config
from gunicorn.workers.ggevent import GeventWorker

import service.worker
from service.app import create_app
from service.control import CONTROL
from service.hand_over import with_hand_over
from service.service import Service
from service.settings import Settings
from service.sockets import HAND_OVER, HANDED_OVER
from service.worker import NOTICE_SECONDS, PushlineWorker
from tests.live_server import until
from tests.sse_client import End, SseClient, event_data
from tests.valkey import Valkey

KEEPALIVE_SECONDS = 60


class Log:
    """Stands in for gunicorn's logger."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.accesses: list[str] = []

    def access(self, resp: Any, req: Any, environ: dict[str, Any], seconds: object) -> None:
        """Note the request."""
        self.accesses.append(environ["PATH_INFO"])

    def debug(self, message: str, *args: object) -> None:
        """Nothing that anybody reads."""

    def _note(self, message: str, *args: object) -> None:
        self.lines.append(message % args if args else message)

    info = warning = error = exception = _note


class Running:
    """A worker that serves on a TCP port of its own."""

    def __init__(self, redis_url: str, **changes: Any) -> None:
        values: dict[str, Any] = {
            "max_connections": 100,
            "publish_open": True,
            "public_channels": ("*",),
            **changes,
        }
        self.settings = Settings(redis_url=redis_url, **values)
        app = create_app(self.settings)
        self.service: Service = app.extensions["pushline"]
        self.log = Log()
        cfg = Config()
        cfg.set("keepalive", KEEPALIVE_SECONDS)
        cfg.set("http_parser", "python")
        cfg.set("graceful_timeout", 5)
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        application: Any = SimpleNamespace(wsgi=lambda: app)
        log: Any = self.log
        self.worker = PushlineWorker(1, os.getppid(), [listener], application, 30, cfg, log)
        self.worker.load_wsgi()
        self.worker.booted = True
        self.greenlet = gevent.spawn(self.worker.run)
        self.clients: list[SseClient] = []

    def stream(self, query: str = "channel=a", **options: Any) -> SseClient:
        """Open a stream and wait for its first block."""
        client = SseClient.connect(f"{self.url}/stream?{query}", **options)
        self.clients.append(client)
        client.wait_body(b"\n\n", 3)
        return client

    def publish(self, channel: str, data: str) -> None:
        """Publish over HTTP on a connection of its own."""
        with connection(self.url) as (sock, _):
            assert b" 200 " in post(sock, channel, data)

    def close(self) -> None:
        """End the worker as fast as it goes."""
        for client in self.clients:
            client.close()
        self.worker.alive = False
        self.greenlet.join(timeout=3)
        assert self.greenlet.ready()
        self.worker.tmp.close()


@contextlib.contextmanager
def connection(url: str) -> Iterator[tuple[socket.socket, str]]:
    """A TCP connection to the worker."""
    host = url.removeprefix("http://")
    name, _, port = host.partition(":")
    with socket.create_connection((name, int(port)), timeout=5) as sock:
        yield sock, host


def post(sock: socket.socket, channel: str, data: str) -> bytes:
    """POST over an open connection and return the response."""
    head = f"POST /channels/{channel} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    sock.sendall((head + data).encode())
    response = b""
    while b"\r\n\r\n" not in response or b"}" not in response:
        part = sock.recv(10_000)
        assert part, response
        response += part
    return response


class Hasty:
    """Stands in for the module gevent where gunicorn looks once a second whether to stop."""

    def __getattr__(self, name: str) -> Any:
        return getattr(gevent, name)

    def sleep(self, seconds: float) -> None:
        """Sleep, but not for long."""
        gevent.sleep(min(seconds, 0.02))


@pytest.fixture
def run(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    """Run workers; each is ended after the test."""
    monkeypatch.setattr(gunicorn.workers.ggevent, "gevent", Hasty())
    workers: list[Running] = []

    def one(**changes: Any) -> Running:
        workers.append(Running(valkey.url, **changes))
        return workers[-1]

    yield one
    for worker in workers:
        worker.close()


@pytest.fixture
def running(run: Callable[..., Running]) -> Running:
    """A worker with the default settings."""
    return run(drain_seconds=0.3)


# ------------------------------------------------------------------------------ the hand-over


def test_a_stream_leaves_gunicorn(running: Running) -> None:
    """Once a stream is open, gunicorn has nothing to do with it: no greenlet, no connection, no
    access line; it goes on for all that.
    """
    clients = [running.stream() for _ in range(5)]
    until(lambda: not running.worker._idle_from, 2, "no connection is gunicorn's")
    assert running.service.hub.streams == 5
    assert running.log.accesses == []
    running.publish("a", "hello")
    for client in clients:
        assert client.next_event(3).data == "hello"
        assert client.ended is None


def test_the_head_of_a_stream(running: Running) -> None:
    """HTTP/1.1: chunked, exact headers, each once, and the connection won't be used again."""
    client = running.stream()
    assert (client.status, client.head.version) == (200, "1.1")
    assert client.header("content-type") == "text/event-stream"
    assert client.header("cache-control") == "no-store, no-transform"
    assert client.header("transfer-encoding") == "chunked"
    assert client.header("connection") == "close"
    assert client.header("content-length") is None
    assert client.header("date")
    assert client.parser.last_event_id
    assert client.parser.retry


def test_http_1_0(running: Running) -> None:
    """HTTP/1.0: no chunks, and the stream ends with the connection."""
    client = running.stream(http10=True)
    assert client.head.version == "1.0"
    assert client.header("transfer-encoding") is None
    running.publish("a", "hello")
    assert client.next_event(3).data == "hello"
    running.worker.handle_exit(signal.SIGTERM, None)
    assert client.read_until_end(3) == []
    assert client.ended is End.FIN
    assert client.body.endswith(b"\n\n")


def test_requests_before_a_stream(running: Running) -> None:
    """A connection that was used for other requests can become a stream."""
    with connection(running.url) as (sock, host):
        assert b" 200 " in post(sock, "a", "one")
        client = SseClient(sock)
        client.request(host, "/stream?channel=a")
        assert client.status == 200
        running.publish("a", "two")
        assert client.next_event(3).data == "two"
    until(lambda: running.service.hub.streams == 0, 1, "the client's end is noticed")


def test_a_stream_that_ends_is_logged_once(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """The hub writes the access line that gunicorn no longer can, when the stream ends, and gives
    back what the stream took.
    """
    caplog.set_level(logging.INFO, "pushline.access")
    client = running.stream("channel=a&event=message")
    running.publish("a", "hello")
    client.next_event(3)
    client.abort()
    until(lambda: running.service.hub.streams == 0, 1, "the client's end is noticed")
    (record,) = [one for one in caplog.records if "/stream" in one.getMessage()]
    fields = record.__dict__["fields"]
    assert (fields["path"], fields["status"], fields["reason"]) == ("/stream", 200, "client_left")
    assert (fields["events"], fields["address"]) == (1, "127.0.0.1")
    assert "/stream" not in running.log.accesses
    assert running.service.limits._total == 0


def test_limits_hold_for_streams_that_were_handed_over(run: Callable[..., Running]) -> None:
    """A stream counts until it ends, although gunicorn's own limits don't see it any more."""
    running = run(max_connections_per_ip=2)
    first, _ = running.stream(), running.stream()
    refused = SseClient.connect(f"{running.url}/stream?channel=a", headers={"Accept": "*/*"})
    running.clients.append(refused)
    assert refused.status == 429
    first.close()
    until(lambda: running.service.hub.streams == 1, 1, "one has left")
    assert running.stream().status == 200


def test_errors_leave_the_connection_to_gunicorn(running: Running) -> None:
    """What isn't a stream is answered by gunicorn as always, on a connection that stays open."""
    with connection(running.url) as (sock, host):
        for path, status in (("/stream", 400), ("/livez", 200), ("/nothing", 404)):
            client = SseClient(sock)
            client.request(host, path)
            assert client.status == status
            client.read_until_end(2)
    assert running.log.accesses == ["/livez", "/nothing"]


def test_a_client_that_leaves_while_its_stream_opens(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is gone before the head is written costs nothing and is nobody's stream."""
    follow = running.service.broker.follow

    def slowly(channels: Any) -> Any:
        position = follow(channels)
        client.abort()
        gevent.sleep(0.1)
        return position

    with connection(running.url) as (sock, host):
        client = SseClient(sock)
        monkeypatch.setattr(running.service.broker, "follow", slowly)
        sock.sendall(f"GET /stream?channel=a HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        until(lambda: running.service.limits._total == 1, 2, "the stream opens")
        until(lambda: running.service.limits._total == 0, 2, "the stream is given back")
    assert running.service.hub.streams == 0
    followed = {name: one.streams for name, one in running.service.broker._following.items()}
    assert followed == {CONTROL: 1, "a": 0}


@pytest.mark.parametrize("kind", [None, "ssl", "subclass", "other"])
def test_only_plain_sockets_are_handed_over(kind: str | None) -> None:
    """A connection with TLS in gunicorn, or anything that isn't plainly a socket, is not taken
    over: writing past its encryption would send the client nonsense.
    """

    class Wrapped(gevent.socket.socket):
        """What a library may make of a socket."""

    ours, theirs = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    offers: dict[str | None, Any] = {
        None: None,
        "ssl": context.wrap_socket(ours, do_handshake_on_connect=False) if kind == "ssl" else None,
        "subclass": Wrapped(),
        "other": object(),
    }
    environ: dict[str, Any] = {} if kind is None else {"gunicorn.socket": offers[kind]}
    seen: list[bool] = []

    def application(environ: Any, start_response: Any) -> tuple[bytes]:
        seen.append(HAND_OVER in environ)
        return (b"body",)

    assert with_hand_over(application)(environ, None) == (b"body",)
    assert seen == [False]
    for sock in (ours, theirs, offers["ssl"], offers["subclass"]):
        if sock is not None:
            sock.close()


@pytest.mark.parametrize("closable", [True, False])
def test_a_taken_socket_ends_the_request(closable: bool) -> None:
    """When the socket is taken gunicorn is told to leave the connection alone, and the response
    is closed as WSGI demands.
    """
    closed: list[bool] = []
    body: Any = SimpleNamespace(close=lambda: closed.append(True)) if closable else []
    plain, other = socket.socketpair()

    def application(environ: Any, start_response: Any) -> Any:
        assert environ[HAND_OVER] is plain
        environ[HANDED_OVER] = True
        return body

    with pytest.raises(StopIteration):
        with_hand_over(application)({"gunicorn.socket": plain}, None)
    assert closed == [True] * closable
    plain.close()
    other.close()


# ----------------------------------------------------------------------------------- uploads


UPLOAD = b"PUT /channels/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def answer_of(sock: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    return b"".join(iter(lambda: sock.recv(10_000), b""))


def test_a_connection_goes_on_after_an_upload(running: Running) -> None:
    """Each line arrives at once, and the next request on the connection is served."""
    client = running.stream()
    with connection(running.url) as (sock, _):
        sock.sendall(UPLOAD + b"2\r\nx\n\r\n")
        assert client.next_event(3).data == "x"
        sock.sendall(b"2\r\ny\n\r\n0\r\n\r\n")
        assert client.next_event(3).data == "y"
        assert b"keep-alive" in sock.recv(10_000)
        assert b" 200 " in post(sock, "a", "z")


def test_a_refused_upload_ends_the_connection(running: Running) -> None:
    """The answer says so, comes whole although the client goes on sending, and is the last."""
    with connection(running.url) as (sock, _):
        sock.sendall(UPLOAD + b"3\r\nx\n\xff\r\n2\r\n\xff\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(20):
                sock.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        sock.shutdown(socket.SHUT_WR)
        answer = answer_of(sock)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b'"line": 2, "events": 1}\n')


def test_an_upload_does_not_hold_the_drain_up(running: Running) -> None:
    """A client that would send for ever is told where to go on, and the worker stops."""
    client = running.stream()
    with connection(running.url) as (sock, _):
        sock.sendall(UPLOAD + b"3\r\nx\ny\r\n")
        assert client.next_event(3).data == "x"
        running.worker.handle_exit(signal.SIGTERM, None)
        answer = answer_of(sock)
    running.greenlet.get(timeout=5)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b'"line": 2, "events": 1}\n')
    assert running.log.lines == []


def test_a_client_that_never_waits_holds_nobody_up(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that need nothing from anybody come one after the other on a connection; others run
    every few milliseconds all the same.
    """
    turns: list[float] = []
    monkeypatch.setattr("service.worker.give_way", lambda: turns.append(time.thread_time()))
    with connection(running.url) as (sock, host):
        sock.sendall(f"GET /stream HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() * 150)
        gevent.sleep(0.001)
        began = time.thread_time()
        got = b""
        while got.count(b"HTTP/1.1 400") < 150:
            got += sock.recv(1 << 20)
    assert turns, "150 refusals take more than a slice"
    assert turns[0] - began < 0.1


# ---------------------------------------------------------------------------------- the drain


def test_the_first_sigterm_drains_and_the_second_changes_nothing(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams are ended over the window, each cleanly and with its own time to come back; another
    SIGTERM meanwhile neither hurries nor restarts it; the worker stops when none is left.
    """
    running = run(drain_seconds=2.0)
    drain = running.service.drain
    drains: list[bool] = []

    def counted() -> None:
        drains.append(True)
        drain()

    monkeypatch.setattr(running.service, "drain", counted)
    clients = [running.stream() for _ in range(20)]
    started = time.monotonic()
    running.worker.handle_exit(signal.SIGTERM, None)
    until(lambda: 0 < running.service.hub.streams < 20, 2, "it drains")
    running.worker.handle_exit(signal.SIGTERM, None)
    running.worker.handle_exit(signal.SIGTERM, None)
    gevent.sleep(0.2)
    assert running.service.hub.streams > 0
    assert not running.greenlet.ready()

    running.greenlet.get(timeout=10)

    assert 1.8 < time.monotonic() - started < 10
    assert drains == [True]
    retries = set()
    for client in clients:
        assert client.read_until_end(1) == []
        assert (client.ended, client.closing(1)) == (End.TERMINATED, End.FIN)
        retries.add(client.parser.retry)
    assert len(retries) > 10


def test_a_draining_worker_still_answers(run: Callable[..., Running]) -> None:
    """While its streams end, a worker answers requests: it isn't ready, and refuses new streams."""
    running = run(drain_seconds=4.0)
    running.stream()
    client = running.stream()
    running.worker.handle_exit(signal.SIGTERM, None)
    gevent.sleep(0.05)
    for path, status in (("/readyz", 503), ("/livez", 200), ("/stream?channel=a", 200)):
        with connection(running.url) as (sock, host):
            other = SseClient(sock)
            other.request(host, path)
            assert other.status == status
    running.publish("a", "still delivered")
    events = client.read_until_end(6)
    assert event_data(events) in ([], ["still delivered"])


def test_idle_connections_do_not_hold_the_drain_up(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker doesn't wait for keep-alive connections, as gunicorn alone would for a minute."""
    monkeypatch.setattr(service.worker, "FRESH_SECONDS", 0.1)
    with connection(running.url) as (sock, _), connection(running.url) as (unused, _):
        assert b" 200 " in post(sock, "a", "x")
        started = time.monotonic()
        running.worker.handle_exit(signal.SIGTERM, None)
        running.greenlet.get(timeout=4)
        assert time.monotonic() - started < 3.5
        for each in (sock, unused):
            assert each.recv(10) == b""


def test_kept_connections_are_told(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """From SIGTERM on each answer says that the connection ends, hot route or not, and for a while
    connections without a request stay open: one that crosses a close would fail.
    """
    monkeypatch.setattr(service.worker, "NOTICE_SECONDS", 4 * NOTICE_SECONDS)
    with connection(running.url) as (hot, _), connection(running.url) as (other, host):
        assert b"keep-alive" in post(hot, "a", "x")
        other.sendall(f"GET /livez HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert b"keep-alive" in other.recv(65_536)
        running.worker.handle_exit(signal.SIGTERM, None)
        gevent.sleep(NOTICE_SECONDS / 2)
        assert b"Connection: close" in post(hot, "a", "y")
        other.sendall(f"GET /livez HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert b"Connection: close" in other.recv(65_536)
        for each in (hot, other):
            assert each.recv(10) == b""
    running.greenlet.get(timeout=4)


def test_a_request_in_flight_is_finished(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is being served when the worker stops gets its answer."""
    publish = running.service.broker.publish

    def slowly(*args: Any) -> Any:
        gevent.sleep(1.5)
        return publish(*args)

    monkeypatch.setattr(running.service.broker, "publish", slowly)
    with connection(running.url) as (sock, _):
        answer = gevent.spawn(post, sock, "a", "x")
        gevent.sleep(0.1)
        running.worker.handle_exit(signal.SIGTERM, None)
        running.greenlet.get(timeout=5)
        assert b" 200 " in answer.get(timeout=1)


def test_a_worker_that_has_not_started_just_stops(running: Running) -> None:
    """A SIGTERM before the worker is up ends it in gunicorn's way: there is nothing to drain."""
    running.worker.booted = False
    running.worker.handle_exit(signal.SIGTERM, None)
    assert not running.worker.alive
    assert not running.service.hub.draining


def test_an_interrupt_ends_streams_at_once(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGINT and SIGQUIT don't wait for the window, but end every stream cleanly."""
    quits: list[int] = []
    monkeypatch.setattr(GeventWorker, "handle_quit", lambda self, sig, frame: quits.append(sig))
    running = run(drain_seconds=30)
    clients = [running.stream() for _ in range(5)]
    started = time.monotonic()
    running.worker.handle_quit(signal.SIGINT, None)
    for client in clients:
        client.read_until_end(2)
        assert client.ended is End.TERMINATED
    assert time.monotonic() - started < 10
    until(lambda: quits == [signal.SIGINT], 2, "gunicorn ends the worker")
    running.worker.handle_exit(signal.SIGTERM, None)
    gevent.sleep(0)
    assert quits == [signal.SIGINT]


def test_a_worker_whose_part_failed_is_replaced(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one of the service's loops dies the worker drains and ends, and says so in the log."""
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)
    client = running.stream()
    monkeypatch.setattr(running.service.hub, "beat", lambda _: 1 / 0)
    client.read_until_end(3)
    assert client.ended is End.TERMINATED
    running.greenlet.get(timeout=4)
    assert any("has failed" in line for line in running.log.lines)
