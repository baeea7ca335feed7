"""A failover under load: Sentinels promote the replica, and streams say `$reset` and go on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from service.event import EventId
from tests.live_server import LiveService, until
from tests.sentinels import Failover
from tests.sse_client import ParsedEvent, SseClient

pytestmark = pytest.mark.live

STREAMS = 10


@pytest.fixture
def failover() -> Iterator[Failover]:
    """A master, a replica and three Sentinels."""
    with Failover() as failover:
        yield failover


class Load(threading.Thread):
    """Publishes numbers without a pause until it is told to stop; keeps what was acknowledged."""

    def __init__(self, service: LiveService) -> None:
        super().__init__()
        self.acknowledged: list[str] = []
        self.stopped = threading.Event()
        self._service = service

    def run(self) -> None:
        """Publish; an error is followed by the next number."""
        for number in range(100_000):
            if self.stopped.wait(0.01):
                return
            status, body, _ = self._service.post("/channels/numbers", str(number).encode())
            if status == 200:
                self.acknowledged.append(json.loads(body)["id"])


def wait_back(service: LiveService) -> None:
    """Wait until the service is ready again, and at most 5 s more until it counts its streams."""
    until(lambda: service.get("/readyz")[0] == 200, 30, "the service is ready again")
    until(lambda: counted(service) == STREAMS, 5, "the streams are counted again")


def counted(service: LiveService) -> int | None:
    """How many streams the service counts; None when it can't tell."""
    streams: int | None = json.loads(service.get("/channels/numbers")[1]).get("streams")
    return streams


def test_a_failover_is_survived_and_told(failover: Failover) -> None:
    """When the master is killed, the service finds the new one by itself. Every open stream gets
    one `$reset` and then every event in order; no id is given out twice.
    """
    with LiveService(failover.url) as service, ExitStack() as opened:
        url = f"{service.url}/stream?channel=numbers"
        streams = [opened.enter_context(SseClient.connect(url)) for _ in range(STREAMS)]
        load = Load(service)
        load.start()
        until(lambda: len(load.acknowledged) > 100, 20, "events before the failover")
        old = failover.master_port()
        failover.first.kill()
        killed = time.monotonic()
        until(lambda: failover.master_port() != old, 30, "the Sentinels promote the replica")
        wait_back(service)
        print(f"ready again {time.monotonic() - killed:.1f} s after the master was killed")
        before = len(load.acknowledged)
        until(lambda: len(load.acknowledged) > before + 100, 30, "events after the failover")
        load.stopped.set()
        load.join()
        last = load.acknowledged[-1]

        ids = [EventId.parse(event_id) for event_id in load.acknowledged]
        assert ids == sorted(set(ids))
        for stream in streams:
            events: list[ParsedEvent] = []
            while not events or events[-1].last_event_id != last:
                events.append(stream.next_event(15))
            check_stream([event.last_event_id for event in events if event.type == "message"])
            (reset,) = [event for event in events if event.type == "$reset"]
            assert json.loads(reset.data)["reason"] == "lost"
            position = EventId.parse(reset.last_event_id)
            due = {str(event_id) for event_id in ids if event_id > position}
            assert len(due) > 10
            assert due <= {event.last_event_id for event in events}


def check_stream(ids: list[str]) -> None:
    """Ids increase, so nothing came twice or out of order."""
    parsed = [EventId.parse(event_id) for event_id in ids]
    assert parsed == sorted(set(parsed))


def test_a_master_that_comes_back_takes_nothing(failover: Failover) -> None:
    """A master that was paused goes on and still believes to be one, for seconds: no worker
    publishes to it any more, so every event that is acknowledged reaches the streams.
    """
    with (
        LiveService(failover.url) as service,
        SseClient.connect(f"{service.url}/stream?channel=numbers") as stream,
    ):
        loads = [Load(service) for _ in range(3)]
        for load in loads:
            load.start()
        until(lambda: all(len(load.acknowledged) > 20 for load in loads), 20, "the pool is warm")
        old = failover.master_port()
        failover.first.stop_process()
        until(lambda: failover.master_port() != old, 30, "the Sentinels promote the replica")
        # Only then has the worker seen that the old master is gone, however slow the machine is.
        while stream.next_event(30).type != "$reset":
            pass
        until(lambda: service.get("/readyz")[0] == 200, 30, "the service is ready again")
        before = [len(load.acknowledged) for load in loads]
        failover.first.cont()
        time.sleep(3)
        for load in loads:
            load.stopped.set()
        for load in loads:
            load.join()
        due = {
            event_id
            for load, count in zip(loads, before, strict=True)
            for event_id in load.acknowledged[count:]
        }
        assert len(due) > 50
        got: list[str] = []
        while not due <= set(got):
            got.append(stream.next_event(15).last_event_id)
        check_stream(got)
