"""Slow clients that asked to skip events rather than be closed, beside clients that read."""

from __future__ import annotations

from functools import partial

import pytest

from tests.live_server import LiveService, until
from tests.swarm import Report, Swarm, need_swarm, payload
from tests.valkey import Valkey

pytestmark = pytest.mark.live

STREAMS = 30
EVENTS = 400
EVENT_BYTES = 20_000
PACE = 5
"""How many events the streams that read may be behind."""


def is_at(number: int, report: Report) -> bool:
    """Whether every stream has got event `number`."""
    return report.events_least > number


@pytest.mark.parametrize("overflow", ["drop-oldest", "conflate"])
def test_slow_streams_skip_and_say_so(valkey: Valkey, overflow: str) -> None:
    """Streams that stop reading stay open; when they read again they get a `$reset` and the newest
    events, in order and none twice. Streams that read get everything, and no `$reset`.
    """
    need_swarm()
    settings = {"SEND_TIMEOUT_SECONDS": 60, "OUTBOX_BYTES": 100_000}
    with LiveService(valkey.url, **settings) as service:
        channel = f"overflow-{overflow}"
        url = f"{service.url}/stream?channel={channel}"
        slow_url = f"{url}&overflow={overflow}"
        with Swarm(url, STREAMS) as good, Swarm(slow_url, STREAMS, receive_buffer=4096) as slow:
            good.wait_open(20)
            slow.wait_open(20)
            slow.stop_reading(STREAMS)
            good.expect(EVENTS)
            for number in range(EVENTS):
                service.publish(channel, payload(number, EVENT_BYTES))
                if number % PACE == 0:  # else a moment without a turn makes them slow too
                    good.wait_until(partial(is_at, number - PACE), 10)
            good.wait_complete(20)
            slow.resume()
            last = service.publish(channel, payload(EVENTS, EVENT_BYTES))
            slow.wait_until(lambda report: report.resets >= STREAMS, 20)
            until(
                lambda: all(row.last_id == last for row in slow.streams()), 20, "all are up to date"
            )
            report, fine = slow.report(), good.report()
    print(f"{overflow}: {report.events_least} to {report.events_most} of {EVENTS + 1} events came")
    assert (report.open, report.stopped_over) == (STREAMS, 0)
    assert report.events_most < EVENTS
    assert {name: n for name, n in report.faults.items() if name != "lost"} == {}
    assert (fine.faults, fine.resets, fine.open) == ({}, 0, STREAMS)
