"""Redis killed, frozen, restarted, absent: streams stay open and go on, publishers are told."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from tests.live_server import LiveService, until
from tests.sse_client import SseClient, event_data
from tests.swarm import Swarm, need_swarm, payload
from tests.valkey import Valkey, free_port

pytestmark = pytest.mark.live

STREAMS = 50
EVENTS = 20
LOST = "Redis is lost"
CONNECTED = "Redis is connected"
STALL_SECONDS = 1.5
"""How much later than promised things may be, as this machine may hold a process up."""


@pytest.fixture
def service(own_valkey: Valkey) -> Iterator[LiveService]:
    """Two workers on a Valkey that the test may harm."""
    with LiveService(own_valkey.url, WEB_CONCURRENCY=2, HEARTBEAT_SECONDS=1) as service:
        yield service.wait_workers()


@pytest.fixture
def swarm(service: LiveService) -> Iterator[Swarm]:
    """Streams of one channel, on both workers."""
    need_swarm()
    with Swarm(f"{service.url}/stream?channel=news", STREAMS) as swarm:
        swarm.wait_open(20)
        yield swarm


def told(service: LiveService, what: str) -> int:
    """Count the service's log lines that begin with `what`."""
    return sum(line["message"].startswith(what) for line in service.log_lines())


def reasons(service: LiveService) -> list[str]:
    """Why the worker that happens to answer is not ready."""
    status, body, _ = service.get("/readyz")
    answer: dict[str, Any] = json.loads(body)
    assert (status == 200) == answer["ready"] == (not answer["reasons"])
    return list(answer["reasons"])


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    """What `act` returns, and the seconds that it took."""
    started = time.monotonic()
    value = act()
    return value, time.monotonic() - started


def refuse_publish(service: LiveService) -> tuple[str, float]:
    """Publish, which must answer 503 within 3 s and a stall; return its code and the seconds."""
    (status, body, headers), seconds = timed(lambda: service.post("/channels/other", b"x"))
    assert status == 503, body
    assert seconds < 3 + STALL_SECONDS
    assert headers["Content-Type"] == "application/problem+json"
    assert int(headers["Retry-After"]) > 0
    return str(json.loads(body)["code"]), seconds


def refuse_streams(service: LiveService) -> float:
    """Ask for streams: EventSource is refused softly, others plainly, both after 5 s at most."""
    others = gevent.spawn(timed, lambda: service.get("/stream?channel=late", Accept="*/*"))
    started = time.monotonic()
    with SseClient.connect(f"{service.url}/stream?channel=late") as client:
        client.read_until_end(9)
        seconds = time.monotonic() - started
        assert (client.status, client.header("Content-Type")) == (200, "text/event-stream")
        assert b"retry: " in client.body
        assert b"data:" not in client.body
        assert not client.truncated
    (status, body, headers), plain_seconds = others.get()
    assert (status, headers["Content-Type"]) == (503, "application/problem+json"), body
    assert max(seconds, plain_seconds) < 6.5 + STALL_SECONDS
    return seconds


def follow_again(service: LiveService, valkey: Valkey, outages: int = 1) -> None:
    """Wait until each of the two workers follows the streams' channel again."""
    name = b"pushline:news"
    until(lambda: valkey.cli("PUBSUB", "NUMSUB", name) == [name, 2], 8, "all follow again")
    # One that has subscribed may not have caught up, and one may answer all the four requests.
    until(lambda: told(service, CONNECTED) >= 2 + 2 * outages, 8, "all have caught up")
    until(lambda: not any(reasons(service) for _ in range(4)), 5, "all are ready again")


def check_events(service: LiveService, swarm: Swarm) -> None:
    """Publish, and see that every one of the old streams gets all of it."""
    swarm.clear()
    swarm.expect(EVENTS)
    for number in range(EVENTS):
        service.publish("news", payload(number))
    report = swarm.wait_complete(10)
    assert report.faults == {}
    assert (report.open, report.events) == (STREAMS, STREAMS * EVENTS)


def test_killed_and_restarted(service: LiveService, own_valkey: Valkey, swarm: Swarm) -> None:
    """Redis crashes and comes back: streams stay open, publishers hear 503, then all goes on.

    So it does when Redis is restarted in the orderly way.
    """
    own_valkey.kill()
    _, noticed = timed(lambda: until(lambda: told(service, LOST) == 2, 10, "both workers notice"))
    assert "redis_not_followed" in reasons(service)
    code, answered = refuse_publish(service)
    assert code == "redis_down"
    refused = refuse_streams(service)
    assert service.get("/livez")[0] == 200
    assert swarm.report().open == STREAMS

    own_valkey.restart()
    _, back = timed(lambda: follow_again(service, own_valkey))
    assert told(service, LOST) == 2, "one line for each outage and worker"
    assert told(service, CONNECTED) == 4
    check_events(service, swarm)

    own_valkey.restart()
    follow_again(service, own_valkey, outages=2)
    assert told(service, CONNECTED) == 6, "an orderly restart is no different"
    check_events(service, swarm)
    print(
        f"kill -9: noticed by both after {noticed:.2f} s, publish refused in {answered:.2f} s,"
        f" stream refused in {refused:.2f} s, followed again {back:.2f} s after the return"
    )


def test_frozen(service: LiveService, own_valkey: Valkey, swarm: Swarm) -> None:
    """Redis freezes for 12 s without closing a connection: noticed within 10 s, then as before."""
    frozen_at = time.monotonic()
    own_valkey.stop_process()
    try:
        code, answered = refuse_publish(service)
        assert code in ("redis_down", "outcome_unknown")  # as a connection was there or not
        assert "redis_not_answering" in reasons(service)
        limit = 10 + STALL_SECONDS - (time.monotonic() - frozen_at)
        until(lambda: told(service, LOST) == 2, limit, "noticed")
        noticed = time.monotonic() - frozen_at
        assert "redis_not_followed" in reasons(service)
        assert refuse_publish(service)[0] in ("redis_down", "outcome_unknown")
        time.sleep(max(0.0, 12 - (time.monotonic() - frozen_at)))
        assert swarm.report().open == STREAMS
    finally:
        own_valkey.cont()
    _, back = timed(lambda: follow_again(service, own_valkey))
    check_events(service, swarm)
    print(
        f"frozen: noticed by both after {noticed:.1f} s, publish refused in {answered:.2f} s,"
        f" followed again {back:.2f} s after it went on"
    )


def test_pubsub_connections_killed(service: LiveService, own_valkey: Valkey, swarm: Swarm) -> None:
    """Redis drops its pub/sub clients (as it does with a slow one): followed again at once."""
    assert own_valkey.cli("CLIENT", "KILL", "TYPE", "pubsub") == 2
    until(lambda: told(service, LOST) == 2, 5, "both workers notice")
    _, back = timed(lambda: follow_again(service, own_valkey))
    assert back < 2 + STALL_SECONDS
    check_events(service, swarm)
    print(f"CLIENT KILL: followed again after {back:.2f} s")


def test_redis_is_absent_at_start() -> None:
    """Without Redis the service starts, lives, isn't ready, and becomes so when Redis is there."""
    valkey = Valkey(port=free_port())
    service = LiveService(valkey.url)
    try:
        service.start(ready=False)
        assert reasons(service) == ["redis_not_followed", "redis_not_answering"]
        assert refuse_publish(service)[0] == "redis_down"
        refused = refuse_streams(service)
        asked_at = time.monotonic()
        waiting = gevent.spawn(SseClient.connect, f"{service.url}/stream?channel=early")
        gevent.sleep(0.2)
        valkey.start()
        _, ready = timed(lambda: until(lambda: not reasons(service), 7, "ready"))
        in_time = time.monotonic() - asked_at < 4  # a stream waits 5 s
        with waiting.get(timeout=10) as early:
            if in_time:
                service.publish("early", "first")
                assert event_data(early.events(1, 5)) == ["first"]
        print(f"absent: stream refused in {refused:.2f} s, ready {ready:.2f} s after the start")
    finally:
        service.__exit__(None, None, None)
        valkey.close()


def test_a_stalled_worker_reads_before_it_judges(own_valkey: Valkey) -> None:
    """A worker that was stopped for 12 s doesn't take its own stall for Redis's, and loses nothing.

    Neither when messages wait in its socket, nor when its channels were quiet.
    """
    with (
        LiveService(own_valkey.url) as busy,
        LiveService(own_valkey.url) as quiet,
        SseClient.connect(f"{busy.url}/stream?channel=busy") as listener,
        SseClient.connect(f"{quiet.url}/stream?channel=quiet") as bystander,
    ):
        workers = busy.worker_pids() + quiet.worker_pids()
        time.sleep(2.5)  # some silence before the stall must not be added to it
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(9)
            for number in range(100):
                assert own_valkey.cli("PUBLISH", "pushline:busy", f"m{number}") == 1
            time.sleep(3)
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
        went_on = time.monotonic()
        assert event_data(listener.events(100, 5)) == [f"m{number}" for number in range(100)]
        seconds = time.monotonic() - went_on
        time.sleep(5.5)  # a wrong judgement may come with the next ticks
        assert [told(busy, LOST), told(quiet, LOST)] == [0, 0]
        assert busy.worker_pids() + quiet.worker_pids() == workers
        busy.publish("quiet", "still here")
        assert event_data(bystander.events(1, 5)) == ["still here"]
    print(f"stalled worker: 100 waiting messages were delivered {seconds:.3f} s after it went on")


def test_one_connection_follows_all_channels(service: LiveService, own_valkey: Valkey) -> None:
    """Each worker has one pub/sub connection for any number of channels, and drops unused ones."""
    need_swarm()

    def pubsub_clients() -> int:
        return int(own_valkey.cli("CLIENT", "LIST", "TYPE", "pubsub").count(b"\n"))

    def channels() -> list[bytes]:
        # Beside those of its streams each worker follows one for its marks, and one for commands.
        names = own_valkey.cli("PUBSUB", "CHANNELS")
        return [name for name in names if not name.startswith(b"pushline:$")]

    def followed() -> int:
        return len(channels())

    with Swarm(f"{service.url}/stream?channel=own-%d&channel=all", 200) as swarm:
        swarm.wait_open(20)
        assert (pubsub_clients(), followed()) == (2, 201)
        time.sleep(0.5)
        assert swarm.report().open == 200
    left_at = time.monotonic()
    time.sleep(2.5)
    assert followed() == 201, "kept for clients that come right back"
    with SseClient.connect(f"{service.url}/stream?channel=own-7") as client:
        until(lambda: followed() == 1, 8, "unused channels are unsubscribed")
        seconds = time.monotonic() - left_at
        assert channels() == [b"pushline:own-7"]
        assert pubsub_clients() <= 2
        service.publish("own-7", "kept")
        assert event_data(client.events(1, 5)) == ["kept"]
    assert own_valkey.cli("CLIENT", "LIST").count(b"\n") < 20
    print(f"one connection: 201 channels on 2 connections, unsubscribed {seconds:.1f} s after")


def test_machines_share_one_redis(own_valkey: Valkey) -> None:
    """Services on one Redis deliver each other's events in one order; another prefix is apart."""
    with (
        LiveService(own_valkey.url, WEB_CONCURRENCY=2) as east,
        LiveService(own_valkey.url, WEB_CONCURRENCY=2) as west,
        LiveService(own_valkey.url, CHANNEL_PREFIX="other:") as other,
    ):
        clients = [
            SseClient.connect(f"{service.wait_workers().url}/stream?channel=shared")
            for service in (east, east, east, east, west, west, west, west)
        ]
        stranger = SseClient.connect(f"{other.url}/stream?channel=shared")
        try:
            published = []
            for number in range(50):
                published.append((east, west)[number % 2].publish("shared", str(number)))
            for client in clients:
                events = client.events(50, 10)
                assert event_data(events) == [str(number) for number in range(50)]
                assert [event.last_event_id for event in events] == published
            assert stranger.events_within(0.3) == []
        finally:
            for client in (*clients, stranger):
                client.close()
