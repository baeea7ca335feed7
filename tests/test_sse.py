"""The encoder against an independent WHATWG parser, and our parser against the same one."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BadEvent
from service.event import Event, EventId
from service.sse import (
    HEARTBEAT,
    Message,
    Parser,
    encode,
    encode_id,
    encode_opening,
    encode_ping,
    encode_position,
    encode_retry,
)
from tests.sse_client import EventStreamParser, ParsedEvent

EXAMPLES = 250
MANY_EXAMPLES = 20_000

# What a careless encoder or parser takes for a line end, a field or the end of a text.
TRICKY = (
    *("\r", "\n", "\r\n", "\n\r", "\0", "\ufeff", "\x85", "\u2028", "\u2029", "\x0b", "\x0c"),
    *("\x1c", ":", " ", "data", "data:", "event: evil", "id: 9-9", "retry: 1", ": comment", "€😀"),
)

texts = st.lists(st.sampled_from(TRICKY) | st.text(max_size=5), max_size=12).map("".join)
names = st.none() | st.sampled_from(["a", "message", "data", "id: 1", "naïve ✓", " padded ", ":x"])
retries = st.none() | st.integers(500, 60_000)
ids = st.builds(EventId, st.integers(0, 10**15 - 1), st.integers(0, 10**15 - 1))
cuts = st.lists(st.integers(0, 200), max_size=8)

# Lines and pieces of streams as others may write them, whole characters or not.
FIELDS = (
    *(b"data", b"data:", b"data: x", b"data:  y", b"Data: x", b"event: e", b"event", b"id: 1"),
    *(b"id: a\0b", b"id", b"retry: 5", b"retry: 07", b"retry", b"retry: x", b"retry:\xd9\xa1"),
    *(b": comment", b"", b" data: x", b"data\xef\xbb\xbf: x"),
)
ENDS = (b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"")
PIECES = (b"\xc2\x85", b"\xe2\x80", b"\xa8", b"\0", b"\xef\xbb\xbf", b"\xef\xbb", b"\xff", b" ")
lines = st.builds(bytes.__add__, st.sampled_from(FIELDS), st.sampled_from(ENDS))
streams = st.lists(
    lines | lines | st.sampled_from(PIECES) | st.binary(max_size=4), max_size=30
).map(b"".join)


def whole(event: Event, event_id: EventId) -> bytes:
    """The frame as publish.lua puts it together."""
    before, after = encode(event)
    return before + encode_id(event_id) + after


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data`, cut at each of `cuts` that is inside."""
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


def check_read_back(
    data: str, name: str | None, retry: int | None, event_id: EventId, cuts: list[int]
) -> None:
    """One frame is exactly one event to another reader, and nothing beyond its fields."""
    frame = whole(Event(data, name, retry), event_id)
    reader = EventStreamParser()
    # A second frame shows that the first one left nothing behind.
    after = whole(Event("next"), EventId(7, 7))

    read = [event for piece in pieces(frame + after, cuts) for event in reader.feed(piece)]

    expected = ParsedEvent(name or "message", re.sub("\r\n|\r", "\n", data), str(event_id))
    assert read == [expected, ParsedEvent("message", "next", "7-7")]
    assert reader.retry == retry
    assert (reader.comments, reader.unknown_fields) == ([], [])
    assert (reader.quiet_blocks, reader.stray_blank_lines) == (0, 0)
    assert not reader.inside_block


@given(texts, names, retries, ids, cuts)
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_text_is_read_back(
    data: str, name: str | None, retry: int | None, event_id: EventId, cuts: list[int]
) -> None:
    """Whatever text is published is what another reader sees, with CRLF and CR as LF; no part of
    it becomes a field, a comment or another event.
    """
    check_read_back(data, name, retry, event_id, cuts)


@pytest.mark.long
@given(texts, names, retries, ids, cuts)
@settings(max_examples=MANY_EXAMPLES, deadline=None)
def test_very_many_texts_are_read_back(
    data: str, name: str | None, retry: int | None, event_id: EventId, cuts: list[int]
) -> None:
    """Whatever text is published is what another reader sees: many more examples."""
    check_read_back(data, name, retry, event_id, cuts)


@pytest.mark.parametrize(
    ("event", "before", "after"),
    [
        (Event("hello"), b"", b"data: hello\n\n"),
        (Event(""), b"", b"data: \n\n"),
        (Event("a\nb"), b"", b"data: a\ndata: b\n\n"),
        (Event("a\r\nb\rc\n"), b"", b"data: a\ndata: b\ndata: c\ndata: \n\n"),
        (Event("\n\r"), b"", b"data: \ndata: \ndata: \n\n"),
        (Event(" x"), b"", b"data:  x\n\n"),
        (Event("a\u2028b\x85c\0"), b"", "data: a\u2028b\x85c\0\n\n".encode()),
        (Event("x", "tick"), b"event: tick\n", b"data: x\n\n"),
        (Event("x", "tick", 1500), b"event: tick\nretry: 1500\n", b"data: x\n\n"),
        (Event("x", None, 500), b"retry: 500\n", b"data: x\n\n"),
    ],
)
def test_encoded_bytes(event: Event, before: bytes, after: bytes) -> None:
    """A frame is UTF-8 with LF line ends, one `data:` for each line, one space after each colon."""
    assert encode(event) == (before, after)


@given(texts, st.characters(categories=["Cs"]), texts)
@settings(max_examples=EXAMPLES, deadline=None)
def test_half_a_surrogate_pair_is_refused(before: str, half: str, after: str) -> None:
    """Text that UTF-8 can't carry is refused in data and in names, not encoded into something."""
    with pytest.raises(BadEvent):
        Event(before + half + after)
    with pytest.raises(BadEvent):
        Event("x", "name" + half)


def test_service_blocks() -> None:
    """The service's own blocks dispatch nothing, but for the ping, which leaves the id alone."""
    reader = EventStreamParser()
    opening = encode_opening(2000, EventId(5, 1))
    assert opening == b"retry: 2000\nid: 5-1\n\n"
    assert reader.feed(opening) == []
    assert (reader.retry, reader.last_event_id) == (2000, "5-1")

    assert HEARTBEAT == b":\n"
    assert reader.feed(HEARTBEAT) == []
    assert (reader.comments, reader.stray_blank_lines) == ([""], 0)

    assert reader.feed(encode_position(EventId(6, 0))) == []
    assert reader.last_event_id == "6-0"

    assert reader.feed(encode_ping(123)) == [ParsedEvent("$ping", '{"time": 123}', "6-0")]

    assert reader.feed(encode_retry(1234)) == []
    assert reader.retry == 1234
    assert not reader.inside_block


@given(streams, cuts)
@settings(max_examples=EXAMPLES, deadline=None)
def test_parser_agrees_with_the_independent_one(stream: bytes, cuts: list[int]) -> None:
    """Any bytes, cut anywhere, mean the same to our parser as to the independent one."""
    check_parsers_agree(stream, cuts)


@pytest.mark.long
@given(streams, cuts)
@settings(max_examples=MANY_EXAMPLES, deadline=None)
def test_parser_agrees_on_very_many_streams(stream: bytes, cuts: list[int]) -> None:
    """Any bytes, cut anywhere, mean the same to both parsers: many more examples."""
    check_parsers_agree(stream, cuts)


def check_parsers_agree(stream: bytes, cuts: list[int]) -> None:
    """Feed both parsers and compare all that they tell; cut anywhere, and after each byte."""
    stream += b":"  # after a CR at the end ours waits for one more byte, as it may be half a CRLF
    ours, bytewise, other = Parser(), Parser(), EventStreamParser()

    read = [message for piece in pieces(stream, cuts) for message in ours.feed(piece)]

    expected = [Message(e.data, e.type, e.last_event_id) for e in other.feed(stream)]
    assert read == expected
    assert [m for byte in stream for m in bytewise.feed(bytes([byte]))] == expected
    assert ours.retry_milliseconds == other.retry
    assert [*ours.feed(b"\n\n")] == [
        Message(e.data, e.type, e.last_event_id) for e in other.feed(b"\n\n")
    ]
    assert ours.last_event_id == other.last_event_id


def test_parser_survives_an_absurd_retry() -> None:
    """A reconnection time of thousands of digits doesn't stop the stream."""
    (message,) = Parser().feed(b"retry: " + b"9" * 5000 + b"\ndata: x\n\n")
    assert message.data == "x"


def test_message_is_convenient() -> None:
    """A message prints as its data, and reads it as JSON or says that it is none."""
    message = Message('{"a": [1, 2]}', "tick", "1-0")
    assert str(message) == '{"a": [1, 2]}'
    assert message.json() == {"a": [1, 2]}
    with pytest.raises(ValueError, match="Expecting value"):
        Message("hello").json()
