"""Tests C, H, S: many open streams, what they cost, and how latency grows with their number."""

from __future__ import annotations

import contextlib

from bench.plan import Plan
from bench.publisher import Publisher
from bench.servers.server import Server
from bench.trials.trial import (
    Costs,
    Figures,
    Trial,
    checked,
    settled,
    streaming,
    warm_up,
)

CLIENTS = 2
"""Load clients of test H: one process may have 20 000 files."""

SOURCES = 2
"""Client addresses of test H: one has 28 000 ports."""

SCALE_EVENTS = 12
SCALE_RATE = 4


class Idle(Trial):
    """What an open stream costs that gets nothing, and how late the first events are."""

    letter = "C"
    title = "idle streams on one channel, then an event a second"

    def feeds(self, server: type[Server]) -> tuple[str, ...]:
        """Everybody, once."""
        return server.feeds[:1]

    def measure(self, server: Server, feed: str, plan: Plan) -> Figures:
        """Open `idle_streams`, look at memory and CPU, and publish `idle_events`."""
        way, streams = server.feed(feed, "0"), min(plan.idle_streams, server.most_streams)
        warm_up(server, way)
        kib, costs = server.resident_kib(), Costs(server)
        with streaming(server, server.stream_url("0"), streams, expect=plan.idle_events) as swarm:
            opened = swarm.report()
            figures = costs.figures("connect", streams)
            kib = server.resident_kib() - kib
            swarm.clear()
            Publisher(way, count=plan.idle_events, rate=1).finish()
            report = settled(swarm)
        return {
            "streams": streams,
            "refusals": opened.endings["refused"],
            "kib_per_stream": kib / streams,
            **figures,
            "connects_per_s": opened.opened_per_second,
            "p50_ms": report.latency_ms.p50,
            "p90_ms": report.latency_ms.p90,
            "p99_ms": report.latency_ms.p99,
            **checked(report, streams * plan.idle_events),
        }


class Held(Trial):
    """As many streams as two workers take; what one refuses softly comes again."""

    letter = "H"
    title = "streams held by two workers"

    def feeds(self, server: type[Server]) -> tuple[str, ...]:
        """Those with two workers."""
        return server.feeds[:1] if server.workers > 1 else ()

    def measure(self, server: Server, feed: str, plan: Plan) -> Figures:
        """Open `held` streams from several client processes, and let one event reach them all."""
        way, each = server.feed(feed, "0"), plan.held // CLIENTS
        warm_up(server, way)
        kib, costs = server.resident_kib(), Costs(server)
        with contextlib.ExitStack() as stack:
            swarms = [
                stack.enter_context(
                    streaming(server, server.stream_url("0"), each, sources=SOURCES, expect=1)
                )
                for _ in range(CLIENTS)
            ]
            opening_s = costs.seconds
            figures = costs.figures("connect", each * CLIENTS)
            kib = server.resident_kib() - kib
            Publisher(way, count=1).finish()
            reports = [settled(swarm) for swarm in swarms]
        return {
            "streams": sum(report.open for report in reports),
            "refusals": sum(report.endings["refused"] for report in reports),
            "opening_s": opening_s,
            "kib_per_stream": kib / (each * CLIENTS),
            **figures,
            "p99_ms": max(report.latency_ms.p99 for report in reports),
            "lost": each * CLIENTS - sum(report.events for report in reports),
        }


class Scale(Trial):
    """Latency against the number of streams."""

    letter = "S"
    title = "latency with more and more streams on one channel, 4 events a second"

    def feeds(self, server: type[Server]) -> tuple[str, ...]:
        """Everybody, once."""
        return server.feeds[:1]

    def measure(self, server: Server, feed: str, plan: Plan) -> Figures:
        """Measure the latency of each of `stream_counts`."""
        way, figures = server.feed(feed, "0"), dict[str, float]()
        warm_up(server, way)
        for streams in plan.stream_counts:
            if streams > server.most_streams:
                break
            url = server.stream_url("0")
            with streaming(server, url, streams, expect=SCALE_EVENTS) as swarm:
                swarm.clear()
                Publisher(way, count=SCALE_EVENTS, rate=SCALE_RATE).finish()
                latency = settled(swarm).latency_ms
            figures |= {
                f"p50_ms_{streams}": latency.p50,
                f"p90_ms_{streams}": latency.p90,
                f"p99_ms_{streams}": latency.p99,
            }
        return figures
