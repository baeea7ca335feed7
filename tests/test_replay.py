"""Cursor in, missing events out, and whether anything is lost: on a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gevent
import pytest

import service.history
from service.event import FIRST_ID, EventId
from service.redis_store import RedisStore
from service.replay import Replay
from service.reset import Loss
from tests.nodes import NAMES, end, make_store, publish
from tests.sse_client import event_data, parse_stream
from tests.valkey import Valkey

HOUR = 3600
FAR = EventId(10**14, 0)


@pytest.fixture
def store(valkey: Valkey) -> Iterator[RedisStore]:
    """A store on the shared Valkey, whose data set is born."""
    store = make_store(valkey.url)
    store.open(FIRST_ID)
    yield store
    store.close()


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read fetches three events of a channel."""
    monkeypatch.setattr(service.history, "PAGE_EVENTS", 3)


class Reading:
    """A replay that was read to its end."""

    def __init__(
        self,
        store: RedisStore,
        cursors: Mapping[str, EventId],
        *,
        until: EventId = FAR,
        tail_seconds: int = 10 * HOUR,
        **options: Any,
    ) -> None:
        born = store.open(FIRST_ID).born
        self.replay = Replay(store, cursors, born, lambda _: tail_seconds, until=until, **options)
        self.pages = list(self.replay.pages())
        frames = [pair for page in self.pages for pair in page]
        self.channels = [channel for channel, _ in frames]
        self.ids = [frame.id for _, frame in frames]
        self.data = event_data(parse_stream(b"".join(frame.data for _, frame in frames)))

    @property
    def lost(self) -> dict[str, Loss]:
        """The channels that aren't complete."""
        return self.replay.lost


# ------------------------------------------------------------------------------------ complete


def test_everything_after_the_cursor(store: RedisStore) -> None:
    """What is stored after the cursor comes, what is at or before it doesn't."""
    ids = publish(store, "a", *map(str, range(10)))
    for number in range(10):
        reading = Reading(store, {"a": ids[number]})
        assert reading.ids == ids[number + 1 :]
        assert reading.lost == {}
    assert Reading(store, {"a": store.open(FIRST_ID).born}).data == [str(n) for n in range(10)]


def test_a_cursor_of_another_channel(store: RedisStore) -> None:
    """One cursor is good for any set of channels: it need not be an id of theirs."""
    ids = [publish(store, "ab"[number % 2], str(number))[0] for number in range(10)]
    (elsewhere,) = publish(store, "c", "x")
    (last,) = publish(store, "a", "10")
    reading = Reading(store, dict.fromkeys("ab", ids[4]))
    assert reading.ids == [*ids[5:], last]
    assert Reading(store, dict.fromkeys("ab", elsewhere)).ids == [last]
    assert reading.lost == {}


def test_channels_are_merged_in_order(store: RedisStore, small_pages: None) -> None:
    """Over pages of several channels, one of them much longer, all comes in the order of ids."""
    born = store.open(FIRST_ID).born
    ids = []
    for number in range(60):
        channel = "b" if number in (0, 30, 31, 59) else "a"
        ids += publish(store, channel, str(number))
    reading = Reading(store, {"a": born, "b": born, "silent": born})
    assert reading.ids == ids
    assert len(reading.pages) > 15
    assert max(map(len, reading.pages)) <= 6
    assert reading.lost == {}


def test_cursors_may_differ(store: RedisStore, small_pages: None) -> None:
    """Each channel goes on from its own cursor, as after a lost link."""
    a = publish(store, "a", *map(str, range(8)))
    b = publish(store, "b", *map(str, range(8)))
    reading = Reading(store, {"a": a[5], "b": b[1]})
    assert reading.ids == a[6:] + b[2:]


def test_an_event_of_several_channels(store: RedisStore, small_pages: None) -> None:
    """It comes once for each of them, side by side, also across pages."""
    born = store.open(FIRST_ID).born
    ids = publish(store, "a,b", *map(str, range(10)))
    reading = Reading(store, {"a": born, "b": born})
    assert reading.ids == [one for event_id in ids for one in (event_id, event_id)]
    assert reading.channels == ["a", "b"] * 10


def test_nothing_above_the_bound(store: RedisStore, small_pages: None) -> None:
    """What is above `until` is left out and missed by nobody, wherever the bound falls."""
    ids = publish(store, "a", *map(str, range(10)))
    for place in range(1, 10):
        reading = Reading(store, {"a": ids[0]}, until=ids[place])
        assert reading.ids == ids[1 : place + 1]
        assert reading.lost == {}


def test_no_channels_no_events(store: RedisStore) -> None:
    """Nothing is asked for, nothing comes."""
    assert Reading(store, {}).pages == []


def test_events_published_meanwhile(store: RedisStore, small_pages: None) -> None:
    """Publishing during a replay makes no channel look incomplete."""
    born = store.open(FIRST_ID).born
    ids = publish(store, "a", *map(str, range(10)))
    replay = Replay(store, {"a": born}, born, lambda _: HOUR, until=ids[-1])
    got = []
    for page in replay.pages():
        got += [frame.id for _, frame in page]
        publish(store, "a", "later")
    assert got == ids
    assert replay.lost == {}


def test_expired_events_are_skipped(store: RedisStore) -> None:
    """What has outlived its `ttl` doesn't come, and the chain over it stays whole."""
    (first,) = publish(store, "a", "1")
    publish(store, "a", "short", ttl_seconds=1)
    publish(store, "a", "long", ttl_seconds=60)
    assert Reading(store, {"a": first}).data == ["short", "long"]
    gevent.sleep(1.1)
    reading = Reading(store, {"a": first})
    assert reading.data == ["long"]
    assert reading.lost == {}


def test_finished_channels_are_named(store: RedisStore) -> None:
    """A replay knows which of its channels are finished, and where all of them end."""
    (first,) = publish(store, "a", "1")
    last = end(store, "a")
    replay = Reading(store, {"a": first, "b": first}).replay
    assert replay.ended == {"a": last}
    assert replay.tails["a"] == last
    assert replay.lost == {}


# -------------------------------------------------------------------------------------- lost


def test_a_cursor_from_before_the_data_set(store: RedisStore, valkey: Valkey) -> None:
    """Before `born` nothing is vouched for; other channels of the same replay are complete."""
    (seen,) = publish(store, "a", "1")
    valkey.cli("FLUSHALL")
    born = store.open(seen).born
    (later,) = publish(store, "a", "2")
    reading = Reading(store, {"a": seen, "b": born})
    assert reading.lost == {"a": Loss.LOST}
    assert reading.ids == []
    assert Reading(store, {"a": born}).ids == [later]


@pytest.mark.parametrize("pages", [3, 500])
def test_a_trimmed_history(
    store: RedisStore, valkey: Valkey, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    """When the events right after the cursor are gone, the channel is lost and its oldest event
    named; a cursor that still has its successor is complete.
    """
    monkeypatch.setattr(service.history, "PAGE_EVENTS", pages)
    ids = publish(store, "a", *map(str, range(10)))
    other = publish(store, "b", "x")
    valkey.cli("XTRIM", NAMES.history("a"), "MAXLEN", 6)
    reading = Reading(store, {"a": ids[1], "b": ids[1]})
    assert reading.lost == {"a": Loss.TRIMMED}
    assert reading.replay.oldest == ids[4]
    assert reading.ids == other
    for place in (3, 4, 9):
        reading = Reading(store, {"a": ids[place]})
        assert reading.ids == ids[place + 1 :]
        assert reading.lost == {}


def test_a_hole_in_the_history(store: RedisStore, valkey: Valkey, small_pages: None) -> None:
    """An entry that is missing in the middle breaks the chain; what a page before it had is given,
    nothing after it.
    """
    ids = publish(store, "a", *map(str, range(10)))
    valkey.cli("XDEL", NAMES.history("a"), str(ids[6]))
    reading = Reading(store, {"a": ids[0]})
    assert reading.lost == {"a": Loss.LOST}
    assert reading.ids == ids[1:4]
    assert Reading(store, {"a": ids[6]}).ids == ids[7:]


def test_a_missing_last_event(store: RedisStore, valkey: Valkey) -> None:
    """When the history ends before the tail, its last events are gone."""
    ids = publish(store, "a", "1", "2", "3")
    valkey.cli("XDEL", NAMES.history("a"), str(ids[2]))
    assert Reading(store, {"a": ids[0]}).lost == {"a": Loss.EXPIRED}
    assert Reading(store, {"a": ids[2]}).lost == {}


def test_an_expired_history(store: RedisStore, valkey: Valkey) -> None:
    """A history that has expired is seen by its tail; a cursor at the tail has missed nothing."""
    ids = publish(store, "a", "1", "2")
    valkey.cli("DEL", NAMES.history("a"))
    reading = Reading(store, {"a": ids[0]})
    assert reading.lost == {"a": Loss.EXPIRED}
    assert reading.replay.oldest is None
    assert Reading(store, {"a": ids[1]}).lost == {}


def test_a_tail_that_is_missing(store: RedisStore, valkey: Valkey) -> None:
    """Without a tail a cursor is good from `born` on, or for as long as a tail lives."""
    ids = publish(store, "a", "1", "2")
    valkey.cli("DEL", NAMES.tail("a"))
    reading = Reading(store, {"a": ids[0]})
    assert reading.ids == ids[1:]
    assert reading.lost == {}
    valkey.cli("HSET", NAMES.clock, "born", "5-0")
    old = EventId(ids[0].milliseconds - 7_000_000, 0)
    assert Reading(store, {"b": old}, tail_seconds=2 * HOUR).lost == {}
    assert Reading(store, {"b": old}, tail_seconds=HOUR).lost == {"b": Loss.EXPIRED}


def test_what_is_kept_without_proof(store: RedisStore, valkey: Valkey, small_pages: None) -> None:
    """A replay that proves nothing gives all that is kept: what was gone before is no loss."""
    ids = publish(store, "a", *map(str, range(10)))
    gone = publish(store, "b", "x")
    valkey.cli("XTRIM", NAMES.history("a"), "MINID", str(ids[2]))
    valkey.cli("XDEL", NAMES.history("b"), str(gone[0]))
    reading = Reading(store, dict.fromkeys("ab", FIRST_ID), proving=False)
    assert reading.ids == ids[2:]
    assert reading.lost == {}


@pytest.mark.parametrize(("place", "loss"), [(5, Loss.LOST), (3, Loss.TRIMMED), (9, Loss.EXPIRED)])
def test_what_goes_missing_without_proof(
    store: RedisStore, valkey: Valkey, small_pages: None, place: int, loss: Loss
) -> None:
    """Once a channel's first event was read, also such a replay notices each one that is missing:
    inside a page, between two, and at the end.
    """
    ids = publish(store, "a", *map(str, range(10)))
    valkey.cli("XDEL", NAMES.history("a"), str(ids[place]))
    reading = Reading(store, {"a": FIRST_ID}, proving=False)
    assert reading.lost == {"a": loss}
    assert reading.ids == ids[: place // 3 * 3]


def test_a_channel_goes_on_where_it_was_left(store: RedisStore, valkey: Valkey) -> None:
    """Of channels that have started, the event after the cursor must be there; of others not."""
    (cursor,) = publish(store, "c", "x")
    for channel in ("a", "b"):
        publish(store, channel, *map(str, range(10)))
        valkey.cli("XTRIM", NAMES.history(channel), "MAXLEN", 5)
    reading = Reading(store, dict.fromkeys("ab", cursor), proving=False, started=frozenset({"a"}))
    assert reading.lost == {"a": Loss.TRIMMED}
    assert set(reading.channels) == {"b"}
