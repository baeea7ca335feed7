"""Streams by channel over all workers: right, also when Redis loses them, and cheap."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import gevent
import pytest

from service.audience import Audience
from service.errors import RedisError
from service.event import EventId
from service.redis_store import RedisStore
from service.stream_reports import StreamReports
from tests.live_server import until
from tests.nodes import NAMES, make_store
from tests.stalls import burn, stalls
from tests.valkey import Valkey

MANY = 20_000
STALL_SECONDS = 0.005
"""What no part of a worker may take at a stretch."""


@pytest.fixture
def stores() -> Iterator[Callable[[str], RedisStore]]:
    """Make stores that are closed in the end."""
    made: list[RedisStore] = []

    def make(url: str) -> RedisStore:
        made.append(make_store(url))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def make(stores: Callable[[str], RedisStore], valkey: Valkey) -> Callable[[], Audience]:
    """Make workers' audiences on the emptied Valkey."""
    return lambda: Audience(StreamReports(stores(valkey.url).pool, NAMES))


def every(_: str) -> bool:
    """Any channel may be seen."""
    return True


def test_streams_of_all_workers_count(make: Callable[[], Audience]) -> None:
    """Each worker's streams count once it has reported, and no longer once they have ended."""
    one, two = make(), make()
    one.opened(["a", "b"])
    two.opened(["a"])
    one.report()
    two.report()
    assert (one.streams("a"), two.streams("b"), two.streams("c")) == (2, 1, 0)
    one.closed(["a", "b"])
    one.report()
    assert (one.streams("a"), two.streams("b")) == (1, 0)
    two.withdraw()
    assert one.streams("a") == 0


def test_channels_are_listed_by_streams(make: Callable[[], Audience]) -> None:
    """Those with most streams come first, equal ones by name; totals are of all that are shown."""
    one, two = make(), make()
    for name, streams in (("b", 2), ("a", 2), ("c", 3), ("hidden", 9), ("d", 1)):
        for worker in (one, two)[: 1 + (name == "c")]:
            for _ in range(streams):
                worker.opened([name])
    one.report()
    two.report()
    top, channels, streams = one.list(3, lambda name: name != "hidden")
    assert top == [("c", 6), ("a", 2), ("b", 2)]
    assert (channels, streams) == (4, 11)


def test_a_listing_is_shared_for_a_moment(
    make: Callable[[], Audience], valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for all channels again at once makes Redis no more work, and hears news soon."""
    monkeypatch.setattr("service.shared_reading.KEPT_SECONDS", 60)
    one = make()
    one.opened(["a"])
    one.report()
    assert one.list(10, every).streams == 1
    one.opened(["a"])
    one.report()
    before = valkey.cli("INFO", "commandstats").count(b"hscan")
    listings = [gevent.spawn(one.list, 10, every) for _ in range(5)]
    assert [greenlet.get().streams for greenlet in listings] == [1] * 5
    assert valkey.cli("INFO", "commandstats").count(b"hscan") == before
    one._totals.forget()
    monkeypatch.setattr("service.shared_reading.KEPT_SECONDS", 0.1)
    assert one.list(10, every).streams == 2
    one.opened(["a"])
    one.report()
    gevent.sleep(0.1)
    assert one.list(10, every).streams == 3


@pytest.mark.parametrize("loss", ["FLUSHALL", "expired", "an older state", "no report"])
def test_what_redis_has_lost_is_told_anew(
    make: Callable[[], Audience], valkey: Valkey, loss: str
) -> None:
    """Emptied, or failed over to what was before: the next report sets it right."""
    one, two = make(), make()
    for name in ("a", "b"):
        one.opened([name])
        two.opened([name])
    one.report()
    name = one.worker
    state = valkey.cli("DUMP", NAMES.report(name))
    one.closed(["b"])
    one.report()
    two.report()
    if loss == "FLUSHALL":
        valkey.cli("FLUSHALL")
        two.report()
    elif loss == "an older state":
        valkey.cli("RESTORE", NAMES.report(name), 4000, state, "REPLACE")
        assert one.streams("b") == 2
    else:
        valkey.cli("DEL", NAMES.report(name))
    one.report()
    assert one.worker not in ("", name)
    assert (one.streams("a"), one.streams("b")) == (2, 1)
    one.report()
    assert (one.streams("a"), one.streams("b")) == (2, 1)


def test_a_lost_redis_is_survived(stores: Callable[[str], RedisStore], own_valkey: Valkey) -> None:
    """What can't be told stays to be told; a Redis that comes back empty gets everything."""
    one = Audience(StreamReports(stores(own_valkey.url).pool, NAMES))
    one.opened(["a"])
    one.report()
    own_valkey.kill()
    one.opened(["a", "b"])
    with pytest.raises(RedisError):
        one.report()
    one.opened(["b"])
    own_valkey.start()
    one.report()
    assert (one.streams("a"), one.streams("b")) == (2, 2)


def test_an_unanswered_write_is_no_loss(make: Callable[[], Audience]) -> None:
    """A write whose answer got lost may have been done or not: either way the report goes on."""
    for done in (True, False):
        one = make()
        one.opened(["a"])
        one.report()
        name, write = one.worker, one._reports.write

        def fail(*arguments: object, done: bool = done, write: object = write) -> int:
            if done:
                write(*arguments)  # type: ignore[operator]  # it is the real one
            raise RedisError

        one._reports.write = fail  # type: ignore[assignment, method-assign]
        one.opened(["b"])
        with pytest.raises(RedisError):
            one.report()
        one._reports.write = write  # type: ignore[method-assign]
        one.report()
        assert one.worker == name, "nothing was begun anew"
        assert (one.streams("a"), one.streams("b")) == (1, 1)
        one.withdraw()


def test_a_redis_that_hangs_costs_all_who_wait_one_attempt(
    stores: Callable[[str], RedisStore], own_valkey: Valkey
) -> None:
    """The requests for a list don't queue up, each with its own time limit."""
    one = Audience(StreamReports(stores(own_valkey.url).pool, NAMES))
    one.report()
    own_valkey.stop_process()
    try:
        listings = [gevent.spawn(one.list, 10, every) for _ in range(50)]
        gevent.joinall(listings, timeout=4)  # in a queue they would wait for 5 s
    finally:
        own_valkey.cont()
    assert all(isinstance(listing.exception, RedisError) for listing in listings)


def test_the_services_own_channels_do_not_count(make: Callable[[], Audience]) -> None:
    """Nobody is told that somebody watches: `$sys` is on no list, and in no sum."""
    one = make()
    one.opened(["$sys"])
    one.opened(["a"])
    one.report()
    assert one.list(10, every) == ([("a", 1)], 1, 1)
    one.closed(["$sys"])
    one.closed(["a"])
    one.report()
    one._totals.forget()
    assert one.list(10, every) == ([], 0, 0)


def test_a_slow_choice_holds_nobody_up(make: Callable[[], Audience]) -> None:
    """A credential may have a thousand patterns: others run by the clock, not by channels."""
    one = make()
    one.opened([f"channel-{number}" for number in range(100)])
    one.report()

    def shown(_: str) -> bool:
        burn(0.0005)
        return True

    assert max(stalls(lambda: one.list(10, shown))) < STALL_SECONDS


def test_a_failover_begins_a_new_report(make: Callable[[], Audience]) -> None:
    """Though nothing of the report is missing: something else may be that hangs on its name."""
    born = EventId(1, 0)
    one = make()
    one._born = lambda: born
    one._began = born
    one.opened(["a"])
    one.report()
    name = one.worker
    one.report()
    assert one.worker == name
    born = EventId(2, 0)
    one.report()
    assert one.worker not in ("", name)
    assert one.streams("a") == 1
    name = one.worker
    one.report()
    assert one.worker == name


@pytest.mark.parametrize("refused", ["+@all -hset", "+@all"])
def test_a_lasting_refusal_is_told_once(
    stores: Callable[[str], RedisStore],
    own_valkey: Valkey,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refused: str,
) -> None:
    """An ACL without a command that reports want makes one warning, however often it is tried."""
    monkeypatch.setattr("service.audience.TICK_SECONDS", 0.02)
    own_valkey.cli("ACL", "SETUSER", "default", *refused.split())
    one = Audience(StreamReports(stores(own_valkey.url).pool, NAMES))
    caplog.set_level(logging.WARNING)
    greenlet = gevent.spawn(one.run)
    if "-hset" in refused:
        until(lambda: "the streams can't be reported" in caplog.text, 10, "it is told")
    gevent.sleep(0.3)
    greenlet.kill()
    warnings = [text for text in caplog.messages if "the streams can't be reported" in text]
    assert len(warnings) == ("-hset" in refused)


def tell_all(audience: Audience) -> None:
    """Have it report everything."""
    audience._tally.tell_anew()
    audience.report()


def list_all(audience: Audience) -> None:
    """Have it read and list all channels."""
    audience._totals.forget()
    assert audience.list(100, every)[1:] == (MANY, MANY)


def received_bytes(valkey: Valkey) -> int:
    """How many bytes the server has been sent so far."""
    found: dict[str, str] = dict(
        line.split(":", 1) for line in valkey.cli("INFO", "stats").decode().split() if ":" in line
    )
    return int(found["total_net_input_bytes"])


def test_twenty_thousand_channels_cost_next_to_nothing(
    make: Callable[[], Audience], valkey: Valkey
) -> None:
    """With as many streams on channels of their own, no report or listing holds the worker up for
    5 ms at a stretch, and what has not changed is not sent again.
    """
    one = make()
    for number in range(MANY):
        one.opened([f"channel-{number}"])
    sent, cpu = received_bytes(valkey), time.thread_time()
    one.report()
    first, all_bytes = time.thread_time() - cpu, received_bytes(valkey) - sent
    sent, cpu = received_bytes(valkey), time.thread_time()
    for _ in range(10):
        one.report()
    idle, idle_bytes = (time.thread_time() - cpu) / 10, (received_bytes(valkey) - sent) / 10
    reporting = max(stalls(lambda: tell_all(one)))
    listing = max(stalls(lambda: list_all(one)))
    print(
        f"{MANY} channels: all of them {first * 1000:.0f} ms of CPU and {all_bytes / 1e6:.2f} MB,"
        f" then {idle * 1e6:.0f} us and {idle_bytes:.0f} bytes a second; longest stall of a report"
        f" {reporting * 1000:.1f} ms, of a listing {listing * 1000:.1f} ms"
    )
    assert all_bytes < 2e6
    assert idle_bytes < 1000
    assert max(reporting, listing) < STALL_SECONDS
