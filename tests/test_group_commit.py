"""Publishes at the same time share round trips; each has an outcome of its own."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import gevent
import pytest
from gevent.event import Event as Gate

import service.group_commit
from service.errors import ChannelEnded, OutcomeUnknown, RedisPoolBusy
from service.event import Event, EventId
from service.group_commit import WAIT_SECONDS, GroupCommit
from service.publication import Publication, Receipt
from service.publish_script import Outcome

SECONDS = 5.0


class Redis:
    """Takes events in round trips, each of which waits for `let_go`."""

    def __init__(self) -> None:
        self.trips: list[list[str]] = []
        self.let_go = Gate()

    def publish_each(self, publications: Sequence[Publication]) -> list[Outcome]:
        """One round trip; events called `ended` are refused."""
        texts = [one.event.data for one in publications]
        self.trips.append(texts)
        self.let_go.wait()
        return [
            ChannelEnded() if text == "ended" else Receipt(EventId(len(self.trips), place))
            for place, text in enumerate(texts)
        ]


def event(text: str) -> Publication:
    """A publication of `text`."""
    return Publication(Event(text), ("a",))


def spawn(group: GroupCommit, *texts: str) -> list[gevent.Greenlet[..., Outcome]]:
    """Publish each of `texts` in a greenlet of its own, and let all of them begin."""
    greenlets = [gevent.spawn(group.publish, event(text)) for text in texts]
    gevent.sleep(0.01)
    return greenlets


def test_one_alone_goes_out_at_once() -> None:
    """Nothing waits for company."""
    redis = Redis()
    redis.let_go.set()
    group = GroupCommit(redis.publish_each)
    assert group.publish(event("1")) == Receipt(EventId(1, 0))
    assert group.publish(event("2")) == Receipt(EventId(2, 0))


def test_what_comes_meanwhile_shares_the_next_round_trip() -> None:
    """All that is published during one round trip goes out with the next, in order."""
    redis = Redis()
    group = GroupCommit(redis.publish_each)
    first = spawn(group, "1")
    others = spawn(group, "2", "3", "4")
    redis.let_go.set()
    gevent.joinall(first + others, timeout=SECONDS, raise_error=True)
    assert redis.trips == [["1"], ["2", "3", "4"]]
    assert [one.value for one in others] == [Receipt(EventId(2, n)) for n in range(3)]


def test_each_has_its_own_outcome() -> None:
    """That one is refused is nothing to the others."""
    redis = Redis()
    group = GroupCommit(redis.publish_each)
    greenlets = spawn(group, "1", "ended", "3")
    redis.let_go.set()
    gevent.joinall(greenlets, timeout=SECONDS, raise_error=True)
    assert redis.trips == [["1", "ended", "3"]]
    assert [type(one.value) for one in greenlets] == [Receipt, ChannelEnded, Receipt]


def test_nobody_waits_for_a_redis_that_has_stopped() -> None:
    """Who gets no turn is told that nothing was published, and it isn't published later."""
    redis = Redis()
    group = GroupCommit(redis.publish_each)
    (first,) = spawn(group, "1")
    with pytest.raises(RedisPoolBusy), gevent.Timeout(WAIT_SECONDS + 1):
        group.publish(event("2"))
    redis.let_go.set()
    assert first.get(timeout=SECONDS) == Receipt(EventId(1, 0))
    group.publish(event("3"))
    assert redis.trips == [["1"], ["3"]]


def test_who_is_on_its_way_is_waited_for() -> None:
    """An event that is in a round trip is never told to be unpublished, however long it takes."""
    redis = Redis()
    group = GroupCommit(redis.publish_each)
    greenlets = spawn(group, "1", "2")
    gevent.sleep(WAIT_SECONDS + 0.1)
    redis.let_go.set()
    gevent.joinall(greenlets, timeout=SECONDS, raise_error=True)
    assert all(isinstance(one.value, Receipt) for one in greenlets)


def test_a_killed_leader_leaves_nobody_waiting() -> None:
    """Those who share its round trip don't know their outcome; those behind go on."""
    redis = Redis()
    group = GroupCommit(redis.publish_each)
    leader, sharing = spawn(group, "1", "2")
    behind = spawn(group, "3", "4")
    leader.kill()
    redis.let_go.set()
    gevent.joinall([sharing, *behind], timeout=SECONDS, raise_error=True)
    assert isinstance(sharing.value, OutcomeUnknown)
    assert redis.trips == [["1", "2"], ["3", "4"]]
    assert all(isinstance(one.value, Receipt) for one in behind)


@pytest.mark.parametrize("seconds", [0, 0.01], ids=["chosen", "waiting"])
def test_one_killed_while_it_waits_leaves_nobody_waiting(seconds: float) -> None:
    """Also when it has just been chosen to make the next round trip."""
    redis = Redis()
    group = GroupCommit(redis.publish_each)
    (first,) = spawn(group, "1")
    next_leader, other = spawn(group, "2", "3")
    if seconds:
        next_leader.kill()
    redis.let_go.set()
    first.join(SECONDS)
    next_leader.kill()
    other.join(SECONDS)
    assert isinstance(other.value, Receipt)
    assert redis.trips[-1][-1] == "3"
    assert isinstance(group.publish(event("4")), Receipt)


def test_one_killed_before_it_sends_publishes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that dies before the round trip takes nobody with it."""
    slow = SimpleNamespace(sleep=lambda _: gevent.sleep(0.05))
    monkeypatch.setattr(service.group_commit, "gevent", slow)
    redis = Redis()
    redis.let_go.set()
    group = GroupCommit(redis.publish_each)
    leader, follower = spawn(group, "1", "2")  # the first one lets others come along
    leader.kill()
    assert isinstance(follower.get(timeout=SECONDS), Receipt)
    assert redis.trips == [["2"]]
