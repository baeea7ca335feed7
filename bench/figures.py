"""Measures the service: streams held, memory, connects, deliveries, latency, drain.

`python bench/figures.py` starts everything itself and takes less than three minutes; README.md
beside this file says what each figure means. `--quick` is a smoke test of a few seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # so that it runs from anywhere

import redis  # noqa: E402  after the path is set, like all below

from tests.live_server import LiveService  # noqa: E402
from tests.swarm import Report, Swarm, compiled, payload  # noqa: E402
from tests.valkey import Valkey, free_port  # noqa: E402

LIMIT = Path(__file__).with_name("limit.c")
CHANNEL = "figures"
PREFIX = "pushline:"
EVENT_BYTES = 100
PIPELINED = 50
"""PUBLISH commands in one write; their times are taken just before."""

COMPLETE_SECONDS = 60.0
"""How long events may take to arrive before the missing ones are called lost."""


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    idle_streams: int = 10_000
    idle_events: int = 10
    warm_up: int = 300
    streams: int = 1_000
    rate: int = 20
    seconds: int = 10
    flood_events: int = 2_000
    drain_streams: int = 2_000


QUICK = Plan(500, 3, 100, 100, 20, 2, 500, 200)


@dataclass(frozen=True)
class Holding:
    """What many idle streams cost."""

    streams: int
    connects_per_second: float
    cpu_us_per_connect: float
    opening_p99_ms: float
    kib_per_stream: float
    p50_ms: float
    p99_ms: float
    faults: dict[str, int]


@dataclass(frozen=True)
class Delivery:
    """What it costs to bring events to streams."""

    server: str
    load: str
    fed_by: str
    events: int
    deliveries_per_second: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    client_busy: float
    missing: int
    faults: dict[str, int]


@dataclass(frozen=True)
class Drain:
    """How streams end when the service is told to stop."""

    streams: int
    ended_cleanly: int
    first_end_s: float
    last_end_s: float
    exit_s: float
    retry_ms: tuple[int, int]


@dataclass
class Figures:
    """Everything that was measured."""

    machine: str
    holding: Holding | None = None
    deliveries: list[Delivery] = field(default_factory=list)
    drain: Drain | None = None
    seconds: float = 0.0


# ---------------------------------------------------------------------------------------- processes


def tree(pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    yield pid
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from tree(int(child))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process tree, in user and kernel mode.

    The scheduler's own count is that of utime and stime, without their steps of 10 ms.
    """
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{each}/task").iterdir():
                total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process tree."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return total


# ------------------------------------------------------------------------------------------ feeders


class Feeder(Protocol):
    """A way to publish numbered events."""

    name: str

    def one(self, number: int) -> None:
        """Publish one event."""

    def many(self, count: int) -> None:
        """Publish the events 1 to `count` as fast as they are taken."""


class HttpFeeder:
    """One keep-alive connection, one POST per event."""

    name = "HTTP"

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def one(self, number: int) -> None:
        """Publish one event and wait for the answer."""
        body = payload(number, EVENT_BYTES).encode()
        self._connection.request("POST", f"/channels/{CHANNEL}", body)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"publishing failed: {answer.status} {text!r}")

    def many(self, count: int) -> None:
        """Publish one after the other."""
        for number in range(1, count + 1):
            self.one(number)


class RedisFeeder:
    """Plain `PUBLISH` commands, pipelined in a flood."""

    name = "Redis"

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)

    def one(self, number: int) -> None:
        """Publish one event."""
        self._redis.publish(PREFIX + CHANNEL, payload(number, EVENT_BYTES))

    def many(self, count: int) -> None:
        """Publish in pipelines."""
        for start in range(1, count + 1, PIPELINED):
            pipeline = self._redis.pipeline(transaction=False)
            for number in range(start, min(start + PIPELINED, count + 1)):
                pipeline.publish(PREFIX + CHANNEL, payload(number, EVENT_BYTES))
            pipeline.execute()


class LineFeeder:
    """A line per event over one TCP connection, for the limit."""

    name = "lines"

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.sendall(b"FEED\n")

    def one(self, number: int) -> None:
        """Publish one event."""
        self._socket.sendall(payload(number, EVENT_BYTES).encode() + b"\n")

    def many(self, count: int) -> None:
        """Publish without waiting for anything."""
        for start in range(1, count + 1, PIPELINED):
            numbers = range(start, min(start + PIPELINED, count + 1))
            lines = [payload(number, EVENT_BYTES) + "\n" for number in numbers]
            self._socket.sendall("".join(lines).encode())


def paced(feeder: Feeder, count: int, rate: float) -> None:
    """Publish the events 1 to `count` at `rate` per second."""
    started = time.monotonic()
    for number in range(1, count + 1):
        time.sleep(max(0.0, started + number / rate - time.monotonic()))
        feeder.one(number)


# ------------------------------------------------------------------------------------- measurements


def measure_holding(url: str, pid: int, feeder: Feeder, plan: Plan) -> Holding:
    """Open many streams, look at the memory, and publish a few events to all of them."""
    before_kib, before_cpu = resident_kib(pid), cpu_seconds(pid)
    with Swarm(url, plan.idle_streams, expect=plan.idle_events) as swarm:
        opened = swarm.wait_open(60)
        time.sleep(1)
        cpu, kib = cpu_seconds(pid) - before_cpu, resident_kib(pid) - before_kib
        swarm.clear()
        paced(feeder, plan.idle_events, 2)
        report = swarm.wait_complete(30)
    return Holding(
        streams=opened.open,
        connects_per_second=opened.opened_per_second,
        cpu_us_per_connect=cpu / opened.streams * 1e6,
        opening_p99_ms=opened.opening_ms.p99,
        kib_per_stream=kib / opened.streams,
        p50_ms=report.latency_ms.p50,
        p99_ms=report.latency_ms.p99,
        faults=report.faults,
    )


def measure_delivery(
    swarm: Swarm, pid: int, server: str, feeder: Feeder, load: str, plan: Plan
) -> Delivery:
    """Publish at a steady rate or in a flood to all open streams."""
    flood = load == "flood"
    count = plan.flood_events if flood else plan.rate * plan.seconds
    swarm.clear()
    swarm.expect(count)
    before = swarm.report()
    cpu, started = cpu_seconds(pid), time.monotonic()
    if flood:
        feeder.many(count)
    else:
        paced(feeder, count, plan.rate)
    report = wait_complete(swarm)
    cpu = cpu_seconds(pid) - cpu
    elapsed = time.monotonic() - started
    return Delivery(
        server=server,
        load=load,
        fed_by=feeder.name,
        events=count,
        deliveries_per_second=report.events / elapsed,
        cpu_us=cpu / max(1, report.events) * 1e6,
        p50_ms=report.latency_ms.p50,
        p99_ms=report.latency_ms.p99,
        client_busy=(report.cpu_seconds - before.cpu_seconds) / elapsed,
        missing=count * before.open - report.events,
        faults=report.faults,
    )


def wait_complete(swarm: Swarm) -> Report:
    """Wait for all events; what is missing after that is lost, and told as such."""
    with contextlib.suppress(TimeoutError):
        return swarm.wait_complete(COMPLETE_SECONDS)
    return swarm.report()


def measure_drain(service: LiveService, url: str, plan: Plan) -> Drain:
    """Open streams, send SIGTERM, and see how they end."""
    with Swarm(url, plan.drain_streams) as swarm:
        swarm.wait_open(30)
        told_ms = swarm.report().ms
        told = time.monotonic()
        service.signal(signal.SIGTERM)
        report = swarm.wait_ended(60)
        service.wait(60)
        exit_s = time.monotonic() - told
    return Drain(
        streams=plan.drain_streams,
        ended_cleanly=report.endings["terminated"],
        first_end_s=(report.first_end_ms - told_ms) / 1000,
        last_end_s=(report.last_end_ms - told_ms) / 1000,
        exit_s=exit_s,
        retry_ms=(report.retry_least, report.retry_most),
    )


def warm_up(url: str, feeder: Feeder, plan: Plan) -> None:
    """Let the service do everything once before it is measured."""
    with Swarm(url, plan.warm_up, expect=20) as swarm:
        swarm.wait_open(30)
        paced(feeder, 20, 100)
        swarm.wait_complete(30)
    time.sleep(1)


def measure_service(figures: Figures, plan: Plan, say: Callable[[str], None]) -> None:
    """Measure the service, with one worker and a Valkey of its own."""
    with Valkey() as valkey, LiveService(valkey.url) as service:
        url = f"{service.url}/stream?channel={CHANNEL}"
        pid = service.pid
        by_redis = RedisFeeder(valkey.url)
        warm_up(url, by_redis, plan)
        say(f"{plan.idle_streams} idle streams")
        figures.holding = measure_holding(url, pid, by_redis, plan)
        with Swarm(url, plan.streams) as swarm:
            swarm.wait_open(30)
            for load in ("steady", "flood"):
                for feeder in (by_redis, HttpFeeder(service.port)):
                    say(f"{plan.streams} streams, {load}, fed by {feeder.name}")
                    row = measure_delivery(swarm, pid, "Pushline", feeder, load, plan)
                    figures.deliveries.append(row)
        say(f"drain of {plan.drain_streams} streams")
        figures.drain = measure_drain(service, url, plan)


def measure_limit(figures: Figures, plan: Plan, say: Callable[[str], None]) -> None:
    """Measure the C program that does nothing but send, one event at a time and joined."""
    for server, options, loads in (
        ("limit", (), ("steady", "flood")),
        ("limit, joined", ("--join",), ("flood",)),
    ):
        port = free_port()
        process = subprocess.Popen([compiled(LIMIT), str(port), *options])
        try:
            feeder = _line_feeder(port)
            with Swarm(f"http://127.0.0.1:{port}/", plan.streams) as swarm:
                swarm.wait_open(30)
                for load in loads:
                    say(f"{server}: {plan.streams} streams, {load}")
                    row = measure_delivery(swarm, process.pid, server, feeder, load, plan)
                    figures.deliveries.append(row)
        finally:
            process.kill()
            process.wait()


def _line_feeder(port: int) -> LineFeeder:
    """Connect to a limit server that has just been started."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return LineFeeder(port)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


# ------------------------------------------------------------------------------------------- output


def markdown(figures: Figures) -> str:
    """Return everything as Markdown."""
    lines = [f"{figures.machine}; {figures.seconds:.0f} s in all", ""]
    if figures.holding is not None:
        lines += _holding_lines(figures.holding)
    lines += [
        "| server | load | fed by | deliveries/s | CPU µs per delivery | of the limit "
        "| p50 ms | p99 ms | lost |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_delivery_line(row, figures.deliveries) for row in figures.deliveries),
        "",
    ]
    if figures.drain is not None:
        lines += _drain_lines(figures.drain)
    return "\n".join(lines)


def _holding_lines(row: Holding) -> list[str]:
    return [
        "| idle streams | connects/s | CPU µs per connect | p99 ms to open | KiB per stream "
        "| p50 ms | p99 ms |",
        "|---|---|---|---|---|---|---|",
        f"| {row.streams} | {row.connects_per_second:.0f} | {row.cpu_us_per_connect:.0f} "
        f"| {row.opening_p99_ms:.1f} | {row.kib_per_stream:.2f} "
        f"| {row.p50_ms:.1f} | {row.p99_ms:.1f} |",
        "",
    ]


def _delivery_line(row: Delivery, rows: list[Delivery]) -> str:
    limits = [each for each in rows if each.load == row.load and each.server.startswith("limit")]
    best = min((each.cpu_us for each in limits if each.cpu_us > 0), default=0.0)
    times = row.cpu_us / best if best else 0.0
    ratio = f"{times:.{1 if times < 10 else 0}f} x" if best else "-"
    lost = f"{row.missing}" + (f" {row.faults}" if row.faults else "")
    busy = " (client busy)" if row.client_busy > 0.9 else ""
    return (
        f"| {row.server} | {row.load} | {row.fed_by} | {row.deliveries_per_second:.0f}{busy} "
        f"| {row.cpu_us:.3g} | {ratio} | {row.p50_ms:.1f} | {row.p99_ms:.1f} | {lost} |"
    )


def _drain_lines(row: Drain) -> list[str]:
    least, most = row.retry_ms
    return [
        "| drained streams | ended cleanly | first end s | last end s | exit s | retry ms |",
        "|---|---|---|---|---|---|",
        f"| {row.streams} | {row.ended_cleanly} | {row.first_end_s:.2f} | {row.last_end_s:.2f} "
        f"| {row.exit_s:.2f} | {least} to {most} |",
        "",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test: small and not exact")
    plan = QUICK if parser.parse_args().quick else Plan()
    started = time.monotonic()

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"{time.monotonic() - started:4.0f} s  {text}", file=sys.stderr)

    figures = Figures(f"{os.cpu_count()} cores, Linux {platform.release()}, one worker")
    measure_limit(figures, plan, say)
    measure_service(figures, plan, say)
    figures.seconds = time.monotonic() - started
    print(markdown(figures))
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
