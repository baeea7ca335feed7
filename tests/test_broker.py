"""What crosses workers, on a real Valkey: publish, follow, lost and found connections."""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Iterable, Iterator

import gevent
import pytest

import service.broker
import service.redis_link
from service.broker import Broker
from service.channels import RedisNames
from service.errors import NotFollowing, RedisDown
from service.event import FIRST_ID, Event, EventId
from service.frame import Frame
from service.redis_link import RedisAddress, RedisLink
from service.redis_store import Publication, RedisStore
from tests.fault_proxy import FaultProxy
from tests.live_server import until
from tests.sse_client import event_data, parse_stream
from tests.valkey import Valkey, free_port

NAMES = RedisNames("p:")


class Node:
    """A broker that runs, with a record of what it delivered."""

    def __init__(self, url: str, *, store_url: str = "") -> None:
        self.delivered: list[tuple[str, Frame]] = []
        self.batches: list[int] = []
        self.fail = 0
        self.store = RedisStore(store_url or url, NAMES, connections=2)
        connect = functools.partial(RedisLink, RedisAddress.parse(url), NAMES)
        self.broker = Broker(self.store, connect, self._deliver)
        self.greenlet = gevent.spawn(self.broker.run)

    def _deliver(self, frames: Iterable[tuple[str, Frame]]) -> None:
        if self.fail:
            self.fail -= 1
            raise ZeroDivisionError
        before = len(self.delivered)
        self.delivered += frames
        self.batches.append(len(self.delivered) - before)

    def publish(self, channel: str, data: str, floor: EventId = FIRST_ID) -> EventId:
        """Publish one event."""
        (event_id,) = self.broker.publish([Publication(Event(data), (channel,))], floor)
        return event_id

    def wait_data(self, count: int, seconds: float = 3.0) -> list[str]:
        """The data of the first events, once `count` were delivered."""
        until(lambda: len(self.delivered) >= count, seconds, f"{count} events")
        return event_data(parse_stream(b"".join(frame.data for _, frame in self.delivered)))

    def close(self) -> None:
        """Stop it; its greenlet ends by itself."""
        self.broker.stop()
        self.greenlet.join(timeout=6)
        self.store.close()
        assert self.greenlet.successful()


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
    monkeypatch.setattr(service.broker, "LINGER_SECONDS", 0.1)
    monkeypatch.setattr(service.redis_link, "TICK_SECONDS", 0.1)


def followers(valkey: Valkey, channel: str) -> int:
    """How many connections are subscribed to a channel."""
    reply: list[object] = valkey.cli("PUBSUB", "NUMSUB", NAMES.pubsub(channel))
    assert isinstance(reply[1], int)
    return reply[1]


def counted(node: Node) -> int:
    """How many streams the broker believes to follow something."""
    return sum(one.streams for one in node.broker._followed.values())


# --------------------------------------------------------------------------- follow and publish


def test_published_events_are_delivered_in_order(node: Node) -> None:
    """What is published to a followed channel arrives, in the order of the ids; nothing else."""
    node.broker.follow(["a", "b"])
    ids = []
    for number in range(20):
        ids.append(node.publish("ab"[number % 2], str(number)))
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
    """A stream's position is at least the last event of its channels, and is read once for each
    channel that this worker begins to follow.
    """
    last = node.publish("a", "before")
    position = node.broker.follow(["a"])
    assert position >= last
    later = node.publish("other", "x")
    assert node.broker.follow(["a"]) == position
    assert node.broker.follow(["a", "b"]) >= later


def test_positions_are_read_once_for_many(node: Node, valkey: Valkey) -> None:
    """A thousand streams that open the same new channels cost a few reads, not a thousand."""
    valkey.cli("CONFIG", "RESETSTAT")
    waiting = [gevent.spawn(node.broker.follow, ["a", "b", "c"]) for _ in range(1000)]
    gevent.joinall(waiting, raise_error=True)
    stats = valkey.cli("INFO", "commandstats").decode()
    match = re.search(r"cmdstat_hget:calls=(\d+)", stats)
    assert match is not None
    assert int(match[1]) <= 3


def test_ids_are_above_the_workers_floor(node: Node) -> None:
    """A publish passes on what the worker has seen, so that its streams never go back."""
    floor = EventId(time.time_ns() // 1_000_000 + 5_000, 0)
    assert node.publish("a", "x", floor) > floor


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
    assert 0.25 < time.monotonic() - started < 1
    assert counted(node) == 0
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


def test_a_position_that_cannot_be_read(valkey: Valkey, nodes: list[Node]) -> None:
    """When the position can't be read, the stream is refused rather than opened at a wrong one."""
    nodes.append(Node(valkey.url, store_url=f"redis://127.0.0.1:{free_port()}"))
    (node,) = nodes
    with pytest.raises(NotFollowing, match="can't be reached"):
        node.broker.follow(["a"])
    assert counted(node) == 0


def test_a_restart_is_survived(
    own_valkey: Valkey, nodes: list[Node], caplog: pytest.LogCaptureFixture
) -> None:
    """After Redis was away, the same channels are followed again, without anybody asking; while it
    is away the worker isn't ready, and the log has one line for the outage.
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
    until(lambda: node.broker.ready, 10, "it is connected again")

    node.publish("b", "after")
    assert node.wait_data(2) == ["before", "after"]
    lost = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lost) == 1
    assert "is lost" in lost[0].getMessage()
    assert len([r for r in caplog.records if "is connected" in r.getMessage()]) == 2


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
        until(lambda: proxy.connections == 2 and node.broker.ready, 3, "a new link")
        node.publish("a", "x")
        assert node.wait_data(1) == ["x"]
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
    monkeypatch.setattr(service.broker, "CONFIRM_SECONDS", 0.3)
    nodes.append(Node(own_valkey.url))
    (node,) = nodes
    until(lambda: node.broker.ready, 3, "the link")
    own_valkey.stop_process()
    waiting = gevent.spawn(node.broker.follow, ["a"])
    gevent.sleep(0.05)
    states = [node.broker.ready]
    gevent.sleep(0.4)
    states.append(node.broker.ready)
    own_valkey.cont()
    waiting.get(timeout=3)
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
