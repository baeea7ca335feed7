"""What workers make of the messages in Redis: our own frames, flask-sse's, and anything else."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from service.channels import RedisNames
from service.event import FIRST_ID, Event, EventId
from service.frame import MAGIC, Frame, unpack
from service.publication import Publication
from tests.nodes import make_store
from tests.sse_client import ParsedEvent, parse_stream
from tests.valkey import Valkey

BROKEN_PAYLOADS = 5_000


def text_frame(frame: Frame) -> ParsedEvent:
    """The one event that a foreign message's frame holds."""
    assert frame.id is None
    (event,) = parse_stream(frame.data)
    assert event.last_event_id == ""
    assert event.type == frame.name
    return event


@pytest.mark.parametrize(
    ("payload", "name", "data"),
    [
        ({"data": "hi"}, "message", "hi"),
        ({"data": "hi", "type": "greeting"}, "greeting", "hi"),
        ({"data": "a\r\nb", "type": "greeting", "id": "7", "retry": 3000}, "greeting", "a\nb"),
        ({"data": {"a": [1, None]}}, "message", '{"a": [1, null]}'),
        ({"data": 5}, "message", "5"),
        ({"data": None}, "message", "null"),
        ({"data": "x", "type": None, "id": None}, "message", "x"),
        ({"data": "x", "type": ""}, "message", "x"),
        ({"data": "x", "type": "$reset"}, "message", "x"),
        ({"data": "x", "type": "error"}, "message", "x"),
        ({"data": "x", "type": "two\nlines"}, "message", "x"),
        ({"data": "x", "type": "y" * 129}, "message", "x"),
        ({"data": "x", "type": ["list"]}, "message", "x"),
        ({"data": "half \ud800 pair"}, "message", "half ? pair"),
        ({"data": "x", "type": "half\udfff"}, "message", "x"),
    ],
)
def test_flask_sse_messages_are_unwrapped(payload: dict[str, Any], name: str, data: str) -> None:
    """A message of flask-sse is its data under its type; a type that nobody may publish, and the
    id that only our clock may give, are left out.
    """
    frame = unpack(json.dumps(payload).encode())
    assert text_frame(frame) == ParsedEvent(name, data, "")
    assert b"\nid:" not in b"\n" + frame.data


@pytest.mark.parametrize(
    ("retry", "line"),
    [(3000, b"3000"), (1, b"500"), (-5, b"500"), (10**12, b"60000"), ("3000", None), (True, None),
     (2.5, None), (None, None)],
)  # fmt: skip
def test_flask_sse_retry_is_kept_in_range(retry: object, line: bytes | None) -> None:
    """A foreign reconnection time can neither make a herd nor silence a client for days."""
    frame = unpack(json.dumps({"data": "x", "retry": retry}).encode())
    expected = b"data: x\n\n" if line is None else b"retry: " + line + b"\ndata: x\n\n"
    assert frame.data == expected


@pytest.mark.parametrize(
    "payload",
    [
        "hello",
        "",
        "two\nlines",
        "[1, 2]",
        '"text"',
        "5",
        "{",
        "{}",
        '{"type": "x"}',
        '{"data": "x", "channel": "other"}',
        ' {"data": "x"}',
        '{"data": "x"} trailing',
        '{"data": ' + "9" * 5000 + "}",
        '{"data": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "data: x\n\nid: 5\n\n",
        "P1 1-1 x\ndata: y\n\n",
    ],
)
def test_everything_else_is_raw_text(payload: str) -> None:
    """Any other message is one event with exactly its text as data."""
    assert text_frame(unpack(payload.encode())) == ParsedEvent("message", payload, "")


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    """Bad UTF-8 becomes replacement characters, as browsers do, and never an error."""
    assert text_frame(unpack(b"a\xffb\xe2\x80")).data == "a\ufffdb\ufffd"


def test_nesting_near_the_limit_never_fails() -> None:
    """JSON as deep as Python can just read is an event, also if it can't be written again."""
    for depth in range(900, 1000):
        unpack(b'{"data": ' + b"[" * depth + b"]" * depth + b"}")


def test_own_message_is_taken_apart() -> None:
    """Our own message is its frame, byte for byte, with what its first line tells of it: id, the id
    of the stored event before it, and name.
    """
    frame = unpack(MAGIC + b"12-3 11-7 tick\nevent: tick\nid: 12-3\ndata: x\n\n")
    assert (frame.id, frame.prev, frame.name) == (EventId(12, 3), EventId(11, 7), "tick")
    assert frame.data == b"event: tick\nid: 12-3\ndata: x\n\n"


def test_a_name_may_hold_spaces_and_more_than_ascii() -> None:
    """The name in the first line is all that follows the space after the ids."""
    frame = unpack(MAGIC + "12-3 - two words ✓\ndata: x\n\n".encode())
    assert frame.name == "two words ✓"


def test_no_name_is_message() -> None:
    """An event without a name is named `message`, as browsers call it."""
    assert unpack(MAGIC + b"12-3 - \nid: 12-3\ndata: x\n\n").name == "message"


def envelope(frame: Frame) -> bytes:
    """A frame as publish.lua sends it."""
    prev = "-" if frame.prev is None else str(frame.prev)
    deadline = "" if frame.deadline is None else f"/{frame.deadline}"
    more = "+" if frame.more else ""
    private = "" if frame.private is None else "!" + ",".join(sorted(frame.private))
    name = "" if frame.name == "message" else frame.name
    first_line = f"{frame.id} {prev}{deadline}{more}{private} {name}\n"
    return MAGIC + first_line.encode() + frame.data


EVENT_IDS = st.builds(EventId, st.integers(0, 10**15 - 1), st.integers(0, 10**15 - 1))
CHANNELS = st.text("aZ0_.:-", min_size=1, max_size=8)


@given(
    event_id=EVENT_IDS,
    prev=st.none() | EVENT_IDS,
    deadline=st.none() | st.integers(0, 10**15),
    more=st.booleans(),
    private=st.none() | st.frozensets(CHANNELS, min_size=1, max_size=5),
    name=st.text("ab !+/,-$é✓", max_size=10),
)
@settings(max_examples=200, deadline=None)
def test_everything_in_an_envelope_is_read_back(
    event_id: EventId,
    prev: EventId | None,
    deadline: int | None,
    more: bool,
    private: frozenset[str] | None,
    name: str,
) -> None:
    """With any combination of what the first line may say, each part is read as it was written,
    whatever letters channels and names have in common with the marks between the parts.
    """
    sent = Frame(event_id, name or "message", b"data: x\n\n", prev)
    sent.deadline, sent.more, sent.private = deadline, more, private
    got = unpack(envelope(sent))
    assert {one: getattr(got, one) for one in Frame.__slots__} == {
        one: getattr(sent, one) for one in Frame.__slots__
    }


def test_a_private_message_says_to_whom() -> None:
    """A message without the mark is for all, one with it for its channels."""
    frame = unpack(MAGIC + b"12-3 11-7/99+!a,b.c:d x\ndata: y\n\n")
    assert frame.private == frozenset({"a", "b.c:d"})
    assert (frame.prev, frame.deadline, frame.more) == (EventId(11, 7), 99, True)
    assert unpack(MAGIC + b"12-3 -!a x\ndata: y\n\n").private == frozenset("a")
    assert unpack(MAGIC + b"12-3 - x!a\ndata: y\n\n").private is None
    assert unpack(b'{"data": "x", "type": "!a"}').private is None


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"12-3",
        b"12-3 ",
        b"12-3 - x",
        b"12-3 - x\n",
        b"12-3 - x\ndata: cut",
        b"12-3 - x\ndata: cut\n",
        b"12-3 x\ndata: y\n\n",
        b"12 - x\ndata: y\n\n",
        b"a-b - x\ndata: y\n\n",
        b"1-2-3 - x\ndata: y\n\n",
        b"\xd9\xa1-1 - x\ndata: y\n\n",
        b"9999999999999999-1 - x\ndata: y\n\n",
        b"12-3 - \xff\ndata: y\n\n",
        b"12-3 11 x\ndata: y\n\n",
        b"12-3 a-b x\ndata: y\n\n",
        b"12-3 -1-1 x\ndata: y\n\n",
        b"12-3 !a x\ndata: y\n\n",
        b"12-3 11-7!a b\ndata: y",
    ],
)
def test_a_broken_own_message_is_taken_as_text(rest: bytes) -> None:
    """What begins like ours but isn't whole is shown as text; it can't take an id or a field."""
    text_frame(unpack(MAGIC + rest))


@given(st.binary() | st.binary().map(MAGIC.__add__) | st.binary().map(b'{"data":'.__add__))
@settings(max_examples=250, deadline=None)
def test_any_bytes_are_one_event(payload: bytes) -> None:
    """Whatever anybody publishes is exactly one event, and never an error."""
    frame = unpack(payload)
    assert frame.data.endswith(b"\n\n")
    if frame.id is None:
        text_frame(frame)


def test_many_broken_payloads() -> None:
    """Thousands of damaged messages, ours and flask-sse's, raise nothing and stay whole blocks."""
    chance = random.Random(5)
    whole = [
        MAGIC
        + b"1700000000000-12 170000-3 tick\nevent: tick\nid: 1700000000000-12\ndata: hello\n\n",
        json.dumps({"data": "hé\n", "type": "t", "id": 1, "retry": 5}).encode(),
        json.dumps({"data": {"deep": [{"x": [1.5e300, True]}] * 3}}).encode(),
    ]
    for _ in range(BROKEN_PAYLOADS):
        payload = bytearray(chance.choice(whole))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(payload) + 1)
            damage = chance.randrange(4)
            if damage == 0:
                del payload[at:]
            elif damage == 1:
                del payload[at : at + chance.randint(1, 8)]
            elif damage == 2:
                payload[at:at] = chance.randbytes(chance.randint(1, 4))
            else:
                payload[at:at] = chance.choice([b"\n", b"\r", b"\0", b"[" * 500, b"\\ud800", b'"'])
        frame = unpack(bytes(payload))
        assert frame.data.endswith(b"\n\n")
        if frame.id is None:
            text_frame(frame)


@pytest.mark.parametrize(
    "event",
    [
        Event("hello"),
        Event(""),
        Event("a\r\nb\n\nc\u2028\0"),
        Event('{"data": "not flask-sse"}', "tick"),
        Event("x", "näme with space", 1500),
        Event("y" * 100_000),
    ],
)
def test_frames_pass_through_redis(valkey: Valkey, event: Event) -> None:
    """What publish.lua sends out is read back as the same event, under the id that it returned."""
    names = RedisNames("p:")
    store = make_store(valkey.url, names=names)
    connection = redis.Redis.from_url(valkey.url)
    with connection.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(names.pubsub("a"), names.pubsub("b"))
        assert listener.get_message(timeout=5) is None  # confirmed

        (receipt,) = store.publish([Publication(event, ("a", "b"))], FIRST_ID)

        messages: list[Any] = []
        while len(messages) < 2:
            messages += filter(None, [listener.get_message(timeout=5)])
    connection.close()
    store.close()
    assert [message["channel"] for message in messages] == [b"p:a", b"p:b"]
    frame = unpack(messages[0]["data"])
    assert unpack(messages[1]["data"]).data == frame.data
    assert (frame.id, frame.name) == (receipt.id, event.name or "message")
    (parsed,) = parse_stream(frame.data)
    data = event.data.replace("\r\n", "\n")
    assert parsed == ParsedEvent(event.name or "message", data, str(receipt.id))
