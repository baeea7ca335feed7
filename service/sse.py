"""text/event-stream bytes, both ways (WHATWG HTML, section 9.2): encode events, parse a stream."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from service.event import Event, EventId

_LINE_END = re.compile(r"\r\n|\r|\n")
"""The only line ends of the format; str.splitlines() would also cut at U+2028 and others."""

HEARTBEAT = b":\n"
"""A comment without a blank line: some clients take each blank line for an event."""


def encode(event: Event) -> tuple[bytes, bytes]:
    """Return what stands before and after the `id:` line of the event's frame, in UTF-8."""
    before = "" if event.name is None else f"event: {event.name}\n"
    if event.retry_milliseconds is not None:
        before += f"retry: {event.retry_milliseconds}\n"
    if "\r" in event.data or "\n" in event.data:
        lines = "\ndata: ".join(_LINE_END.split(event.data))
    else:
        lines = event.data
    return before.encode(), f"data: {lines}\n\n".encode()


def encode_id(event_id: EventId) -> bytes:
    """An `id:` line."""
    return b"id: %d-%d\n" % event_id


def encode_position(event_id: EventId) -> bytes:
    """A block that moves the client's last event id and dispatches nothing."""
    return b"id: %d-%d\n\n" % event_id


def encode_opening(retry_milliseconds: int, position: EventId) -> bytes:
    """The first block of a stream: reconnection time and position, without data."""
    return b"retry: %d\nid: %d-%d\n\n" % (retry_milliseconds, *position)


def encode_retry(retry_milliseconds: int) -> bytes:
    """A block that only sets the reconnection time: the farewell of a stream that ends."""
    return b"retry: %d\n\n" % retry_milliseconds


def encode_ping(milliseconds: int) -> bytes:
    """A heartbeat that pages can see; it has no id, so it leaves their position alone."""
    return b'event: $ping\ndata: {"time": %d}\n\n' % milliseconds


def encode_end(reason: str) -> bytes:
    """The end of one stream, not of a channel; it has no id, so the client can go on from there."""
    return b'event: $end\ndata: {"reason": "%s"}\n\n' % reason.encode()


@dataclass(frozen=True, slots=True)
class Message:
    """An event as a client receives it; `id` is the last event id, empty before the first one."""

    data: str
    event: str = "message"
    id: str = ""

    def json(self) -> Any:
        """The data read as JSON; raises ValueError when it isn't."""
        return json.loads(self.data)

    def __str__(self) -> str:
        return self.data


class Parser:
    """Turns a stream's bytes, however they are cut, into messages, as a browser would."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._text = ""
        self._started = False
        self._data: list[str] = []
        self._event = ""
        self.last_event_id = ""
        self.retry_milliseconds: int | None = None

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Take the next bytes of the stream and yield the messages that they complete."""
        self._text += self._decode(chunk)
        if not self._started and self._text:
            self._text = self._text.removeprefix("\ufeff")
            self._started = True
        *lines, self._text = self._complete_lines()
        for line in lines:
            if line:
                self._take_field(line)
            else:
                yield from self._dispatch()

    def _complete_lines(self) -> list[str]:
        # A CR at the end may be half of a CRLF: its line waits for the next byte.
        if self._text.endswith("\r"):
            *lines, rest = _LINE_END.split(self._text[:-1])
            return [*lines, rest + "\r"]
        return _LINE_END.split(self._text)

    def _take_field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self.last_event_id = value
        elif name == "retry" and value.isascii() and value.isdigit() and len(value) < 16:
            self.retry_milliseconds = int(value)

    def _dispatch(self) -> Iterator[Message]:
        data, event = self._data, self._event
        self._data, self._event = [], ""
        if data:
            yield Message("\n".join(data), event or "message", self.last_event_id)
