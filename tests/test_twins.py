"""Each guarantee as a scenario, and its twin: the same without the mechanism, which must fail."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gevent
import pytest

from service import follower, resume
from service.batch import Batch, joined
from service.channel_end import last_publication
from service.control import CLOSE, CONTROL, Close
from service.event import Event, EventId, ServiceEvent
from service.follower import Follower
from service.frame import Frame
from service.hub import Hub
from service.missed import Missed
from service.open_streams import SKEW_SECONDS, OpenStreams
from service.overflow import Overflow
from service.publication import Publication
from service.recent import RecentEvents
from service.redis_link import RedisLink
from service.replay import Replay
from service.resume import Resumer
from service.resumption import Start, Step
from service.service import Service
from service.settings import Settings
from service.subscriber import Ending, Subscriber
from service.view import Selection
from tests import readers
from tests.encodings import PLAIN
from tests.readers import Reader
from tests.valkey import Valkey


class Worker:
    """One worker's service in this process, over the test's Valkey."""

    def __init__(self, valkey: Valkey) -> None:
        self.valkey = valkey
        self.swallow: Callable[[str, Frame], bool] = lambda channel, frame: False
        self.held = False
        self.service = Service(Settings(redis_url=valkey.url, max_connections=100))
        self.service.start()

    def publish(
        self, *data: str, channel: str = "a", key: str | None = None, private: bool = False
    ) -> list[str]:
        """Publish events one after the other; returns their ids."""
        publications = [
            Publication(Event(one), (channel,), key=key, private=private) for one in data
        ]
        return [str(receipt.id) for receipt in self.service.broker.publish(publications)]

    def open(
        self,
        *channels: str,
        cursor: str | None = None,
        granted: frozenset[str] = frozenset(),
        user: str = "",
        as_of: EventId | None = None,
        reader: Reader | None = None,
    ) -> Reader:
        """Open a stream, from now on or after `cursor`."""
        reader = reader or Reader()
        selection = Selection(channels or ("a",), granted=granted)
        self.service.broker.follow(selection.channels)
        subscriber = Subscriber(
            reader, 7, selection, "192.0.2.1", encoding=PLAIN, user=user, as_of=as_of,
            overflow=reader.overflow,
        )  # fmt: skip
        self.service.streams.add(subscriber)
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


class Sleeper(Reader):
    """A client that takes nothing until it wakes up, and may miss what is old then."""

    outbox_bytes = 500
    overflow = Overflow.DROP_OLDEST
    waiting: Subscriber | None = None
    awake = False

    def write(self, fd: int, data: bytes | memoryview, /) -> int:
        """Take all of it, or nothing."""
        if not self.awake:
            raise BlockingIOError
        return super().write(fd, data)

    def want_room(self, subscriber: Subscriber) -> None:
        """Note who has something for it."""
        self.waiting = subscriber

    def wake_up(self) -> None:
        """Read on."""
        self.awake = True
        assert self.waiting is not None
        self.waiting.flush()


@pytest.fixture
def worker(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker whose link can be made to swallow events, or to hold them back."""
    monkeypatch.setattr(follower, "CHECK_SECONDS", 0.5)
    monkeypatch.setattr(follower, "MARK_SECONDS", 1.0)
    made: list[Worker] = []
    read = RedisLink.read

    def wait_while_held() -> None:
        while made and made[0].held:
            gevent.sleep(0.01)

    def faulty_read(link: RedisLink) -> tuple[list[tuple[str, Frame]], list[str]]:
        wait_while_held()
        frames, confirmed = read(link)
        wait_while_held()  # what came to a read that had begun before is held back as well
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
    broker.publish([Publication(Event("2"), ("a",), ttl_seconds=2)])
    worker.publish("3")
    gevent.sleep(0.2)
    worker.open(cursor=first).expect("2", "3")
    gevent.sleep(2.0)
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


def a_private_event_stays_private(worker: Worker) -> None:
    """Only a stream with a grant gets a private event, live or replayed; others get the rest."""
    live = worker.open(), worker.open(granted=frozenset("a"))
    first, *_ = worker.publish("1")
    worker.publish("2", private=True)
    worker.publish("3")
    gevent.sleep(0.2)
    late = worker.open(cursor=first), worker.open(cursor=first, granted=frozenset("a"))
    for reader, data in zip((*live, *late), ("13", "123", "3", "23"), strict=True):
        reader.expect(*data)


def streams_that_share_a_replay_keep_their_rights(worker: Worker) -> None:
    """Streams with one cursor read Redis once, and each gets what it may see."""
    first, *_ = worker.publish("1")
    worker.publish("2", private=True)
    worker.publish("3")
    worker.open(cursor=first, granted=frozenset("a")).expect("2", "3")
    worker.open(cursor=first).expect("3")


def a_revocation_reaches_a_worker_that_was_cut_off(worker: Worker) -> None:
    """Streams that were revoked while their worker had no link end when it has one again."""
    revoked, stays = worker.open(user="ann"), worker.open(user="bob")
    worker.held = True
    worker.cut()
    worker.service.close_streams(Close(user="ann"))
    worker.held = False
    worker.publish("1")
    stays.expect("1")
    assert (revoked.ending, stays.ending) == (Ending.REVOKED, None)


def a_late_command_spares_who_came_after_it(worker: Worker) -> None:
    """A command that comes late ends the streams from before it, and those that an old grant has
    opened since; who was let in anew stays.
    """
    service = worker.service
    before = worker.open(user="ann")
    old = service.store.clock()
    worker.held = True
    service.close_streams(Close(user="ann"))
    gevent.sleep(SKEW_SECONDS + 0.2)
    after = worker.open(user="ann")
    by_old_ticket = worker.open(user="ann", as_of=old)
    by_new_ticket = worker.open(user="ann", as_of=service.store.clock())
    worker.held = False
    with patch("service.open_streams.LATE_SECONDS", SKEW_SECONDS):
        worker.publish("1")
        after.expect("1")
    by_new_ticket.expect("1")
    assert (before.ending, by_old_ticket.ending) == (Ending.REVOKED, Ending.REVOKED)
    assert (after.ending, by_new_ticket.ending) == (None, None)


def ids_never_go_back(worker: Worker) -> None:
    """A Redis that has lost what a worker knows, and whose clock is behind, goes on above it."""
    reader = worker.open()
    ahead = int(time.time() * 1000) + 3_600_000
    worker.valkey.cli("HSET", "pushline:clock", "id", f"{ahead}-0")
    first, *_ = worker.publish("1")
    reader.expect("1")
    worker.valkey.cli("HSET", "pushline:clock", "id", "1-0")
    second, *_ = worker.publish("2", channel="b")  # its history would refuse the id
    assert EventId.parse(second) > EventId.parse(first)


def the_end_of_a_channel_ends_its_streams(worker: Worker) -> None:
    """Streams of which all channels are finished close after `$end`; others go on."""
    ends, stays = worker.open("a"), worker.open("a", "b")
    worker.service.broker.publish([last_publication("a")])
    ends.expect("$end")
    stays.expect("$end")
    assert (ends.ending, stays.ending) == (Ending.CHANNEL_ENDED, None)


def what_was_forgotten_is_not_replayed(worker: Worker) -> None:
    """A channel that is deleted is gone from memory as well; who had not got all of it is told."""
    worker.open()
    first, *_ = worker.publish("1", "2", "3")
    gevent.sleep(0.2)
    assert worker.service.store.forget("a")
    gevent.sleep(0.2)
    worker.open(cursor=first).expect("$reset")


def who_reads_too_slowly_is_told_what_was_skipped(worker: Worker) -> None:
    """An outbox is bounded: old events give way to new ones, and the stream says so."""
    sleeper = Sleeper()
    worker.open(reader=sleeper)
    for n in range(40):
        worker.publish(str(n))
        gevent.sleep(0.005)
    gevent.sleep(0.2)
    assert sleeper.waiting is not None
    assert sleeper.waiting.unsent < 2 * sleeper.outbox_bytes
    sleeper.wake_up()
    reset, *rest = sleeper.told()
    assert (reset, rest[-1]) == ("$reset", "39")
    assert len(rest) < 40


def heartbeats_never_overtake_events(worker: Worker) -> None:
    """A position told by a heartbeat has no event below it still to come."""
    reader = worker.open()
    hub = worker.service.hub
    view = next(iter(hub.views.values()))
    view.position_at = view.heartbeat_at = 0.0
    frames = [("a", Frame(EventId(2**41, n), "message", b"id: %d-%d\ndata: x\n\n" % (2**41, n)))
              for n in range(3)]  # fmt: skip
    hub.beat(time.monotonic())
    hub.collect(frames)
    view.position_at = view.heartbeat_at = 0.0
    hub.beat(time.monotonic())
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


def without_floor(self: Any, publications: Any) -> Any:
    """Let Redis's clock alone make the ids."""
    return self._store.publish(publications, EventId(0, 0))


def without_rights(self: Selection, frame: Frame) -> bool:
    """Select by name only."""
    return self.names is None or frame.name in self.names


def shared_by_all(self: Step, selection: Selection) -> list[Batch]:
    """Join the events once for all streams that want the same names."""
    key = selection.names
    if key not in self._batches:
        self._batches[key] = list(joined(filter(selection.selects, self.frames)))
    return self._batches[key]


def live_only(self: Close) -> Publication:
    """A command that nothing remembers."""
    return Publication(ServiceEvent(json.dumps(self._asdict()), CLOSE), (CONTROL,), stored=False)


def never(*arguments: Any, **more: Any) -> bool:
    """Nothing is so."""
    return False


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
    (a_private_event_stays_private, Selection, "selects", without_rights),
    (streams_that_share_a_replay_keep_their_rights, Step, "batches", shared_by_all),
    (a_revocation_reaches_a_worker_that_was_cut_off, Close, "publication", live_only),
    (ids_never_go_back, "service.broker.Broker", "publish", without_floor),
    (the_end_of_a_channel_ends_its_streams, Hub, "_end_if_over", nothing),
    (what_was_forgotten_is_not_replayed, RecentEvents, "drop", nothing),
    (who_reads_too_slowly_is_told_what_was_skipped, Subscriber, "_overflow", nothing),
    (a_late_command_spares_who_came_after_it, OpenStreams, "_is_later", never),
]
SCENARIOS = [
    *dict.fromkeys(scenario for scenario, *_ in TWINS),
    an_expired_event_is_not_replayed,
    one_event_under_two_channels_comes_once,
    heartbeats_never_overtake_events,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
def test_the_guarantee_holds(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, scenario: Callable[[Worker], None]
) -> None:
    """The scenario's docstring says what must hold."""
    monkeypatch.setattr(readers, "WAIT_SECONDS", 15)
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
    # A new link, because of a pause of Valkey or of this process, could make up for it.
    monkeypatch.setattr(follower, "MARK_SECONDS", 30.0)
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
