"""publish.lua, init.lua and sync.lua on a real Valkey: what they store, promise and refuse."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import gevent
import pytest
import redis

from service.errors import ChannelEnded, IdempotencyConflict, RedisError, RedisRefused
from service.event import FIRST_ID, Event, EventId
from service.frame import END, unpack
from service.publication import Publication, Receipt
from service.redis_store import RedisStore
from service.retention import TAIL_SECONDS, Retention, RetentionRules
from tests.fault_proxy import FaultProxy
from tests.live_server import until
from tests.nodes import NAMES, end, make_rules, make_store, publish
from tests.valkey import Valkey

HOUR = 3600
KEYED = Publication(Event("hello", "tick"), ("a", "b"), key="k")


@pytest.fixture
def store(valkey: Valkey) -> Iterator[RedisStore]:
    """A store on the shared Valkey, whose channels keep 1000 events for an hour."""
    rules = make_rules(rules=[("none", 0, HOUR), ("few", 2, 60)])
    store = make_store(valkey.url, rules=rules)
    yield store
    store.close()


def history(store: RedisStore, channel: str) -> list[tuple[EventId | None, EventId | None]]:
    """The ids and the links of what a channel keeps."""
    (entries,) = store.entries([(channel, FIRST_ID)], 1000)
    return [(one.id, one.prev) for one in entries]


def publish_one(store: RedisStore, publication: Publication) -> Receipt:
    """Publish one event."""
    (receipt,) = store.publish([publication], FIRST_ID)
    return receipt


# ------------------------------------------------------------------------------------ the chain


def test_every_entry_names_the_one_before(store: RedisStore, valkey: Valkey) -> None:
    """Each stored event carries the id of the stored one before it on its channel; the first one
    what the data set vouches for.
    """
    born = store.open(FIRST_ID).born
    first, second = publish(store, "a", "1", "2")
    (other,) = publish(store, "a,b", "3")
    (third,) = publish(store, "b", "4")
    assert history(store, "a") == [(first, born), (second, first), (other, second)]
    assert history(store, "b") == [(other, born), (third, other)]
    assert [tail.id for tail in store.tails(["a", "b", "c"])] == [other, third, None]


def test_what_is_stored_is_the_finished_frame(store: RedisStore) -> None:
    """An entry is what was sent: the frame with its id, and the event's name."""
    (event_id,) = publish(store, "a", "x\ny")
    publish_one(store, Publication(Event("z", "tick", 2000), ("a",)))
    (entries,) = store.entries([("a", FIRST_ID)], 10)
    assert entries[0].data == b"id: %b\ndata: x\ndata: y\n\n" % str(event_id).encode()
    assert [one.name for one in entries] == ["message", "tick"]
    assert entries[1].data.startswith(b"event: tick\nretry: 2000\nid: ")


def test_live_only_events_leave_no_trace(store: RedisStore, valkey: Valkey) -> None:
    """An event with history=0, or of a channel that keeps none, moves neither tail nor chain."""
    (first,) = publish(store, "a", "1")
    (live,) = publish(store, "a", "2", stored=False)
    (last,) = publish(store, "a", "3")
    assert first < live < last
    assert [entry[0] for entry in history(store, "a")] == [first, last]
    assert history(store, "a")[1][1] == first
    publish(store, "none", "x")
    assert valkey.cli("EXISTS", NAMES.history("none"), NAMES.tail("none")) == 0


def test_a_tail_that_is_missing_is_read_from_the_history(store: RedisStore, valkey: Valkey) -> None:
    """When the tail key is gone and the history is there, the chain holds."""
    _, second = publish(store, "a", "1", "2")
    valkey.cli("DEL", NAMES.tail("a"))
    (third,) = publish(store, "a", "3")
    assert history(store, "a")[-1] == (third, second)


def test_a_history_that_has_expired_leaves_the_tail(store: RedisStore, valkey: Valkey) -> None:
    """After the history the tail still names the last event, so that its loss can be seen."""
    (first,) = publish(store, "a", "1")
    valkey.cli("DEL", NAMES.history("a"))
    (second,) = publish(store, "a", "2")
    assert history(store, "a") == [(second, first)]


def test_without_both_time_proves_how_far_back_nothing_is(
    store: RedisStore, valkey: Valkey
) -> None:
    """Without tail and history there was no event for as long as a tail lives, or since the data
    set was born.
    """
    now = time.time_ns() // 1_000_000
    valkey.cli("HSET", NAMES.clock, "born", "5-0", "id", f"{now}-0")
    (first,) = publish(store, "a", "1")
    ((_, prev),) = history(store, "a")
    assert prev is not None
    age = first.milliseconds - prev.milliseconds
    assert age == pytest.approx(1000 * (HOUR + TAIL_SECONDS), abs=2000)
    valkey.cli("HSET", NAMES.clock, "born", f"{now}-3")
    publish(store, "b", "1")
    assert history(store, "b")[0][1] == EventId(now, 3)


def test_keys_live_as_long_as_they_should(store: RedisStore, valkey: Valkey) -> None:
    """History and tail expire after the last event, the tail a day later; each one renews both."""
    publish(store, "a", "1")
    assert HOUR - 5 < valkey.cli("TTL", NAMES.history("a")) <= HOUR
    assert HOUR + TAIL_SECONDS - 5 < valkey.cli("TTL", NAMES.tail("a")) <= HOUR + TAIL_SECONDS
    valkey.cli("EXPIRE", NAMES.history("a"), 10)
    valkey.cli("EXPIRE", NAMES.tail("a"), 10)
    publish(store, "a", "2")
    assert HOUR - 5 < valkey.cli("TTL", NAMES.history("a")) <= HOUR
    assert HOUR + TAIL_SECONDS - 5 < valkey.cli("TTL", NAMES.tail("a")) <= HOUR + TAIL_SECONDS


def test_a_history_is_trimmed(store: RedisStore, valkey: Valkey) -> None:
    """A channel keeps about its number of events: at least that, and a node of the stream more."""
    publish(store, "few", *map(str, range(500)))
    assert 2 <= valkey.cli("XLEN", NAMES.history("few")) <= 2 + 100
    assert 55 < valkey.cli("TTL", NAMES.history("few")) <= 60


def test_a_lifetime_is_a_deadline_in_the_entry(store: RedisStore) -> None:
    """`ttl` is kept as the time at which a replay begins to skip the event."""
    before = time.time_ns() // 1_000_000
    publish(store, "a", "x", ttl_seconds=30)
    publish(store, "a", "y")
    (entries,) = store.entries([("a", FIRST_ID)], 10)
    assert entries[0].deadline == pytest.approx(before + 30_000, abs=2000)
    assert entries[1].deadline is None


# ------------------------------------------------------------------------------ private events


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("ttl_seconds", [None, 30])
@pytest.mark.parametrize("channels", [("a",), ("a", "b.c:d"), ("none", "a")])
def test_what_is_sent_says_all_there_is_to_know(
    store: RedisStore,
    valkey: Valkey,
    private: bool,
    stored: bool,
    ttl_seconds: int | None,
    channels: tuple[str, ...],
) -> None:
    """Each copy of an event says whether it is stored and after which one, until when, whether
    more copies follow, and to whose channels it is private; the history says the same.
    """
    before = {one: publish(store, one, "before")[0] for one in channels}
    connection = redis.Redis.from_url(valkey.url)
    with connection.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(*map(NAMES.pubsub, channels))
        assert [pubsub.get_message(timeout=5) for _ in channels] == [None for _ in channels]
        now = time.time_ns() // 1_000_000
        options = {"stored": stored, "ttl_seconds": ttl_seconds, "private": private}
        (event_id,) = publish(store, ",".join(channels), "x", **options)
        frames = [unpack((pubsub.get_message(timeout=5) or {})["data"]) for _ in channels]
    connection.close()
    allowed = frozenset(channels) if private else None
    for place, (channel, frame) in enumerate(zip(channels, frames, strict=True)):
        kept = stored and channel != "none"
        assert (frame.id, frame.name, frame.private) == (event_id, "message", allowed)
        assert frame.prev == (before[channel] if kept else None)
        assert frame.more == (place + 1 < len(channels))
        assert frame.deadline == (
            pytest.approx(now + 30_000, abs=2000) if kept and ttl_seconds else None
        )
        (entries,) = store.entries([(channel, before[channel])], 10)
        assert len(entries) == kept
        for entry in entries:
            assert (entry.private, entry.data) == (allowed, frame.data)
            assert (entry.prev, entry.deadline) == (frame.prev, frame.deadline)


def test_private_events_are_links_of_the_chain(store: RedisStore) -> None:
    """Private events stand in the history and the chain as all others do, so that who may not see
    them can still prove that it has the rest.
    """
    (first,) = publish(store, "a", "1")
    (secret,) = publish(store, "a", "2", private=True)
    (last,) = publish(store, "a", "3")
    assert history(store, "a")[1:] == [(secret, first), (last, secret)]
    assert store.tails(["a"])[0].id == last
    (entries,) = store.entries_before([("a", EventId(last.milliseconds, last.sequence + 1))], 2)
    assert [entry.private for entry in entries] == [None, {"a"}]


def test_entries_of_an_older_version_are_public(store: RedisStore, valkey: Valkey) -> None:
    """What was stored before there were private events is read as before."""
    fields = ("prev", "5-0", "name", "", "frame", "id: 6-0\ndata: x\n\n", "deadline", "")
    valkey.cli("XADD", NAMES.history("a"), "6-0", *fields)
    (entries,) = store.entries([("a", FIRST_ID)], 10)
    assert [(entry.id, entry.private) for entry in entries] == [(EventId(6, 0), None)]


def test_private_counts_under_a_key(store: RedisStore) -> None:
    """A repeat that would make a private event public is another event, and refused."""
    private = dataclasses.replace(KEYED, private=True)
    publish_one(store, private)
    assert publish_one(store, private).replayed
    with pytest.raises(IdempotencyConflict):
        publish_one(store, KEYED)


# --------------------------------------------------------------------------------- idempotency


def test_a_key_publishes_once(store: RedisStore, valkey: Valkey) -> None:
    """The same event under the same key is not published again, and has the same id."""
    first = publish_one(store, KEYED)
    again = publish_one(store, KEYED)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.id == first.id
    assert len(history(store, "a")) == len(history(store, "b")) == 1
    record = NAMES.idempotency("", ("a", "b"), "k")
    assert 295 < valkey.cli("TTL", record) <= 300
    valkey.cli("DEL", record)
    assert publish_one(store, KEYED).id > first.id


def test_another_event_under_the_key_is_a_conflict(store: RedisStore) -> None:
    """A key stands for one event: another one under it is refused, and nothing goes out."""
    publish_one(store, KEYED)
    with pytest.raises(IdempotencyConflict) as raised:
        publish_one(store, dataclasses.replace(KEYED, event=Event("other", "tick")))
    assert (raised.value.status, raised.value.code) == (409, "idempotency_conflict")
    assert len(history(store, "a")) == 1


def test_keys_belong_to_their_channels(store: RedisStore) -> None:
    """The same key on other channels, or another key, is another event."""
    ids = {
        publish_one(store, KEYED).id,
        publish_one(store, dataclasses.replace(KEYED, channels=("a",))).id,
        publish_one(store, dataclasses.replace(KEYED, key="other")).id,
    }
    assert len(ids) == 3


def test_an_array_is_keyed_item_by_item(store: RedisStore) -> None:
    """When one of several events conflicts, the ids of those that went out are told."""
    publish_one(store, KEYED)
    fine = Publication(Event("x"), ("a",))
    other = dataclasses.replace(KEYED, event=Event("other"))
    with pytest.raises(IdempotencyConflict) as raised:
        store.publish([fine, other, KEYED], FIRST_ID)
    first, conflicting, replayed = raised.value.published
    assert first is not None
    assert conflicting is None
    assert replayed is not None


@pytest.mark.parametrize("events", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_swallowed_replies_are_made_good_by_keys(own_valkey: Valkey, events: int) -> None:
    """Publishers whose answers are lost repeat with their key, and every event is there once."""
    with FaultProxy(("127.0.0.1", own_valkey.port), seed=3) as proxy:
        rules = RetentionRules(Retention(20_000, 3600))
        url = f"redis://127.0.0.1:{proxy.port}"
        store = make_store(url, connections=4, rules=rules)
        unknown = [0]

        def publish_surely(number: int) -> EventId:
            publication = Publication(Event(str(number)), ("a",), key=f"k{number}")
            while True:
                try:
                    return publish_one(store, publication).id
                except RedisError:
                    unknown[0] += 1

        def publish_some(start: int) -> list[EventId]:
            return [publish_surely(number) for number in range(start, events, 4)]

        publish_surely(-1)
        proxy.swallow_replies(0.1, "rst")
        publishers = [gevent.spawn(publish_some, start) for start in range(4)]
        ids = [event_id for one in publishers for event_id in one.get()]
        proxy.heal()
        store.close()
    assert unknown[0] > events / 30
    assert own_valkey.cli("XLEN", NAMES.history("a")) == events + 1
    assert len(set(ids)) == events


# --------------------------------------------------------------------------- finished channels


def test_a_finished_channel_takes_nothing(store: RedisStore) -> None:
    """After `$end` a channel refuses every event, stored or not, and names itself."""
    end(store, "b")
    for stored in (True, False):
        with pytest.raises(ChannelEnded, match="b is finished") as raised:
            publish(store, "a,b", "x", stored=stored)
        assert (raised.value.status, raised.value.code) == (409, "channel_ended")
    assert history(store, "a") == [], "the whole publish is refused"
    with pytest.raises(ChannelEnded):
        end(store, "b")
    assert publish(store, "a", "x")


def test_an_end_is_a_stored_event(store: RedisStore, valkey: Valkey) -> None:
    """`$end` is in the history and the chain, also where nothing else is kept, and its id is with
    the tail; both expire.
    """
    (first,) = publish(store, "a", "1")
    last = end(store, "a", "none")
    assert history(store, "a")[-1] == (last, first)
    (entries,) = store.entries([("none", FIRST_ID)], 10)
    assert [one.name for one in entries] == [END]
    for tail in store.tails(["a", "none"]):
        assert (tail.id, tail.ended) == (last, last)
    assert valkey.cli("TTL", NAMES.tail("none")) > 0
    assert valkey.cli("TTL", NAMES.history("none")) > 0


def test_a_forgotten_channel_begins_anew(store: RedisStore) -> None:
    """Forgetting removes the history and the end; the channel takes events again. The id of its
    last event stays, so that the chain shows what is gone.
    """
    publish(store, "a", "1")
    last = end(store, "a")
    (elsewhere,) = publish(store, "b", "x")
    assert store.forget("a") is True
    assert store.forget("a") is False
    assert history(store, "a") == []
    assert store.tails(["a"])[0] == (last, None, elsewhere)
    (new,) = publish(store, "a", "2")
    assert history(store, "a") == [(new, last)]
    assert store.forget("unknown") is False
    assert store.tails(["unknown"])[0] == (None, None, None)


def test_a_key_of_a_finished_channel_still_answers(store: RedisStore) -> None:
    """A repeat of what was published before the end has its receipt, and isn't refused."""
    first = publish_one(store, KEYED)
    end(store, "a")
    assert publish_one(store, KEYED) == Receipt(first.id, replayed=True)


# --------------------------------------------------------------------------- clock, born, identity


def test_a_publisher_starts_an_emptied_data_set(store: RedisStore, valkey: Valkey) -> None:
    """On an empty data set the first event is where completeness begins: its `prev` is its own
    id, so that whoever followed before sees the gap; who connects then takes it as it is.
    """
    (first,) = publish(store, "a", "1")
    assert history(store, "a") == [(first, first)]
    assert store.open(FIRST_ID) == (first, first)
    valkey.cli("FLUSHALL")
    (second,) = publish(store, "a", "2")
    assert second > first
    assert store.open(FIRST_ID).born == second


def test_a_floor_lifts_the_clock(store: RedisStore) -> None:
    """A client that reconnects lifts the clock to the highest id it has seen, unless that is a
    mistake; it never lowers it.
    """
    now = time.time_ns() // 1_000_000
    store.open(FIRST_ID)
    lifted = store.open(EventId(now + 5000, 3))
    assert lifted.id == EventId(now + 5000, 4)
    assert store.open(EventId(now, 0)) == lifted
    assert store.open(EventId(now + 2 * 86_400_000, 0)) == lifted
    assert publish(store, "a", "x") == [EventId(now + 5000, 5)]


def test_a_clock_that_went_back_has_lost_something(store: RedisStore) -> None:
    """Who has seen an id above the clock proves that events are gone: `born` is a new id, by a
    reader that connects as by one that publishes; a floor that is a mistake proves nothing.
    """
    now = time.time_ns() // 1_000_000
    (seen,) = publish(store, "a", "x")
    born = store.open(seen).born
    assert store.open(EventId(now + 5000, 0)).born > EventId(now + 5000, 0)
    later = EventId(now + 9000, 0)
    (receipt,) = store.publish([Publication(Event("y"), ("a",))], later)
    born = store.open(receipt.id).born
    assert born == receipt.id > later
    mistake = EventId(now + 3 * 86_400_000, 0)
    store.publish([Publication(Event("z"), ("a",))], mistake)
    assert store.open(mistake).born == born


def test_a_new_data_set_is_born_above_the_floor(store: RedisStore, valkey: Valkey) -> None:
    """`born` of an emptied data set is above everything that its reader has seen."""
    ahead = EventId(time.time_ns() // 1_000_000 + 5000, 3)
    clock = store.open(ahead)
    assert clock.born == clock.id > ahead


def test_the_same_redis_stays_born_when_it_was(store: RedisStore) -> None:
    """Connecting again and again changes nothing."""
    born = store.open(FIRST_ID).born
    (last,) = publish(store, "a", "x")
    assert [store.open(last) for _ in range(3)] == [(last, born)] * 3


@pytest.mark.parametrize("aof", [True, False])
def test_a_restart_loses_nothing_only_with_a_durable_log(aof: bool) -> None:
    """After a restart with `appendfsync always` the old events still count; otherwise the data
    set is born anew, as the last writes may be gone.
    """
    options = {} if aof else {"appendonly": "yes", "appendfsync": "everysec"}
    with Valkey(aof=aof, options=options) as server:
        store = make_store(server.url)
        born = store.open(FIRST_ID).born
        (last,) = publish(store, "a", "x")
        if not aof:
            gevent.sleep(1.2)  # on disk by now, but nobody can know
        server.kill()
        with pytest.raises(RedisError):
            publish(store, "a", "y")
        server.start()
        clock = store.open(last)
        assert clock.born == born if aof else clock.born > last
        assert store.open(last).born == clock.born
        store.close()


def test_a_promoted_replica_is_not_trusted() -> None:
    """A replica that was promoted may lack its master's last writes, however durable it is."""
    with (
        Valkey(aof=True, options={"repl-diskless-sync-delay": "0"}) as master,
        Valkey(aof=True) as replica,
    ):
        store, other = make_store(master.url), make_store(replica.url)
        born = store.open(FIRST_ID).born
        (last,) = publish(store, "a", "x")
        replica.cli("REPLICAOF", "127.0.0.1", str(master.port))
        tail = NAMES.tail("a")
        until(lambda: replica.cli("EXISTS", tail), 10, "the replica has it all")
        with pytest.raises(RedisRefused):
            other.open(last)
        replica.cli("REPLICAOF", "NO", "ONE")
        assert other.open(last).born > last > born
        store.close()
        other.close()


def test_a_redis_that_hides_its_configuration_is_not_trusted(own_valkey: Valkey) -> None:
    """Where CONFIG isn't allowed, a restart counts as one that may have lost writes; where INFO
    isn't, there is a clear refusal.
    """
    own_valkey.cli("ACL", "SETUSER", "some", "on", ">pw", "~*", "&*", "+@all", "-config")
    own_valkey.cli("ACL", "SETUSER", "blind", "on", ">pw", "~*", "&*", "+@all", "-info")
    store = make_store(f"redis://some:pw@127.0.0.1:{own_valkey.port}")
    born = store.open(FIRST_ID).born
    assert store.open(FIRST_ID).born == born
    own_valkey.cli("HSET", NAMES.clock, "identity", "another")
    assert store.open(FIRST_ID).born > born
    store.close()
    blind = make_store(f"redis://blind:pw@127.0.0.1:{own_valkey.port}")
    with pytest.raises(RedisRefused, match=r"(?i)no permissions"):
        blind.open(FIRST_ID)
    blind.close()


def test_marks_name_the_clock(store: RedisStore, valkey: Valkey) -> None:
    """A mark is its token, the last id and `born`; an emptied data set has neither."""

    connection = redis.Redis.from_url(valkey.url)
    with connection.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(NAMES.pubsub("$m"))
        assert pubsub.get_message(timeout=5) is None
        store.send_mark("$m", "first")
        born = store.open(FIRST_ID).born
        (last,) = publish(store, "a", "x")
        store.send_mark("$m", "second")
        got = [pubsub.get_message(timeout=5) for _ in range(2)]
    connection.close()
    data = [message["data"].decode() for message in got if message]
    assert data == ["first 0-0 0-0", f"second {last} {born}"]
