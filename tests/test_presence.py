"""Who is on a channel: told once, whatever the workers do that tell it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gevent
import pytest

from service.attendance import Attendance, AttendanceReader
from service.audience import Audience
from service.errors import OutcomeUnknown
from service.event import FIRST_ID, EventId
from service.presence import Presence, companion, publication_of
from service.presence_store import Place, PresenceStore, Present
from service.publication import Publication, Receipt
from service.stream_reports import StreamReports
from tests.live_server import until
from tests.nodes import NAMES, end, make_store
from tests.sse_client import parse_stream
from tests.valkey import Valkey

GRACE_SECONDS = 0.2
ROOM = "room.1"
CHANGING = NAMES.changing


class Worker:
    """What a worker does for presence, in steps that tests take."""

    def __init__(self, url: str, patterns: Sequence[str] = ("room.*",)) -> None:
        self.store = make_store(url)
        self.reports = StreamReports(self.store.pool, NAMES)
        self.born = FIRST_ID
        self.audience = Audience(self.reports, lambda: self.born)
        self.kept = PresenceStore(self.store.pool, NAMES, GRACE_SECONDS)
        self.attendance = AttendanceReader(self.kept, self.audience, self.store.clock)
        self.presence = Presence(self.kept, self.reports, self.audience, self.publish, patterns)

    def publish(self, publications: Sequence[Publication]) -> list[Receipt]:
        """As the broker does."""
        return self.store.publish(publications, FIRST_ID)

    def open(self, user: str, info: str = "", channel: str = ROOM) -> None:
        """A stream opens."""
        self.audience.opened([channel])
        self.presence.opened([channel], user, info)

    def close(self, user: str, channel: str = ROOM) -> None:
        """It ends."""
        self.audience.closed([channel])
        self.presence.closed([channel], user)

    def tick(self) -> None:
        """A second passes."""
        self.audience.report()
        self.presence._look_at = 0.0
        self.presence.tick()

    def die(self) -> None:
        """Killed: its report has expired, and nobody has told anything."""
        self.reports.withdraw(self.audience.worker)

    def told(self, channel: str = ROOM) -> list[str]:
        """What was told of a channel, in order."""
        (frames,) = self.store.entries([(companion(channel), FIRST_ID)], 1000)
        events = parse_stream(b"".join(frame.data for frame in frames))
        return [f"{event.type} {json.loads(event.data)['user']}" for event in events]

    def users(self, channel: str = ROOM) -> list[str]:
        """Who is listed."""
        return [one.user for one in self.list(channel).users]

    def list(self, channel: str = ROOM, after: str = "", at_most: int = 1000) -> Attendance:
        """The list, as it is now."""
        self.attendance._readings.clear()
        return self.attendance.page(channel, after, at_most)


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Callable[..., Worker]]:
    """Make workers on the emptied Valkey."""
    made: list[Worker] = []

    def one(**options: Any) -> Worker:
        made.append(Worker(valkey.url, **options))
        return made[-1]

    yield one
    for worker in made:
        worker.store.close()


def wait_grace() -> None:
    """Let the grace period pass."""
    gevent.sleep(GRACE_SECONDS + 0.05)


def due_now(valkey: Valkey) -> None:
    """As if enough time had passed for everything that waits."""
    for member in valkey.cli("ZRANGE", CHANGING, 0, -1):
        valkey.cli("ZADD", CHANGING, 1, member)


def test_a_user_joins_and_leaves_once(make: Callable[..., Worker]) -> None:
    """Several streams on several workers are one user, there from the first to the last of them."""
    one, two = make(), make()
    one.open("ana", '{"name":"Ana"}')
    one.open("ana", '{"name":"Ana"}')
    one.tick()
    two.open("ana")
    two.open("bob")
    two.tick()
    one.tick()
    assert one.told() == ["$join ana", "$join bob"]
    assert two.users() == ["ana", "bob"]
    for worker, user in ((one, "ana"), (one, "ana"), (two, "bob")):
        worker.close(user)
    one.tick()
    two.tick()
    wait_grace()
    one.tick()
    two.tick()
    assert one.told() == ["$join ana", "$join bob", "$leave bob"]
    two.close("ana")
    two.tick()
    wait_grace()
    two.tick()
    one.tick()
    assert one.told()[3:] == ["$leave ana"]
    assert one.users() == []


def test_the_event_says_who_it_is(make: Callable[..., Worker]) -> None:
    """Channel, user and what the token says of the user, as JSON."""
    one = make()
    one.open("ana é/b", '{"name":"Ané","tags":[],"n":12345678901234567890}')
    one.open("bob")
    one.tick()
    (frames,) = one.store.entries([(companion(ROOM), FIRST_ID)], 10)
    said = [json.loads(event.data) for event in parse_stream(b"".join(f.data for f in frames))]
    said.sort(key=lambda event: str(event["user"]))
    info = {"name": "Ané", "tags": [], "n": 12345678901234567890}
    assert said == [
        {"channel": ROOM, "user": "ana é/b", "info": info},
        {"channel": ROOM, "user": "bob", "info": None},
    ]


def test_short_absences_are_not_told(make: Callable[..., Worker]) -> None:
    """Who comes back within the grace period has never left, on whichever worker that is."""
    one, two = make(), make()
    one.open("ana")
    one.tick()
    for before, after in ((one, two), (two, two), (two, one)):
        before.close("ana")
        before.tick()
        assert one.users() == ["ana"]
        gevent.sleep(GRACE_SECONDS / 2)
        after.open("ana")
        after.tick()
        wait_grace()
        one.tick()
        two.tick()
    assert one.told() == ["$join ana"]


def test_who_moves_between_two_reports_is_not_told(make: Callable[..., Worker]) -> None:
    """A stream that ends and comes back before anything is reported changes nothing."""
    one = make()
    one.open("ana")
    one.tick()
    one.close("ana")
    one.open("ana")
    one.tick()
    wait_grace()
    one.tick()
    assert one.told() == ["$join ana"]


def test_a_dead_workers_users_leave_once(
    make: Callable[..., Worker], valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All the others notice, and one of them tells; who is still elsewhere stays."""
    monkeypatch.setattr("tests.test_presence.GRACE_SECONDS", 10)
    dead, two, three = make(), make(), make()
    for number in range(150):
        dead.open(f"u{number:03}")
    dead.open("ana")
    dead.tick()
    two.open("ana")
    for worker in (two, three):
        worker.tick()
    assert len(one_each(two.told())) == 151
    dead.die()
    gevent.joinall([gevent.spawn(worker.tick) for worker in (two, three)], raise_error=True)
    assert len(two.users()) == 151, "within the grace period they are still there"
    due_now(valkey)
    gevent.joinall([gevent.spawn(worker.tick) for worker in (two, three)], raise_error=True)
    assert one_each(two.told()[151:]) == {f"$leave u{number:03}" for number in range(150)}
    assert two.users() == ["ana"]
    assert two.reports.dead() == [], "it is forgotten"


def one_each(told: Sequence[str]) -> set[str]:
    """All of these, none of which comes twice."""
    assert len(set(told)) == len(told)
    return set(told)


def test_a_worker_that_was_only_slow_tells_its_users_again(make: Callable[..., Worker]) -> None:
    """Who was taken for dead comes back under another name; in time, nobody hears of it."""
    slow, other = make(), make()
    slow.open("ana")
    slow.tick()
    other.tick()
    name = slow.audience.worker
    slow.die()
    other.tick()
    slow.tick()
    wait_grace()
    other.tick()
    assert slow.audience.worker != name
    assert other.told() == ["$join ana"]
    slow.close("ana")
    slow.tick()
    wait_grace()
    other.tick()
    assert other.told() == ["$join ana", "$leave ana"]


def test_a_stopping_worker_says_so_at_once(make: Callable[..., Worker]) -> None:
    """What has ended last is told when it stops; nothing of it is left."""
    one, two = make(), make()
    one.open("ana")
    one.tick()
    one.close("ana")
    one.presence.withdraw()
    one.audience.withdraw()
    assert two.kept.held_by(one.presence._told_as) == []
    wait_grace()
    two.tick()
    assert two.told() == ["$join ana", "$leave ana"]


@pytest.mark.parametrize("published", [False, True])
def test_who_dies_while_telling_is_replaced(
    make: Callable[..., Worker], valkey: Valkey, published: bool
) -> None:
    """A change that a worker has taken on is told once, whether or not the worker came to it."""
    dead, other = make(), make()
    told: list[str] = []
    for act in (dead.open, dead.close):
        act("ana")
        dead.audience.report()
        dead.presence._hold()
        if act == dead.close:
            wait_grace()
        changes = dead.kept.claim()
        assert len(changes) == 1
        if published:
            dead.presence._publish_all([publication_of(change) for change in changes])
        other.tick()
        assert len(other.told()) == len(told) + published, "nobody else tells it meanwhile"
        due_now(valkey)
        other.tick()
        told.append("$join ana" if act == dead.open else "$leave ana")
        assert other.told() == told
    assert valkey.cli("ZCARD", CHANGING) == 0


def test_who_is_back_while_the_leave_is_told_joins_again(
    make: Callable[..., Worker], valkey: Valkey
) -> None:
    """Every change is told in order, and the last one is what is."""
    one, two = make(), make()
    one.open("ana")
    one.tick()
    one.close("ana")
    one.tick()
    wait_grace()
    (leave,) = one.kept.claim()
    assert two.users() == [], "what is being told already counts"
    two.open("ana")
    two.tick()
    assert two.users() == []
    one.presence._publish_all([publication_of(leave)])
    one.kept.told([leave])
    two.tick()
    assert two.told() == ["$join ana", "$leave ana", "$join ana"]
    assert two.users() == ["ana"]


def test_who_stays_for_no_report_is_not_told(make: Callable[..., Worker]) -> None:
    """Who has left before the join was told has never been there."""
    one = make()
    one.open("ana")
    one.audience.report()
    one.presence._hold()
    one.close("ana")
    one.tick()
    assert one.told() == []
    assert one.users() == []


def test_what_is_known_later_changes_no_event(make: Callable[..., Worker], valkey: Valkey) -> None:
    """Another stream of the same user may say more, while somebody tells of the first one."""
    one, two = make(), make()
    one.open("ana", '"old"')
    one.audience.report()
    one.presence._hold()
    one.presence._publish_all([publication_of(change) for change in one.kept.claim()])
    two.open("ana", '"new"')
    two.tick()
    due_now(valkey)
    two.tick()
    assert two.told() == ["$join ana"]
    (ana,) = two.list().users
    assert (ana.info, ana.streams) == ('"new"', 2)
    assert valkey.cli("ZCARD", CHANGING) == 0


def test_a_finished_companion_is_told_no_more(make: Callable[..., Worker], valkey: Valkey) -> None:
    """Whoever has finished it wants to hear nothing; other channels go on."""
    one = make()
    end(one.store, companion(ROOM))
    one.open("ana")
    one.open("bob", channel="room.2")
    one.tick()
    assert one.told("room.2") == ["$join bob"]
    assert valkey.cli("ZCARD", CHANGING) == 0


def test_what_could_not_be_published_is_told_later(
    make: Callable[..., Worker], valkey: Valkey
) -> None:
    """A publish without an answer is tried again, by anybody, and gives no second event."""
    one, two = make(), make()
    one.open("ana")

    def lose(publications: Sequence[Publication]) -> list[Receipt]:
        one.publish(publications)
        raise OutcomeUnknown

    one.presence._publish = lose
    with pytest.raises(OutcomeUnknown):
        one.tick()
    due_now(valkey)
    two.tick()
    assert two.told() == ["$join ana"]
    assert valkey.cli("ZCARD", CHANGING) == 0


def test_an_emptied_redis_gets_everybody_again(make: Callable[..., Worker], valkey: Valkey) -> None:
    """Those who are there join anew, once each, for whoever has lost all before."""
    one, two = make(), make()
    one.open("ana")
    two.open("ana")
    two.open("bob")
    for worker in (one, two):
        worker.tick()
    valkey.cli("FLUSHALL")
    for _ in range(2):
        for worker in (one, two):
            worker.tick()
    assert one_each(two.told()) == {"$join ana", "$join bob"}
    assert two.users() == ["ana", "bob"]


def test_what_a_failover_has_lost_is_told_anew(make: Callable[..., Worker], valkey: Valkey) -> None:
    """A replica that takes over may lack the last that a worker told of its users, while no report
    shows it: who has left since leaves once more, and who has come joins.
    """
    one, two = make(), make()
    one.open("ana")
    one.tick()
    two.tick()
    keys = (NAMES.present(ROOM), NAMES.held(one.audience.worker))
    before = [valkey.cli("DUMP", key) for key in keys]
    one.close("ana")
    one.open("bob")
    one.audience.report()
    one.presence._hold()
    for key, state in zip(keys, before, strict=True):
        valkey.cli("RESTORE", key, 0, state, "REPLACE")
    valkey.cli("DEL", CHANGING)
    for worker in (one, two):
        worker.born = EventId(2, 0)
    for _ in range(2):
        for worker in (one, two):
            worker.tick()
        wait_grace()
    assert two.told() == ["$join ana", "$join bob", "$leave ana"]
    assert two.users() == ["bob"]


def test_the_last_word_of_who_was_taken_for_dead_counts(make: Callable[..., Worker]) -> None:
    """It may come when all that the worker held was just taken away: it isn't forgotten then."""
    slow, other = make(), make()
    slow.open("ana")
    slow.tick()
    name = slow.audience.worker
    slow.die()
    held_by = other.kept.held_by

    def late(worker: str) -> list[Place]:
        places = held_by(worker)
        if not places:
            slow.kept.hold(name, [(Place(ROOM, "bob"), 1, "")])
        return places

    other.kept.held_by = late  # type: ignore[method-assign]
    other.tick()
    other.kept.held_by = held_by  # type: ignore[method-assign]
    other.tick()
    wait_grace()
    other.tick()
    assert other.users() == []
    assert other.reports.dead() == []


def test_a_late_word_is_of_its_own_change(make: Callable[..., Worker], valkey: Valkey) -> None:
    """Who says that a join was told, long after another said so, doesn't mean the leave."""
    late, other = make(), make()
    late.open("ana")
    late.audience.report()
    late.presence._hold()
    joins = late.kept.claim()
    due_now(valkey)
    other.tick()
    late.close("ana")
    late.presence._hold()
    wait_grace()
    (leave,) = other.kept.claim()
    assert not leave.joined
    late.kept.told(joins)
    due_now(valkey)
    other.tick()
    assert other.told() == ["$join ana", "$leave ana"]


def test_a_list_is_read_once_for_a_moment(make: Callable[..., Worker]) -> None:
    """All pages of all who ask are of one reading, from the same id on; other channels have their
    own, and none is kept for longer.
    """
    one = make()
    one.open("ana")
    one.open("bob")
    one.tick()
    first = one.list(at_most=1)
    reads: list[str] = []
    pages = one.kept.pages

    def noted(channel: str) -> Iterator[list[Present]]:
        reads.append(channel)
        return pages(channel)

    one.kept.pages = noted  # type: ignore[method-assign]
    one.open("cleo")
    one.tick()
    again = gevent.joinall(
        [gevent.spawn(one.attendance.page, ROOM, "ana", 1) for _ in range(5)], raise_error=True
    )
    assert {greenlet.get().users[0].user for greenlet in again} == {"bob"}
    assert {greenlet.get().last_id for greenlet in again} == {first.last_id}
    assert reads == []
    assert one.attendance.page("room.2", "", 1).total == 0
    one.attendance._readings[ROOM].forget()
    assert one.attendance.page(ROOM, "", 10).total == 3
    assert reads == ["room.2", ROOM]
    for reading in one.attendance._readings.values():
        reading.forget()
    one.attendance.page("room.3", "", 1)
    assert set(one.attendance._readings) == {"room.3"}


def test_a_lasting_refusal_is_told_once(
    own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is tried, and though between two looks there is nothing to be refused."""
    monkeypatch.setattr("service.presence.TICK_SECONDS", 0.01)
    monkeypatch.setattr("service.presence.LOOK_SECONDS", 0.05)
    own_valkey.cli("ACL", "SETUSER", "default", "+@all", "-zrange")
    one = Worker(own_valkey.url)
    one.audience.report()
    caplog.set_level(logging.WARNING)
    greenlet = gevent.spawn(one.presence.run)
    until(lambda: "presence can't be told" in caplog.text, 10, "it is told")
    gevent.sleep(0.3)
    greenlet.kill()
    one.store.close()
    assert len([text for text in caplog.messages if "presence can't be told" in text]) == 1


@pytest.mark.parametrize("patterns", [("room.*",), ()], ids=["followed", "not-followed"])
def test_where_nobody_is_followed_workers_look_seldom(
    make: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, patterns: Sequence[str]
) -> None:
    """Without patterns a worker looks only now and then: each look takes about a millisecond."""
    monkeypatch.setattr("service.presence.TICK_SECONDS", 0.01)
    monkeypatch.setattr("service.presence.IDLE_LOOK_SECONDS", 0.5)
    one, looks = make(patterns=patterns), []
    monkeypatch.setattr(one.presence, "tick", lambda: looks.append(time.monotonic()))
    began = time.monotonic()
    greenlet = gevent.spawn(one.presence.run)
    until(lambda: bool(looks), 5, "a look")
    one.presence.stop()
    greenlet.join(1)
    assert greenlet.dead
    assert (looks[0] - began < 0.4) == bool(patterns)


def test_only_chosen_channels_tell_users(make: Callable[..., Worker]) -> None:
    """No pattern, no user, a companion, or a name too long for one: nothing is told."""
    one = make()
    covers = one.presence.covers
    assert covers("room.1")
    assert not covers("hall.1")
    assert not covers(companion("room.1"))
    longest = "room." + "x" * (128 - len("room.") - len(":presence"))
    assert covers(longest)
    assert not covers(longest + "x")
    assert not make(patterns=()).presence.covers("room.1")
    one.open("")
    one.open("ana", channel="hall.1")
    one.tick()
    assert (one.told(), one.told("hall.1"), one.users()) == ([], [], [])


def test_streams_without_a_user_are_counted(make: Callable[..., Worker]) -> None:
    """They are on no list; how many they are is what is left of all streams."""
    one, two = make(), make()
    for user in ("ana", "ana", "", "", "bob"):
        one.open(user)
    two.open("")
    for worker in (one, two):
        worker.tick()
    users, total, anonymous, _ = two.list()
    assert [(user.user, user.streams) for user in users] == [("ana", 2), ("bob", 1)]
    assert (total, anonymous) == (2, 3)


def test_a_list_has_pages(make: Callable[..., Worker]) -> None:
    """Users come in the order of their names, from any of them on, each once."""
    one = make()
    names = [f"u{number:04}" for number in range(700)]
    for name in reversed(names):
        one.open(name)
    one.tick()
    users, total, _, _ = one.list(at_most=100)
    assert [user.user for user in users] == names[:100]
    assert total == 700
    users, total, _, _ = one.list(after=names[649], at_most=100)
    assert [user.user for user in users] == names[650:]
    assert total == 700


def test_a_list_and_what_follows_it_are_everything(make: Callable[..., Worker]) -> None:
    """Whoever reads the list and then all events after the clock's id knows who is there, at
    whichever moment that was.
    """
    one, two = make(), make()
    moments: list[tuple[EventId, set[str]]] = []
    for step in ("open", "close", "open", "close"):
        getattr(one, step)("ana")
        one.audience.report()
        one.presence._hold()
        moments.append((two.store.clock(), set(two.users())))
        if step == "close":
            wait_grace()
        for change in one.kept.claim():
            moments.append((two.store.clock(), set(two.users())))
            one.presence._publish_all([publication_of(change)])
            moments.append((two.store.clock(), set(two.users())))
            one.kept.told([change])
            moments.append((two.store.clock(), set(two.users())))
    for clock, known in moments:
        (frames,) = two.store.entries([(companion(ROOM), clock)], 100)
        for event in parse_stream(b"".join(frame.data for frame in frames)):
            user = json.loads(event.data)["user"]
            known = known | {user} if event.type == "$join" else known - {user}
        assert known == set()
    assert len(moments) == 16
    assert two.told() == ["$join ana", "$leave ana"] * 2


def test_a_claim_that_took_too_long_is_left_to_others(
    make: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was held up after it took something on doesn't tell it: others may do so."""
    one = make()
    one.open("ana")
    monkeypatch.setattr("service.presence.FRESH_SECONDS", -1.0)
    one.tick()
    assert one.told() == []
    assert one.kept.claim() == []


def test_a_place_may_have_any_user(make: Callable[..., Worker]) -> None:
    """Users have slashes, stars and any letters; nothing of it leads elsewhere."""
    one = make()
    for user in ("a/b", "*", "room.2/x", "é😀", " "):
        one.open(user)
    one.tick()
    held = one.kept.held_by(one.audience.worker)
    assert {place.user for place in held} == {"a/b", "*", "room.2/x", "é😀", " "}
    assert {place.channel for place in held} == {ROOM}
    assert Place(ROOM, "a/b") in held
    assert one.users("room.2") == []
