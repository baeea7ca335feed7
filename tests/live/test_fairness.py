"""A flood on one channel holds nobody else up: other channels, heartbeats and `/livez`."""

from __future__ import annotations

import http.client
import time
from contextlib import closing

import gevent
import pytest
import redis

from tests.live_server import LiveService
from tests.swarm import Swarm, need_swarm, payload
from tests.valkey import Valkey

pytestmark = pytest.mark.live

STREAMS = 1000
BURST = 2000
"""Events that are published at once; the next ones when all streams have them."""

SECONDS = 5.0
TRIES = 3
"""One in time is enough: another process on this machine may delay a worker, too."""

PER_SECOND = 20
QUIET_STREAMS = 10
MOST_MS = 150.0
"""On a quiet machine it is some 20 ms; while all of a burst is written, it is over 200."""

HEARTBEAT_SECONDS = 1


def flood(valkey: Valkey, swarm: Swarm, until: float) -> int:
    """Publish in bursts through Redis until then; returns how many events."""
    sent = 0
    with closing(redis.Redis(port=valkey.port)) as connection:
        while time.monotonic() < until:
            pipeline = connection.pipeline(transaction=False)
            for number in range(sent, sent + BURST):
                pipeline.publish("pushline:flood", payload(number))
            pipeline.execute()
            sent += BURST
            while swarm.report().events_least < sent:
                gevent.sleep(0.02)
    return sent


def publish_evenly(valkey: Valkey, until: float) -> int:
    """Publish to the quiet channel until then; returns how many events."""
    started, number = time.monotonic(), 0
    with closing(redis.Redis(port=valkey.port)) as connection:
        while time.monotonic() < until:
            connection.publish("pushline:quiet", payload(number))
            number += 1
            gevent.sleep(max(0.0, started + number / PER_SECOND - time.monotonic()))
    return number


def ask_evenly(service: LiveService, until: float) -> list[float]:
    """Ask for `/livez` until then, over one connection; returns how many ms each answer took."""
    delays = []
    with closing(http.client.HTTPConnection("127.0.0.1", service.port)) as connection:
        while time.monotonic() < until:
            asked = time.monotonic()
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            assert (answer.status, bool(answer.read())) == (200, True)
            delays.append((time.monotonic() - asked) * 1000)
            gevent.sleep(1 / PER_SECOND)
    return sorted(delays)


def test_a_flood_delays_nobody_else(shared_valkey: Valkey) -> None:
    """While one of its channels floods 1 000 streams, a worker delivers another one's events, and
    heartbeats, and answers `/livez` in time; nothing is lost or out of order.
    """
    need_swarm()
    for _ in range(TRIES):
        latency_ms, livez_ms = flooded_delays(shared_valkey)
        if max(latency_ms, livez_ms) < MOST_MS:
            break
    assert latency_ms < MOST_MS
    assert livez_ms < MOST_MS


def flooded_delays(shared_valkey: Valkey) -> tuple[float, float]:
    """The p99 in ms of a quiet channel's deliveries and of answers, while another one floods.

    Nothing may be lost or out of order meanwhile, and heartbeats come.
    """
    with LiveService(shared_valkey.url, HEARTBEAT_SECONDS=HEARTBEAT_SECONDS) as service:
        base = f"{service.url}/stream?channel="
        with (
            Swarm(base + "flood", STREAMS) as flooded,
            Swarm(base + "quiet", QUIET_STREAMS) as quiet,
            Swarm(base + "silent", QUIET_STREAMS) as silent,
        ):
            for swarm in (flooded, quiet, silent):
                swarm.wait_open(30)
            until = time.monotonic() + SECONDS
            flooding = gevent.spawn(flood, shared_valkey, flooded, until)
            publishing = gevent.spawn(publish_evenly, shared_valkey, until)
            asking = gevent.spawn(ask_evenly, service, until)
            published, delays, sent = publishing.get(), asking.get(), flooding.get(timeout=60)
            quiet.wait_until(lambda report: report.events_least == published, 5)
            reports = [flooded.report(), quiet.report(), silent.report()]
    latency, livez_ms = reports[1].latency_ms, delays[int(len(delays) * 0.99)]
    print(
        f"{sent / SECONDS:.0f} events/s to {STREAMS} streams; a quiet channel: p50"
        f" {latency.p50:.0f} ms, p99 {latency.p99:.0f} ms; /livez: p99 {livez_ms:.0f} ms"
    )
    assert [report.faults for report in reports] == [{}, {}, {}]
    assert [report.events_least for report in reports] == [sent, published, 0]
    assert reports[2].comments_least >= (SECONDS - 2) / HEARTBEAT_SECONDS
    assert sent >= 2 * BURST, "it was no flood"
    return latency.p99, livez_ms
