"""What a test of the benchmark is, and what most of them do: warm up, publish, wait, count."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

from bench.plan import Plan
from bench.publisher import Feed, Published, Publisher
from bench.servers.server import Server
from bench.usage import Cpu
from tests.swarm import Report, Swarm

Figures = Mapping[str, float]
"""Name with unit -> value; docs/benchmark.md says how they are measured."""

FAULTS = ("lost", "lost_cold", "twice", "out_of_order", "cut_streams", "refused")
"""The figures that must be zero."""

OPEN_SECONDS = 180.0
SETTLE_SECONDS = 0.3
QUIET_SECONDS = 10.0
"""Events that have not come after as long without any are lost."""

WARM_STREAMS = 100
WARM_EVENTS = 20


class Skipped(Exception):
    """Something that this test needs is not there."""


class Trial(ABC):
    """One test: who takes part, and how it is measured."""

    letter: ClassVar[str]
    title: ClassVar[str]

    @abstractmethod
    def feeds(self, server: type[Server]) -> tuple[str, ...]:
        """Return the ways of feeding `server` that are measured; none: it takes no part."""

    @abstractmethod
    def measure(self, server: Server, feed: str, plan: Plan) -> Figures:
        """Measure a server that has just been started. Raises Skipped."""


class Costs:
    """CPU time of a server, of its Redis, and wall time from here on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._cpu, self._redis = server.cpu(), server.redis_cpu()
        self._started = time.monotonic()

    def figures(self, unit: str, count: float) -> dict[str, float]:
        """Return microseconds for each of `count` units since the start."""
        spent: Cpu = self._server.cpu() - self._cpu
        redis = self._server.redis_cpu() - self._redis
        each = 1e6 / max(1.0, count)
        return {
            f"cpu_us_per_{unit}": spent.total * each,
            f"user_us_per_{unit}": spent.user * each,
            f"redis_us_per_{unit}": redis.total * each,
        }

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self._started


def warm_up(server: Server, feed: Feed) -> None:
    """Let a server do everything once, on channel 0."""
    with streaming(server, server.stream_url("0"), WARM_STREAMS, expect=WARM_EVENTS) as swarm:
        Publisher(feed, count=WARM_EVENTS, rate=100).finish()
        settled(swarm)
    time.sleep(SETTLE_SECONDS)


@contextmanager
def streaming(
    server: Server,
    url: str | Sequence[str],
    streams: int,
    *,
    expect: int = 0,
    sources: int = 1,
    headers: Mapping[str, str] | None = None,
) -> Iterator[Swarm]:
    """Open streams and wait until all are open, and follow their channel where that comes later.

    A stream that is softly refused, with a `retry:` and a clean end, comes again.
    """
    with Swarm(
        url, streams, expect=expect, sources=sources, headers=headers, reopen="refused"
    ) as swarm:
        swarm.wait_open(OPEN_SECONDS)
        time.sleep(SETTLE_SECONDS + streams * server.late_ms_per_stream / 1000)
        yield swarm


def settled(swarm: Swarm, quiet_seconds: float = QUIET_SECONDS) -> Report:
    """Wait until every stream has all, or nothing more comes; what is missing then is lost."""
    seen, deadline = -1, 0.0
    while True:
        try:
            return swarm.wait_complete(0.5)
        except TimeoutError:
            report = swarm.report()
        if report.events > seen:
            seen, deadline = report.events, time.monotonic() + quiet_seconds
        elif time.monotonic() > deadline:
            return report


def deliver(
    server: Server, swarm: Swarm, start: Callable[[], Publisher], per_stream: int
) -> dict[str, float]:
    """Publish to open streams, each of which must have `per_stream` events; return what it cost."""
    swarm.clear()
    swarm.expect(per_stream)
    before, costs = swarm.report(), Costs(server)
    published = start().finish()
    report = settled(swarm)
    return {
        **costs.figures("delivery", report.events),
        **_speed(report, before, published),
        "p50_ms": report.latency_ms.p50,
        "p90_ms": report.latency_ms.p90,
        "p99_ms": report.latency_ms.p99,
        **checked(report, before.open * per_stream),
    }


def _speed(report: Report, before: Report, published: Published) -> dict[str, float]:
    """Events and deliveries a second, from the first publish to the last delivery."""
    last_ns = report.started_ns + report.last_event_ms * 1e6
    seconds = ((last_ns if report.events else published.ended_ns) - published.started_ns) / 1e9
    elapsed = max(seconds, (report.ms - before.ms) / 1000)
    return {
        "deliveries_per_s": report.events / seconds,
        "events_per_s": published.accepted / seconds,
        "client_busy": (report.cpu_seconds - before.cpu_seconds) / elapsed,
        "publisher_busy": published.cpu_seconds / seconds,
    }


def checked(report: Report, wanted: int) -> dict[str, float]:
    """Count what is wrong with the deliveries: numbers missing, twice, out of order, cut."""
    return {
        "lost": wanted - report.events + report.duplicates,
        "twice": report.duplicates,
        "out_of_order": report.inversions,
        "cut_streams": report.cut_chunks + report.cut_events + report.endings["framing"],
    }
