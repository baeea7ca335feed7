"""What crosses workers, on a real Valkey: publish, follow, lost and found connections."""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Iterator

import gevent
import pytest

import service.broker
import service.following
import service.redis_link
from service.counts import LOST_REASONS
from service.errors import NotFollowing, RedisDown
from service.event import EventId
from service.redis_address import LinkLost
from service.reset import Loss
from tests.fault_proxy import FaultProxy
from tests.live_server import until
from tests.nodes import NAMES, Node, followers
from tests.valkey import Valkey, free_port


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Put nodes here to have them stopped."""
    nodes: list[Node] = []
    yield nodes
    for node in nodes:
        node.close()


@pytest.fixture
def node(valkey: Valkey, nodes: list[Node]) -> Node:
    """A node on the shared Valkey."""
    nodes.append(Node(valkey.url))
    return nodes[0]


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that nobody follows are left quickly."""
    monkeypatch.setattr(service.following, "LINGER_SECONDS", 0.1)
    monkeypatch.setattr(service.redis_link, "TICK_SECONDS", 0.1)


# --------------------------------------------------------------------------- follow and publish


def test_published_events_are_delivered_in_order(node: Node) -> None:
    """What is published to a followed channel arrives, in the order of the ids; nothing else."""
    node.broker.follow(["a", "b"])
    ids = []
    for number in range(20):
        ids += node.publish("ab"[number % 2], str(number))
        node.publish("other", "not followed")
    assert node.wait_data(20) == [str(number) for number in range(20)]
    assert [frame.id for _, frame in node.delivered] == ids == sorted(ids)
    assert [channel for channel, _ in node.delivered] == ["a", "b"] * 10


def test_workers_deliver_each_others_events(valkey: Valkey, nodes: list[Node]) -> None:
    """Every worker that follows a channel gets what any of them publishes."""
    nodes += [Node(valkey.url) for _ in range(3)]
    for node in nodes:
        node.broker.follow(["a"])
    for number, node in enumerate(nodes):
        node.publish("a", str(number))
    for node in nodes:
        assert node.wait_data(3) == ["0", "1", "2"]


def test_foreign_messages_are_delivered(node: Node, valkey: Valkey) -> None:
    """A PUBLISH by redis-cli arrives as a live event without an id."""
    node.broker.follow(["a"])
    valkey.cli("PUBLISH", "p:a", "raw")
    assert node.wait_data(1) == ["raw"]
    assert node.delivered[0][1].id is None


def test_follow_returns_when_nothing_can_be_missed(node: Node, valkey: Valkey) -> None:
    """Once `follow` has returned, the very next event is delivered."""
    for number in range(30):
        node.broker.follow([f"c{number}"])
        assert valkey.cli("PUBLISH", f"p:c{number}", "x") == 1


def test_many_first_followers_at_once(node: Node, valkey: Valkey) -> None:
    """Streams that are the first of their channel at the same moment all get what follows: none
    believes that somebody else's subscription is already there.
    """
    waiting = [gevent.spawn(node.broker.follow, ["a", f"own{n}"]) for n in range(50)]
    gevent.joinall(waiting, raise_error=True)
    assert followers(valkey, "a") == 1
    assert valkey.cli("PUBLISH", "p:own7", "x") == 1


def test_the_position_is_not_below_earlier_events(node: Node) -> None:
    """When `follow` returns, the receiver's position is at least the last event of the channels."""
    (last,) = node.publish("a", "before")
    node.broker.follow(["a"])
    assert node.position >= last
    (later,) = node.publish("other", "x")
    node.broker.follow(["a", "b"])
    assert node.position >= later
    assert node.data == [], "what is past isn't delivered"


def test_a_followed_channel_costs_no_reads(node: Node, valkey: Valkey) -> None:
    """A thousand streams that open the same new channels cost a few marks and reads of tails, not
    a thousand.
    """
    node.wait_ready()
    valkey.cli("CONFIG", "RESETSTAT")
    waiting = [gevent.spawn(node.broker.follow, ["a", "b", "c"]) for _ in range(1000)]
    gevent.joinall(waiting, raise_error=True)
    stats = valkey.cli("INFO", "commandstats").decode()
    calls = {name: int(count) for name, count in re.findall(r"cmdstat_(\w+):calls=(\d+)", stats)}
    assert calls["evalsha"] <= 3
    assert calls.get("hmget", 0) <= 9
    assert "xrange" not in calls


def test_what_was_published_before_a_sync_is_delivered_after_it(
    valkey: Valkey, nodes: list[Node]
) -> None:
    """`sync` waits for everything that anybody has published before, and calls share the work."""
    nodes += [Node(valkey.url), Node(valkey.url)]
    nodes[0].broker.follow(["a"])
    for number in range(20):
        (event_id,) = nodes[1].publish("a", str(number))
        nodes[0].broker.sync()
        assert len(nodes[0].delivered) == number + 1
        assert nodes[0].position >= event_id
    valkey.cli("CONFIG", "RESETSTAT")
    gevent.joinall([gevent.spawn(nodes[0].broker.sync) for _ in range(500)], raise_error=True)
    (calls,) = re.findall(
        r"cmdstat_evalsha:calls=(\d+)", valkey.cli("INFO", "commandstats").decode()
    )
    assert int(calls) <= 10


def test_a_sync_that_cannot_be(
    own_valkey: Valkey, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Redis, or when the mark does not come, `sync` fails in time and leaves nothing."""
    monkeypatch.setattr(service.broker, "FOLLOW_SECONDS", 0.3)
    nodes.append(Node(own_valkey.url))
    (node,) = nodes
    node.wait_ready()
    mark = node.broker._follower.marks_channel
    monkeypatch.setattr(node.broker._follower, "marks_channel", "elsewhere")
    with pytest.raises(NotFollowing):
        node.broker.sync()
    monkeypatch.setattr(node.broker._follower, "marks_channel", mark)
    monkeypatch.setattr(service.broker, "FOLLOW_SECONDS", 5)
    node.broker.sync()
    own_valkey.kill()
    with pytest.raises(NotFollowing):
        node.broker.sync()
    assert node.broker._follower.awaited == {}


def test_waiting_syncs_share_a_failure(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that wait for the same attempt fail with it; they don't try one after another."""
    node.wait_ready()
    monkeypatch.setattr(service.broker, "FOLLOW_SECONDS", 0.4)
    attempts: list[int] = []
    monkeypatch.setattr(node.store, "send_mark", lambda *_: attempts.append(1))
    first = gevent.spawn(node.broker.sync)
    gevent.sleep(0.01)
    started = time.monotonic()
    others = [gevent.spawn(node.broker.sync) for _ in range(20)]
    gevent.joinall([first, *others], raise_error=False)
    assert time.monotonic() - started < 5
    assert all(isinstance(one.exception, NotFollowing) for one in [first, *others])
    assert len(attempts) <= 2


def test_a_follow_that_is_given_up_while_it_asks(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a follow, also while SUBSCRIBE is being sent, takes its count back."""
    node.wait_ready()
    monkeypatch.setattr(node.link, "subscribe", lambda _: gevent.sleep(5))
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        node.broker.follow(["given-up"])
    assert node.counted() == 0


def test_ids_are_above_what_the_worker_has_seen(node: Node, valkey: Valkey) -> None:
    """A publish passes on what the worker has seen, so that ids never go back for its streams,
    also when Redis has lost its clock.
    """
    ahead = time.time_ns() // 1_000_000 + 5_000
    node.broker.follow(["a"])
    valkey.cli("HSET", NAMES.clock, "id", f"{ahead}-7")
    (seen,) = node.publish("a", "x")
    node.wait_data(1)
    assert seen == EventId(ahead, 8)
    valkey.cli("HDEL", NAMES.clock, "id")
    assert node.publish("a", "y") == [EventId(ahead, 9)]


# --------------------------------------------------------------------------- reference counting


def test_a_channel_is_followed_once_and_left_after_a_linger(
    node: Node, valkey: Valkey, short_linger: None
) -> None:
    """However many streams, one subscription; it goes some time after the last of them."""
    for _ in range(3):
        node.broker.follow(["a", "b"])
    assert followers(valkey, "a") == 1
    node.broker.unfollow(["a", "b"])
    node.broker.unfollow(["a", "b"])
    gevent.sleep(0.4)
    assert followers(valkey, "a") == 1

    node.broker.unfollow(["a"])

    assert followers(valkey, "a") == 1, "it lingers"
    until(lambda: followers(valkey, "a") == 0, 3, "the channel is left")
    assert followers(valkey, "b") == 1


def test_who_comes_back_in_time_keeps_the_channel(
    node: Node, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that reconnects within the linger finds its channel still followed."""
    monkeypatch.setattr(service.redis_link, "TICK_SECONDS", 0.1)
    node.broker.follow(["a"])
    node.broker.unfollow(["a"])
    gevent.sleep(1.3)
    valkey.cli("CONFIG", "RESETSTAT")
    node.broker.follow(["a"])
    assert b"cmdstat_subscribe" not in valkey.cli("INFO", "commandstats")
    node.publish("a", "x")
    assert node.wait_data(1) == ["x"]


def test_a_channel_can_be_followed_again_after_it_was_left(
    node: Node, valkey: Valkey, short_linger: None
) -> None:
    """Leaving a channel and following it anew, over and over, never loses a subscription."""
    for number in range(2):
        node.broker.follow(["a"])
        node.publish("a", str(number))
        node.wait_data(number + 1)
        node.broker.unfollow(["a"])
        until(lambda: followers(valkey, "a") == 0, 3, "the channel is left")


# ---------------------------------------------------------------------------- without Redis


def test_following_without_redis_fails_in_time(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream waits only so long for Redis; afterwards nothing is counted for it."""
    monkeypatch.setattr(service.broker, "FOLLOW_SECONDS", 0.3)
    nodes.append(Node(f"redis://127.0.0.1:{free_port()}"))
    (node,) = nodes
    started = time.monotonic()
    with pytest.raises(NotFollowing):
        node.broker.follow(["a", "b"])
    assert 0.25 < time.monotonic() - started < 4
    assert node.counted() == 0
    assert not node.broker.ready
    assert not node.broker.answers()
    with pytest.raises(RedisDown):
        node.publish("a", "x")


def test_following_while_redis_comes_back(own_valkey: Valkey, nodes: list[Node]) -> None:
    """A stream that is opened during an outage waits, and opens when Redis is back."""
    own_valkey.kill()
    nodes.append(Node(own_valkey.url))
    waiting = gevent.spawn(nodes[0].broker.follow, ["a"])
    gevent.sleep(0.2)
    assert not waiting.ready()
    own_valkey.start()
    waiting.get(timeout=5)
    nodes[0].publish("a", "x")
    assert nodes[0].wait_data(1) == ["x"]


def test_a_store_that_cannot_be_reached(
    valkey: Valkey, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When commands fail, the stream is refused rather than opened at a wrong position."""
    monkeypatch.setattr(service.broker, "FOLLOW_SECONDS", 0.3)
    nodes.append(Node(valkey.url, store_url=f"redis://127.0.0.1:{free_port()}"))
    (node,) = nodes
    with pytest.raises(NotFollowing):
        node.broker.follow(["a"])
    assert node.counted() == 0
    assert not node.broker.ready


def test_a_restart_is_survived(
    own_valkey: Valkey, nodes: list[Node], caplog: pytest.LogCaptureFixture
) -> None:
    """After Redis was away, the same channels are followed again, without anybody asking; while it
    is away the worker isn't ready, and the log has one line for the outage, and one for the loss,
    as this Redis writes nothing to disk.
    """
    caplog.set_level(logging.INFO, "pushline.redis")
    nodes.append(Node(own_valkey.url))
    (node,) = nodes
    node.broker.follow(["a", "b"])
    node.publish("a", "before")
    node.wait_data(1)
    assert node.broker.ready
    assert node.broker.answers()

    own_valkey.kill()
    until(lambda: not node.broker.ready, 1, "the loss is noticed")
    gevent.sleep(0.6)
    own_valkey.start()
    until(lambda: node.resets, 10, "it is connected again")
    until(lambda: node.broker.ready, 10, "it follows everything again")

    node.publish("b", "after")
    assert node.wait_data(2) == ["before", "after"]
    lost = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lost) == 2
    assert "is lost" in lost[0].getMessage()
    assert "events of 2 channels may be missing: lost" in lost[1].getMessage()
    assert node.resets == [(["a", "b"], Loss.LOST, None)]
    assert len([r for r in caplog.records if "is connected" in r.getMessage()]) == 2
    assert +node.counts.redis_losses == {"eof": 1}, "once, however often it was tried"
    assert node.counts.gaps == 0, "nothing is kept that was missed"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LinkLost("an event did not come", reason="probe"), "probe"),
        (LinkLost("refused"), "error"),
        (ConnectionResetError(), "eof"),
        (TimeoutError(), "timeout"),
        (ssl.SSLError("reason", "of its own"), "error"),
        (RedisDown(), "error"),
    ],
)
def test_why_a_link_was_lost(error: Exception, reason: str) -> None:
    """Log and metrics know four reasons."""
    assert service.broker._reason(error) == reason
    assert reason in LOST_REASONS


def test_a_frozen_redis_is_replaced(
    own_valkey: Valkey, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that hangs is given up and made anew, and delivers again."""
    monkeypatch.setattr(service.redis_link, "TICK_SECONDS", 0.1)
    with FaultProxy(("127.0.0.1", own_valkey.port)) as proxy:
        nodes.append(Node(f"redis://127.0.0.1:{proxy.port}", store_url=own_valkey.url))
        (node,) = nodes
        node.broker.follow(["a"])
        proxy.freeze(new_too=False)
        node.publish("a", "missed")
        until(lambda: proxy.connections == 2 and node.broker.ready, 3, "a new link")
        node.publish("a", "x")
        assert node.wait_data(2) == ["missed", "x"]
        assert +node.counts.redis_losses == {"timeout": 1}
        assert (node.counts.gaps, node.counts.gap_filled) == (1, 1)
        node.close()
        nodes.clear()


def test_a_failing_delivery_does_not_end_the_worker(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a batch does to the hub, the worker logs it and goes on following."""
    node.broker.follow(["a"])
    node.fail = 1
    node.publish("a", "poison")
    until(lambda: "could not be delivered" in caplog.text, 2, "the log says so")
    until(lambda: node.broker.ready, 3, "the link is back")
    node.publish("a", "fine")
    assert node.wait_data(1) == ["fine"]


def test_a_lost_subscribe_is_made_good(own_valkey: Valkey, nodes: list[Node]) -> None:
    """A SUBSCRIBE on a link that has just died is made by the next link."""
    with FaultProxy(("127.0.0.1", own_valkey.port)) as proxy:
        nodes.append(Node(f"redis://127.0.0.1:{proxy.port}", store_url=own_valkey.url))
        (node,) = nodes
        until(lambda: node.broker.ready, 3, "the link")
        link = node.broker._link
        assert link is not None
        link.close()
        node.broker.follow(["a"])
        node.publish("a", "x")
        assert node.wait_data(1) == ["x"]
        node.close()
        nodes.clear()


def test_a_new_channel_does_not_make_the_worker_unready(
    own_valkey: Valkey, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel on its way doesn't take the worker out of service; one that hangs does."""
    monkeypatch.setattr(service.following, "CONFIRM_SECONDS", 10)
    nodes.append(Node(own_valkey.url))
    (node,) = nodes
    until(lambda: node.broker.ready, 3, "the link")
    own_valkey.stop_process()
    waiting = gevent.spawn(node.broker.follow, ["a"])
    gevent.sleep(0.05)
    states = [node.broker.ready]
    monkeypatch.setattr(service.following, "CONFIRM_SECONDS", 0.05)
    gevent.sleep(0.01)
    states.append(node.broker.ready)
    own_valkey.cont()
    waiting.get(timeout=6)
    states.append(node.broker.ready)
    assert states == [True, False, True]


def test_stopping_before_there_was_a_link() -> None:
    """A worker that is stopped while Redis is away stops."""
    node = Node(f"redis://127.0.0.1:{free_port()}")
    gevent.sleep(0.05)
    node.close()


def test_a_stopped_broker_lets_go(valkey: Valkey) -> None:
    """After `stop` there is no subscription left."""
    node = Node(valkey.url)
    node.broker.follow(["a"])
    node.close()
    until(lambda: followers(valkey, "a") == 0, 2, "nobody is subscribed")
