"""MessagePublisher and MessageSubscriber: here under gevent, and in plain programs of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

import service.redis_link
from service.client import MessagePublisher, MessageSubscriber
from service.errors import BadChannel, BadEvent, BadParameter, ConfigError, RedisDown
from service.sse import Message
from tests.live_server import until
from tests.valkey import Valkey, free_port

ROOT = Path(__file__).resolve().parents[1]

PRELUDE = """
import json, sys, threading, time
from service.client import MessagePublisher, MessageSubscriber

def show(message):
    print(json.dumps([message.event, message.data, message.id]), flush=True)
"""

EPILOGUE = """
assert not {"gevent", "greenlet", "flask", "gunicorn"} & sys.modules.keys(), "not plain Python"
print("plain", flush=True)
"""


@pytest.fixture(autouse=True)
def redis_url(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """REDIS_URL is the Valkey of the test, for this process and its children."""
    for name in ("valkey", "own_valkey"):
        if name in request.fixturenames:
            monkeypatch.setenv("REDIS_URL", request.getfixturevalue(name).url)


class Program:
    """A plain Python process, whose output is read line by line."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PRELUDE + code + EPILOGUE],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().rstrip("\n")
        if not line:
            raise AssertionError(self.process.communicate(timeout=5)[1])
        return line

    def message(self) -> list[str]:
        """The next message that it shows: event, data, id."""
        message: list[str] = json.loads(self.line())
        return message

    def end(self) -> None:
        """It is done, without gevent having been imported."""
        assert self.line() == "plain"
        assert self.process.wait(5) == 0


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    """Put programs here to have them ended."""
    programs: list[Program] = []
    yield programs
    for program in programs:
        program.process.kill()
        program.process.communicate()


def subscribers(valkey: Valkey, channel: str = "a") -> int:
    """How many connections follow a channel."""
    return int(valkey.cli("PUBSUB", "NUMSUB", f"pushline:{channel}")[1])


# ---------------------------------------------------------------------------- plain processes


def test_publisher_and_subscribers_in_plain_processes(
    valkey: Valkey, programs: list[Program]
) -> None:
    """Plain programs without gevent: several subscribers, a publisher in a process of its own,
    text, bytes and JSON.
    """
    listener = """
with MessageSubscriber("a") as subscriber:
    messages = subscriber.listen_messages()
    print("ready", flush=True)
    for _ in range(4):
        show(next(messages))
"""
    programs += [Program(listener) for _ in range(3)]
    assert [program.line() for program in programs] == ["ready"] * 3
    publisher = Program("""
with MessagePublisher("a") as publisher:
    print(publisher.publish_message("text ✓\\r\\nand more"), flush=True)
    print(publisher.publish_message("bytes ✓".encode()), flush=True)
    print(publisher.publish_message({"json": [1, None, "é"]}, event="tick"), flush=True)
    print(publisher.publish_message(5), flush=True)
""")
    ids = [publisher.line() for _ in range(4)]
    publisher.end()
    assert ids == sorted(ids)
    for program in programs:
        assert [program.message() for _ in range(4)] == [
            ["message", "text ✓\nand more", ids[0]],
            ["message", "bytes ✓", ids[1]],
            ["tick", '{"json":[1,null,"é"]}', ids[2]],
            ["message", "5", ids[3]],
        ]
        program.end()


def test_a_plain_subscriber_survives_a_restart(own_valkey: Valkey, programs: list[Program]) -> None:
    """When Valkey restarts, a listening program reconnects by itself and goes on."""
    program = Program("""
subscriber = MessageSubscriber(["a", "b"])
for message in subscriber.listen_messages():
    show(message)
    if message.data == "last":
        break
subscriber.close()
""")
    programs.append(program)
    until(lambda: subscribers(own_valkey) == 1, 5, "it listens")
    own_valkey.cli("PUBLISH", "pushline:b", "first")
    assert program.message() == ["message", "first", ""]
    own_valkey.kill()
    own_valkey.start()
    until(lambda: subscribers(own_valkey) == 1, 10, "it listens again")
    own_valkey.cli("PUBLISH", "pushline:a", "last")
    assert program.message() == ["message", "last", ""]
    program.end()


def test_threads_of_a_plain_program(valkey: Valkey, programs: list[Program]) -> None:
    """Threads may share a publisher; a listener is ended by another thread, within a second."""
    program = Program("""
subscriber = MessageSubscriber("a")
messages = subscriber.listen_messages()
publisher = MessagePublisher("a")
def publish(number):
    for n in range(20):
        publisher.publish_message(f"{number}-{n}")
threads = [threading.Thread(target=publish, args=(number,)) for number in range(5)]
for thread in threads: thread.start()
got = [next(messages) for _ in range(100)]
for thread in threads: thread.join()
publisher.close()
ids = [tuple(map(int, m.id.split("-"))) for m in got]
assert ids == sorted(set(ids)) and len(ids) == 100
for number in range(5):
    own = [m.data for m in got if m.data.startswith(f"{number}-")]
    assert own == [f"{number}-{n}" for n in range(20)], own
threading.Timer(0.2, subscriber.close).start()
started = time.monotonic()
assert list(messages) == []
assert time.monotonic() - started < 1.2
""")
    programs.append(program)
    program.end()


# ------------------------------------------------------------------------------------ publishing


@pytest.mark.parametrize(
    ("message", "data"),
    [
        ("", ""),
        ("hello", "hello"),
        (b"bytes", "bytes"),
        (bytearray(b"more"), "more"),
        (memoryview(b"even more"), "even more"),
        ([1, "é"], '[1,"é"]'),
        (None, "null"),
        (True, "true"),
    ],
)
def test_messages_are_text_bytes_or_json(valkey: Valkey, message: Any, data: str) -> None:
    """Text and UTF-8 are published as they are, everything else as JSON."""
    with MessageSubscriber("a") as subscriber, MessagePublisher("a") as publisher:
        messages = subscriber.listen_messages()
        event_id = publisher.publish_message(message, event="tick")
        assert next(messages) == Message(data, "tick", event_id)


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (b"\xff", None),
        ("\ud800", None),
        (["\ud800"], None),
        (object(), None),
        ({1, 2}, None),
        (float("nan"), None),
        ("x", "$reset"),
        ("x", ""),
        ("x", "a\nb"),
    ],
)
def test_what_cannot_be_published_is_refused(valkey: Valkey, message: Any, event: str) -> None:
    """A message that no reader could read back is an error of the program that sends it."""
    with MessagePublisher("a") as publisher, pytest.raises(BadEvent):
        publisher.publish_message(message, event)
    assert valkey.cli("KEYS", "*") == []


def test_publishing_without_redis() -> None:
    """Without Redis publishing fails at once, and nothing is retried."""
    publisher = MessagePublisher("a", f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(RedisDown):
        publisher.publish_message("x")
    publisher.close()


def test_a_closed_publisher_opens_again(valkey: Valkey) -> None:
    """`close` gives the connections back; the next message opens new ones."""
    publisher = MessagePublisher("a")
    first = publisher.publish_message("x")
    publisher.close()
    assert publisher.publish_message("y") > first
    publisher.close()


# ------------------------------------------------------------------------------------- listening


def test_several_channels(valkey: Valkey) -> None:
    """A subscriber of several channels gets an event of several of them once, and messages of
    others without an id of their own.
    """
    with MessageSubscriber(["a", "b", "a"]) as subscriber:
        messages = subscriber.listen_messages()
        with MessagePublisher("b") as publisher:
            event_id = publisher.publish_message("own")
        valkey.cli("PUBLISH", "pushline:a", "foreign")
        repeated = b"\xffP1 %b \nid: %b\ndata: own\n\n" % (event_id.encode(), event_id.encode())
        valkey.cli("PUBLISH", "pushline:a", repeated)
        valkey.cli("PUBLISH", "pushline:a", '{"data": {"a": 1}, "type": "sse"}')
        got = [next(messages) for _ in range(3)]
    assert got == [
        Message("own", "message", event_id),
        Message("foreign", "message", event_id),
        Message('{"a": 1}', "sse", event_id),
    ]


def test_nothing_is_missed_once_it_listens(valkey: Valkey) -> None:
    """When `listen_messages` has returned, the very next message arrives."""
    for number in range(10):
        with MessageSubscriber(f"c{number}") as subscriber:
            messages = subscriber.listen_messages()
            valkey.cli("PUBLISH", f"pushline:c{number}", "x")
            assert next(messages).data == "x"


def test_listening_goes_on_where_it_stopped(valkey: Valkey) -> None:
    """A second iterator continues where the first was left, without a gap."""
    with MessageSubscriber("a") as subscriber:
        first = subscriber.listen_messages()
        valkey.cli("EVAL", "for i = 1, 5 do redis.call('PUBLISH', 'pushline:a', i) end", 0)
        assert [next(first).data for _ in range(2)] == ["1", "2"]
        second = subscriber.listen_messages()
        assert [next(second).data for _ in range(3)] == ["3", "4", "5"]


def test_what_has_arrived_is_still_yielded(valkey: Valkey) -> None:
    """After `close` the iterator yields what it has already got, and ends."""
    subscriber = MessageSubscriber("a")
    messages = subscriber.listen_messages()
    valkey.cli("EVAL", "for i = 1, 3 do redis.call('PUBLISH', 'pushline:a', i) end", 0)
    assert next(messages).data == "1"
    subscriber.close()
    subscriber.close()
    assert [message.data for message in messages] == ["2", "3"]
    assert list(subscriber.listen_messages()) == []


def test_closing_before_listening(valkey: Valkey) -> None:
    """A subscriber that was closed first has nothing to say, and connects to nothing."""
    subscriber = MessageSubscriber("a")
    subscriber.close()
    assert list(subscriber.listen_messages()) == []
    assert subscribers(valkey) == 0


def test_listening_without_redis() -> None:
    """A Redis that isn't there at first is an error; later it is waited for."""
    with (
        MessageSubscriber("a", f"redis://127.0.0.1:{free_port()}") as subscriber,
        pytest.raises(RedisDown, match="can't be reached"),
    ):
        subscriber.listen_messages()


def test_a_lost_redis_is_waited_for(own_valkey: Valkey) -> None:
    """Listening goes on when Redis is back, on the same iterator."""
    with MessageSubscriber("a") as subscriber:
        messages = subscriber.listen_messages()
        following = gevent.spawn(next, messages)
        own_valkey.kill()
        gevent.sleep(0.2)
        own_valkey.start()
        until(lambda: subscribers(own_valkey) == 1, 10, "it listens again")
        own_valkey.cli("PUBLISH", "pushline:a", "x")
        assert following.get(timeout=2).data == "x"


def test_closing_during_an_outage(own_valkey: Valkey) -> None:
    """A subscriber that waits for Redis to come back can be closed, and leaves nothing behind."""
    subscriber = MessageSubscriber("a")
    messages = subscriber.listen_messages()
    listening = gevent.spawn(list, messages)
    own_valkey.kill()
    gevent.sleep(1.5)  # by now the pauses between attempts are long
    started = time.monotonic()
    subscriber.close()
    assert listening.get(timeout=3) == []
    assert time.monotonic() - started < 0.5


def test_closing_while_it_reconnects(own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is made just when the subscriber is closed is closed as well."""
    subscriber = MessageSubscriber("a")
    messages = subscriber.listen_messages()
    listening = gevent.spawn(list, messages)
    connect = subscriber._connect

    def connect_late() -> Any:
        link = connect()
        subscriber.close()
        return link

    monkeypatch.setattr(subscriber, "_connect", connect_late)
    own_valkey.kill()
    own_valkey.start()
    assert listening.get(timeout=5) == []
    until(lambda: subscribers(own_valkey) == 0, 2, "the connection is closed")


def test_a_link_that_fails_before_it_follows_is_closed(
    own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When Redis freezes while it is asked for the channels, no connection is left open."""
    monkeypatch.setattr(service.redis_link, "TICK_SECONDS", 0.05)
    subscribe = service.redis_link.RedisLink.subscribe

    def freeze(self: Any, channels: Any) -> None:
        own_valkey.stop_process()
        subscribe(self, channels)

    monkeypatch.setattr(service.redis_link.RedisLink, "subscribe", freeze)
    with MessageSubscriber("a") as subscriber, pytest.raises(RedisDown, match="silent"):
        subscriber.listen_messages()
    own_valkey.cont()
    until(lambda: len(own_valkey.cli("CLIENT", "LIST").splitlines()) == 1, 2, "no client is left")


# --------------------------------------------------------------------------------- where and who


def test_names_and_addresses_are_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad channel or address is an error where it is given, before anything is connected."""
    for make in (MessagePublisher, MessageSubscriber):
        with pytest.raises(BadChannel):
            make("not a channel")
        with pytest.raises(ConfigError, match="REDIS_URL"):
            make("a", "http://example.com")
    with pytest.raises(BadChannel):
        MessageSubscriber([])
    with pytest.raises(BadParameter):
        MessageSubscriber([f"c{number}" for number in range(1001)])


def test_the_prefix_is_the_services(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs use the same CHANNEL_PREFIX as the service."""
    monkeypatch.setenv("CHANNEL_PREFIX", "other:")
    with MessageSubscriber("a") as subscriber, MessagePublisher("a") as publisher:
        messages = subscriber.listen_messages()
        valkey.cli("PUBLISH", "pushline:a", "not ours")
        publisher.publish_message("ours")
        assert next(messages).data == "ours"


def test_without_an_address_the_private_valkey_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a URL and without REDIS_URL, programs use what `serve` on the same PORT started."""
    from service import embedded

    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("PORT", str(free_port()))
    with contextlib.closing(MessagePublisher("a")) as publisher, pytest.raises(RedisDown):
        publisher.publish_message("x")
    with Valkey(unix_socket=True) as server:
        monkeypatch.setattr(embedded, "socket_path", lambda port: server.socket_path)
        with MessageSubscriber("a") as subscriber, MessagePublisher("a") as publisher:
            messages = subscriber.listen_messages()
            publisher.publish_message("x")
            assert next(messages).data == "x"


def test_the_environment_is_not_changed(valkey: Valkey) -> None:
    """A URL that is given stays with its object."""
    before = dict(os.environ)
    MessagePublisher("a", "redis://127.0.0.1:1").close()
    assert dict(os.environ) == before
