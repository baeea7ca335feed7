"""Shutdown: every stream ends cleanly, spread over the drain, and no process is killed for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent.server import StreamServer

from tests.live_server import LiveService, until
from tests.sse_client import End, SseClient, event_data
from tests.swarm import Report, Swarm, need_swarm, payload
from tests.valkey import Valkey

pytestmark = pytest.mark.live

STREAMS = 2000
DRAIN = 3.0
GRACEFUL = DRAIN + 10
"""gunicorn's graceful_timeout for this drain (gunicorn_conf.py): when its master kills workers."""


@pytest.fixture
def service(shared_valkey: Valkey) -> Iterator[LiveService]:
    """Two workers with a short drain, and the keep-alive time of a service on Heroku."""
    with LiveService(
        shared_valkey.url, WEB_CONCURRENCY=2, DRAIN_SECONDS=DRAIN, KEEPALIVE_SECONDS=95
    ) as service:
        yield service.wait_workers()


@pytest.fixture
def swarm(service: LiveService) -> Iterator[Swarm]:
    """Many streams of one channel, on both workers."""
    need_swarm()
    with Swarm(f"{service.url}/stream?channel=drain", STREAMS) as swarm:
        swarm.wait_open(60)
        yield swarm


def to_master(service: LiveService) -> None:
    """SIGTERM as supervisors send it."""
    service.signal(signal.SIGTERM)


def to_all(service: LiveService) -> None:
    """SIGTERM to every process, as Heroku sends it."""
    for pid in [*service.worker_pids(), service.pid]:
        os.kill(pid, signal.SIGTERM)


def to_all_twice(service: LiveService) -> None:
    """SIGTERM to every process, and again in the middle of the drain."""
    to_all(service)
    time.sleep(DRAIN / 2)
    to_all(service)


@contextlib.contextmanager
def idle_connections(service: LiveService, count: int) -> Iterator[None]:
    """Kept-alive connections, and one with half a request; in the end the service closes them."""
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
            connections.append(stack.enter_context(contextlib.closing(connection)))
            connection.request("GET", "/livez")
            assert connection.getresponse().read()
        half = stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
        half.sendall(b"GET /livez HTTP/1.1\r\n")
        yield
        for connection in connections:
            assert connection.sock.recv(1) == b""


def check_draining(service: LiveService) -> None:
    """The service says that it drains, and refuses a stream softly."""

    def drains() -> bool:
        status, body, _ = service.get("/readyz")
        return status == 503 and "draining" in json.loads(body)["reasons"]

    until(lambda: all(drains() for _ in range(10)), DRAIN, "all workers drain")
    with SseClient.connect(f"{service.url}/stream?channel=drain") as late:
        late.read_until_end(5)
        assert (late.status, late.parser.retry is not None, late.truncated) == (200, True, False)


def check_spread(swarm: Swarm, started: float) -> str:
    """The streams must have ended evenly over the drain; says when the first and the last did."""
    report = swarm.report()
    offset = started * 1000 - report.started_ns / 1e6
    ended = sorted(row.ended_ms - offset for row in swarm.streams() if row.ended)
    first, last = ended[0] / 1000, ended[-1] / 1000
    assert last - first >= 0.7 * DRAIN
    assert last <= DRAIN + 3
    # A process that stands still for a moment ends those of a quarter in the next one.
    quarters = Counter(min(3, int((moment / 1000 - first) / DRAIN * 4)) for moment in ended)
    assert max(quarters.values()) <= 0.65 * len(ended), quarters
    assert 0.1 <= (quarters[0] + quarters[1]) / len(ended) <= 0.9, quarters
    return f"streams ended {first:.2f} to {last:.2f} s after the signal"


def check_not_killed(service: LiveService) -> None:
    """The service ended by itself, with success and without errors in its log."""
    assert service.wait(1) == 0
    assert "SIGKILL" not in service.log()
    assert service.log_lines(level="error") == []
    assert service.log_lines(level="critical") == []


@pytest.mark.parametrize("terminate", [to_master, to_all, to_all_twice])
def test_every_stream_ends_cleanly(
    service: LiveService, swarm: Swarm, terminate: Callable[[LiveService], None]
) -> None:
    """On SIGTERM each stream ends with a retry and the last chunk, spread over DRAIN_SECONDS.

    Meanwhile the service says that it isn't ready, still publishes, and what is published reaches
    the streams that are left. Idle kept-alive connections don't delay the exit.
    """
    with idle_connections(service, 20):
        retries = [row.retry for row in swarm.streams()]
        started = time.monotonic()
        terminating = gevent.spawn(terminate, service)
        check_draining(service)
        service.publish("drain", payload(1))
        terminating.get()
        report = swarm.wait_ended(DRAIN + 5)
        exit_status = service.wait(GRACEFUL)
        exited = time.monotonic() - started
    assert (report.faults, exit_status) == ({}, 0)
    assert report.endings["terminated"] == STREAMS
    assert report.events >= STREAMS / 2
    fresh = sum(row.retry != old for row, old in zip(swarm.streams(), retries, strict=True))
    assert fresh > 0.95 * STREAMS, "each stream gets a retry of its own at its end"
    assert 1000 <= report.retry_least < 1300
    assert 2700 < report.retry_most <= 3000
    told = check_spread(swarm, started)
    assert exited < DRAIN + 6 < GRACEFUL
    check_not_killed(service)
    assert len(service.log_lines(reason="drained")) == STREAMS
    print(f"{terminate.__name__}: {told}; exit after {exited:.2f} s")


def test_one_worker_ends(service: LiveService, swarm: Swarm) -> None:
    """SIGTERM to one worker ends only its streams; a new worker takes its place."""
    before = service.worker_pids()
    started = time.monotonic()
    os.kill(before[0], signal.SIGTERM)
    until(lambda: set(service.worker_pids()) - set(before), DRAIN + 5, "a new worker")
    replaced = time.monotonic() - started
    until(lambda: before[0] not in service.worker_pids(), 2, "the old worker is gone")
    report = swarm.report()
    told = check_spread(swarm, started)
    assert report.endings["terminated"] == report.over == STREAMS - report.open
    assert STREAMS * 0.02 < report.open < STREAMS * 0.98, "each worker had some"
    swarm.clear()
    swarm.expect(3)
    for number in range(3):
        service.publish("drain", payload(number))
    after = swarm.wait_complete(10)
    assert (after.faults, after.events) == ({}, 3 * report.open)
    assert "SIGKILL" not in service.log()
    print(f"one worker: {report.over} {told}; replaced after {replaced:.2f} s")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_interrupt_ends_streams_at_once(
    service: LiveService, swarm: Swarm, number: signal.Signals
) -> None:
    """On Ctrl-C, which reaches every process, each stream ends cleanly, without a drain's delay."""
    started = time.monotonic()
    # The master first: it would replace a worker that ends before it hears of it itself.
    for pid in [service.pid, *service.worker_pids()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    report = swarm.wait_ended(5)
    ended = time.monotonic() - started
    service.wait(5)
    exited = time.monotonic() - started
    assert report.faults == {}
    assert report.endings["terminated"] == STREAMS
    assert max(ended, exited) < DRAIN
    check_not_killed(service)
    print(f"{number.name}: all ended after {ended:.2f} s, exit after {exited:.2f} s")


def test_slow_streams_at_drain(shared_valkey: Valkey) -> None:
    """A drained stream gets its whole outbox, if it reads; one that doesn't delays nothing."""
    data, drain = "x" * 20_000, 2 * DRAIN
    with (
        LiveService(shared_valkey.url, DRAIN_SECONDS=drain, OUTBOX_BYTES=10_000_000) as service,
        SseClient.connect(f"{service.url}/stream?channel=slow", receive_buffer=4096) as late_reader,
        SseClient.connect(f"{service.url}/stream?channel=slow", receive_buffer=4096) as never_reads,
    ):
        with SseClient.connect(f"{service.url}/stream?channel=slow") as prompt:
            for number in range(50):
                service.publish("slow", f"{number} {data}")
            prompt.events(50, 10)  # so that the others have them in their outboxes
        until(lambda: service.log_lines(reason="client_left"), 5, "it has left")
        started = time.monotonic()
        service.signal(signal.SIGTERM)
        time.sleep(0.2)
        events = late_reader.read_until_end(drain + 2)
        assert event_data(events) == [f"{number} {data}" for number in range(50)]
        assert late_reader.ended == End.TERMINATED
        assert service.wait(GRACEFUL + DRAIN) == 0
        exited = time.monotonic() - started
        assert exited < drain + 6
        check_not_killed(service)
        assert len(service.log_lines(reason="drained")) == 2
        never_reads.read_until_end(5)
        assert never_reads.ended != End.TERMINATED
    print(f"slow streams: 1 MB of outbox delivered while draining, exit after {exited:.2f} s")


class Requests:
    """Requests that never pause while the context lasts; `failures` should stay empty.

    Three publishers, and clients that connect and send their request a moment later.
    """

    def __init__(self, service: LiveService) -> None:
        self.seconds: list[float] = []
        self.hesitant = 0
        self.failures: list[str] = []
        self._service = service
        self._stopped = False

    def _publish(self) -> None:
        while not self._stopped:
            started = time.monotonic()
            try:
                status, body, _ = self._service.post("/channels/else", b"x")
            except OSError as error:
                self.failures.append(repr(error))
            else:
                self.seconds.append(time.monotonic() - started)
                if status != 200:
                    self.failures.append(f"{status} {body!r}")
            gevent.sleep(0.005)

    def _hesitate(self) -> None:
        while not self._stopped:
            with socket.create_connection(("127.0.0.1", self._service.port)) as client:
                connected = time.monotonic()
                gevent.sleep(0.3)
                if time.monotonic() - connected > 0.8:
                    continue  # the service needn't wait for it longer than a second
                try:
                    client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                    answer = client.recv(100)
                except OSError as error:
                    answer = repr(error).encode()
            self.hesitant += 1
            if not answer.startswith(b"HTTP/1.1 200 "):
                self.failures.append(f"a late request got {answer!r}")

    def __enter__(self) -> Requests:
        bodies = [self._publish] * 3 + [self._hesitate] * 10
        self._greenlets = [gevent.spawn(body) for body in bodies]
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped = True
        gevent.joinall(self._greenlets)


def test_reload_answers_all_along(service: LiveService, swarm: Swarm) -> None:
    """SIGHUP replaces the workers while every request is answered and streams end cleanly."""
    before = set(service.worker_pids())
    with Requests(service) as requests:
        service.signal(signal.SIGHUP)
        until(lambda: not before & set(service.worker_pids()), DRAIN + 8, "the old workers end")
        report = swarm.wait_ended(2)
    assert requests.failures == []
    assert len(service.worker_pids()) == 2
    assert (report.faults, report.endings["terminated"]) == ({}, STREAMS)
    assert "SIGKILL" not in service.log()
    with SseClient.connect(f"{service.url}/stream?channel=drain") as client:
        service.publish("drain", "reloaded")
        assert event_data(client.events(1, 5)) == ["reloaded"]
    count, slowest = len(requests.seconds), max(requests.seconds)
    print(
        f"reload: {count} publishes were answered meanwhile, the slowest in {slowest:.3f} s,"
        f" and {requests.hesitant} requests on older connections"
    )


class RoundRobin:
    """A tiny TCP load balancer: connections go to the ports in turn, past those that refuse."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.unreachable = 0

    def _serve(self, client: socket.socket, address: object) -> None:
        self._ports = turn = self._ports[1:] + self._ports[:1]
        for port in turn:
            with contextlib.suppress(OSError):
                upstream = socket.create_connection(("127.0.0.1", port))
                break
        else:
            self.unreachable += 1
            client.close()
            return
        with client, upstream:
            requests = gevent.spawn(self._copy, client, upstream)
            self._copy(upstream, client)
            requests.kill()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Stop; open connections are cut."""
        self._server.stop(timeout=0)


def test_rolling_restart(shared_valkey: Valkey) -> None:
    """Two instances behind a balancer restart in turn: every stream finds its way back."""
    need_swarm()
    count = 200
    settings = {"DRAIN_SECONDS": 1.5, "RETRY_MILLISECONDS": 400, "KEEPALIVE_SECONDS": 95}
    with (
        LiveService(shared_valkey.url, **settings) as first,
        LiveService(shared_valkey.url, **settings) as second,
        contextlib.closing(RoundRobin([first.port, second.port])) as balancer,
        Swarm(f"{balancer.url}/stream?channel=roll", count, reopen="ended") as swarm,
    ):
        swarm.wait_until(lambda report: report.open == count, 20)
        for service in (first, second, first):
            service.signal(signal.SIGTERM)
            assert service.wait(20) == 0
            assert "SIGKILL" not in service.log()
            service.start()
        report: Report = swarm.wait_until(lambda report: report.open == count, 20)
        assert (report.over, report.waiting, balancer.unreachable) == (0, 0, 0)
        assert set(report.statuses) == {"200"}
        assert (report.cut_chunks, report.cut_events) == (0, 0)
        endings = {name: count for name, count in report.endings.items() if count}
        assert set(endings) <= {"terminated", "refused", "unanswered"}
        assert endings.get("unanswered", 0) <= 0.02 * sum(endings.values())
        swarm.clear()
        swarm.expect(5)
        for number in range(5):
            first.publish("roll", payload(number))
        final = swarm.wait_complete(10)
        assert (final.faults, final.events) == ({}, 5 * count)
    print(f"rolling restart, 3 times: endings {endings}, all {count} streams open again")
