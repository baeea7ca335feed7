"""Many streams: nothing lost, nothing twice, everything in order, at a small price each."""

from __future__ import annotations

import gevent
import pytest

from service.settings import streams_that_fit
from tests.live_server import LiveService
from tests.processes import open_files, rss_kib
from tests.swarm import Swarm, need_swarm, payload
from tests.untested import untested
from tests.valkey import Valkey

pytestmark = pytest.mark.live

STREAMS = 10_000
EVENTS = 20
KIB_PER_STREAM = 1.5
"""What an idle stream may cost the worker; a greenlet with a queue costs about 20 (DESIGN.md)."""


def test_ten_thousand_streams_on_one_worker(shared_valkey: Valkey) -> None:
    """10 000 streams of one worker each receive 20 events: none lost, none twice, in order."""
    need_swarm()
    if streams_that_fit() < STREAMS:
        untested(f"{STREAMS} streams need a higher limit of open files (ulimit -Hn)")
    with LiveService(shared_valkey.url) as service:
        (worker,) = service.worker_pids()
        url = f"{service.url}/stream?channel=many"
        with Swarm(url, 200) as warm_up:
            warm_up.wait_open(20)
        before_kib, before_files = rss_kib(worker), open_files(worker)
        with Swarm(url, STREAMS, expect=EVENTS) as swarm:
            opened = swarm.wait_open(60)
            kib = (rss_kib(worker) - before_kib) / STREAMS
            assert STREAMS <= open_files(worker) - before_files + 200 <= STREAMS + 400
            for number in range(EVENTS):
                service.publish("many", payload(number))
            report = swarm.wait_complete(60)
            cost = report.last_event_ms - report.first_event_ms
            assert report.faults == {}
            assert (report.open, report.events) == (STREAMS, STREAMS * EVENTS)
            assert report.events_least == report.events_most == EVENTS
    print(
        f"{STREAMS} streams on one worker: {kib:.2f} KiB of RSS per stream,"
        f" {opened.opened_per_second:.0f} connects/s, {EVENTS} events each within {cost:.0f} ms,"
        f" latency p50 {report.latency_ms.p50:.0f} ms, p99 {report.latency_ms.p99:.0f} ms"
    )
    assert kib <= KIB_PER_STREAM
    assert opened.opened_per_second > 300


def test_several_publishers_and_workers(shared_valkey: Valkey) -> None:
    """2 000 streams on two workers, four publishers at once: each stream has all, in id order.

    Half of the streams select two channels, the others one; each channel has two publishers.
    """
    need_swarm()
    each = 50
    with LiveService(shared_valkey.url, WEB_CONCURRENCY=2) as service:
        service.wait_workers()

        def publish(channel: str, start: int) -> None:
            for number in range(start, start + each):
                service.publish(channel, payload(number))

        with (
            Swarm(f"{service.url}/stream?channel=a&channel=b", 1000, expect=4 * each) as both,
            Swarm(f"{service.url}/stream?channel=a", 1000, expect=2 * each) as one,
        ):
            both.wait_open(30)
            one.wait_open(30)
            starts = ((0, "a"), (1000, "b"), (2000, "a"), (3000, "b"))
            gevent.joinall([gevent.spawn(publish, name, start) for start, name in starts], 30, True)
            reports = [both.wait_complete(30), one.wait_complete(30)]
    for report, expected in zip(reports, (4 * each, 2 * each), strict=True):
        assert report.events_least == report.events_most == expected
        # Numbers of several publishers interleave; their order is that of the ids.
        of_ids = ("id_duplicates", "id_inversions", "odd_ids", "cut_chunks", "framing")
        assert not {name: count for name, count in report.faults.items() if name in of_ids}
    print(
        f"2 workers, 4 publishers: {sum(report.events for report in reports)} deliveries,"
        f" p99 {max(report.latency_ms.p99 for report in reports):.0f} ms"
    )
