"""Prometheus metrics: what a worker's plain numbers are called, and the page that shows them.

The parts of a worker only raise plain numbers (counts.py); a tick, and each scrape, tells
prometheus_client what has come to them since. So no fan-out pays for a metric.

With several workers each has a *slot*, which names its files of numbers in a directory that all of
them share (prometheus_client's multiprocess mode). A worker that takes the place of a dead one goes
on with its files: no counter goes back, and there are never more files than workers at a time.
gunicorn_conf.py gives slots out, and removes the gauges of the dead (metrics_directory.py).
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client import disable_created_metrics as leave_out_creation_times
from prometheus_client import exposition as plain
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import exposition as openmetrics

from service.counts import Counts, Distribution
from service.version import VERSION

TICK_SECONDS = 1.0
"""How old what other workers' scrapes tell of this one may be; also how often lag is measured."""


class Spec(NamedTuple):
    """A metric: its name, what it means, and its labels; `of` is its attribute of Counts."""

    of: str
    name: str
    help: str
    labels: tuple[str, ...] = ()


COUNTERS = (
    Spec("opened", "pushline_connections_opened", "Streams opened"),
    Spec("closed", "pushline_connections_closed", "Streams that have ended", ("reason",)),
    Spec("refused", "pushline_requests_refused", "Requests answered with an error", ("code",)),
    Spec("publishes", "pushline_publish", "Events to be published", ("via", "result")),
    Spec("received", "pushline_events_received", "Events that came from Redis"),
    Spec("events", "pushline_events_delivered", "Live events offered to streams"),
    Spec("sent_bytes", "pushline_bytes_sent", "Bytes offered to streams"),
    Spec("resets", "pushline_resets", "$reset offered to streams", ("reason",)),
    Spec("replays", "pushline_replay", "Streams brought up to date", ("result",)),
    Spec("replayed", "pushline_replayed_events", "Events offered to streams by replays"),
    Spec("gaps", "pushline_gaps", "Times that missed events were read after a lost link"),
    Spec("gap_filled", "pushline_gap_filled_events", "Events read in these gaps"),
    Spec("redis_losses", "pushline_redis_reconnects", "Links to Redis lost", ("reason",)),
    Spec(
        "compression_input_bytes",
        "pushline_compression_input_bytes",
        "Bytes that were compressed, once for all streams that share them",
    ),
    Spec(
        "compression_output_bytes",
        "pushline_compression_output_bytes",
        "Bytes that these became",
    ),
    Spec("compression_seconds", "pushline_compression_seconds", "Time spent compressing"),
    Spec("cpu_seconds", "process_cpu_seconds", "User and system CPU time of workers in seconds"),
)

HISTOGRAMS = (
    Spec(
        "publish_seconds",
        "pushline_publish_duration_seconds",
        "Publishing, waiting included",
    ),
    Spec(
        "delivery_seconds",
        "pushline_delivery_lag_seconds",
        "From an event's id to the end of the pass that wrote it, of the first event of each pass",
    ),
    Spec("fan_out_seconds", "pushline_fanout_duration_seconds", "Own work of fan-out passes"),
    Spec("loop_lag_seconds", "pushline_loop_lag_seconds", "How late a sleeping greenlet woke up"),
)

GAUGES = (
    Spec("livesum", "pushline_workers", "Workers"),
    Spec("livesum", "pushline_connections", "Open streams"),
    Spec("livesum", "pushline_channels", "Channels followed, added up over workers"),
    Spec("livesum", "pushline_subscriptions", "Channels of open streams, added up"),
    Spec("livesum", "pushline_views", "Different selections of open streams, over workers"),
    Spec("livesum", "pushline_slow_connections", "Streams that have bytes unsent"),
    Spec("livesum", "pushline_send_buffer_bytes", "Bytes unsent"),
    Spec("livemin", "pushline_redis_up", "1 when every worker follows Redis, else 0"),
    Spec("livesum", "process_resident_memory_bytes", "Resident memory of workers in bytes"),
)
"""What a worker reads of itself; `of` says how the numbers of living workers become one."""

LIMITS = Spec("livemax", "pushline_limit", "Configured limits; 0: none", ("limit",))
BUILD = Spec("livemax", "pushline_build_info", "1, with the service's version", ("version",))

SPECS = (*COUNTERS, *HISTOGRAMS, *GAUGES, LIMITS, BUILD)


class Summed(Histogram):
    """A histogram that takes what a Distribution has counted."""

    def add(self, counts: list[int], total: float) -> None:
        """Take so many more values in each bucket, and their sum."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        if total:
            self._sum.inc(total)


class Metrics:
    """The metrics of one worker, or of all that share a directory.

    `read_gauges` gives the gauges' numbers by name. With a `slot` the numbers of all workers are
    shown; PROMETHEUS_MULTIPROC_DIR then names the directory.
    """

    def __init__(
        self,
        counts: Counts,
        read_gauges: Callable[[], Mapping[str, float]],
        limits: Mapping[str, float],
        slot: int | None = None,
    ) -> None:
        leave_out_creation_times()
        if slot is not None:
            values.ValueClass = values.MultiProcessValue(lambda: slot)
        self._counts = counts
        self._read_gauges = read_gauges
        self._registry = own = CollectorRegistry()
        self._counters = {one: Counter(one.name, one.help, one.labels, registry=own)
                          for one in COUNTERS}  # fmt: skip
        self._histograms = {one: Summed(one.name, one.help, registry=own,
                                        buckets=getattr(counts, one.of).bounds)
                            for one in HISTOGRAMS}  # fmt: skip
        self._gauges = {one.name: _gauge(one, own) for one in GAUGES}
        self._told: dict[tuple[Spec, Any], float] = {}
        self._shown: dict[str, float] = {}
        self._told_of = {one: Distribution(getattr(counts, one.of).bounds) for one in HISTOGRAMS}
        limit = _gauge(LIMITS, own)
        for name, value in limits.items():
            limit.labels(name).set(value)
        _gauge(BUILD, own).labels(VERSION).set(1)
        if slot is not None:
            self._registry = CollectorRegistry()
            MultiProcessCollector(self._registry)
        for one in COUNTERS:
            for labels, _ in _numbers(counts, one):
                self._counter(one, labels).inc(0)  # so that the first one is a rise too

    def run(self) -> None:
        """Tell of this worker's numbers, for ever; the body of one greenlet."""
        while True:
            self.flush()
            due = time.monotonic() + TICK_SECONDS
            time.sleep(TICK_SECONDS)
            self._counts.loop_lag_seconds.note(max(0.0, time.monotonic() - due))

    def flush(self) -> None:
        """Tell of what has come to this worker's numbers since the last time."""
        self._counts.cpu_seconds = time.process_time()
        for one in COUNTERS:
            for labels, number in _numbers(self._counts, one):
                if more := number - self._told.get((one, labels), 0):
                    self._told[one, labels] = number
                    self._counter(one, labels).inc(more)
        for one, histogram in self._histograms.items():
            _tell(getattr(self._counts, one.of), self._told_of[one], histogram)
        gauges = {"pushline_workers": 1, "process_resident_memory_bytes": resident_bytes()}
        for name, value in {**gauges, **self._read_gauges()}.items():
            if value != self._shown.get(name):  # setting one takes a lock and a write of a file
                self._shown[name] = value
                self._gauges[name].set(value)

    def page(self, *, as_openmetrics: bool) -> tuple[bytes, str]:
        """All numbers as they are now, in one of Prometheus's two formats, and its media type."""
        self.flush()
        if as_openmetrics:
            text = openmetrics.generate_latest(self._registry)
            return text, openmetrics.CONTENT_TYPE_LATEST
        return plain.generate_latest(self._registry), plain.CONTENT_TYPE_PLAIN_0_0_4

    def _counter(self, one: Spec, labels: tuple[str, ...]) -> Counter:
        counter = self._counters[one]
        return counter.labels(*labels) if labels else counter


def _gauge(one: Spec, registry: CollectorRegistry) -> Gauge:
    mode: Any = one.of
    return Gauge(one.name, one.help, one.labels, registry=registry, multiprocess_mode=mode)


def _numbers(counts: Counts, one: Spec) -> list[tuple[tuple[str, ...], float]]:
    """Each of a counter's numbers with its labels."""
    numbers = getattr(counts, one.of)
    if not one.labels:
        return [((), numbers)]
    return [(key if isinstance(key, tuple) else (key,), n) for key, n in numbers.items()]


def _tell(now: Distribution, told: Distribution, histogram: Summed) -> None:
    more = [count - before for count, before in zip(now.counts, told.counts, strict=True)]
    histogram.add(more, now.total - told.total)
    told.counts, told.total = list(now.counts), now.total


def resident_bytes() -> int:
    """Resident memory of this process; 0 where nobody tells (no Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        return 0
