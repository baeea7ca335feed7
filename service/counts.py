"""What a worker has done since it started, in plain numbers: raising one costs next to nothing.

The parts of a worker share one `Counts`; metrics.py tells Prometheus of it now and then.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.event import EventId

LATENCY_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of buckets for what clients and publishers notice."""

WORK_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Bounds of buckets for what a worker does at a stretch."""

PUBLISH_WAYS = ("http", "upload")
"""How an event may be published over HTTP: in a body that is read whole, or line by line."""

PUBLISH_RESULTS = ("published", "replayed", "failed")
"""What becomes of an event; `replayed` is one that an earlier request had published."""

REPLAY_RESULTS = ("complete", "reset", "cut", "failed")
"""How a replay ends: with all that was asked for, with `$reset`, with the stream, by Redis."""

LOST_REASONS = ("eof", "timeout", "probe", "error")
"""Why a link to Redis was lost: closed, silent, found to deliver not all, or any other error."""


class Distribution:
    """How many values fell between which bounds, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def note(self, value: float) -> None:
        """Count a value; one that is a bound belongs below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Counts:
    """The numbers; those by reason and so on begin with all the labels that they will ever have.

    `events` and `sent_bytes` are what was offered to open streams, of events as they were
    published and heartbeats, without HTTP's framing. What is compressed counts once, however many
    streams share it. `sys_received` and `sys_events` are what of `received` and `events` was on
    `$sys`.
    """

    def __init__(
        self,
        *,
        endings: Iterable[str] = (),
        codes: Iterable[str] = (),
        losses: Iterable[str] = (),
    ) -> None:
        self.opened = 0
        self.closed = Counter(dict.fromkeys(endings, 0))
        self.refused = Counter(dict.fromkeys(codes, 0))
        self.publishes = Counter(dict.fromkeys(product(PUBLISH_WAYS, PUBLISH_RESULTS), 0))
        self.publish_seconds = Distribution(LATENCY_SECONDS)
        self.received = 0
        self.events = 0
        self.sys_received = 0
        self.sys_events = 0
        self.sent_bytes = 0
        self.delivery_seconds = Distribution(LATENCY_SECONDS)
        self.fan_out_seconds = Distribution(WORK_SECONDS)
        self.resets = Counter(dict.fromkeys(losses, 0))
        self.replays = Counter(dict.fromkeys(REPLAY_RESULTS, 0))
        self.replayed = 0
        self.gaps = 0
        self.gap_filled = 0
        self.redis_losses = Counter(dict.fromkeys(LOST_REASONS, 0))
        self.loop_lag_seconds = Distribution(LATENCY_SECONDS)
        self.compression_input_bytes = 0
        self.compression_output_bytes = 0
        self.compression_seconds = 0.0
        self.cpu_seconds = 0.0

    def note_pass(self, first: EventId | None, own_seconds: float) -> None:
        """A fan-out pass has ended whose first event is `first`, after so much own work."""
        self.fan_out_seconds.note(own_seconds)
        if first is not None:  # a foreign event doesn't tell when it was published
            self.delivery_seconds.note(max(0.0, time.time() - first.milliseconds / 1000))
