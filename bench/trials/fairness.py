"""Test Q: does a flood on one channel hold up a quiet one, or `/livez`?"""

from __future__ import annotations

import http.client
import statistics
import threading
import time

from bench.plan import Plan
from bench.publisher import Publisher
from bench.servers.pushline import Pushline
from bench.servers.server import Server
from bench.trials.delivering import flood
from bench.trials.trial import Figures, Trial, checked, settled, streaming, warm_up

QUIET_STREAMS = 10
QUIET_RATE = 20
PROBES_PER_SECOND = 20


class Fairness(Trial):
    """A quiet channel's latency beside test B, which is repeated for `seconds`."""

    letter = "Q"
    title = "a quiet channel's events, and /livez, while another channel is flooded"

    def feeds(self, server: type[Server]) -> tuple[str, ...]:
        """Pushline, flooded either way."""
        return server.feeds if server is Pushline else ()

    def measure(self, server: Server, feed: str, plan: Plan) -> Figures:
        """Flood channel 0 of many streams, and publish to channel 1 of a few at a steady rate."""
        quiet = server.feed(feed, "1")
        warm_up(server, server.feed(feed, "0"))
        count = round(QUIET_RATE * plan.seconds)
        with (
            streaming(server, server.stream_url("0"), plan.streams) as flooded,
            streaming(server, server.stream_url("1"), QUIET_STREAMS, expect=count) as few,
        ):
            probe = Probe(server.port, plan.seconds)
            publisher = Publisher(quiet, count=count, rate=QUIET_RATE)
            floods = []
            while probe.is_running():
                floods.append(flood(server, flooded, feed, plan))
            publisher.finish()
            report, delays = settled(few), probe.finish()
        return {
            "quiet_p50_ms": report.latency_ms.p50,
            "quiet_p99_ms": report.latency_ms.p99,
            "livez_p50_ms": at_quantile(delays, 0.5),
            "livez_p99_ms": at_quantile(delays, 0.99),
            "flood_events_per_s": statistics.median(each["events_per_s"] for each in floods),
            "flood_p99_ms": statistics.median(each["p99_ms"] for each in floods),
            **checked(report, QUIET_STREAMS * count),
        }


class Probe:
    """Asks for `/livez` again and again, over one connection, in a thread."""

    def __init__(self, port: int, seconds: float) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._until = time.monotonic() + seconds
        self._delays: list[float] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def is_running(self) -> bool:
        """Whether it goes on asking."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while time.monotonic() < self._until:
            asked = time.monotonic()
            self._connection.request("GET", "/livez")
            self._connection.getresponse().read()
            self._delays.append((time.monotonic() - asked) * 1000)
            time.sleep(1 / PROBES_PER_SECOND)

    def finish(self) -> list[float]:
        """Wait for the end; the delays in milliseconds."""
        self._thread.join()
        self._connection.close()
        return self._delays


def at_quantile(values: list[float], quantile: float) -> float:
    """The value that this part of all values don't exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] if ordered else 0.0
