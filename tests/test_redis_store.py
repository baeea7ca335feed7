"""Publishing through publish.lua on a real Valkey, and what is said when it goes wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
import redis
import trustme

import service.redis_pool
import service.redis_store
from service.errors import (
    OutcomeUnknown,
    RedisChanged,
    RedisDown,
    RedisError,
    RedisPoolBusy,
    RedisRefused,
)
from service.event import FIRST_ID, Event, EventId
from service.frame import unpack
from service.publication import Publication
from service.publish_script import CALL_EVENTS
from service.redis_store import RedisStore
from tests.fault_proxy import FaultProxy
from tests.live_server import until
from tests.nodes import NAMES, make_store
from tests.valkey import Valkey, free_port

HELLO = Publication(Event("hello"), ("a",))
DAY = 86_400_000


@contextlib.contextmanager
def opened(url: str, *, connections: int = 2, tls_verify: bool = True) -> Iterator[RedisStore]:
    """A store that is closed afterwards."""
    store = make_store(url, connections=connections, tls_verify=tls_verify)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def store(valkey: Valkey) -> Iterator[RedisStore]:
    """A store on the shared Valkey."""
    with opened(valkey.url) as store:
        yield store


@pytest.fixture
def proxied(own_valkey: Valkey) -> Iterator[tuple[FaultProxy, RedisStore]]:
    """A store whose connections pass a proxy."""
    with (
        FaultProxy(("127.0.0.1", own_valkey.port)) as proxy,
        opened(f"redis://127.0.0.1:{proxy.port}", connections=1) as store,
    ):
        yield proxy, store


def url_of(proxy: FaultProxy, scheme: str = "redis") -> str:
    """Redis's address behind the proxy."""
    return f"{scheme}://127.0.0.1:{proxy.port}"


def clock(store: RedisStore) -> EventId:
    """The last id given out."""
    return store.open(FIRST_ID).id


def publish_one(store: RedisStore, floor: EventId = FIRST_ID) -> EventId:
    """Publish one event and return its id."""
    (receipt,) = store.publish([HELLO], floor)
    assert not receipt.replayed
    return receipt.id


# ------------------------------------------------------------------------------------------- ids


def test_ids_increase_over_all_channels(store: RedisStore) -> None:
    """Ids are times in milliseconds and increase strictly, whatever the channel."""
    before = time.time_ns() // 1_000_000
    ids = [
        receipt.id
        for n in range(20)
        for receipt in store.publish([Publication(Event(str(n)), (f"c{n % 3}",))] * 5, FIRST_ID)
    ]
    assert ids == sorted(set(ids))
    assert before - 1 <= ids[0].milliseconds <= ids[-1].milliseconds <= time.time() * 1000 + 1


def test_an_event_of_several_channels_has_one_id(store: RedisStore) -> None:
    """One event is one id, however many channels it goes to."""
    assert len(store.publish([Publication(Event("x"), ("a", "b", "c"))], FIRST_ID)) == 1


def test_ids_stay_above_the_floor(store: RedisStore) -> None:
    """An id is above what the caller has seen, also when the clock of Redis was lost or is late."""
    now = time.time_ns() // 1_000_000
    floor = EventId(now + 60_000, 7)
    first = publish_one(store, floor)
    assert first == EventId(now + 60_000, 8)
    assert publish_one(store) == EventId(now + 60_000, 9)
    assert publish_one(store, EventId(now + 60_000, 3)) == EventId(now + 60_000, 10)


def test_an_absurd_floor_is_ignored(store: RedisStore) -> None:
    """A floor more than a day ahead is a mistake and doesn't move the clock for everybody."""
    now = time.time_ns() // 1_000_000
    assert publish_one(store, EventId(now + DAY + 60_000, 0)).milliseconds < now + 60_000


def test_ids_never_go_back(store: RedisStore, valkey: Valkey) -> None:
    """When the machine's clock goes back, ids go on from the stored one."""
    ahead = time.time_ns() // 1_000_000 + 3_600_000
    valkey.cli("HSET", NAMES.clock, "id", f"{ahead}-41")
    assert publish_one(store) == EventId(ahead, 42)
    assert clock(store) == EventId(ahead, 42)


def test_large_sequences_stay_exact(store: RedisStore, valkey: Valkey) -> None:
    """Ids are not rounded on their way through Lua's numbers."""
    ahead = time.time_ns() // 1_000_000 + 3_600_000
    valkey.cli("HSET", NAMES.clock, "id", f"{ahead}-999999999998")
    assert str(publish_one(store)) == f"{ahead}-999999999999"


def test_the_clock_of_an_empty_redis(store: RedisStore) -> None:
    """Who connects first starts the clock, below every event's id; then it is the last id."""
    born = store.open(FIRST_ID).born
    assert clock(store) == born
    assert clock(store) < publish_one(store) == clock(store)
    assert store.open(FIRST_ID).born == born


# -------------------------------------------------------------------------------- many at once


def test_publications_keep_their_order(store: RedisStore, valkey: Valkey) -> None:
    """An array of events goes out in its order, with ids in the same order."""
    listener = redis.Redis.from_url(valkey.url).pubsub(ignore_subscribe_messages=True)
    listener.subscribe("p:a")
    assert listener.get_message(timeout=5) is None
    before = FIRST_ID
    receipts = store.publish([Publication(Event(f"<{n}>"), ("a",)) for n in range(100)], FIRST_ID)
    got = [listener.get_message(timeout=5) for _ in range(100)]
    listener.close()
    for number, (receipt, message) in enumerate(zip(receipts, got, strict=True)):
        assert message is not None
        frame = unpack(message["data"])
        assert frame.id == receipt.id > before
        assert frame.prev == (before if number else receipt.id), "born with the data set"
        assert f"<{number}>".encode() in frame.data
        before = receipt.id


def test_flushed_scripts_are_loaded_again(store: RedisStore, valkey: Valkey) -> None:
    """Somebody's SCRIPT FLUSH costs one round trip, and no event comes twice."""
    first = publish_one(store)
    valkey.cli("SCRIPT", "FLUSH")
    ids = [receipt.id for receipt in store.publish([HELLO, HELLO], FIRST_ID)]
    assert first < ids[0] < ids[1]
    assert clock(store) == ids[1]
    assert publish_one(store) > ids[1]


# ---------------------------------------------------------------------------- idempotency keys

KEYED = Publication(Event("x"), ("a",), key="k", credential="key:1")
Scope = tuple[str, tuple[str, ...], str]
"""A credential, channels and a key."""


@pytest.mark.parametrize(
    "other",
    [
        {"credential": "key:2"},
        {"credential": ""},
        {"credential": "key:1:a"},
        {"channels": ("a", "b")},
        {"key": "K"},
    ],
)
def test_idempotency_keys_do_not_meet(store: RedisStore, other: dict[str, object]) -> None:
    """A key belongs to its credential and its channels: the same one elsewhere is another, and
    neither replays nor conflicts, whatever was published under it.
    """
    (first,) = store.publish([KEYED], FIRST_ID)
    theirs = dataclasses.replace(KEYED, **{**other, "event": Event("y")})  # type: ignore[arg-type]
    (second,) = store.publish([theirs], FIRST_ID)
    assert second.id > first.id
    assert not second.replayed
    for publication, receipt in ((KEYED, first), (theirs, second)):
        (again,) = store.publish([publication], FIRST_ID)
        assert (again.id, again.replayed) == (receipt.id, True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("", ("a:b",), "c"), ("", ("a",), "b:c")),
        (("", ("a",), "b/c"), ("", ("a", "b"), "c")),
        (("", ("a",), "b,c"), ("", ("a", "b"), "c")),
        (("a", ("b",), "c"), ("", ("a:b",), "c")),
        (("a:b", ("c",), "d"), ("a", ("b:c",), "d")),
        (("key:1", ("a",), "k"), ("key:1:a", ("a",), "k")),
    ],
)
def test_parts_of_a_key_do_not_run_together(
    store: RedisStore,
    one: tuple[str, tuple[str, ...], str],
    other: tuple[str, tuple[str, ...], str],
) -> None:
    """Where a credential, channels and keys have the same letters in another division, they are
    others all the same.
    """
    receipts = [
        receipt
        for credential, channels, key in (one, other)
        for receipt in store.publish(
            [Publication(Event("x"), channels, key=key, credential=credential)], FIRST_ID
        )
    ]
    assert len({receipt.id for receipt in receipts}) == 2
    assert not any(receipt.replayed for receipt in receipts)


def test_credentials_stay_out_of_redis(store: RedisStore, valkey: Valkey) -> None:
    """Whatever names a credential, it doesn't stand in Redis, breaks no key, and is no error."""
    for credential in ("s3cret", "né \0\n*", "\ud800", "x" * 10_000):
        store.publish([dataclasses.replace(KEYED, credential=credential)], FIRST_ID)
    keys = [key for key in valkey.cli("KEYS", "*") if b"i:" in key]
    assert len(keys) == 4
    for key in keys:
        assert re.fullmatch(rb"p:i:[0-9a-f]{16}:a/k", key)


# -------------------------------------------------------------------------- where Redis can be


def test_a_unix_socket_and_a_password() -> None:
    """A unix:// URL works, and so does a password."""
    with Valkey(unix_socket=True) as server, opened(server.socket_url) as store:
        assert store.answers()
    with Valkey(password="s3cret") as server:
        with opened(server.url) as store:
            assert publish_one(store)
        with (
            opened(f"redis://:wrong@127.0.0.1:{server.port}") as store,
            pytest.raises(RedisDown),
        ):
            publish_one(store)


def test_tls_is_verified_unless_told_otherwise(valkey: Valkey, tmp_path: Path) -> None:
    """A self-signed rediss:// server is taken only with REDIS_TLS_VERIFY=0."""
    certificate = trustme.CA().issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    with FaultProxy(("127.0.0.1", valkey.port), tls=(chain, key)) as proxy:
        url = url_of(proxy, "rediss")
        with opened(url, tls_verify=False) as store:
            assert publish_one(store)
        with opened(url) as store, pytest.raises(RedisDown):
            publish_one(store)


# ---------------------------------------------------------------------------------- what fails


def test_redis_that_is_not_there() -> None:
    """Without Redis a publish fails at once, and says that nothing was published."""
    with opened(f"redis://127.0.0.1:{free_port()}") as store:
        started = time.monotonic()
        with pytest.raises(RedisDown) as raised:
            publish_one(store)
        assert time.monotonic() - started < 1
        assert not store.answers()
        assert (raised.value.status, raised.value.code) == (503, "redis_down")
        assert raised.value.published == ()


def test_redis_that_is_frozen(own_valkey: Valkey) -> None:
    """A frozen Redis fails a publish within 3 s: on a connection that stood, the outcome is
    unknown; on a new one nothing was published.
    """
    with opened(own_valkey.url) as standing, opened(own_valkey.url) as fresh:
        publish_one(standing)
        own_valkey.stop_process()
        started = time.monotonic()

        def attempt(store: RedisStore) -> tuple[type[Exception], float]:
            with pytest.raises(RedisError) as raised:
                publish_one(store)
            return raised.type, time.monotonic() - started

        attempts = [gevent.spawn(attempt, store) for store in (standing, fresh)]
        (kind, seconds), (other_kind, other_seconds) = (one.get() for one in attempts)
        own_valkey.cont()
        assert issubclass(kind, OutcomeUnknown)
        assert other_kind is RedisDown
        assert max(seconds, other_seconds) < 3


def test_an_unanswered_publish_is_not_repeated(proxied: tuple[FaultProxy, RedisStore]) -> None:
    """When the answer is lost the outcome is unknown, and nothing is published a second time."""
    proxy, store = proxied
    first = publish_one(store)
    proxy.swallow_replies(1.0, "rst")
    with pytest.raises(OutcomeUnknown) as raised:
        store.publish([HELLO], EventId(first.milliseconds + 50_000, 0))
    assert raised.value.code == "outcome_unknown"
    proxy.heal()
    assert clock(store) == EventId(first.milliseconds + 50_000, 1)


def test_a_connection_that_was_cut_is_replaced(proxied: tuple[FaultProxy, RedisStore]) -> None:
    """A connection that Redis closed while it was idle is noticed before it is used."""
    proxy, store = proxied
    publish_one(store)
    for how in ("fin", "rst"):
        assert proxy.cut(how) == 1
        gevent.sleep(0.05)
        assert publish_one(store)
    assert proxy.connections == 3


def test_a_restarted_redis_is_used_again(own_valkey: Valkey) -> None:
    """After a restart the scripts are loaded again, and ids go on above the floor."""
    with opened(own_valkey.url) as store:
        first = publish_one(store)
        own_valkey.kill()
        with pytest.raises(RedisError):
            publish_one(store)
        own_valkey.start()
        assert publish_one(store, first) > first


def test_a_busy_pool_is_bounded(proxied: tuple[FaultProxy, RedisStore]) -> None:
    """A publish waits only shortly for a free connection: the workers don't pile up requests."""
    proxy, store = proxied
    publish_one(store)
    proxy.freeze()
    hanging = gevent.spawn(store.answers)
    gevent.sleep(0.05)
    started = time.monotonic()
    with pytest.raises(RedisPoolBusy):
        publish_one(store)
    assert 0.3 < time.monotonic() - started < 3
    assert store.answers(), "a busy Redis is no dead one"
    assert hanging.get() is False


def test_a_read_only_replica(own_valkey: Valkey) -> None:
    """A replica refuses to write; the answer has its own code and nothing is published."""
    with opened(own_valkey.url) as store:
        publish_one(store)
        own_valkey.cli("REPLICAOF", "127.0.0.1", str(free_port()))
        with pytest.raises(RedisRefused) as raised:
            publish_one(store)
        assert (raised.value.status, raised.value.code) == (503, "redis_readonly")
        own_valkey.cli("REPLICAOF", "NO", "ONE")
        assert publish_one(store)


def test_a_full_redis(own_valkey: Valkey) -> None:
    """A Redis out of memory refuses before anything is sent out."""
    with opened(own_valkey.url) as store:
        own_valkey.cli("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(RedisRefused) as raised:
            publish_one(store)
        assert raised.value.code == "redis_out_of_memory"
        own_valkey.cli("CONFIG", "SET", "maxmemory", "0")
        assert own_valkey.cli("KEYS", "*") == []


@pytest.mark.parametrize("connected", [True, False])
def test_a_redis_that_runs_a_long_script(own_valkey: Valkey, connected: bool) -> None:
    """A Redis that is busy with somebody's script says so, on a new connection as well."""
    own_valkey.cli("CONFIG", "SET", "busy-reply-threshold", "50")
    with opened(own_valkey.url) as store:
        if connected:
            publish_one(store)
        endless = redis.Connection(port=own_valkey.port, protocol=2)
        endless.send_command("EVAL", "while true do end", 0)
        gevent.sleep(0.2)
        with pytest.raises(RedisRefused) as raised:
            publish_one(store)
        assert raised.value.code == "redis_busy"
        own_valkey.cli("SCRIPT", "KILL")
        endless.disconnect()
        until(store.answers, 5, "the script is ended")
        assert publish_one(store)


@pytest.mark.parametrize("connected", [True, False])
def test_a_redis_that_loads_its_data(own_valkey: Valkey, connected: bool) -> None:
    """A Redis that reads its data after a restart refuses with its own code."""
    own_valkey.cli("DEBUG", "POPULATE", "3000", "key", "5000")
    own_valkey.cli("CONFIG", "SET", "key-load-delay", "2000")
    own_valkey.cli("CONFIG", "SET", "loading-process-events-interval-bytes", "1024")
    with opened(own_valkey.url) as store:
        if connected:
            publish_one(store)
        loading = redis.Connection(port=own_valkey.port, protocol=2)
        loading.send_command("DEBUG", "RELOAD")

        def refused() -> str:
            try:
                publish_one(store)
            except RedisRefused as error:
                return error.code
            except RedisError:
                pass
            return ""

        assert until(refused, 5, "LOADING") == "redis_loading"
        own_valkey.cli("CONFIG", "SET", "key-load-delay", "0")
        loading.read_response()
        loading.disconnect()
        assert publish_one(store)


def test_what_went_out_before_a_failure_is_told(own_valkey: Valkey) -> None:
    """When one of several events is refused, the error names the ids of all others."""
    own_valkey.cli("ACL", "SETUSER", "some", "on", ">pw", "~*", "+@all", "resetchannels", "&p:ok")
    fine, forbidden = Publication(Event("x"), ("ok",)), Publication(Event("x"), ("not",))
    with opened(f"redis://some:pw@127.0.0.1:{own_valkey.port}") as store:
        with pytest.raises(RedisRefused) as raised:
            store.publish([fine, fine, forbidden, fine], FIRST_ID)
        assert raised.value.code == "redis_error"
        first, second, none, last = raised.value.published
        assert first is not None
        assert second is not None
        assert last is not None
        assert none is None
        assert EventId.parse(first) < EventId.parse(second) < EventId.parse(last)


def test_what_was_answered_before_a_cut_is_told(proxied: tuple[FaultProxy, RedisStore]) -> None:
    """When the connection breaks between answers, the ids that came are told."""
    proxy, store = proxied
    publish_one(store)
    proxy.dribble(8000, 5)  # the first of the calls, and its answers
    passed = proxy.passed[1]
    attempt = gevent.spawn(store.publish, [HELLO] * 200, FIRST_ID)
    until(lambda: proxy.passed[1] > passed + CALL_EVENTS * 20, 10, "the first call's answers")
    proxy.cut("fin")  # a reset would lose what has not been read yet
    with pytest.raises(OutcomeUnknown) as raised:
        attempt.get()
    assert 0 < sum(one is not None for one in raised.value.published) < 200
    assert len(raised.value.published) == 200


def test_an_interrupted_command_leaves_no_reply_behind(
    proxied: tuple[FaultProxy, RedisStore],
) -> None:
    """A greenlet that is killed while it waits doesn't leave its reply to the next command."""
    proxy, store = proxied
    publish_one(store)
    proxy.delay(0.15)
    waiting = gevent.spawn(store.open, FIRST_ID)
    gevent.sleep(0.05)
    waiting.kill()
    assert publish_one(store) == clock(store)


def test_keys_of_different_channels_never_meet(store: RedisStore) -> None:
    """Channel and key are kept apart, whatever characters they share."""
    events = [Publication(Event("x"), ("order",), key="42:paid")]
    events.append(Publication(Event("y"), ("order:42",), key="paid"))
    first, second = store.publish(events, FIRST_ID)
    assert first.id != second.id
    assert not second.replayed


def test_what_went_out_is_named_after_scripts_were_loaded(
    store: RedisStore, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the scripts were gone and the connection breaks while they are run again, `published`
    names the events that went out, each at its own place.
    """
    publish_one(store)
    valkey.cli("SCRIPT", "FLUSH")
    reply, count = service.redis_pool._reply, itertools.count()

    def break_off(connection: Any) -> Any:
        if next(count) == 3 + len(service.redis_store.SCRIPTS) + 2:
            raise OSError
        return reply(connection)

    monkeypatch.setattr(service.redis_pool, "_reply", break_off)
    events = [HELLO] * (2 * CALL_EVENTS + 1)
    with pytest.raises(OutcomeUnknown) as raised:
        store.publish(events, FIRST_ID)
    assert [one is not None for one in raised.value.published] == [True] * (len(events) - 1) + [
        False
    ]


def test_a_broken_read_is_no_fault(
    store: RedisStore, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that breaks off after some replies fails as Redis does, whatever these replies are."""
    publish_one(store)
    reply, count = service.redis_pool._reply, itertools.count()

    def break_off(connection: Any) -> Any:
        if next(count) == 1:
            raise OSError
        return reply(connection)

    monkeypatch.setattr(service.redis_pool, "_reply", break_off)
    with pytest.raises(RedisError):
        store.entries([(HELLO.channels[0], FIRST_ID)] * 2, 10)


def test_only_the_data_set_that_is_followed_takes_events(store: RedisStore) -> None:
    """A publish for a data set that was born at another id is refused, and stores nothing."""
    born = store.open(FIRST_ID).born
    store.publish([HELLO], FIRST_ID, born)
    with pytest.raises(RedisChanged) as raised:
        store.publish([HELLO], FIRST_ID, EventId(born.milliseconds, born.sequence + 1))
    assert (raised.value.status, raised.value.code) == (503, "redis_changed")
    (entries,) = store.entries([(HELLO.channels[0], FIRST_ID)], 10)
    assert len(entries) == 1


def test_renewed_connections(store: RedisStore, valkey: Valkey) -> None:
    """After `renew` no connection that was open before is used again, one in use neither."""
    publish_one(store)
    before = {line.split()[0] for line in valkey.cli("CLIENT", "LIST").decode().splitlines()}
    pool = store._pool
    busy = pool._connection()
    store.renew()
    pool._pool.release(busy)
    for _ in range(5):
        publish_one(store)
    after = valkey.cli("CLIENT", "LIST").decode().splitlines()
    assert sum(line.split()[0] not in before for line in after) >= 1


# ------------------------------------------------------------------------------------------ time


def test_the_clock_of_redis_is_known(valkey: Valkey) -> None:
    """From a connection or a mark on a store can tell what Redis's clock has shown at any moment,
    and never says more.
    """
    store = make_store(valkey.url)
    assert store.seconds_at(time.monotonic()) == -math.inf
    for learn in (lambda: store.open(FIRST_ID), lambda: store.send_mark("m", "token")):
        store._behind = math.inf
        learn()
        behind = []
        for _ in range(20):
            told = store.seconds_at(time.monotonic())
            seconds, microseconds = map(int, valkey.cli("TIME"))
            behind.append(seconds + microseconds / 1e6 - told)
        assert 0 < min(behind) < 0.5
    store.close()


def test_the_last_id_is_known(valkey: Valkey) -> None:
    """Nothing at first, then what was given out last."""
    store = make_store(valkey.url)
    assert store.clock() == FIRST_ID
    (receipt,) = store.publish([Publication(Event("x"), ("a",))], FIRST_ID)
    assert store.clock() == receipt.id
    store.close()


def test_a_command_is_sent_before_anybody_else_runs(store: RedisStore) -> None:
    """So that an upload reads its next lines while Redis works; redis-py's look at a pooled
    connection would take a turn of the loop.
    """
    store.publish([HELLO], FIRST_ID)
    told: list[str] = []
    (connection,) = [one for one in store._pool._pool.pool.queue if one is not None]
    send = connection.send_packed_command

    def noting(*args: Any, **more: Any) -> None:
        told.append("sent")
        send(*args, **more)

    def publish() -> None:
        told.append("started")
        store.publish([HELLO], FIRST_ID)

    connection.send_packed_command = noting
    greenlet = gevent.spawn(publish)
    while not told:
        gevent.sleep(0)
    assert told == ["started", "sent"]
    greenlet.get(timeout=3)
