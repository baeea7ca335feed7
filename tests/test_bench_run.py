"""The benchmark runs: every server's adapter, the publisher's counts, and what is written."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.plan import TINY
from bench.publisher import Feed, Publisher, PublisherError
from bench.results import Cell, Results
from bench.run import run
from bench.servers.limit import JoinedLimit, Limit
from bench.servers.pushline import Pushline
from bench.servers.roster import SERVERS
from bench.servers.server import Server
from bench.trials.catalogue import TRIALS
from bench.trials.delivering import Steady
from bench.trials.trial import FAULTS, Figures, Skipped, Trial, checked, settled
from tests.swarm import Swarm, need_swarm
from tests.valkey import free_port

pytestmark = pytest.mark.live


@pytest.fixture(autouse=True)
def _compiler() -> None:
    need_swarm()


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Limit and Pushline in two tests: figures for each, no faults, and the files are written."""
    arguments = ["--size", "tiny", "--out", str(tmp_path), "--tests", "B", "E", "--servers"]
    assert main([*arguments, "limit", "Pushline"]) == 0
    results = Results.read(tmp_path / "results.json")
    expected = {
        *(Cell("B", "limit", "lines"), Cell("B", "Pushline", "redis")),
        *(Cell("B", "Pushline", "http"), Cell("E", "limit", "http"), Cell("E", "Pushline", "http")),
    }
    assert {sample.cell for sample in results.samples} == expected
    assert (results.troubles, results.absent) == ([], {})
    for sample in results.samples:
        figures = sample.figures
        unit = "delivery" if sample.trial == "B" else "publish"
        assert 0 < figures[f"cpu_us_per_{unit}"] < 100_000
        assert not any(figures.get(name) for name in ("lost", "twice", "out_of_order"))
        assert (figures[f"redis_us_per_{unit}"] > 0) == (sample.server == "Pushline")
    page = (tmp_path / "results.md").read_text()
    assert page in capsys.readouterr().out
    assert "## B: " in page
    files = {"results.json", "results.md", "b-deliveries.svg", "e-publishes.svg"}
    assert {path.name for path in tmp_path.iterdir()} == files
    plot = (tmp_path / "b-deliveries.svg").read_text()
    assert all(name in plot for name in ("Pushline, by Redis", "limit", "deliveries/s"))


@pytest.mark.long
@pytest.mark.parametrize("server", SERVERS, ids=lambda server: str(server.name))
def test_every_server_in_every_test(server: type[Server]) -> None:
    """Each adapter that is installed here works in all tests, and loses nothing."""
    if command := server.missing():
        pytest.skip(f"NOT TESTED: {server.name}: {command}")
    results = run(TRIALS, [server], TINY)
    assert [trouble for trouble in results.troubles if "publish_messages" not in trouble] == []
    for sample in results.samples:
        faults = {name: sample.figures[name] for name in FAULTS if sample.figures.get(name)}
        assert faults == {}, sample


class Broken(Limit):
    """A server that ends at once."""

    name = "broken"
    options = ("--no-such-option",)

    def launch(self) -> None:
        """Start nothing that lasts."""
        self.run(["/bin/false"])


class Absent(Limit):
    """A server that is not installed."""

    name = "absent"

    @classmethod
    def missing(cls) -> str | None:
        """Never there."""
        return "install it"


class Picky(Steady):
    """A test that lacks something."""

    def measure(self, server: Server, feed: str, plan: object) -> Figures:
        """Measure nothing."""
        raise Skipped("something is not there")


@pytest.mark.parametrize(
    ("trial", "server", "trouble"),
    [
        (Steady(), Broken, "A, broken, lines: failed: broken did not start"),
        (Picky(), Limit, "A, limit, lines: not measured: something is not there"),
    ],
)
def test_troubles_are_told(trial: Trial, server: type[Server], trouble: str) -> None:
    """What can't be measured is told once, not tried in each round, and ends nothing."""
    results = run([trial], [server, Absent], TINY, rounds=3)
    assert results.samples == []
    assert [told[: len(trouble)] for told in results.troubles] == [trouble]
    assert results.absent == {"absent": "install it"}


@pytest.mark.parametrize("server", [Limit, JoinedLimit])
def test_the_limit_delivers(server: type[Server]) -> None:
    """Each event reaches its channel's streams once, in order, and no others."""
    with server() as limit:
        assert limit.feeds == ("lines",)
        with Swarm(limit.stream_url("%d"), 4, expect=25) as swarm:
            swarm.wait_open(5)
            Publisher(limit.feed("lines"), count=100, channels=4).finish()
            report = swarm.wait_complete(5)
        assert (report.faults, report.events, report.events_most) == ({}, 100, 25)
    assert checked(report, 100) == {"lost": 0, "twice": 0, "out_of_order": 0, "cut_streams": 0}
    assert checked(report, 120)["lost"] == 20


def test_the_limit_takes_posts() -> None:
    """An event of an HTTP publish is delivered, and each is answered, in pipelines too."""
    with Limit() as limit, Swarm(limit.stream_url("3"), 2, expect=200) as swarm:
        swarm.wait_open(5)
        way = limit.feed("http", "3")
        done = Publisher(way, count=200, connections=2, in_flight=16).finish()
        report = swarm.wait_complete(5)
    assert (done.sent, done.accepted, done.refused) == (200, 200, 0)
    assert (report.events, report.lost, report.duplicates) == (400, 0, 0)


def test_publishing_to_redis() -> None:
    """Channels in turn, each with numbers of its own."""
    with Pushline() as service, Swarm(service.stream_url("%d"), 3, expect=5) as swarm:
        swarm.wait_open(5)
        done = Publisher(service.feed("redis"), count=15, channels=3, in_flight=4).finish()
        report = settled(swarm)
    assert (done.accepted, report.events, report.faults) == (15, 15, {})


def test_a_rate_and_a_time() -> None:
    """The publisher keeps its rate, and ends after its seconds."""
    with Limit() as limit:
        slow = Publisher(limit.feed("http", "0"), count=20, rate=100).finish()
        short = Publisher(limit.feed("http", "0"), seconds=0.3, in_flight=4).finish()
    assert 0.18 <= slow.seconds < 3
    assert 0.29 <= short.seconds < 3
    assert short.sent == short.accepted > 10


@contextmanager
def answering(answers: list[bytes]) -> Iterator[int]:
    """A server that gives each request of a connection one of the answers; b"" closes."""
    listener = socket.create_server(("127.0.0.1", free_port()))
    left = iter(answers)

    def serve() -> None:
        for answer in left:
            sock, _ = listener.accept()
            with sock:
                while answer and sock.recv(65536):
                    sock.sendall(answer)
                    answer = next(left, b"")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(10)
        listener.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n"
TEAPOT = b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("answer", [OK, EMPTY, CHUNKED])
def test_answers_are_counted(answer: bytes) -> None:
    """Answers with a length, without a body, and in chunks."""
    with answering([answer] * 3 + [b""]) as port:
        done = Publisher(Feed("http", port), count=3).finish()
    assert (done.sent, done.accepted) == (3, 3)


def test_refusals_are_errors() -> None:
    """One refused publish makes the figures worthless."""
    with (
        answering([OK, TEAPOT, OK, b""]) as port,
        pytest.raises(PublisherError, match=r"1 refused, the first: HTTP/1\.1 418 I'm a teapot"),
    ):
        Publisher(Feed("http", port), count=3).finish()


def test_a_server_that_closes() -> None:
    """It is an error, unless the server is known to close after each answer."""
    with answering([OK, b"", OK, b"", OK, b""]) as port:
        feed = Feed("http", port, keeps_alive=False)
        assert Publisher(feed, count=3, in_flight=8).finish().accepted == 3
    with (
        answering([OK, b""]) as port,
        pytest.raises(PublisherError, match="closed the connection"),
    ):
        Publisher(Feed("http", port), count=3).finish()
