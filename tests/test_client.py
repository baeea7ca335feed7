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

import service.follower
import service.redis_link
from service.channels import RedisNames
from service.client import MessagePublisher, MessageSubscriber
from service.errors import (
    BadChannel,
    BadEvent,
    BadParameter,
    ChannelEnded,
    ConfigError,
    EventTooLarge,
    IdempotencyConflict,
    RedisDown,
    RedisError,
)
from service.event import FIRST_ID, EventId
from service.message_publisher import BATCH_MESSAGES
from service.sse import Message
from tests.live_server import until
from tests.nodes import make_store, publish
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


def publish_to_both(*channels: str) -> str:
    """Publish one event to several channels and return its id."""
    store = make_store(os.environ["REDIS_URL"], names=RedisNames("pushline:"))
    (event_id,) = publish(store, ",".join(channels), "of both")
    store.close()
    return str(event_id)


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
    """When Valkey restarts, a listening program reconnects by itself, says that it may have missed
    something, as this Valkey writes nothing to disk, and goes on.
    """
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
    name, data, position = program.message()
    assert name == "$reset"
    assert json.loads(data) == {"channels": ["a", "b"], "reason": "lost", "oldest": None}
    own_valkey.cli("PUBLISH", "pushline:a", "last")
    assert program.message() == ["message", "last", position]
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
        both = publish_to_both("a", "b")
        valkey.cli("PUBLISH", "pushline:a", '{"data": {"a": 1}, "type": "sse"}')
        got = [next(messages) for _ in range(4)]
    assert got == [
        Message("own", "message", event_id),
        Message("foreign", "message", event_id),
        Message("of both", "message", both),
        Message('{"a": 1}', "sse", both),
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
    """Listening goes on when Redis is back, on the same iterator; what may be missing is told."""
    with MessageSubscriber("a") as subscriber:
        messages = subscriber.listen_messages()
        following = gevent.spawn(next, messages)
        own_valkey.kill()
        gevent.sleep(0.2)
        own_valkey.start()
        assert following.get(timeout=10).event == "$reset"
        own_valkey.cli("PUBLISH", "pushline:a", "x")
        assert next(messages).data == "x"


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
    assert [message.event for message in listening.get(timeout=5)] == ["$reset"]
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
    with (
        MessageSubscriber("a") as subscriber,
        pytest.raises(RedisDown, match=r"silent|can't be reached|not answer"),
    ):
        subscriber.listen_messages()
    own_valkey.cont()
    until(lambda: len(own_valkey.cli("CLIENT", "LIST").splitlines()) == 1, 2, "no client is left")


# ------------------------------------------------------------------------- position and resuming


def test_a_position_is_given_back(valkey: Valkey) -> None:
    """A stored position goes on exactly after what was yielded, not after what had arrived."""
    with MessagePublisher("a") as publisher:
        with MessageSubscriber("a") as subscriber:
            messages = subscriber.listen_messages()
            ids = [publisher.publish_message(str(number)) for number in range(5)]
            assert [next(messages).data for _ in range(2)] == ["0", "1"]
            assert subscriber.position == ids[1]
        ids.append(publisher.publish_message("5"))
        with MessageSubscriber(["a", "b"], position=ids[1]) as subscriber:
            messages = subscriber.listen_messages()
            assert [next(messages) for _ in range(4)] == [
                Message(str(number), "message", ids[number]) for number in range(2, 6)
            ]
            assert subscriber.position == ids[5]
            live = publisher.publish_message("live")
            assert next(messages).id == live


def test_a_fresh_position_can_be_stored(valkey: Valkey) -> None:
    """Also before the first message there is a position, and from it nothing is missed."""
    with MessagePublisher("a") as publisher:
        publisher.publish_message("past")
        with MessageSubscriber("a") as subscriber:
            subscriber.listen_messages()
            position = subscriber.position
        publisher.publish_message("missed")
        with MessageSubscriber("a", position=position) as subscriber:
            assert next(subscriber.listen_messages()).data == "missed"


def test_the_position_of_a_quiet_channel_stays_fresh(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The position moves on with what happens elsewhere, so that it doesn't get too old to be
    given back; it never passes a message that hasn't been yielded.
    """
    monkeypatch.setattr(service.redis_link, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(service.follower, "CHECK_SECONDS", 0.1)
    with MessageSubscriber("a") as subscriber, MessagePublisher("b") as publisher:
        messages = subscriber.listen_messages()
        listening = gevent.spawn(next, messages)
        elsewhere = publisher.publish_message("x")
        until(lambda: subscriber.position >= elsewhere, 3, "the position moves")
        with MessagePublisher("a") as other:
            event_id = other.publish_message("y")
        assert listening.get(timeout=3).id == event_id
        later = [publish_to_both("a"), publish_to_both("b")]
        gevent.sleep(0.5)
        assert subscriber.position == event_id < later[0]
        assert next(messages).id == later[0]


@pytest.mark.parametrize("position", ["x", "5", "1-2-3", "earliest"])
def test_a_bad_position_is_named(position: str) -> None:
    """What is no position is an error where it is given."""
    with pytest.raises(ValueError, match="not an event id"):
        MessageSubscriber("a", "redis://127.0.0.1:1", position=position)


def test_a_position_that_is_too_old(valkey: Valkey) -> None:
    """When what was missed is gone, the iterator says so, with a position, and goes on."""
    with MessagePublisher("a") as publisher:
        first, *_, last = [publisher.publish_message(str(number)) for number in range(5)]
        valkey.cli("XTRIM", "pushline:s:a", "MAXLEN", 1)
        with MessageSubscriber("a", position=first) as subscriber:
            messages = subscriber.listen_messages()
            assert subscriber.position == first, "who gives up now is told again"
            message = next(messages)
            assert message.event == "$reset"
            assert message.json() == {"channels": ["a"], "reason": "trimmed", "oldest": last}
            assert message.id == subscriber.position == last
            publisher.publish_message("live")
            assert next(messages).data == "live"


def test_a_killed_redis_loses_nothing() -> None:
    """Across Redis being killed again and again, with every write on disk, a listener gets each
    acknowledged message once and in order; one whose outcome was unknown may come, too.
    """
    with Valkey(aof=True) as server:
        subscriber = MessageSubscriber("a", server.url)
        messages = subscriber.listen_messages()
        publisher = MessagePublisher("a", server.url)
        acknowledged: list[str] = []

        def publish_surely() -> None:
            for number in range(300):
                while True:
                    try:
                        acknowledged.append(
                            publisher.publish_message(str(number), key=f"k{number}")
                        )
                        break
                    except RedisError:
                        gevent.sleep(0.02)
                gevent.sleep(0.002)

        publishing = gevent.spawn(publish_surely)
        for _ in range(3):
            gevent.sleep(0.25)
            server.kill()
            gevent.sleep(0.1)
            server.start()
        got = [next(messages) for _ in range(300)]
        publishing.get()
        assert [message.data for message in got] == [str(number) for number in range(300)]
        assert [message.id for message in got] == acknowledged
        publisher.close()
        subscriber.close()


def test_an_emptied_redis_is_told(valkey: Valkey) -> None:
    """After FLUSHALL the iterator says that something may be missing, once, and goes on."""
    with MessageSubscriber("a") as subscriber, MessagePublisher("a") as publisher:
        messages = subscriber.listen_messages()
        publisher.publish_message("1")
        assert next(messages).data == "1"
        valkey.cli("FLUSHALL")
        publisher.publish_message("2")
        message = next(messages)
        if message.data == "2":
            message = next(messages)
        assert (message.event, message.json()["reason"]) == ("$reset", "lost")
        publisher.publish_message("3")
        assert next(messages).data == "3"


# ------------------------------------------------------------------------------------ the end


def test_an_end_ends_the_iterator(valkey: Valkey) -> None:
    """`$end` is the last message when all channels are finished; publishing then is an error."""
    with MessageSubscriber(["a", "b"]) as subscriber:
        messages = subscriber.listen_messages()
        with MessagePublisher("a") as publisher:
            publisher.publish_message("x")
            last = publisher.end("answer complete")
            with pytest.raises(ChannelEnded):
                publisher.publish_message("y")
            with pytest.raises(ChannelEnded):
                publisher.end()
        assert next(messages).data == "x"
        message = next(messages)
        assert (message.event, message.id) == ("$end", last)
        assert message.json() == {"channel": "a", "reason": "answer complete"}
        with MessagePublisher("b") as publisher:
            publisher.publish_message("z")
            publisher.end()
        assert [message.event for message in messages] == ["message", "$end"]
    with MessageSubscriber("a", position=last) as subscriber:
        assert list(subscriber.listen_messages()) == []


def test_how_messages_are_kept_and_keyed(valkey: Valkey) -> None:
    """`stored`, `ttl_seconds` and `key` are those of the HTTP publish."""
    with MessagePublisher("a") as publisher:
        first = publisher.publish_message("x", key="k")
        assert publisher.publish_message("x", key="k") == first
        with pytest.raises(IdempotencyConflict):
            publisher.publish_message("y", key="k")
        publisher.publish_message("live", stored=False)
        publisher.publish_message("short", ttl_seconds=60)
        with pytest.raises(BadEvent):
            publisher.publish_message("short", ttl_seconds=0)
    assert valkey.cli("XLEN", "pushline:s:a") == 2


# --------------------------------------------------------------------------------- where and who


def test_a_program_may_publish_privately(valkey: Valkey) -> None:
    """What a program publishes is for all unless it says otherwise; another program, which has
    Redis itself, gets both.
    """
    with MessageSubscriber("a") as subscriber, MessagePublisher("a") as publisher:
        messages = subscriber.listen_messages()
        ids = [
            publisher.publish_message("public"),
            publisher.publish_message("secret", private=True),
        ]
        assert [next(messages).id for _ in ids] == ids
    store = make_store(valkey.url, names=RedisNames("pushline:"))
    (entries,) = store.entries([("a", FIRST_ID)], 10)
    assert [entry.private for entry in entries] == [None, frozenset("a")]
    store.close()


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


def test_a_position_of_another_redis(valkey: Valkey) -> None:
    """A position ahead of everything that this Redis has given out is answered by one `$reset`;
    what is published then comes.
    """
    ahead = f"{time.time_ns() // 1_000_000 + 3_600_000}-0"
    with (
        MessageSubscriber("a", valkey.url, position=ahead) as subscriber,
        MessagePublisher("a", valkey.url) as publisher,
    ):
        messages = subscriber.listen_messages()
        ids = [publisher.publish_message(str(number)) for number in range(3)]
        got = [next(messages) for _ in range(4)]
        assert [message.event for message in got] == ["$reset", *["message"] * 3]
        assert got[0].json()["reason"] == "unknown"
        assert [message.id for message in got[1:]] == ids
        assert subscriber.position == ids[-1]


def test_a_position_stored_during_a_catch_up(valkey: Valkey) -> None:
    """A loss is told before anything with a higher id: no position that is stored skips it."""
    with MessagePublisher("a", valkey.url) as a, MessagePublisher("b", valkey.url) as b:
        first = a.publish_message("0")
        for number in range(9):
            a.publish_message(str(number))
        for number in range(5):
            b.publish_message(str(number))
        valkey.cli("XTRIM", "pushline:s:a", "MAXLEN", 2)
        with MessageSubscriber(["a", "b"], valkey.url, position=first) as subscriber:
            messages = subscriber.listen_messages()
            assert next(messages).event == "$reset"
            assert subscriber.position == first
            assert [next(messages).data for _ in range(5)] == [str(n) for n in range(5)]


def test_many_messages_at_once(valkey: Valkey) -> None:
    """They are stored in order under increasing ids, over more than one round trip."""
    with MessagePublisher("a") as publisher:
        ids = publisher.publish_messages(range(BATCH_MESSAGES + 5), event="number")
    store = make_store(valkey.url, names=RedisNames("pushline:"))
    (frames,) = store.entries([("a", FIRST_ID)], 2 * BATCH_MESSAGES)
    store.close()
    assert [str(frame.id) for frame in frames] == ids[-len(frames) :]
    assert len(set(ids)) == BATCH_MESSAGES + 5
    assert sorted(ids, key=EventId.parse) == ids
    assert b"data: 1004\n" in frames[-1].data
    assert frames[-1].name == "number"


def test_one_bad_message_keeps_all_back(valkey: Valkey) -> None:
    """What can't be an event is told before anything is published."""
    with MessagePublisher("a") as publisher:
        for bad, error in (
            (b"\xff", BadEvent),
            ("\ud800", BadEvent),
            ("x" * 300_000, EventTooLarge),
        ):
            with pytest.raises(error):
                publisher.publish_messages(["fine", bad])
    assert valkey.cli("EXISTS", "pushline:s:a") == 0


def test_what_went_out_before_an_end_is_told(valkey: Valkey) -> None:
    """When messages are refused, `published` has a place for each: its id, or None."""
    with MessagePublisher("a") as publisher:
        publisher.publish_message("before")
        publisher.end()
        with pytest.raises(ChannelEnded) as raised:
            publisher.publish_messages(["1", "2"])
        assert list(raised.value.published) == [None, None]
    with MessagePublisher("b") as publisher:
        batches = iter([None, "pushline:t:b"])
        publish = publisher._store.publish

        def publish_and_end(*arguments: Any) -> Any:
            ended = next(batches)
            if ended:
                valkey.cli("HSET", ended, "ended", "1-1")
            return publish(*arguments)

        publisher._store.publish = publish_and_end  # type: ignore[assignment, method-assign]
        with pytest.raises(ChannelEnded) as raised:
            publisher.publish_messages(range(BATCH_MESSAGES + 2))
        assert [one is not None for one in raised.value.published] == (
            [True] * BATCH_MESSAGES + [False] * 2
        )
