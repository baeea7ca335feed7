"""Commands to all workers: on a real Valkey, over lost links, and among what is no command."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import gevent
import pytest

import service.control
from service.channels import check_channel
from service.control import CLOSE, CONTROL, Close
from service.errors import BadChannel, BadEvent
from service.event import Event, EventId, ServiceEvent
from service.frame import MAGIC, Frame, unpack
from service.redis_link import RedisLink
from service.retention import RetentionRules
from service.sse import encode
from tests.live_server import until
from tests.nodes import NAMES, Node, followers, make_rules
from tests.valkey import Valkey

ANN = Close(user="ann")
STREAM = Close(stream="0a1b2c3d-7")


class Obeying(Node):
    """A node that follows the control channel, and nothing else."""

    def commands(self) -> list[Close]:
        """What it was told to do, in order."""
        read = [Close.read(frame) for channel, frame in self.delivered if channel == CONTROL]
        return [command for command in read if command is not None]

    def wait_commands(self, *commands: Close) -> None:
        """Wait until exactly these have come."""
        until(lambda: len(self.commands()) >= len(commands), 10, f"{len(commands)} commands")
        self.broker.sync()
        assert self.commands() == list(commands)


@pytest.fixture
def nodes(valkey: Valkey) -> Iterator[list[Obeying]]:
    """Two workers."""
    nodes = [Obeying(valkey.url, always=[CONTROL]) for _ in range(2)]
    for node in nodes:
        node.wait_ready()
    yield nodes
    for node in nodes:
        node.close()


@contextlib.contextmanager
def outage(node: Node, valkey: Valkey) -> Iterator[None]:
    """No link to Redis meanwhile: all are cut, and this node's attempts fail."""
    connect = node.broker._connect

    def refuse() -> RedisLink:
        raise OSError("the test refuses")

    node.broker._connect = refuse
    valkey.cli("CLIENT", "KILL", "TYPE", "pubsub")
    until(lambda: not node.broker.ready, 5, "the link is lost")
    yield
    node.broker._connect = connect


def give(node: Node, command: Close) -> None:
    """Publish a command, as a worker does."""
    node.broker.publish([command.publication()])


def own_message(data: str, name: str = CLOSE) -> bytes:
    """A live-only message in the form of our own ones."""
    before, after = encode(ServiceEvent(data, name))
    return MAGIC + b"1-1 - %b\n" % name.encode() + before + b"id: 1-1\n" + after


# --------------------------------------------------------------------------------- what arrives


@pytest.mark.parametrize("command", [ANN, STREAM, Close(user='né"\n\ud800\u2028'), Close("a", "b")])
def test_a_command_is_read_as_it_was_given(command: Close) -> None:
    """Whoever a user is called, the command that was published is the one that is read."""
    publication = command.publication()
    assert publication.channels == (CONTROL,)
    assert publication.stored
    before, after = encode(publication.event)
    assert publication.event.name == CLOSE
    assert Close.read(Frame(EventId(1, 0), CLOSE, before + b"id: 1-0\n" + after)) == command


def test_commands_reach_all_workers(nodes: list[Obeying]) -> None:
    """What one worker is told, all do, that one among them, once and in order."""
    give(nodes[0], ANN)
    give(nodes[1], STREAM)
    give(nodes[0], ANN)
    for node in nodes:
        node.wait_commands(ANN, STREAM, ANN)


def test_workers_follow_before_anybody_streams(nodes: list[Obeying], valkey: Valkey) -> None:
    """A worker follows the control channel for as long as it has a link, without any stream, and
    isn't ready before it does.
    """
    assert followers(valkey, CONTROL) == 2
    nodes[0].broker.follow(["a"])
    nodes[0].broker.unfollow(["a"])
    nodes[0].broker._follower.forget_idle()
    assert followers(valkey, CONTROL) == 2
    with outage(nodes[0], valkey):
        assert not nodes[0].broker.ready
        until(lambda: followers(valkey, CONTROL) == 1, 5, "only the other one follows")
    nodes[0].wait_ready()
    assert followers(valkey, CONTROL) == 2


def test_clients_cannot_give_commands() -> None:
    """No stream and no publish can name the control channel, and no event a command."""
    with pytest.raises(BadChannel):
        check_channel(CONTROL)
    with pytest.raises(BadEvent):
        Event("{}", CLOSE)


def test_an_old_command_is_not_for_a_new_worker(nodes: list[Obeying], valkey: Valkey) -> None:
    """A worker that starts has no streams from before, so it carries out only what comes."""
    give(nodes[0], ANN)
    late = Obeying(valkey.url, always=[CONTROL])
    nodes.append(late)
    late.wait_ready()
    give(nodes[0], STREAM)
    late.wait_commands(STREAM)


# ----------------------------------------------------------------------------------- lost links


def test_a_lost_link_misses_no_command(nodes: list[Obeying], valkey: Valkey) -> None:
    """A worker that was cut off from Redis carries out once, and in order, what was told
    meanwhile; no later cut repeats it.
    """
    cut_off, other = nodes
    give(other, ANN)
    cut_off.wait_commands(ANN)
    with outage(cut_off, valkey):
        other.wait_ready()
        give(other, STREAM)
        give(other, ANN)
    for node in nodes:
        node.wait_ready()
        node.wait_commands(ANN, STREAM, ANN)
    with outage(cut_off, valkey):
        pass
    for node in nodes:
        node.wait_ready()
        node.wait_commands(ANN, STREAM, ANN)


def test_a_command_that_is_too_old_is_dropped(
    nodes: list[Obeying], valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was cut off for long doesn't carry out what is out of date: the user may have
    come back with a good credential since.
    """
    cut_off, other = nodes
    with outage(cut_off, valkey):
        other.wait_ready()
        monkeypatch.setattr(service.control, "KEPT_SECONDS", 1)
        give(other, ANN)
        monkeypatch.undo()
        give(other, STREAM)
        gevent.sleep(1.1)
    cut_off.wait_ready()
    cut_off.wait_commands(STREAM)
    other.wait_commands(ANN, STREAM)


@pytest.mark.parametrize("rules", [make_rules(0, 1), make_rules(rules=[("*", 0, 1)])])
def test_commands_are_kept_whatever_history_is(valkey: Valkey, rules: RetentionRules) -> None:
    """Also where channels keep no history, a lost link misses no command."""
    node = Obeying(valkey.url, always=[CONTROL], rules=rules)
    node.wait_ready()
    with outage(node, valkey):
        give(node, ANN)
    node.wait_ready()
    node.wait_commands(ANN)
    assert valkey.cli("TTL", NAMES.history(CONTROL)) > service.control.KEPT_SECONDS
    node.close()


# ----------------------------------------------------------------------------- what is no command

GARBAGE = [
    b"",
    b"junk",
    b"\xff\xfe",
    b"{}",
    b'{"user": "ann"}',
    json.dumps({"data": {"user": "ann", "stream": ""}, "type": CLOSE}).encode(),
    json.dumps({"data": '{"user": "ann"}', "type": CLOSE}).encode(),
    MAGIC + b"junk",
    MAGIC + b"1-1 - $close\nid: 1-1\n\n",
    MAGIC + b"1-1 - $close\ndata: {}\n\ndata: {}\n\n",
    MAGIC + b"1-1 - $close\ndata: \xff\n\n",
    own_message("junk"),
    own_message(""),
    own_message("{"),
    own_message("{}"),
    own_message("null"),
    own_message("5"),
    own_message('"ann"'),
    own_message("[]"),
    own_message('["ann", ""]'),
    own_message('{"user": 5}'),
    own_message('{"user": null, "stream": "x"}'),
    own_message('{"user": ["ann"]}'),
    own_message('{"user": "", "stream": ""}'),
    own_message('{"user": "ann", "stream": "", "since": 5}'),
    own_message("9" * 5000),
    own_message("[" * 100_000),
    own_message(json.dumps(ANN._asdict()), "$open"),
    own_message(json.dumps(ANN._asdict()), "$reset"),
    own_message(json.dumps(ANN._asdict()), "close"),
]
"""Messages that name no streams to close."""


@pytest.mark.parametrize("message", GARBAGE, ids=lambda one: ascii(one[:40]))
def test_what_is_no_command_is_ignored(message: bytes) -> None:
    """A command of a newer version, one that names nobody, and whatever else anybody publishes is
    none; reading it never fails.
    """
    assert Close.read(unpack(message)) is None


def test_garbage_harms_no_worker(nodes: list[Obeying], valkey: Valkey) -> None:
    """Whatever is published on the control channel with redis-cli, links and commands go on."""
    links = [node.link for node in nodes]
    for message in GARBAGE:
        assert valkey.cli("PUBLISH", NAMES.pubsub(CONTROL), message) == 2
    give(nodes[0], ANN)
    for node in nodes:
        node.wait_commands(ANN)
        assert len(node.delivered) == len(GARBAGE) + 1
        assert node.resets == []
    assert [node.link for node in nodes] == links
