"""Counts and presence of two workers, one of which is killed, and of one that is replaced."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.credentials import SECRET, bearer, token
from tests.live_server import LiveService, until
from tests.sse_client import ParsedEvent, SseClient
from tests.valkey import Valkey

pytestmark = pytest.mark.live

GRACE_SECONDS = 4.0
"""Longer than a worker takes to be replaced, also on a busy machine."""

RIGHT_SECONDS = 5.0
"""Within how many seconds a count is right, also after kill -9 of a worker."""

COMPANION = ":presence"

STALL_SECONDS = 2.0
"""How long this machine may hold things up."""

LEFT_SECONDS = RIGHT_SECONDS + GRACE_SECONDS + STALL_SECONDS
"""Within how many seconds a killed worker's users have left."""


@pytest.fixture(scope="module")
def service(shared_valkey: Valkey) -> Iterator[LiveService]:
    """Two workers that follow who is in rooms."""
    settings = {
        "WEB_CONCURRENCY": 2,
        "JWT_SECRET": SECRET,
        "CHANNEL_PREFIX": f"presence-{os.urandom(4).hex()}:",
        "PRESENCE_CHANNELS": "room.*",
        "PRESENCE_GRACE_SECONDS": GRACE_SECONDS,
        "DRAIN_SECONDS": 0,
    }
    with LiveService(shared_valkey.url, **settings) as service:
        yield service.wait_workers()


class Room:
    """Streams of a channel, and of its companion."""

    def __init__(self, service: LiveService, stack: ExitStack) -> None:
        self._service = service
        self._stack = stack
        self.name = f"room.{os.urandom(4).hex()}"

    def open(self, user: str = "", more: str = "") -> SseClient:
        """Open a stream, on whichever worker takes it."""
        headers = bearer(token(user)) if user else {}
        url = f"{self._service.url}/stream?channel={self.name}{more}"
        return self._stack.enter_context(SseClient.connect(url, headers=headers))

    def open_where(
        self, is_right: Callable[[str], bool], user: str = "", more: str = ""
    ) -> SseClient:
        """Open one on a worker whose name is right."""

        def tried() -> SseClient | None:
            stream = self.open(user, more)
            if is_right(worker_of(stream)):
                return stream
            stream.close()
            return None

        stream = until(tried, 10, "a stream is where it is wanted")
        assert isinstance(stream, SseClient)
        return stream

    def streams(self) -> int:
        """What the service counts."""
        return int(self.ask(f"/channels/{self.name}")["streams"])

    def users(self) -> list[str]:
        """Who is listed."""
        return [one["user"] for one in self.ask(f"/channels/{self.name}/presence")["users"]]

    def ask(self, path: str) -> Any:
        """What the service tells."""
        status, body, _ = self._service.get(path, **bearer(token(admin=True)))
        assert status == 200, body
        return json.loads(body)


@pytest.fixture
def room(service: LiveService) -> Iterator[Room]:
    """A room whose streams are closed in the end."""
    with ExitStack() as stack:
        yield Room(service, stack)


def worker_of(stream: SseClient) -> str:
    """Which worker has a stream."""
    return (stream.header("Pushline-Stream") or "").partition("-")[0]


def told(events: list[ParsedEvent]) -> list[str]:
    """Who has come and left."""
    return [f"{event.type} {json.loads(event.data)['user']}" for event in events]


def kill_worker(service: LiveService, streams: list[SseClient]) -> str:
    """Kill one of the two workers; returns the name of the one that its streams had."""
    os.kill(service.worker_pids()[0], signal.SIGKILL)
    ended = until(
        lambda: [one for one in streams if one.closing(0.01) is not None], 3, "its streams end"
    )
    names = {worker_of(one) for one in ended}
    assert len(names) == 1
    return names.pop()


def seconds_until(condition: Callable[[], bool], limit: float, what: str) -> float:
    """Wait for a condition; returns how long it took."""
    started = time.monotonic()
    until(condition, limit, what)
    return time.monotonic() - started


def test_who_moves_to_another_worker_stays(service: LiveService, room: Room) -> None:
    """A reconnect within the grace period is not told, and an absence beyond it is."""
    watcher = room.open(more=COMPANION)
    stream = room.open("ana")
    assert told(watcher.events(1, 5)) == ["$join ana"]
    stream.close()
    time.sleep(0.5)  # so that the absence is known
    before = worker_of(stream)
    stream = room.open_where(lambda name: name != before, "ana")
    assert told(watcher.events_within(GRACE_SECONDS + 0.5)) == []
    started = time.monotonic()
    stream.close()
    assert told(watcher.events(1, GRACE_SECONDS + 3)) == ["$leave ana"]
    assert time.monotonic() - started > GRACE_SECONDS * 0.9


def test_a_drained_worker_withdraws_at_once(service: LiveService, room: Room) -> None:
    """Who comes back from a deploy is counted once and has not left; the old reports are gone."""
    old = [room.open(user) for user in ("ana", "bob", "")]
    until(lambda: (room.streams(), room.users()) == (3, ["ana", "bob"]), 5, "all are there")
    before = service.worker_pids()
    service.signal(signal.SIGHUP)
    for stream in old:
        stream.read_until_end(10)
    room.open_where(bool, "ana")
    until(lambda: not set(before) & set(service.worker_pids()), 10, "the workers are new")
    # Without a word from them they would count for three seconds more.
    until(lambda: room.streams() == 1, 2.5, "the old ones count no more, the new one does")
    watcher = room.open(more=f"{COMPANION}&last_event_id=earliest")
    events = told(watcher.events(3, GRACE_SECONDS + 3))
    assert sorted(events[:2]) == ["$join ana", "$join bob"]
    assert events[2:] == ["$leave bob"]
    assert room.users() == ["ana"]


def test_a_killed_worker_counts_no_more_and_its_users_leave_once(
    service: LiveService, room: Room
) -> None:
    """After kill -9 counts are right within 5 s. Its users leave once each, but for those who are
    elsewhere too, or have come back meanwhile.
    """
    one = room.open(more=COMPANION)
    other = room.open_where(lambda name: name != worker_of(one), more=COMPANION)
    watchers = {worker_of(watcher): watcher for watcher in (one, other)}
    streams = {
        f"{user} {worker}": room.open_where(worker.__eq__, user)
        for worker in watchers
        for user in ("both", f"only-{worker}", f"back-{worker}", "")
    }
    users = sorted({f"{kind}-{worker}" for kind in ("only", "back") for worker in watchers})
    until(lambda: room.streams() == len(streams), RIGHT_SECONDS, "all are counted")
    until(lambda: room.users() == sorted(["both", *users]), RIGHT_SECONDS, "all are listed")
    for watcher in watchers.values():
        assert sorted(told(watcher.events(5, 5))) == sorted(f"$join {u}" for u in ["both", *users])
    assert room.ask(f"/channels/{room.name}/presence")["anonymous"] == 2
    listed = {one["channel"]: one["streams"] for one in room.ask("/channels")["channels"]}
    assert {name: listed.get(name) for name in (room.name, room.name + COMPANION)} == {
        room.name: 8,
        room.name + COMPANION: 2,
    }

    dead = kill_worker(service, list(watchers.values()))
    room.open(f"back-{dead}")
    limit = RIGHT_SECONDS + STALL_SECONDS
    right = seconds_until(lambda: room.streams() == 5, limit, "the dead count no more")
    (alive,) = (watcher for worker, watcher in watchers.items() if worker != dead)
    (left,) = alive.events(1, LEFT_SECONDS)
    assert told([left]) == [f"$leave only-{dead}"]
    assert told(alive.events_within(2)) == [], "neither twice, nor who is still there"
    assert room.users() == sorted(["both", *users][:1] + [u for u in users if u != f"only-{dead}"])
    assert room.streams() == 5
    print(f"right {right:.1f} s after kill -9")
