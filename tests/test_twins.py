"""Each guarantee as a scenario, and its twin: the same without the mechanism, which must fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from service import follower, resume
from service.app import Service
from service.event import Event, EventId
from service.follower import Follower
from service.frame import Frame
from service.missed import Missed
from service.publication import Publication
from service.redis_link import RedisLink
from service.replay import Replay
from service.resume import Resumer
from service.resumption import Start, Step
from service.settings import Settings
from service.subscriber import GONE, Subscriber
from service.view import Selection
from tests.sse_client import ParsedEvent, parse_stream
from tests.valkey import Valkey

WAIT_SECONDS = 4.0
"""How long a scenario waits for what must come; a twin waits as long for what does not."""


class Reader:
    """A client that takes everything at once; also its outlet."""

    outbox_bytes = 1_000_000

    def __init__(self) -> None:
        self.taken = b""

    def write(self, fd: int, data: bytes | memoryview, /) -> int:
        """Take all of it."""
        self.taken += bytes(data)
        return len(data)

    def want_room(self, subscriber: Subscriber) -> None:
        """Never needed."""

    def release(self, subscriber: Subscriber) -> None:
        """The end."""
        subscriber.fd = GONE

    @property
    def events(self) -> list[ParsedEvent]:
        """What has come so far."""
        return parse_stream(self.taken)

    def expect(self, *data: str) -> None:
        """Wait until exactly these events, `$reset` by its reason, have come in this order."""
        deadline = time.monotonic() + WAIT_SECONDS
        while len(self.told()) < len(data) and time.monotonic() < deadline:
            gevent.sleep(0.02)
        gevent.sleep(0.1)
        assert self.told() == list(data)

    def told(self) -> list[str]:
        """The data of the events, or the names of the service's own."""
        return [one.type if one.type.startswith("$") else one.data for one in self.events]


class Worker:
    """One worker's service in this process, over the test's Valkey."""

    def __init__(self, valkey: Valkey) -> None:
        self.valkey = valkey
        self.swallow: Callable[[str, Frame], bool] = lambda channel, frame: False
        self.held = False
        self.service = Service(Settings(redis_url=valkey.url, max_connections=100))
        self.service.start()

    def publish(self, *data: str, channel: str = "a", key: str | None = None) -> list[str]:
        """Publish events one after the other; returns their ids."""
        publications = [Publication(Event(one), (channel,), key=key) for one in data]
        return [str(receipt.id) for receipt in self.service.broker.publish(publications)]

    def open(self, *channels: str, cursor: str | None = None) -> Reader:
        """Open a stream, from now on or after `cursor`."""
        reader = Reader()
        selection = Selection(channels or ("a",))
        self.service.broker.follow(selection.channels)
        subscriber = Subscriber(reader, 7, selection, "192.0.2.1", chunked=False)
        if cursor is None:
            self.service.hub.attach(subscriber, self.service.hub.position)
        else:
            start = Start(EventId.parse(cursor))
            resumption = self.service.resumer.prepare(selection.channels, start)
            self.service.resumer.resume(subscriber, resumption)
        return reader

    def cut(self) -> None:
        """Cut the pub/sub connection."""
        self.valkey.cli("CLIENT", "KILL", "TYPE", "pubsub")


@pytest.fixture
def worker(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker whose link can be made to swallow events, or to hold them back."""
    monkeypatch.setattr(follower, "CHECK_SECONDS", 0.5)
    monkeypatch.setattr(follower, "MARK_SECONDS", 1.0)
    made: list[Worker] = []
    read = RedisLink.read

    def faulty_read(link: RedisLink) -> tuple[list[tuple[str, Frame]], list[str]]:
        while made and made[0].held:
            gevent.sleep(0.01)
        frames, confirmed = read(link)
        if made:
            frames = [one for one in frames if not made[0].swallow(*one)]
        return frames, confirmed

    monkeypatch.setattr(RedisLink, "read", faulty_read)
    worker = Worker(valkey)
    made.append(worker)
    yield worker
    worker.held = False
    worker.service.stop()


# -- scenarios -------------------------------------------------------------------------------------


def events_of_an_outage_come_after_it(worker: Worker) -> None:
    """What is published while the link is lost comes before anything new."""
    reader = worker.open()
    worker.publish("1")
    reader.expect("1")
    worker.held = True
    worker.cut()
    worker.publish("2", "3")
    worker.held = False
    worker.publish("4")
    reader.expect("1", "2", "3", "4")


def swallow_once(data: bytes) -> Callable[[str, Frame], bool]:
    """A fault that loses the first event with `data` between Redis and the worker."""
    lost: list[bytes] = []

    def swallow(channel: str, frame: Frame) -> bool:
        if data in frame.data and not lost:
            lost.append(data)
            return True
        return False

    return swallow


def a_lost_event_is_revealed_by_the_next(worker: Worker) -> None:
    """A hole in the chain makes the worker read what is missing."""
    reader = worker.open()
    worker.swallow = swallow_once(b"data: 2\n")
    worker.publish("1", "2", "3")
    reader.expect("1", "2", "3")


def a_lost_last_event_is_found(worker: Worker) -> None:
    """An event that no later one reveals is found by comparing tails."""
    reader = worker.open()
    worker.swallow = swallow_once(b"data: 2\n")
    worker.publish("1", "2")
    reader.expect("1", "2")


def a_link_that_delivers_nothing_is_replaced(worker: Worker) -> None:
    """When nothing comes any more though Redis answers, a new link makes up for it."""
    reader = worker.open()
    worker.publish("1")
    reader.expect("1")
    deaf_until = time.monotonic() + 2.5
    worker.swallow = lambda channel, frame: time.monotonic() < deaf_until
    worker.publish("2")
    reader.expect("1", "2")


def a_resumed_stream_gets_each_event_once(worker: Worker) -> None:
    """An event that is stored but still on its way to the worker comes once, not by both ways."""
    worker.open()
    first, *_ = worker.publish("1", "2")
    gevent.sleep(0.2)
    worker.service.hub._recent.begin("a", worker.service.hub.position)  # nothing in memory
    worker.held = True
    worker.publish("3")
    reader = worker.open(cursor=first)
    worker.held = False
    reader.expect("2", "3")


def events_during_a_resume_are_not_missed(worker: Worker) -> None:
    """What comes while a replay is read from Redis is taken from memory."""
    worker.open()
    first, *_ = worker.publish("1", "2")
    gevent.sleep(0.2)
    worker.service.hub._recent.begin("a", worker.service.hub.position)
    store = worker.service.store
    entries = store.entries

    def slow_entries(*arguments: Any) -> Any:
        found = entries(*arguments)
        worker.publish("3")
        gevent.sleep(0.2)
        return found

    store.entries = slow_entries  # type: ignore[method-assign,assignment]  # for this scenario
    try:
        reader = worker.open(cursor=first)
    finally:
        store.entries = entries  # type: ignore[method-assign]
    reader.expect("2", "3")


def a_trimmed_history_is_told(worker: Worker) -> None:
    """A client that missed more than is kept is told, and gets nothing with a hole."""
    first, *_ = worker.publish(*map(str, range(10)))
    worker.valkey.cli("XTRIM", "pushline:s:a", "MAXLEN", "=", "3")
    reader = worker.open(cursor=first)
    reader.expect("$reset")


def an_emptied_redis_is_told(worker: Worker) -> None:
    """After FLUSHALL every stream is told, and later events come."""
    reader = worker.open()
    worker.publish("1")
    reader.expect("1")
    worker.valkey.cli("FLUSHALL")
    reader.expect("1", "$reset")


def an_expired_event_is_not_replayed(worker: Worker) -> None:
    """A replay leaves out what is past its ttl, also one from memory."""
    worker.open()
    first, *_ = worker.publish("1")
    broker = worker.service.broker
    broker.publish([Publication(Event("2"), ("a",), ttl_seconds=1)])
    worker.publish("3")
    gevent.sleep(0.2)
    worker.open(cursor=first).expect("2", "3")
    gevent.sleep(1.0)
    worker.open(cursor=first).expect("3")


def one_event_under_two_channels_comes_once(worker: Worker) -> None:
    """A stream of several channels gets an event of two of them once."""
    reader = worker.open("a", "b")
    worker.service.broker.publish([Publication(Event("1"), ("a", "b"))])
    reader.expect("1")


def a_repeated_publish_is_one_event(worker: Worker) -> None:
    """Two publishes with one Idempotency-Key are one event."""
    reader = worker.open()
    worker.publish("1", key="k")
    worker.publish("1", key="k")
    reader.expect("1")


def heartbeats_never_overtake_events(worker: Worker) -> None:
    """A position told by a heartbeat has no event below it still to come."""
    reader = worker.open()
    hub = worker.service.hub
    view = next(iter(hub._views.values()))
    view.position_at = view.heartbeat_at = 0.0
    frames = [("a", Frame(EventId(2**41, n), "message", b"id: %d-%d\ndata: x\n\n" % (2**41, n)))
              for n in range(3)]  # fmt: skip
    hub.beat(time.monotonic())
    gevent.spawn(hub.deliver, frames)
    view.position_at = view.heartbeat_at = 0.0
    gevent.spawn(hub.beat, time.monotonic())
    gevent.sleep(0.2)
    ids = [line for line in reader.taken.split(b"\n") if line.startswith(b"id: ")]
    assert ids == sorted(ids)


# -- twins -----------------------------------------------------------------------------------------


def nothing(*arguments: Any, **more: Any) -> None:
    """In the place of a mechanism."""


def unbounded(*arguments: Any, until: EventId, **more: Any) -> Replay:
    """A replay that also takes what the hub has not collected yet."""
    return Replay(*arguments, until=EventId(2**50, 0), **more)


def credulous(*arguments: Any, proving: bool = False, **more: Any) -> Replay:
    """A replay that never looks for holes."""
    return Replay(*arguments, proving=False, **more)


def without_chain(self: Follower, channel: str, frame: Frame) -> bool:
    """Take every event, whatever came before it."""
    return self._following.get(channel) is not None


def without_key(self: Any, publications: Any) -> Any:
    """Publish without Idempotency-Keys."""
    bare = [Publication(one.event, one.channels) for one in publications]
    return self._store.publish(bare, EventId(0, 0))


def joined_without_memory(self: Resumer, channels: Any, cursor: Any) -> Any:
    """Believe that nothing has come since the last step was read."""
    return Step([], self._hub.position)


TWINS: list[tuple[Callable[[Worker], None], Any, str, Any]] = [
    (events_of_an_outage_come_after_it, Missed, "deliver", nothing),
    (a_lost_event_is_revealed_by_the_next, Follower, "_is_new", without_chain),
    (a_lost_last_event_is_found, Follower, "_check_tails", nothing),
    (a_link_that_delivers_nothing_is_replaced, Follower, "_look_after", nothing),
    (a_resumed_stream_gets_each_event_once, resume, "Replay", unbounded),
    (events_during_a_resume_are_not_missed, Resumer, "_rest", joined_without_memory),
    (a_trimmed_history_is_told, resume, "Replay", credulous),
    (an_emptied_redis_is_told, Follower, "_look_after", nothing),
    (a_repeated_publish_is_one_event, "service.broker.Broker", "publish", without_key),
]
SCENARIOS = [
    *dict.fromkeys(scenario for scenario, *_ in TWINS),
    an_expired_event_is_not_replayed,
    one_event_under_two_channels_comes_once,
    heartbeats_never_overtake_events,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
def test_the_guarantee_holds(worker: Worker, scenario: Callable[[Worker], None]) -> None:
    """The scenario's docstring says what must hold."""
    scenario(worker)


@pytest.mark.parametrize(
    ("scenario", "owner", "name", "instead"), TWINS, ids=lambda one: getattr(one, "__name__", "")
)
def test_without_its_mechanism_the_guarantee_fails(
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    scenario: Callable[[Worker], None],
    owner: Any,
    name: str,
    instead: Any,
) -> None:
    """The scenario notices when the mechanism is taken out, so it would notice a broken one."""
    target = f"{owner}.{name}" if isinstance(owner, str) else owner
    if isinstance(owner, str):
        monkeypatch.setattr(target, instead)
    else:
        monkeypatch.setattr(owner, name, instead)

    with pytest.raises(AssertionError):
        scenario(worker)


def test_the_documentation_lists_every_twin() -> None:
    """docs/testing.md names each guarantee with the mechanism that it rests on."""
    page = (Path(__file__).parents[1] / "docs/testing.md").read_text()
    for scenario, owner, name, _ in TWINS:
        mechanism = f"{getattr(owner, '__name__', owner).rsplit('.', 1)[-1]}.{name}"
        assert f"`{scenario.__name__}` | `{mechanism}`" in page
