"""Clients that stop reading: they cost a bounded outbox, delay nobody, and are closed."""

from __future__ import annotations

import http.client
import time
from collections import Counter
from contextlib import closing

import gevent
import pytest

from tests.live_server import LiveService, until
from tests.processes import rss_kib
from tests.swarm import Swarm, need_swarm, payload
from tests.valkey import Valkey

pytestmark = pytest.mark.live

STOPPED = 300
GOOD = 300
SECONDS = 8
EVENT_BYTES = 10_000
EVENTS_PER_SECOND = 100
"""About 1 MB/s on each stream."""

PACE = 10
"""How many events the good readers may be behind: fewer than an outbox holds."""

OUTBOX_BYTES = 262_144
RECENT_KIB = 8 * 1024  # what the worker keeps of each channel for clients that come back
BATCH_BYTES = 65_536
"""The largest joined batch: one may still join a nearly full outbox, and one is kept half sent."""

MALLOC_FACTOR = 1.7
"""How much more than what is in use malloc may hold, on a machine whose load makes bursts; without
a bound 300 readers would take as much as 8 times."""


def endings(service: LiveService) -> Counter[str]:
    """Count the ended streams by their reason."""
    return Counter(line["reason"] for line in service.log_lines() if "reason" in line)


class Flood:
    """Publishes over one HTTP connection, and watches the worker's memory.

    The rate is even while `good` keeps up: who gets no turn from this machine isn't slow.
    """

    def __init__(self, service: LiveService, channel: str, good: Swarm) -> None:
        self.most_kib = 0
        self.sent = 0
        self._service = service
        self._good = good
        self._path = f"/channels/{channel}"

    def run(self, seconds: float) -> None:
        """Publish for so long."""
        (worker,) = self._service.worker_pids()
        started = time.monotonic()
        count = round(seconds * EVENTS_PER_SECOND)
        with closing(http.client.HTTPConnection("127.0.0.1", self._service.port)) as connection:
            for number in range(count):
                gevent.sleep(max(0.0, started + number / EVENTS_PER_SECOND - time.monotonic()))
                connection.request("POST", self._path, payload(number, EVENT_BYTES))
                answer = connection.getresponse()
                assert (answer.status, bool(answer.read())) == (200, True)
                self.sent += 1
                self.most_kib = max(self.most_kib, rss_kib(worker))
                if number % PACE == 0:
                    self._good.wait_until(lambda report: report.events_least > self.sent - PACE, 10)


def test_stopped_readers_beside_good_ones(shared_valkey: Valkey) -> None:
    """Under 1 MB/s, 300 stopped readers are closed as too slow; 300 good ones feel nothing.

    Each stopped one has a view of its own, so that no two outboxes share their bytes.
    """
    need_swarm()
    with LiveService(
        shared_valkey.url, OUTBOX_BYTES=OUTBOX_BYTES, SEND_TIMEOUT_SECONDS=SECONDS
    ) as service:
        (worker,) = service.worker_pids()
        url = f"{service.url}/stream?channel=flood"
        own_views = url + "&channel=own-%d"
        with Swarm(url, GOOD) as good, Swarm(own_views, STOPPED, receive_buffer=65_536) as bad:
            good.wait_open(20)
            bad.wait_open(20)
            assert bad.stop_reading(STOPPED) == STOPPED
            before_kib = rss_kib(worker)
            flood = Flood(service, "flood", good)
            good.expect(SECONDS * EVENTS_PER_SECOND)
            started = time.monotonic()
            publishing = gevent.spawn(flood.run, SECONDS)
            until(lambda: endings(service).total() == STOPPED, 5, "all slow streams are closed")
            closed = time.monotonic() - started
            publishing.get()
            report = good.wait_complete(5)
            elapsed = time.monotonic() - started
            assert endings(service) == {"too_slow": STOPPED}
        sent_kib = [line["bytes"] / 1024 for line in service.log_lines(reason="too_slow")]
    assert (report.faults, report.open) == ({}, GOOD)
    assert report.latency_ms.p90 < 1000
    assert report.latency_ms.p99 < 2500  # this machine may hold a few events up
    growth = flood.most_kib - before_kib
    assert growth < STOPPED * (OUTBOX_BYTES + 2 * BATCH_BYTES) * MALLOC_FACTOR / 1024 + RECENT_KIB
    rate = flood.sent * EVENT_BYTES / elapsed / 1e6
    print(
        f"{STOPPED} stopped beside {GOOD} good readers, {rate:.2f} MB/s each: closed within"
        f" {closed:.2f} s after {min(sent_kib):.0f} to {max(sent_kib):.0f} KiB;"
        f" good p50 {report.latency_ms.p50:.1f} ms, p99 {report.latency_ms.p99:.1f} ms,"
        f" max {report.latency_ms.max:.1f} ms; RSS grew by {growth} KiB at most"
    )


def test_stopped_readers_without_traffic(shared_valkey: Valkey) -> None:
    """A backlog that fits the outbox but doesn't move is ended by SEND_TIMEOUT_SECONDS."""
    need_swarm()
    timeout = 2
    with LiveService(
        shared_valkey.url, SEND_TIMEOUT_SECONDS=timeout, HEARTBEAT_SECONDS=50
    ) as service:
        url = f"{service.url}/stream?channel=burst"
        with Swarm(url, GOOD) as good, Swarm(url, STOPPED, receive_buffer=4096) as bad:
            good.wait_open(20)
            bad.wait_open(20)
            assert bad.stop_reading(STOPPED) == STOPPED
            good.expect(25)
            started = time.monotonic()
            for number in range(25):
                service.publish("burst", payload(number, EVENT_BYTES))
            report = good.wait_complete(5)
            until(lambda: endings(service).total() == STOPPED, timeout + 5, "all are closed")
            closed = time.monotonic() - started
            assert endings(service) == {"stalled": STOPPED}
            assert (report.faults, good.report().open) == ({}, GOOD)
    assert closed > timeout / 2
    print(f"{STOPPED} stopped readers with a still backlog: all stalled after {closed:.2f} s")
