"""From a client's cursor to the live stream: nothing lost, nothing twice, or `$reset`."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

import service.history
import service.recent
import service.resume
from service.batch import Batch
from service.broker import Broker
from service.client import MessagePublisher
from service.control import CONTROL
from service.errors import NotFollowing, OutcomeUnknown, RedisDown
from service.event import EventId
from service.follower import Follower
from service.redis_store import RedisStore
from service.replay import Replay
from service.resumption import Start
from service.subscriber import Subscriber
from service.view import Selection
from tests.applications import Application, Make, Stream, making
from tests.encodings import GZIP
from tests.live_server import until
from tests.nodes import NAMES
from tests.readers import StreamNode
from tests.sse_client import ParsedEvent
from tests.valkey import Valkey


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Make]:
    """Make applications on the shared Valkey."""
    with making(valkey.url) as one:
        yield one


@pytest.fixture
def app(make: Make) -> Application:
    """An application with the default settings."""
    return make()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds four events of a channel, pages three, a step a few: all has many parts."""
    monkeypatch.setattr(service.recent, "EVENTS_PER_CHANNEL", 4)
    monkeypatch.setattr(service.history, "PAGE_EVENTS", 3)
    monkeypatch.setattr(service.resume, "STEP_EVENTS", 5)


def publish(app: Application, channel: str, count: int, first: int = 0) -> list[str]:
    """Publish numbers in one request."""
    items = [{"channel": channel, "data": str(number)} for number in range(first, first + count)]
    return [receipt["id"] for receipt in app.client.post("/publish", json=items).get_json()]


def resume(app: Application, cursor: str, query: str = "channel=a") -> Stream:
    """A stream that comes back with a cursor."""
    return app.stream(query, **{"Last-Event-ID": cursor})


def read_until(stream: Stream, data: str) -> list[ParsedEvent]:
    """All events up to the one with this data."""
    events: list[ParsedEvent] = []
    while not events or events[-1].data != data:
        events += stream.read()
    return events


def check_reset(event: ParsedEvent, reason: str, *channels: str) -> dict[str, object]:
    """The event is a `$reset` for this reason and these channels."""
    assert event.type == "$reset", event
    told = json.loads(event.data)
    assert (told["reason"], told["channels"]) == (reason, list(channels))
    assert isinstance(told, dict)
    return told


# -------------------------------------------------------------------------------- from a cursor


@pytest.mark.parametrize("followed", [True, False])
def test_a_stream_goes_on_after_its_cursor(app: Application, followed: bool) -> None:
    """What came after the cursor comes at once, then what is live, from memory when the worker
    follows the channel, else from Redis; the opening block leaves the cursor alone.
    """
    if followed:
        other = app.stream("channel=a")
        other.read()
        other.close()
    ids = publish(app, "a", 10)
    stream = resume(app, ids[3])
    app.publish("a", "live")
    events = read_until(stream, "live")
    assert [event.data for event in events] == ["4", "5", "6", "7", "8", "9", "live"]
    assert [event.last_event_id for event in events[:-1]] == ids[4:]
    assert stream.data.startswith(b"retry: ")
    assert b"\nid: " not in stream.data.split(b"\n\n")[0]
    stream.close()


@pytest.mark.parametrize("place", [0, 5, 57, 98, 99])
def test_every_cursor_in_small_steps(make: Make, small_steps: None, place: int) -> None:
    """However many steps and pages a replay takes, it joins the live stream without a seam."""
    app = make()
    keeper = app.stream("channel=b")
    keeper.read()
    ids = [app.publish("ab"[number % 2], str(number)) for number in range(100)]
    stream = resume(app, ids[place], "channel=b&channel=a")
    app.publish("a", "live")
    events = read_until(stream, "live")
    assert [event.data for event in events[:-1]] == [str(n) for n in range(place + 1, 100)]
    stream.close()
    keeper.close()


def test_resuming_during_a_flood(make: Make, small_steps: None) -> None:
    """Streams that come back with any cursor while events are published get each exactly once."""
    app = make()
    ids = publish(app, "a", 50)

    def publish_all() -> None:
        for number in range(50, 250, 2):
            publish(app, "a", 2, first=number)
            gevent.sleep(0.002)

    flood = gevent.spawn(publish_all)
    chance = random.Random(4)

    def come_back() -> None:
        place = chance.randrange(50)
        stream = resume(app, ids[place], "channel=a&channel=silent")
        events = read_until(stream, "last")
        assert [one.data for one in events[:-1]] == [str(n) for n in range(place + 1, 250)]
        stream.close()

    streams = []
    for _ in range(20):
        streams.append(gevent.spawn(come_back))
        gevent.sleep(0.01)
    flood.get()
    app.publish("a", "last")
    gevent.joinall(streams, raise_error=True)


def test_an_event_of_several_channels_comes_once(make: Make, small_steps: None) -> None:
    """A stream of several channels gets an event of several of them once, replayed or live."""
    app = make()
    cursor = app.publish("a", "before")
    item = {"channels": ["a", "b", "c"], "data": "x"}
    ids = [app.client.post("/publish", json=item).get_json()["id"] for _ in range(12)]
    stream = resume(app, cursor, "channel=a&channel=b")
    ids.append(app.client.post("/publish", json={**item, "data": "last"}).get_json()["id"])
    assert [event.last_event_id for event in read_until(stream, "last")] == ids
    stream.close()


def test_filters_hold_in_a_replay(app: Application) -> None:
    """A replay has only the names that the stream wants, and the cursor still moves on."""
    cursor = app.publish("a", "0")
    app.publish("a", "1", "?event=x")
    app.publish("a", "2", "?event=y")
    app.publish("a", "3", "?event=x")
    stream = resume(app, cursor, "channel=a&event=x")
    other = resume(app, cursor, "channel=a&event=y")
    assert [event.data for event in read_until(stream, "3")] == ["1", "3"]
    assert [event.data for event in read_until(other, "2")] == ["2"]
    stream.close()
    other.close()


def test_a_cursor_of_another_worker(make: Make) -> None:
    """A cursor from a worker that is ahead of this one is waited for, and isn't unknown."""
    first, second = make(), make()
    keeper = second.stream("channel=quiet")
    keeper.read()
    cursor = first.publish("a", "x")
    assert str(second.service.hub.position) < cursor
    stream = resume(second, cursor, "channel=quiet")
    second.publish("quiet", "y")
    assert [event.data for event in read_until(stream, "y")] == ["y"]
    keeper.close()
    stream.close()


def test_live_only_events_are_not_replayed(app: Application) -> None:
    """What isn't stored comes to those who are there; nobody is told of a loss."""
    cursor = app.publish("a", "0")
    app.publish("a", "live", "?history=0")
    app.publish("a", "1")
    stream = resume(app, cursor)
    assert [event.data for event in read_until(stream, "1")] == ["1"]
    stream.close()


# -------------------------------------------------------------------------------- other beginnings


def test_all_that_is_kept(app: Application) -> None:
    """`earliest` replays the whole history, in order over the channels, and joins the stream."""
    ids = [app.publish("ab"[number % 2], str(number)) for number in range(10)]
    stream = app.stream("channel=a&channel=b&last_event_id=earliest")
    assert [event.last_event_id for event in read_until(stream, "9")] == ids
    app.publish("a", "live")
    assert [event.data for event in read_until(stream, "live")] == ["live"]
    stream.close()


def test_the_last_events(app: Application) -> None:
    """`last=N` replays the newest N over all channels, oldest first."""
    for number in range(10):
        app.publish("ab"[number % 2], str(number))
    stream = app.stream("channel=a&channel=b&last=3")
    assert [event.data for event in read_until(stream, "9")] == ["7", "8", "9"]
    stream.close()
    stream = app.stream("channel=a&last=100")
    assert [event.data for event in read_until(stream, "8")] == ["0", "2", "4", "6", "8"]
    app.publish("a", "live")
    assert [event.data for event in read_until(stream, "live")] == ["live"]
    stream.close()


def test_since_a_moment(app: Application) -> None:
    """`since` replays what came after a moment; in a quiet service that is nothing, and no loss."""
    app.publish("a", "old")
    gevent.sleep(0.05)
    moment = time.time()
    gevent.sleep(0.05)
    app.publish("a", "new")
    stream = app.stream(f"channel=a&since={moment:.3f}")
    assert [event.data for event in read_until(stream, "new")] == ["new"]
    stream.close()
    gevent.sleep(1.1)
    for query in ("since=0s", "since=1s", f"since={time.time() + 100:.0f}"):
        stream = app.stream(f"channel=a&{query}")
        app.publish("b", "x")
        live = f"live {query}"
        app.publish("a", live)
        assert [event.type for event in read_until(stream, live)] == ["message"]
        stream.close()
        gevent.sleep(1.1)


# -------------------------------------------------------------------------------------- $reset


@pytest.mark.parametrize("cursor", ["nonsense", "99999999999999-0"])
def test_an_unknown_cursor(app: Application, cursor: str) -> None:
    """A cursor that nobody gave out is answered by `$reset` with the position, then live."""
    last = app.publish("a", "x")
    stream = resume(app, cursor)
    (event,) = stream.events(1)
    assert check_reset(event, "unknown", "a")["oldest"] is None
    assert event.last_event_id == last
    app.publish("a", "live")
    assert [one.data for one in read_until(stream, "live")] == ["live"]
    stream.close()


def test_a_reset_does_not_repeat(app: Application) -> None:
    """Who comes back with the id of a `$reset` is not told again."""
    app.publish("a", "x")
    stream = resume(app, "1-1")
    (event,) = stream.events(1)
    check_reset(event, "lost", "a")
    stream.close()
    stream = resume(app, event.last_event_id)
    app.publish("a", "live")
    assert [one.type for one in read_until(stream, "live")] == ["message"]
    stream.close()


def test_a_reset_passes_every_filter(app: Application) -> None:
    """Also a stream that wants one name only is told."""
    stream = resume(app, "1-1", "channel=a&event=x")
    check_reset(stream.events(1)[0], "lost", "a")
    stream.close()


def test_only_the_channel_that_lost_is_named(app: Application, valkey: Valkey) -> None:
    """`$reset` names the others before the complete channels are replayed, then comes what is live:
    no id above the hole comes before.
    """
    ids = publish(app, "a", 10)
    app.publish("b", "kept")
    valkey.cli("XTRIM", "pushline:s:a", "MAXLEN", 3)
    stream = resume(app, ids[1], "channel=a&channel=b")
    events = stream.events(2)
    assert check_reset(events[0], "trimmed", "a")["oldest"] == ids[7]
    assert events[1].data == "kept"
    app.publish("a", "live")
    assert [one.data for one in read_until(stream, "live")] == ["live"]
    stream.close()


def test_an_expired_history(app: Application, valkey: Valkey) -> None:
    """When the history is gone but its tail tells of newer events, the stream says so."""
    ids = publish(app, "a", 3)
    valkey.cli("DEL", "pushline:s:a")
    stream = resume(app, ids[0])
    check_reset(stream.events(1)[0], "expired", "a")
    stream.close()
    stream = resume(app, ids[2])
    app.publish("a", "live")
    assert [one.data for one in read_until(stream, "live")] == ["live"]
    stream.close()


@pytest.mark.parametrize("limits", [{"replay_events": 20}, {"replay_bytes": 1024}])
def test_a_replay_has_limits(make: Make, small_steps: None, limits: dict[str, int]) -> None:
    """A client that missed too much gets a part, `$reset`, and goes on with what is live."""
    app = make(**limits)
    ids = publish(app, "a", 300)
    for query in ("", "&last_event_id=earliest"):
        headers = {} if query else {"Last-Event-ID": ids[0]}
        stream = app.stream("channel=a" + query, **headers)
        events: list[ParsedEvent] = []
        while not events or events[-1].type != "$reset":
            events += stream.read()
        data = [int(event.data) for event in events[:-1]]
        assert data == list(range(data[0], data[0] + len(data)))
        assert 20 <= len(data) < 60
        check_reset(events[-1], "limit", "a")
        assert events[-1].last_event_id == ids[-1]
        app.publish("a", "live" + query)
        assert [one.data for one in read_until(stream, "live" + query)] == ["live" + query]
        ids.append(stream.parser.last_event_id)
        stream.close()


def before_read(monkeypatch: pytest.MonkeyPatch, count: int, act: Callable[[], object]) -> None:
    """Do something before the history is read for the so-manieth time."""
    entries = RedisStore.entries
    reads = [0]

    def read(self: RedisStore, *wanted: Any) -> Any:
        reads[0] += 1
        if reads[0] == count:
            act()
        return entries(self, *wanted)

    monkeypatch.setattr(RedisStore, "entries", read)


@pytest.mark.parametrize("query", ["last_event_id=earliest", "since=1h"])
def test_what_is_trimmed_during_a_replay_of_all(
    make: Make,
    small_steps: None,
    valkey: Valkey,
    monkeypatch: pytest.MonkeyPatch,
    query: str,
) -> None:
    """Who asks for what is kept isn't told of what was gone before, in any channel and step, but
    of what goes while it is replayed.
    """
    app = make()
    ids = publish(app, "a", 40)
    publish(app, "b", 10)
    valkey.cli("XTRIM", "pushline:s:a", "MAXLEN", 30)
    valkey.cli("XTRIM", "pushline:s:b", "MAXLEN", 3)
    stream = app.stream(f"channel=a&channel=b&{query}")
    events = read_until(stream, "9")
    assert len(events) == 33
    assert {event.type for event in events} == {"message"}
    stream.close()
    gevent.sleep(service.resume.SHARED_SECONDS + 0.1)
    before_read(monkeypatch, 4, lambda: valkey.cli("XTRIM", "pushline:s:a", "MAXLEN", 3))
    stream = app.stream(f"channel=a&channel=b&{query}")
    events = stream.events(1)
    while events[-1].type != "$reset":
        events += stream.events(1)
    check_reset(events[-1], "trimmed", "a")
    assert events[0].last_event_id == ids[10]
    stream.close()


def test_a_loss_during_a_replay_of_all(
    make: Make, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When Redis no longer vouches for what a replay has begun with, its client is told."""
    app = make()
    ids = publish(app, "a", 60)

    def lose() -> None:
        app.service.broker._follower.born = EventId.parse(ids[-1])

    before_read(monkeypatch, 3, lose)
    stream = app.stream("channel=a&last_event_id=earliest")
    events = stream.events(1)
    while events[-1].type != "$reset":
        events += stream.events(1)
    check_reset(events[-1], "lost", "a")
    assert 5 < len(events) < 40
    stream.close()


def test_what_was_forgotten_is_not_replayed(make: Make) -> None:
    """After DELETE no worker replays a channel's events from memory, open streams go on, and who
    had not got all of it is told.
    """
    apps = [make(), make()]
    keepers = [app.stream("channel=a") for app in apps]
    for keeper in keepers:
        keeper.read()
    ids = publish(apps[0], "a", 5)
    for keeper in keepers:
        keeper.events(5)
    assert apps[0].client.delete("/channels/a").status_code == 204
    apps[0].publish("a", "new")
    for keeper, app in zip(keepers, apps, strict=True):
        assert [event.data for event in keeper.events(1)] == ["new"]
        stream = resume(app, ids[1])
        check_reset(stream.events(1)[0], "trimmed", "a")
        stream.close()
        stream = resume(app, ids[4])
        assert [event.data for event in stream.events(1)] == ["new"]
        stream.close()
        stream = app.stream("channel=a&last_event_id=earliest")
        assert [event.data for event in stream.events(1)] == ["new"]
        stream.close()
        keeper.close()


def test_what_was_forgotten_during_an_outage(app: Application, valkey: Valkey) -> None:
    """A worker that didn't hear of it forgets it with its next link to Redis."""
    keeper = app.stream("channel=a")
    keeper.read()
    ids = publish(app, "a", 5)
    keeper.events(5)
    valkey.cli("DEL", "pushline:s:a")
    valkey.cli("HSET", "pushline:t:a", "forgotten", ids[-1])
    valkey.cli("CLIENT", "KILL", "TYPE", "pubsub")
    until(lambda: not app.service.broker.ready, 5, "the link is lost")
    until(lambda: app.service.broker.ready, 5, "it is connected again")
    stream = resume(app, ids[1])
    check_reset(stream.events(1)[0], "expired", "a")
    stream.close()
    keeper.close()


def test_an_end_that_is_still_to_come(app: Application, valkey: Valkey) -> None:
    """A worker that has seen a channel end, and not yet that it ended once more, waits for that."""
    first = app.client.post("/channels/a/end").get_json()["id"]
    stream = app.stream("channel=a")
    stream.read_to_end()
    ahead = EventId(EventId.parse(first).milliseconds + 60_000, 0)
    valkey.cli("HSET", "pushline:t:a", "ended", str(ahead))
    stream = resume(app, first)
    assert stream.response.status_code == 200
    app.publish("b", "x")
    stream.close()


def test_an_emptied_redis(app: Application, valkey: Valkey) -> None:
    """After FLUSHALL open streams get one `$reset`, and so does each that comes back."""
    stream = app.stream("channel=a")
    stream.read()
    cursor = app.publish("a", "x")
    stream.events(1)
    valkey.cli("FLUSHALL")
    app.publish("a", "y")
    events: list[ParsedEvent] = []
    while not events or events[-1].type != "$reset":
        events += stream.events(1)
    check_reset(events[-1], "lost", "a")
    stream.close()
    until(lambda: app.service.broker.ready, 5, "it is connected again")
    again = resume(app, cursor)
    check_reset(again.events(1)[0], "lost", "a")
    again.close()


# ------------------------------------------------------------------------------ private events

RIGHTS: list[tuple[str, str, list[str]]] = [
    ("a", "", ["1", "4"]),
    ("a", "a", ["1", "2", "3", "4", "5"]),
    ("b", "", ["6"]),
    ("b", "b", ["3", "6"]),
    ("ab", "", ["1", "4", "6"]),
    ("ab", "a", ["1", "2", "3", "4", "5", "6"]),
    ("ab", "b", ["1", "3", "4", "6"]),
    ("ab", "ab", ["1", "2", "3", "4", "5", "6"]),
]
"""The channels of a stream, those that it has a grant for, and what it gets of these events:"""

EVENTS: list[tuple[str, str, bool]] = [
    ("a", "1", False),
    ("a", "2", True),
    ("a,b", "3", True),
    ("a", "4", False),
    ("a", "5", True),
    ("b", "6", False),
]
"""Channels, data, and whether it is private."""


@pytest.fixture
def node(valkey: Valkey) -> Iterator[StreamNode]:
    """A worker without HTTP."""
    node = StreamNode(valkey.url)
    node.wait_ready()
    yield node
    node.close()


def publish_events(node: StreamNode) -> None:
    """Publish EVENTS."""
    for channels, data, private in EVENTS:
        node.publish(channels, data, private=private)


def with_rights(channels: str, granted: str) -> Selection:
    """What a stream with these rights selects; every letter is a channel."""
    return Selection(tuple(channels), granted=frozenset(granted))


@pytest.mark.parametrize("way", ["live", "memory", "redis", "small steps", "earliest", "last"])
def test_private_events_want_a_grant(
    node: StreamNode, way: str, request: pytest.FixtureRequest
) -> None:
    """Each stream gets the private events that it has a grant for, and all public ones, each once
    and in order, whichever way they come; of what it may not see it is told nothing.
    """
    if way == "small steps":
        request.getfixturevalue("small_steps")
    (cursor,) = node.publish("a,b", "0")
    start = {"live": None, "earliest": Start(proving=False), "last": Start(last=9, proving=False)}
    if way in ("live", "memory"):
        node.broker.follow(["a", "b"])
    selections = [with_rights(channels, granted) for channels, granted, _ in RIGHTS]
    if way == "live":
        readers = [node.open(selection) for selection in selections]
        publish_events(node)
    else:
        publish_events(node)
        node.broker.sync()
        readers = [node.open(one, start.get(way, Start(cursor))) for one in selections]
    node.publish("a,b", "public")
    node.publish("a", "private", private=True)
    node.broker.sync()
    for (_, granted, data), reader in zip(RIGHTS, readers, strict=True):
        first = ["0"] if way in ("earliest", "last") else []
        last = ["private"] if "a" in granted else []
        assert reader.told() == [*first, *data, "public", *last]


@pytest.mark.parametrize("followed", [True, False])
def test_shared_replays_have_their_own_rights(
    node: StreamNode,
    small_steps: None,
    valkey: Valkey,
    monkeypatch: pytest.MonkeyPatch,
    followed: bool,
) -> None:
    """Streams with the same cursor share what is read from Redis, whatever their rights, and none
    gets an event by way of another one's.
    """
    monkeypatch.setattr(service.resume, "SHARED_SECONDS", 60)
    if followed:
        node.broker.follow(["a"])
    (cursor,) = node.publish("a", "first")
    for number in range(60):
        node.publish("a", str(number), private=number % 3 == 0)
    node.broker.sync()
    valkey.cli("CONFIG", "RESETSTAT")

    def come_back(number: int) -> None:
        granted = "a" if number % 2 else ""
        wanted = [str(n) for n in range(60) if granted or n % 3]
        node.open(with_rights("a", granted), Start(cursor)).expect(*wanted)

    gevent.joinall([gevent.spawn(come_back, number) for number in range(50)], raise_error=True)
    assert calls(valkey)["xrange"] <= 30


def test_only_private_events_were_missed(node: StreamNode, small_steps: None) -> None:
    """A stream that may see nothing of what it has missed is complete, and gets what comes."""
    (cursor,) = node.publish("a", "0")
    for number in range(30):
        node.publish("a", str(number), private=True)
    reader = node.open(with_rights("a", ""), Start(cursor))
    node.publish("a", "live")
    reader.expect("live")


def test_a_lost_private_event_is_a_loss_for_all(node: StreamNode, valkey: Valkey) -> None:
    """Where nobody can say what is missing, all are told, with or without a grant; afterwards
    each gets what it may see.
    """
    (cursor,) = node.publish("a", "0")
    for number in range(5):
        node.publish("a", str(number), private=True)
    valkey.cli("XTRIM", NAMES.history("a"), "MAXLEN", 2)
    readers = [node.open(with_rights("a", granted), Start(cursor)) for granted in ("", "a")]
    node.publish("a", "secret", private=True)
    node.publish("a", "live")
    readers[0].expect("$reset", "live")
    readers[1].expect("$reset", "secret", "live")


def test_private_events_of_an_outage(node: StreamNode, valkey: Valkey) -> None:
    """What is read after a lost connection is as private as what comes at once."""
    readers = [node.open(with_rights("a", granted)) for granted in ("", "a")]
    valkey.cli("CLIENT", "KILL", "TYPE", "pubsub")
    node.publish("a", "1", private=True)
    node.publish("a", "2")
    readers[0].expect("2")
    readers[1].expect("1", "2")


# ------------------------------------------------------------------------------ storms and failures


def calls(valkey: Valkey) -> dict[str, int]:
    """How often each command was run since the statistics were reset."""
    stats = valkey.cli("INFO", "commandstats").decode()
    return {name: int(count) for name, count in re.findall(r"cmdstat_(\w+):calls=(\d+)", stats)}


def test_a_storm_is_served_from_memory(app: Application, valkey: Valkey) -> None:
    """Many clients that come back to a worker that follows their channel cost Redis nothing."""
    keeper = app.stream("channel=a")
    keeper.read()
    ids = publish(app, "a", 100)
    until(lambda: str(app.service.hub.position) == ids[-1], 3, "all has been delivered")
    valkey.cli("CONFIG", "RESETSTAT")
    for number in range(300):
        stream = resume(app, ids[number % 99])
        assert stream.events(99 - number % 99)[-1].data == "99"
        stream.close()
    asked = calls(valkey)
    assert "xrange" not in asked
    assert asked.get("evalsha", 0) < 10, "more than the idle check's marks"
    keeper.close()


def test_a_storm_shares_its_reads(
    make: Make, small_steps: None, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many clients with the same cursor share each read that memory can't answer."""
    monkeypatch.setattr(service.resume, "SHARED_SECONDS", 60)
    app = make()
    ids = publish(app, "a", 60)
    valkey.cli("CONFIG", "RESETSTAT")

    def come_back() -> None:
        stream = resume(app, ids[0])
        assert [event.data for event in read_until(stream, "59")] == [str(n) for n in range(1, 60)]
        stream.close()

    gevent.joinall([gevent.spawn(come_back) for _ in range(100)], raise_error=True)
    assert calls(valkey)["xrange"] <= 30


def failing(error: Exception) -> Callable[..., None]:
    """Something that fails."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_when_redis_fails_before_the_head(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay that can't begin is refused softly: the client comes back with its cursor."""
    cursor, _ = publish(app, "a", 2)
    monkeypatch.setattr(RedisStore, "entries", failing(OutcomeUnknown()))
    response = app.client.get(
        "/stream?channel=a", headers={"Accept": "text/event-stream", "Last-Event-ID": cursor}
    )
    assert response.status_code == 200
    assert re.fullmatch(rb"retry: \d+\n\n", response.data)
    assert app.service.limits._total == 0
    followed = {name: one.streams for name, one in app.service.broker._following.items()}
    assert followed == {CONTROL: 1, "a": 0}


def test_when_redis_fails_in_the_middle(
    make: Make, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay that breaks off ends the stream cleanly after what it has; coming back with the
    last id goes on there.
    """
    app = make()
    ids = publish(app, "a", 60)
    pages = Replay.pages
    reads = [0]

    def fail_later(self: Replay) -> object:
        reads[0] += 1
        if reads[0] == 3:
            raise RedisDown
        return pages(self)

    monkeypatch.setattr(Replay, "pages", fail_later)
    stream = resume(app, ids[0])
    stream.read_to_end()
    last = stream.parser.last_event_id
    assert last in ids
    assert ids.index(last) > 5
    assert app.service.hub.streams == app.service.limits._total == 0
    gevent.sleep(service.resume.SHARED_SECONDS)
    stream = resume(app, last)
    assert read_until(stream, "59")[0].last_event_id == ids[ids.index(last) + 1]
    stream.close()


def test_a_cursor_that_cannot_be_waited_for(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nobody can tell whether a cursor is known, the stream is refused, not reset."""
    app.publish("a", "x")
    monkeypatch.setattr(Broker, "sync", failing(NotFollowing()))
    ahead = EventId(time.time_ns() // 1_000_000 + 10_000, 0)
    response = app.client.get("/stream?channel=a", headers={"Last-Event-ID": str(ahead)})
    assert response.status_code == 503
    assert app.service.limits._total == 0


def test_a_client_that_leaves_in_the_middle(make: Make, small_steps: None) -> None:
    """A replay whose client has left stops and gives everything back."""
    app = make()
    ids = publish(app, "a", 300)
    stream = resume(app, ids[0])
    stream.read()
    stream.read()
    stream.close()
    until(lambda: app.service.limits._total == 0, 2, "the stream is given back")
    assert app.service.hub.streams == 0


def test_a_drain_ends_a_stream_that_resumes(
    make: Make, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay stops with the step at which the worker begins to drain, and the stream ends
    cleanly with its `retry:`; its client goes on elsewhere.
    """
    app = make()
    ids = publish(app, "a", 60)
    before_read(monkeypatch, 3, lambda: app.service.drain(0))
    stream = resume(app, ids[0])
    stream.read_to_end()
    assert 5 < ids.index(stream.parser.last_event_id) < 30
    assert stream.data.count(b"retry:") == 2
    assert app.service.limits._total == 0


@pytest.mark.parametrize("how", ["cut", "drained"])
def test_a_reset_comes_before_what_is_above_the_hole(
    make: Make, small_steps: None, valkey: Valkey, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Of two channels one has lost events, and the replay of the other is broken off: whoever comes
    back with the last id that it got has been told, or is told then.
    """
    app = make()
    ids = publish(app, "a", 10)
    publish(app, "b", 60)
    valkey.cli("XTRIM", "pushline:s:a", "MAXLEN", 3)
    if how == "drained":
        before_read(monkeypatch, 3, lambda: app.service.drain(0))
    stream = resume(app, ids[1], "channel=a&channel=b")
    events = stream.events(8)
    stream.close()
    assert events[0].type == "$reset"
    assert events[0].last_event_id == ""
    other = make()
    again = resume(other, ids[1], "channel=a&channel=b")
    other.publish("b", "live")
    events = read_until(again, "live")
    check_reset(events[0], "trimmed", "a")
    assert [event.data for event in events[1:-1]] == [str(n) for n in range(60)]
    again.close()


def test_a_client_without_a_cursor_gets_one(app: Application) -> None:
    """Who asks for the last events where there are none yet has a position all the same: coming
    back with it brings everything since.
    """
    keeper = app.stream("channel=a")
    keeper.read()
    stream = app.stream("channel=a&last=2")
    while not stream.parser.last_event_id:
        stream.read()
    stream.close()
    publish(app, "a", 10)
    again = resume(app, stream.parser.last_event_id, "channel=a&last=2")
    assert [event.data for event in read_until(again, "9")] == [str(n) for n in range(10)]
    keeper.close()
    again.close()


def test_the_last_events_are_those_of_now(app: Application) -> None:
    """`last=N` gives N events also to a client that comes right after another one."""
    keeper = app.stream("channel=a")
    keeper.read()
    for first in (0, 5):
        publish(app, "a", 5, first=first)
        keeper.events(5)
        stream = app.stream("channel=a&last=1")
        assert [event.data for event in stream.events(1)] == [str(first + 4)]
        stream.close()
    keeper.close()


def test_a_replay_that_just_fits_has_no_limit(make: Make, small_steps: None) -> None:
    """A client that has got everything isn't told of a limit, though it was at it."""
    app = make(replay_events=20)
    ids = publish(app, "a", 22)
    stream = resume(app, ids[0])
    app.publish("a", "live")
    events = read_until(stream, "live")
    assert [event.data for event in events] == [*map(str, range(1, 22)), "live"]
    stream.close()


def test_expired_events_of_an_outage_are_not_replayed(
    app: Application, monkeypatch: pytest.MonkeyPatch, valkey: Valkey
) -> None:
    """An event that came by a catch-up and has outlived its `ttl` is left out of later replays."""
    stream = app.stream("channel=a")
    stream.read()
    first = app.publish("a", "1")
    stream.events(1)
    catch_up = Follower._catch_up

    def publish_before(self: Follower, link: Any) -> Any:
        app.publish("a", "short", "?ttl=1")
        return catch_up(self, link)

    monkeypatch.setattr(Follower, "_catch_up", publish_before)
    valkey.cli("CLIENT", "KILL", "TYPE", "pubsub")
    assert stream.events(1)[0].data == "short"
    gevent.sleep(1.1)
    again = resume(app, first)
    app.publish("a", "live")
    assert [event.data for event in read_until(again, "live")] == ["live"]
    stream.close()
    again.close()


@pytest.mark.parametrize("kept", [True, False])
def test_an_end_is_told_whatever_is_asked_for(make: Make, kept: bool) -> None:
    """A client of a finished channel gets `$end` with its id, also when it asked for less, or the
    history has expired; coming back with that id it is told to stay away.
    """
    app = make() if kept else make(history_seconds=1)
    app.publish("a", "x")
    last = app.client.post("/channels/a/end").get_json()["id"]
    gevent.sleep(1.2)
    for query in ("channel=a&since=1s", "channel=a&last=1", "channel=a"):
        stream = app.stream(query)
        stream.read_to_end()
        assert stream.data.count(b"$end") == 1, query
        assert stream.parser.last_event_id == last
    assert resume(app, last).response.status_code == 204


def test_an_end_after_a_loss(make: Make, valkey: Valkey) -> None:
    """A channel that was emptied and then finished ends its open streams, with `$end`."""
    app = make(heartbeat_seconds=0.5)
    stream = app.stream("channel=a")
    stream.read()
    app.publish("a", "x")
    stream.events(1)
    valkey.cli("FLUSHALL")
    with MessagePublisher("a", valkey.url) as publisher:
        last = publisher.end()
    stream.read_to_end()
    assert stream.data.count(b"event: $reset") == 1
    assert stream.parser.last_event_id == last
    assert b"event: $end" in stream.data


def test_a_forgotten_end_ends_nothing(app: Application) -> None:
    """A stream of a channel whose end was forgotten, in a service where nothing else happens, stays
    open when its other channel is finished.
    """
    app.publish("x", "1")
    app.client.post("/channels/x/end")
    stream = app.stream("channel=x&channel=y")
    stream.read()
    app.client.delete("/channels/x")
    app.client.post("/channels/y/end")
    assert [event.type for event in stream.events(1)] == ["$end"]
    app.publish("x", "2")
    assert [event.data for event in stream.events(1)] == ["2"]
    stream.close()


def test_large_events_are_read_a_few_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large events are, no read brings many megabytes, over many channels neither."""
    app = make(max_connections_per_ip=0)
    channels = [f"c{n}" for n in range(8)]
    for _ in range(6):
        for channel in channels:
            app.publish(channel, "x" * 250_000)
    brought: list[int] = []
    entries = RedisStore.entries
    entries_before = RedisStore.entries_before

    def counted(read: Any) -> Any:
        def run(*arguments: Any) -> Any:
            pages = read(*arguments)
            brought.append(sum(len(frame.data) for page in pages for frame in page))
            return pages

        return run

    monkeypatch.setattr(RedisStore, "entries", counted(entries))
    monkeypatch.setattr(RedisStore, "entries_before", counted(entries_before))
    named = "&".join(f"channel={channel}" for channel in channels)
    for query, count in (("last_event_id=earliest", 33), ("last=10", 10)):
        stream = app.stream(f"{named}&{query}")
        assert len(stream.events(count)) >= count
        stream.close()
    assert brought
    assert max(brought) <= 8 * service.history.FIRST_EVENTS * 250_100


def test_others_run_between_the_batches_of_a_replay(app: Application) -> None:
    """Compressing a batch takes a while: none follows another at once, however fast its client."""
    happened: list[str] = []

    class Outlet:
        outbox_bytes = 1

        def write(self, fd: int, data: bytes | memoryview, /) -> int:
            happened.append("written")
            return len(data)

        want_room = release = staticmethod(lambda _: None)

    def run() -> None:
        while True:
            happened.append("others")
            gevent.sleep(0)

    others = gevent.spawn(run)
    subscriber = Subscriber(Outlet(), 5, Selection(("a",)), "", encoding=GZIP)
    app.service.resumer._write(subscriber, [Batch(b"x" * 60_000) for _ in range(5)])
    others.kill()
    assert happened.count("written") == 5
    assert ("written", "written") not in itertools.pairwise(happened)
