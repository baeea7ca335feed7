"""`bench` counts what a real service delivers, and its sums see every fault."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from service.__main__ import main
from service.commands import bench
from service.errors import ConfigError
from service.load.latencies import Latencies
from service.load.load import Load, connect_in_turn
from service.load.plan import Plan
from service.load.results import is_sound, results, table
from service.load.tally import Tally
from service.remote import Remote, RemoteStream
from tests.credentials import SECRET, token
from tests.live_server import LiveService, until
from tests.scripted import scripted
from tests.valkey import Valkey, free_port

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def service(shared_valkey: Valkey) -> Iterator[LiveService]:
    """A service that wants tokens, and lets one address have 20 streams."""
    guarded = {"PUBLISH_OPEN": 0, "PUBLIC_CHANNELS": "", "JWT_SECRET": SECRET}
    with LiveService(shared_valkey.url, **guarded, MAX_CONNECTIONS_PER_IP=20) as service:
        yield service


@pytest.fixture(autouse=True)
def granted(monkeypatch: pytest.MonkeyPatch) -> str:
    """A token in the environment, for the channels of `bench`."""
    shown = token(publish=["bench-*"], subscribe=["bench-*"])
    monkeypatch.setenv("PUSHLINE_TOKEN", shown)
    return shown


# -------------------------------------------------------------------------------- a real service


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run it: exit status, figures, and what it has told meanwhile."""
    status = main(["bench", "--json", *arguments])
    out, err = capfd.readouterr()
    return status, json.loads(out), err


def test_a_measurement(
    service: LiveService, granted: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """All that was published came, in order; figures agree with each other; nothing is left."""
    options = ["--streams", "10", "--seconds", "1.2", "--rate", "100", "--size", "300"]
    status, found, told = run(capfd, service.url, *options)
    assert status == 0
    assert (found["streams"], found["refused"], found["cut"]) == (10, {}, 0)
    assert 30 < found["published"] <= 120
    assert found["delivered"] == 10 * found["published"]
    assert (found["lost"], found["twice"], found["out_of_order"]) == (0, 0, 0)
    assert found["deliveries_per_second"] == pytest.approx(10 * found["publishes_per_second"], 0.01)
    times = found["latency_milliseconds"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["max"] < 10_000
    assert 0 < found["client_cpu_share"] < 1.1
    assert told.startswith("[")
    assert granted not in told + json.dumps(found)
    (deleted,) = until(lambda: service.log_lines(method="DELETE"), 5, "the channel is deleted")
    assert deleted["path"].startswith("/channels/bench-"), "the history is gone"
    assert deleted["status"] == 204


def test_as_many_as_are_taken(service: LiveService, capfd: pytest.CaptureFixture[str]) -> None:
    """Without a rate several publishers go at once, each in its own order."""
    assert main(["bench", service.url, "--streams", "2", "--seconds", "0.5", "--rate", "max"]) == 0
    out = capfd.readouterr().out
    assert "lost 0, twice 0, out of order 0, cut 0" in out
    assert "latency      p50 " in out


def test_a_service_with_limits(service: LiveService, capfd: pytest.CaptureFixture[str]) -> None:
    """Streams that are refused are counted, and the rest is measured."""
    options = ["--streams", "25", "--seconds", "0.3"]
    status, found, _ = run(capfd, service.url, *options)
    assert status == 1
    assert (found["streams"], found["refused"]) == (20, {"overloaded": 5})
    assert found["delivered"] == 20 * found["published"]
    assert main(["bench", service.url, *options]) == 1
    assert "MAX_CONNECTIONS_PER_IP" in capfd.readouterr().out


def test_nobody_gets_in(
    service: LiveService, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line says what is missing: a token, the right one, or a service."""
    cases = {
        "": "no_credential (3); set PUSHLINE_TOKEN",
        token(publish=["bench-*"], subscribe=["other"]): "not_granted (3); set PUSHLINE_TOKEN",
        token(subscribe=["bench-*"]): "takes no events of this one: set PUSHLINE_TOKEN",
    }
    for shown, told in cases.items():
        monkeypatch.setenv("PUSHLINE_TOKEN", shown)
        assert main(["bench", service.url, "--streams", "3", "--seconds", "1"]) == 1
        out, err = capfd.readouterr()
        assert out == ""
        (line,) = [one for one in err.splitlines() if not one.startswith("[")]
        assert line.startswith("pushline: ")
        assert told in line
        assert shown == "" or shown not in err
    assert main(["bench", f"http://127.0.0.1:{free_port()}", "--streams", "1"]) == 1
    assert "Connection refused (1)" in capfd.readouterr().err


def test_a_service_that_is_killed(shared_valkey: Valkey) -> None:
    """Streams that break off, and publishes without an answer, are counted as such."""
    with LiveService(shared_valkey.url, WEB_CONCURRENCY=1) as service:
        load = Load(Remote(service.url, connect=connect_in_turn), plan(streams=5, seconds=60))
        running = gevent.spawn(load.run)
        until(lambda: load.delivered > 0 and not load.lost, 10, "an event has come everywhere")
        service.stop()
    until(lambda: load.cut == 5 and load.failed, 10, "both are noticed")
    running.kill()
    found = results(load)
    assert found["publishes_failed"]
    assert found["lost"] == 0, "what nobody has taken isn't lost"
    assert not is_sound(found)


def wrong(answer: bytes) -> tuple[Counter[str], list[bool]]:
    """What a measurement of some other server counts, and whether it closed each connection."""
    closed: list[bool] = []

    def serve(client: socket.socket, request: bytes) -> None:
        if request.startswith(b"GET"):
            client.sendall(answer)
            client.settimeout(5)
            closed.append(client.recv(1) == b"")

    with scripted(serve) as remote:
        load = Load(Remote(remote.url, connect=connect_in_turn), plan(streams=1))
        with pytest.raises(ConfigError, match="no stream could be opened"):
            load.run()
        until(lambda: closed, 10, "the connection is closed")
    return load.refused, closed


def test_what_is_no_stream() -> None:
    """Some other server's page is told from a soft refusal, which alone is about limits."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: %s\r\n\r\n:\n"
    for kind, told in (
        (b"text/html; charset=utf-8", "an answer of text/html"),
        (b"text/event-stream", "overloaded"),
    ):
        assert wrong(head % kind) == ({told: 1}, [True])


def test_a_stream_that_never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """It isn't kept, as the service has to hold it too."""
    monkeypatch.setattr("service.load.load.OPENING_SECONDS", 0.2)
    kept: list[RemoteStream] = []
    opened = Remote.stream

    def stream(self: Remote, channel: str) -> RemoteStream:
        kept.append(opened(self, channel))
        return kept[-1]

    monkeypatch.setattr(Remote, "stream", stream)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nPushline-Stream: x\r\n\r\n"
    refused, closed = wrong(head)
    assert (refused, closed) == ({"it does not answer in time": 1}, [True])


def test_an_interrupt(service: LiveService) -> None:
    """Ctrl-C ends it without a word, and the channel goes all the same."""
    before = len(service.log_lines(method="DELETE"))
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "bench", service.url, "--streams", "2"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert all(line.startswith("[") for line in err.splitlines())
    until(lambda: len(service.log_lines(method="DELETE")) > before, 5, "the channel is deleted")


def test_a_live_view(service: LiveService) -> None:
    """On a terminal one line shows how it goes, and is gone at the end."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "service", "bench", service.url]
    options = ["--streams", "2", "--seconds", "0.8"]
    done = subprocess.run([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs,
                          text=True, timeout=20, check=False)  # fmt: skip
    os.close(theirs)
    assert done.returncode == 0
    shown = ""
    while not shown.endswith("\r\x1b[K"):
        shown += os.read(ours, 10_000).decode()
    os.close(ours)
    assert shown.count("\r[") >= 2
    assert "\n" not in shown
    assert "publishing: " in shown
    assert "[" not in done.stdout


# ------------------------------------------------------------------------------------- its sums


def test_percentiles() -> None:
    """Percentiles are right to a percent, the longest is exact, and none of nothing is 0."""
    latencies = Latencies()
    assert latencies.milliseconds() == {"p50": 0.0, "p90": 0.0, "p99": 0.0, "max": 0.0}
    for number in range(1, 1001):
        latencies.add(number / 1000)
    assert latencies.percentile(0.5) == pytest.approx(0.5, rel=0.01)
    assert latencies.percentile(0.99) == pytest.approx(0.99, rel=0.01)
    assert latencies.percentile(1.0) == latencies.longest == 1.0
    latencies.add(-1.0)
    assert latencies.percentile(0.0) <= 0.001


def test_a_tally_sees_every_fault() -> None:
    """What is lost, comes twice or late is told apart, for each publisher by itself."""
    tally = Tally()
    for publisher, number in ((0, 1), (1, 1), (0, 2), (0, 2), (0, 5), (0, 4), (1, 3)):
        tally.take(publisher, number)
    assert (tally.delivered, tally.twice, tally.disordered) == (7, 1, 1)
    assert tally.lost({0: 5, 1: 3}, frozenset()) == 2, "0's third and 1's second"
    assert tally.lost({0: 7, 1: 3}, frozenset({(0, 3), (0, 7)})) == 2, "0's sixth, 1's second"
    assert tally.lost({}, frozenset()) == 2


def plan(**wanted: Any) -> Plan:
    """A plan that harms nobody, but for what is wanted."""
    return Plan(**{"streams": 10, "seconds": 10, "rate": 10, "size": 100, **wanted})


def test_nobody_is_hurt_by_accident(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A service elsewhere gets more than a little only if that is said twice."""
    plan().check_harmless()
    for wanted in ({"streams": 501}, {"rate": 101}, {"seconds": 61}, {"rate": 0.0}):
        with pytest.raises(ConfigError, match="add --force"):
            plan(**wanted).check_harmless()
    plans: list[Plan] = []

    class Noted(Load):
        """A measurement that isn't made."""

        def run(self) -> None:
            plans.append(self.plan)

    monkeypatch.setattr(bench, "Load", Noted)
    elsewhere = ["bench", "https://push.example.com"]
    assert main([*elsewhere, "--streams", "600"]) == 1
    assert "--streams 600 (up to 500)" in capfd.readouterr().err
    assert plans == []
    main(elsewhere)
    main([*elsewhere, "--streams", "600", "--force"])
    assert [one.connects_per_second for one in plans] == [15, 0]
    assert plans[1].streams == 600


def test_streams_open_at_a_rate(service: LiveService) -> None:
    """A service elsewhere gets its connects one after the other."""
    load = Load(Remote(service.url, os.environ["PUSHLINE_TOKEN"], connect=connect_in_turn),
                plan(streams=6, seconds=0.1, connects_per_second=10))  # fmt: skip
    load.run()
    assert load.opened == 6
    assert 0.5 <= load.opening_seconds < 5


def test_publishers() -> None:
    """One for each 50 events a second, and eight at most."""
    assert [plan(rate=rate).publishers for rate in (1, 100, 10_000, 0)] == [1, 2, 8, 8]


def test_who_was_the_bottleneck() -> None:
    """A busy client says so; a service that took less than was sent is told otherwise."""
    load = Load(Remote("http://127.0.0.1:1"), plan())
    load.publishing_seconds, load.cpu_share = 10.0, 0.9
    found = results(load)
    assert found["client_was_the_bottleneck"]
    assert "busy 90 % of the time" in list(table(found, 10))[-1]
    load.cpu_share = 0.1
    found = results(load)
    assert "fewer events than the 10/s" in list(table(found, 10))[-1]
    assert is_sound(found)
    load.published[0] = 100
    assert "fewer" not in list(table(results(load), 10))[-1]


def test_progress() -> None:
    """The line tells the phase and how far it is."""
    load = Load(Remote("http://127.0.0.1:1"), plan())
    load.opened = 5
    assert bench.progress(load, 0) == f"[{'#' * 10}{'.' * 10}] 5 streams open"
    load.phase, load.began_at = "publishing", time.perf_counter() - 5
    assert bench.progress(load, 12.3).startswith(f"[{'#' * 10}{'.' * 10}] publishing: 12 deliver")


@pytest.mark.parametrize("options", [["--rate", "0"], ["--rate", "much"], ["--streams", "-1"],
                                     ["--seconds", "inf"], ["--size", "nan"]])  # fmt: skip
def test_usage(options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Numbers are above 0."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", "http://127.0.0.1:1", *options])
    assert ended.value.code == 2
    assert options[0] in capfd.readouterr().err
