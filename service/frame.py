"""Frames: an event's finished bytes, with what workers must know of them, as Redis carries them."""

from __future__ import annotations

import json
from typing import Any

from service.errors import BadEvent
from service.event import RETRY_RANGE_MILLISECONDS, Event, EventId
from service.sse import encode

MAGIC = b"\xffP1 "
"""How our own messages in Redis begin; no UTF-8 text starts with this byte (publish.lua)."""

END = "$end"
"""The name of a channel's last event."""

RESET = "$reset"
"""The name of the event that says that events may be missing."""

FORGET = "$forget"
"""The name of a notice, no event: what the channel had up to this id is forgotten (forget.lua)."""

_FLASK_SSE_KEYS = frozenset({"data", "type", "id", "retry"})


class Frame:
    """An event as bytes of text/event-stream; the same object serves every subscriber.

    `id` is None for foreign events, which are live only. `name` is the event's name, with
    `message` for none. `prev` is the id of the channel's stored event before this one; None for
    an event that isn't stored. With `more`, copies of it for other channels follow. After
    `deadline`, in milliseconds since 1970, a replay leaves it out. `private`, if not None, names
    its channels: only streams with a grant for one of them get it.
    """

    __slots__ = ("data", "deadline", "id", "more", "name", "prev", "private")

    def __init__(
        self, event_id: EventId | None, name: str, data: bytes, prev: EventId | None = None
    ) -> None:
        self.id = event_id
        self.name = name
        self.data = data
        self.prev = prev
        self.deadline: int | None = None
        self.more = False
        self.private: frozenset[str] | None = None


def unpack(payload: bytes) -> Frame:
    """Read a message of a Redis channel: one of ours, flask-sse's, or raw text.

    Nothing that anybody publishes makes this fail: what isn't ours is taken as text.
    """
    if payload.startswith(MAGIC):
        try:
            return _unpack_own(payload)
        except ValueError:
            pass
    return _foreign(payload)


def _unpack_own(payload: bytes) -> Frame:
    envelope, separator, data = payload.partition(b"\n")
    event_id, prev, name = envelope[len(MAGIC) :].decode().split(" ", 2)
    if not separator or not data.endswith(b"\n\n"):
        raise ValueError("not a whole frame")
    parsed = EventId.parse(event_id)
    link, _, private = prev.partition("!")
    before, _, deadline = link.removesuffix("+").partition("/")
    frame = Frame(parsed, name or "message", data, None if before == "-" else EventId.parse(before))
    frame.more = link.endswith("+")
    frame.deadline = int(deadline) if deadline else None
    frame.private = private_to(private)
    return frame


def private_to(channels: str) -> frozenset[str] | None:
    """Read a frame's `private`: channels with commas between, or nothing."""
    return frozenset(channels.split(",")) if channels else None


def _foreign(payload: bytes) -> Frame:
    text = payload.decode("utf-8", "replace")
    if not text.startswith("{") and "\r" not in text and "\n" not in text:
        return Frame(None, "message", b"data: %b\n\n" % text.encode())  # most are such
    event = _flask_sse_event(text) if text.startswith("{") else None
    event = event or Event(text)
    before, after = encode(event)
    return Frame(None, event.name or "message", before + after)


def _flask_sse_event(text: str) -> Event | None:
    """The event in flask-sse's JSON, without the id that only our clock may give; else None."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or "data" not in fields or fields.keys() - _FLASK_SSE_KEYS:
        return None
    data = fields["data"]
    data = data if isinstance(data, str) else json.dumps(data)
    data = data.encode("utf-8", "replace").decode()
    retry = fields.get("retry")
    low, high = RETRY_RANGE_MILLISECONDS
    retry = min(max(retry, low), high) if type(retry) is int else None
    return _named(data, fields.get("type"), retry)


def _named(data: str, name: Any, retry: int | None) -> Event:
    try:
        return Event(data, name if isinstance(name, str) else None, retry)
    except BadEvent:
        return Event(data, None, retry)
