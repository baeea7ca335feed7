"""What a worker tells of itself for the dashboard: the numbers that /metrics has, and channels."""

from __future__ import annotations

import heapq
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from service.channels import SYS
from service.counts import LATENCY_SECONDS, Counts
from service.fan_out import give_way
from service.following import Followed
from service.metrics import resident_bytes
from service.version import VERSION

BUSIEST = 40
"""Channels of a snapshot, those with most streams: the dashboard adds them up over workers."""

CHANNELS_AT_ONCE = 2_000
"""Channels that are looked at before other greenlets may run: about 1 ms."""


class Snapshots:
    """Makes the snapshots of one worker, `worker` by name, that holds `limit` streams at most."""

    def __init__(self, worker: str, counts: Counts, limit: int) -> None:
        self._counts = counts
        self._started = time.monotonic()
        self._constant = {
            "worker": worker,
            "host": socket.gethostname(),
            "version": VERSION,
            "limit": limit,
            "bounds": LATENCY_SECONDS,
        }

    def take(
        self,
        gauges: Mapping[str, float],
        followed: Sequence[tuple[str, Followed]],
        *,
        draining: bool,
    ) -> dict[str, Any]:
        """How it is now. Times are in seconds; counters go up from the worker's start.

        Streams of `$sys`, its channel and its events are left out: they are the dashboard's own.
        """
        counts, now = self._counts, time.monotonic()
        watchers = sum(one.streams for name, one in followed if name == SYS)
        sums, top = _streams_of(followed)
        return {
            **self._constant,
            "pid": os.getpid(),
            "at": round(now, 3),
            "uptime": round(now - self._started),
            "draining": draining,
            "redis": bool(gauges["pushline_redis_up"]),
            "watchers": watchers,
            "streams": gauges["pushline_connections"] - watchers,
            "channels": sums,
            "views": gauges["pushline_views"],
            "slow": gauges["pushline_slow_connections"],
            "unsent_bytes": gauges["pushline_send_buffer_bytes"],
            "resident_bytes": resident_bytes(),
            "counters": _counters(counts),
            "closed": dict(counts.closed),
            "refused": {code: number for code, number in counts.refused.items() if number},
            "redis_losses": dict(counts.redis_losses),
            "delivery": counts.delivery_seconds.counts,
            "publish": counts.publish_seconds.counts,
            "lag": counts.loop_lag_seconds.counts,
            "top": top,
        }


def _counters(counts: Counts) -> dict[str, float]:
    published = {"published": 0, "replayed": 0, "failed": 0}
    for (_, result), number in counts.publishes.items():
        published[result] += number
    return {
        **published,
        "opened": counts.opened,
        "received": counts.received - counts.sys_received,
        "delivered": counts.events - counts.sys_events,
        "sent_bytes": counts.sent_bytes,
        "resets": sum(counts.resets.values()),
        "gaps": counts.gaps,
        "cpu_seconds": round(time.process_time(), 3),
    }


def _streams_of(followed: Sequence[tuple[str, Followed]]) -> tuple[int, list[tuple[str, int]]]:
    """How many channels have streams, and those that have most; the service's own don't count."""
    channels = 0
    top: list[tuple[int, str]] = []
    for start in range(0, len(followed), CHANNELS_AT_ONCE):
        if start:
            give_way()
        some = followed[start : start + CHANNELS_AT_ONCE]
        found = [(one.streams, name) for name, one in some if one.streams and name[0] != "$"]
        channels += len(found)
        top = heapq.nlargest(BUSIEST, [*top, *found])
    return channels, [(name, streams) for streams, name in top]
