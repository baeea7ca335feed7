"""Delivery stays complete over one link after another, or says what is lost: on a real Valkey."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import gevent
import pytest

import service.follower
import service.redis_link
from service.errors import RedisError
from service.event import FIRST_ID, EventId
from service.follower import Follower
from service.following import Following
from service.frame import END, Frame
from service.marks import Mark
from service.recent import RecentEvents
from service.redis_address import LinkLost
from service.redis_link import MARK
from service.reset import Loss
from tests.fault_proxy import FaultProxy
from tests.live_server import until
from tests.nodes import NAMES, Node, end, followers, make_rules, make_store, publish
from tests.valkey import Valkey

Delivered = list[tuple[str, Frame]]


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Put nodes here to have them stopped."""
    nodes: list[Node] = []
    yield nodes
    for node in nodes:
        node.close()


@pytest.fixture
def node(own_valkey: Valkey, nodes: list[Node]) -> Node:
    """A node that follows a and b on a Valkey of its own."""
    nodes.append(Node(own_valkey.url))
    nodes[0].broker.follow(["a", "b"])
    return nodes[0]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks come often, and what is silent is given up soon."""
    monkeypatch.setattr(service.redis_link, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(service.follower, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(service.follower, "MARK_SECONDS", 0.5)


def unsubscribe_secretly(node: Node, *channels: str) -> None:
    """Let Redis forget channels without the follower knowing: what comes now is lost on the way."""
    node.link.unsubscribe(channels)
    names = [NAMES.pubsub(channel) for channel in channels]

    def subscribed() -> int:
        (reply,) = node.store._pool.run([("PUBSUB", "NUMSUB", *names)])
        return sum(reply[1::2])

    until(lambda: not subscribed(), 3, "Redis has forgotten them")


# -------------------------------------------------------------------------------- catching up


def test_what_was_missed_comes_first_and_in_order(node: Node, own_valkey: Valkey) -> None:
    """After a lost connection everything that was stored meanwhile is delivered, merged over the
    channels by id, before anything new; nobody is told of a loss.
    """
    node.publish("a", "0")
    node.wait_data(1)
    other = make_store(own_valkey.url)
    own_valkey.cli("CLIENT", "KILL", "TYPE", "pubsub")
    for number in range(1, 200):
        publish(other, "ab"[number % 2], str(number))
    node.wait_ready()
    publish(other, "a", "200")
    other.close()
    assert node.wait_data(201) == [str(number) for number in range(201)]
    assert node.resets == []


def test_connections_cut_again_and_again(node: Node, own_valkey: Valkey) -> None:
    """However often the connection is killed under load, every stored event comes once."""
    other = make_store(own_valkey.url)
    for number in range(400):
        publish(other, "ab"[number % 2], str(number))
        if number % 50 == 25:
            own_valkey.cli("CLIENT", "KILL", "TYPE", "pubsub")
        gevent.sleep(0.001)
    other.close()
    assert node.wait_data(400, 10) == [str(number) for number in range(400)]
    assert node.resets == []


def test_an_event_of_several_channels_is_delivered_for_each(node: Node, own_valkey: Valkey) -> None:
    """A replay delivers an event of two channels for both, next to each other, under one id."""
    other = make_store(own_valkey.url)
    own_valkey.cli("CLIENT", "KILL", "TYPE", "pubsub")
    (first,) = publish(other, "a,b", "x")
    (second,) = publish(other, "b", "y")
    other.close()
    node.wait_data(3)
    got = [(channel, frame.id) for channel, frame in node.delivered]
    assert sorted(got) == [("a", first), ("b", first), ("b", second)]
    assert [event_id for _, event_id in got] == [first, first, second]


def test_live_only_events_may_be_missed(node: Node, own_valkey: Valkey) -> None:
    """Events that aren't stored come at most once, and missing one is no loss."""
    other = make_store(own_valkey.url)
    publish(other, "a", "live", stored=False)
    assert node.wait_data(1) == ["live"]
    own_valkey.cli("CLIENT", "KILL", "TYPE", "pubsub")
    publish(other, "a", "missed", stored=False)
    own_valkey.cli("PUBLISH", "p:a", "missed too")
    node.wait_ready()
    node.broker.sync()
    publish(other, "a", "stored")
    other.close()
    until(lambda: node.data[-1:] == ["stored"], 5, "the stored event")
    assert node.data[0] == "live"
    assert node.resets == []


def test_a_durable_redis_that_is_killed_loses_nothing(nodes: list[Node]) -> None:
    """Redis killed with `appendfsync always` affects nobody: no event is lost, no `$reset`."""
    with Valkey(aof=True) as server:
        nodes.append(Node(server.url))
        (node,) = nodes
        node.broker.follow(["a", "b"])
        born = node.broker.born
        for round_ in range(3):
            node.publish("a", f"{round_} before")
            server.kill()
            until(lambda: not node.broker.ready, 3, "the loss is noticed")
            server.start()
            other = make_store(server.url)
            publish(other, "b", f"{round_} after")
            other.close()
            node.wait_ready()
        expected = [f"{round_} {when}" for round_ in range(3) for when in ("before", "after")]
        assert node.wait_data(6) == expected
        assert node.resets == []
        assert node.broker.born == born
        nodes.pop().close()


def test_a_redis_that_may_have_lost_writes_is_known(node: Node, own_valkey: Valkey) -> None:
    """After a restart that isn't durable every followed channel is reset, once, and ids go on
    above all that were seen.
    """
    (last,) = node.publish("a", "x")
    node.wait_data(1)
    own_valkey.kill()
    own_valkey.start()
    until(lambda: node.resets, 10, "the loss is told")
    node.wait_ready()
    assert node.resets == [(["a", "b"], Loss.LOST, None)]
    assert node.broker.born > last
    assert node.publish("a", "y")[0] > last
    assert node.wait_data(2) == ["x", "y"]
    node.broker.sync()
    assert len(node.resets) == 1


@pytest.mark.parametrize("then", ["publish", "check"])
def test_an_emptied_redis_is_noticed(
    quick: None, node: Node, own_valkey: Valkey, then: str
) -> None:
    """FLUSHALL is noticed with the next event, which still is delivered or covered by the reset,
    or with the next check.
    """
    (seen,) = node.publish("a", "x")
    node.wait_data(1)
    own_valkey.cli("FLUSHALL")
    if then == "publish":
        other = make_store(own_valkey.url)
        publish(other, "a", "y")
        other.close()
    else:
        node.broker._follower._check_at = 0.0
    until(lambda: node.resets, 5, "the loss is told")
    assert node.resets == [(["a", "b"], Loss.LOST, None)]
    node.wait_ready()
    (later,) = node.publish("b", "z")
    assert later > seen
    until(lambda: node.data[-1] == "z", 3, "events come again")
    gevent.sleep(0.5)
    assert len(node.resets) == 1, "it is told once"


# ------------------------------------------------------------------- losses on a living link


def test_a_gap_is_seen_with_the_next_event(node: Node, own_valkey: Valkey) -> None:
    """When an event is lost on the way, the next one names it, and both are delivered in order."""
    node.publish("a", "1")
    node.wait_data(1)
    unsubscribe_secretly(node, "a")
    node.publish("a", "2", "3")
    node.broker.sync()
    assert node.data == ["1"]
    node.link.subscribe(["a"])
    until(lambda: followers(own_valkey, "a") == 1, 3, "it is followed again")
    node.publish("a", "4")
    assert node.wait_data(4) == ["1", "2", "3", "4"]
    assert node.resets == []


def test_a_lost_last_event_is_found_by_the_check(quick: None, node: Node) -> None:
    """A lost last event is revealed by no later one: the idle check finds it and delivers it."""
    node.publish("a", "1")
    node.wait_data(1)
    unsubscribe_secretly(node, "a")
    node.publish("a", "last")
    node.broker._follower._check_at = 0.0
    assert node.wait_data(2) == ["1", "last"]
    assert node.resets == []


def test_a_link_that_delivers_nothing_is_given_up(quick: None, node: Node) -> None:
    """When marks don't come although Redis answers, the link is replaced."""
    link = node.link
    unsubscribe_secretly(node, node.broker._follower.marks_channel, "a", "b")
    node.publish("a", "1")
    node.broker._follower._check_at = 0.0
    assert node.wait_data(1) == ["1"]
    node.wait_ready()
    assert node.link is not link


def test_a_quiet_worker_is_checked(
    quick: None, node: Node, own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check is a mark and the tails in one round trip; it moves the position and disturbs
    nothing.
    """
    monkeypatch.setattr(service.follower, "MARK_SECONDS", 5)
    link = node.link
    other = make_store(own_valkey.url)
    node.broker._follower._check_at = 0.0
    gevent.sleep(0.1)
    (elsewhere,) = publish(other, "not followed", "x")
    other.close()
    own_valkey.cli("CONFIG", "RESETSTAT")
    began = time.monotonic()
    until(lambda: node.position >= elsewhere, 3, "a check")

    def checks() -> int:
        stats = own_valkey.cli("INFO", "commandstats").decode()
        return sum(map(int, re.findall(r"cmdstat_evalsha:calls=(\d+)", stats)))

    gevent.sleep(0.5)
    until(lambda: checks() >= 2, 5, "more checks")
    assert checks() <= (time.monotonic() - began) / 0.2 + 3
    until(lambda: node.broker._follower._mark_due is None, 3, "the mark of the last one has come")
    assert node.link is link
    assert node.resets == []


def test_a_frozen_redis_delivers_what_was_missed(
    quick: None, node: Node, own_valkey: Valkey
) -> None:
    """A Redis that hangs and goes on costs nobody an event."""
    node.publish("a", "1")
    node.wait_data(1)
    own_valkey.stop_process()
    gevent.sleep(0.6)
    own_valkey.cont()
    other = make_store(own_valkey.url)
    publish(other, "a", "2")
    other.close()
    assert node.wait_data(2, 10) == ["1", "2"]
    assert node.resets == []


# ----------------------------------------------------------------------------- what can't be had


@pytest.mark.parametrize(
    ("damage", "loss"),
    [("trimmed", Loss.TRIMMED), ("expired", Loss.EXPIRED), ("hole", Loss.LOST)],
)
def test_what_is_gone_meanwhile_is_told(
    node: Node, own_valkey: Valkey, damage: str, loss: Loss
) -> None:
    """When the history no longer has what was missed, its channel is reset, and only it."""
    node.publish("a", "1")
    node.publish("b", "1")
    node.wait_data(2)
    unsubscribe_secretly(node, "a", "b")
    ids = node.publish("a", "2", "3", "4")
    node.publish("b", "2")
    if damage == "trimmed":
        own_valkey.cli("XTRIM", NAMES.history("a"), "MAXLEN", 1)
    elif damage == "expired":
        own_valkey.cli("DEL", NAMES.history("a"))
    else:
        own_valkey.cli("XDEL", NAMES.history("a"), str(ids[1]))
    own_valkey.cli("CLIENT", "KILL", "TYPE", "pubsub")
    until(lambda: node.resets, 5, "the loss is told")
    oldest = {"trimmed": ids[2], "expired": None, "hole": ids[0]}[damage]
    assert node.resets == [(["a"], loss, oldest)]
    node.wait_ready()
    node.publish("a", "5")
    until(lambda: node.data[-1] == "5", 3, "it goes on")
    assert node.data == ["1", "1", "2", "5"]
    assert node.recent.after(["a"], ids[0]) is None, "memory doesn't hide the gap"


def test_a_tail_that_was_deleted_is_no_loss(node: Node, own_valkey: Valkey) -> None:
    """Where the history is whole, a missing tail changes nothing."""
    node.publish("a", "1")
    node.wait_data(1)
    unsubscribe_secretly(node, "a")
    node.publish("a", "2")
    own_valkey.cli("DEL", NAMES.tail("a"))
    own_valkey.cli("CLIENT", "KILL", "TYPE", "pubsub")
    assert node.wait_data(2) == ["1", "2"]
    assert node.resets == []


# ------------------------------------------------------------------------------ new channels


def test_a_new_channel_begins_at_a_mark(node: Node) -> None:
    """What was published before a channel is followed is past; memory vouches from there on."""
    (past,) = node.publish("c", "past")
    node.broker.follow(["c"])
    assert node.recent.after(["c"], past) == []
    before = EventId(past.milliseconds - 1, 0)
    assert node.recent.after(["c"], before) is None
    (first,) = node.publish("c", "first")
    assert node.wait_data(1) == ["first"]
    frames = node.recent.after(["c"], past)
    assert frames is not None
    assert [frame.id for frame in frames] == [first]


def test_a_channel_that_is_published_to_while_it_is_followed(
    node: Node, own_valkey: Valkey
) -> None:
    """Whatever is published while a channel begins either comes or is at or below the position."""
    other = make_store(own_valkey.url)
    for number in range(60):
        channel = f"c{number}"
        publisher = gevent.spawn(publish, other, channel, *map(str, range(20)))
        node.broker.follow([channel])
        position = node.position
        ids = publisher.get()
        publish(other, channel, "last")
        got: Delivered = []

        def arrived(channel: str = channel, got: Delivered = got) -> bool:
            got[:] = [one for one in node.delivered if one[0] == channel]
            return bool(got) and got[-1][1].data.endswith(b"data: last\n\n")

        until(arrived, 3, "the last event")
        received = [frame.id for _, frame in got]
        assert received[:-1] == [one for one in ids if one > position][: len(received)]
    other.close()
    assert node.resets == []


def test_ended_channels_are_known(node: Node, own_valkey: Valkey) -> None:
    """Whether a channel is finished is known when it begins to be followed, and after `$end`."""
    other = make_store(own_valkey.url)
    end(other, "c")
    node.broker.follow(["c", "d"])
    assert node.recent.all_ended(["c"])
    assert not node.recent.all_ended(["d"])
    end(other, "d")
    other.close()
    until(lambda: node.recent.all_ended(["d"]), 3, "the end came")
    assert node.delivered[-1][1].name == END


def test_a_channel_that_is_left_is_forgotten(
    quick: None, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the linger nothing vouches for a channel any more; without a link at once."""
    monkeypatch.setattr("service.following.LINGER_SECONDS", 0.1)
    node.broker.unfollow(["a"])
    until(lambda: node.recent.after(["a"], node.position) is None, 3, "a is forgotten")
    assert node.recent.after(["b"], node.position) == []


# ----------------------------------------------------------------- the parts, with a made-up link


class Script:
    """A link whose reads a test has written down; sends are noted."""

    def __init__(self, *reads: tuple[Delivered, list[str]]) -> None:
        self.reads = list(reads)
        self.subscribed: list[str] = []

    def read(self) -> tuple[Delivered, list[str]]:
        """The next read; without one the link is lost."""
        if not self.reads:
            raise LinkLost("the script is over")
        return self.reads.pop(0)

    def subscribe(self, channels: list[str]) -> None:
        """Note the channels."""
        self.subscribed += channels

    def unsubscribe(self, channels: list[str]) -> None:
        """Nothing to do."""


def test_a_mark_older_than_the_confirmation_begins_nothing(valkey: Valkey) -> None:
    """A mark that is read together with a confirmation may have been sent before it: the channel
    begins with the mark that is asked for after it, or events in between would be missing.
    """
    node = Node(valkey.url)
    node.wait_ready()
    node.close()
    follower = node.broker._follower
    following = node.broker._following
    following.add(["new"])
    born = follower.born
    old = Frame(None, MARK, f"old {node.position} {born}".encode())
    script = Script(([(follower.marks_channel, old)], ["new"]))
    store = make_store(valkey.url)
    follower._store = store
    follower.step(script)  # type: ignore[arg-type]
    store.close()
    followed = following.get("new")
    assert followed is not None
    assert followed.confirmed
    assert not followed.ready.is_set()
    assert follower._mark_due is not None


def test_marks_that_cannot_be_read() -> None:
    """Anything but a mark on the channel of marks means that the link is of no use."""
    assert Mark.parse(b"t 5-1 4-0") == Mark("t", EventId(5, 1), EventId(4, 0))
    for text in (b"", b"t", b"t 5-1", b"t 5-1 x", b"t 5-1 4-0 3-0", b"\xff 5-1 4-0"):
        with pytest.raises(LinkLost):
            Mark.parse(text)


@pytest.mark.parametrize("stage", ["confirmations", "mark"])
def test_a_link_that_never_begins_is_given_up(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Confirmations or a first mark that don't come in time make the start fail."""
    monkeypatch.setattr(service.follower, "MARK_SECONDS", 0.2)

    class Silent(Script):
        """It answers, but never with what is waited for."""

        def read(self) -> tuple[Delivered, list[str]]:
            gevent.sleep(0.02)
            return [], [follower.marks_channel] if stage == "mark" else []

    store = make_store(valkey.url)
    node = Node(valkey.url)
    follower = Follower(
        store, Following(), RecentEvents(), make_rules().tail_seconds, node.receiver
    )
    with pytest.raises(LinkLost, match="delivers nothing") as raised:
        follower.start(Silent())  # type: ignore[arg-type]
    assert raised.value.reason == "probe"
    store.close()
    node.close()


def test_a_store_that_fails_ends_the_link(own_valkey: Valkey, nodes: list[Node]) -> None:
    """When commands fail while the link lives, it is replaced, so that nothing goes unchecked."""
    with FaultProxy(("127.0.0.1", own_valkey.port)) as proxy:
        nodes.append(Node(own_valkey.url, store_url=f"redis://127.0.0.1:{proxy.port}"))
        (node,) = nodes
        node.broker.follow(["a"])
        link = node.link
        proxy.refuse()
        proxy.cut()
        with pytest.raises(RedisError):
            node.publish("a", "x")
        node.broker._follower._check_at = 0.0
        until(lambda: node.broker._link is not link, 5, "the link is given up")
        proxy.heal()
        node.wait_ready()
        node.publish("a", "x")
        assert node.wait_data(1) == ["x"]
        nodes.pop().close()


def test_a_fresh_follower_has_no_position(valkey: Valkey) -> None:
    """Before the first link nothing has been delivered and nothing is vouched for."""
    store = make_store(valkey.url)
    node = Node(valkey.url)
    follower = Follower(
        store, Following(), RecentEvents(), make_rules().tail_seconds, node.receiver
    )
    assert (follower.position, follower.born) == (FIRST_ID, FIRST_ID)
    assert follower.marks_channel != node.broker._follower.marks_channel
    store.close()
    node.close()


def test_a_channel_that_was_quiet_for_long(
    quick: None, own_valkey: Valkey, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event after a silence longer than its channel's tail lives is no loss: none was missed."""
    monkeypatch.setattr("service.retention.TAIL_SECONDS", 0)
    node = Node(own_valkey.url, rules=make_rules(seconds=1))
    nodes.append(node)
    node.broker.follow(["a"])
    node.publish("a", "before")
    node.wait_data(1)
    until(lambda: not own_valkey.cli("EXISTS", "p:t:a", "p:s:a"), 5, "all is forgotten")
    gevent.sleep(1.1)
    node.publish("a", "after")
    assert node.wait_data(2) == ["before", "after"]
    assert node.resets == []


def test_a_check_hides_no_loss(node: Node, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event is lost on the way, and before the tails are read for the check another one is
    stored: the check must not take the lost one for delivered.
    """
    node.publish("a", "1")
    node.wait_data(1)
    follower = node.broker._follower
    take, read_tails = follower._take, follower._read_tails

    def lossy(frames: Iterable[tuple[str, Frame]]) -> None:
        take([pair for pair in frames if b"data: lost\n" not in pair[1].data])

    def late(channels: Sequence[str]) -> Any:
        monkeypatch.setattr(follower, "_read_tails", read_tails)
        publish(node.store, "a", "next")
        return read_tails(channels)

    monkeypatch.setattr(follower, "_take", lossy)
    monkeypatch.setattr(follower, "_read_tails", late)
    node.publish("a", "lost")
    follower.check_soon()
    until(lambda: "lost" in node.data, 5, "what was lost comes")
    until(lambda: node.data[-1] == "next", 5, "what came after it too")
    assert node.data == ["1", "lost", "next"]


def test_two_masters_for_a_moment(valkey: Valkey, own_valkey: Valkey, nodes: list[Node]) -> None:
    """A worker that still hangs on the old master, and gets events there, has missed what the new
    one took meanwhile: when it comes over it says so, though others came before it.
    """
    old, new = valkey, own_valkey
    with FaultProxy(("127.0.0.1", old.port)) as proxy:
        new.cli("REPLICAOF", "127.0.0.1", old.port)
        late = Node(f"redis://127.0.0.1:{proxy.port}/0")
        nodes.append(late)
        late.broker.follow(["x"])
        late.publish("x", "1")
        late.wait_data(1)
        until(lambda: new.cli("XLEN", NAMES.history("x")) == 1, 10, "it is replicated")
        new.cli("REPLICAOF", "NO", "ONE")
        early = Node(new.url)
        nodes.append(early)
        early.broker.follow(["x"])
        early.publish("x", "taken by the new master")
        gevent.sleep(0.01)
        late.publish("x", "taken by the old master")
        late.wait_data(2)
        gevent.sleep(0.01)
        early.publish("y", "the clock goes on")
        proxy.lead_to(("127.0.0.1", new.port))
        proxy.cut()
        until(lambda: late.resets, 10, "the late worker says what may be missing")
        assert late.resets[0][:2] == (["x"], Loss.LOST)
        until(lambda: _accepted(early), 10, "the early worker has noticed, and publishes again")
        until(lambda: late.data[-1] == "later", 5, "they follow the same Redis")


def _accepted(node: Node) -> bool:
    try:
        node.publish("x", "later")
    except RedisError:
        return False
    return True
