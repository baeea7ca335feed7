"""Events and their ids: frozen values, validated at construction."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from service.errors import BadEvent

MAX_NAME_BYTES = 128
"""Longest event name; browsers compare names as strings, nobody needs more."""

RETRY_RANGE_MILLISECONDS = (500, 60_000)
"""What `retry` may ask of clients: less is a herd, more looks dead."""

RESERVED_NAMES = frozenset({"open", "error"})
"""EventSource fires these itself: a page could not tell them apart."""

MAX_SEQUENCE = 999_999_999_999_999
"""Above every sequence number that an id has."""

CONTROL_CHARACTERS = r"\x00-\x1f\x7f-\x9f"
"""What no event name has in it."""

ID_DIGITS = 15
"""Most digits of each of an id's two numbers."""

ID_PATTERN = rf"([0-9]{{1,{ID_DIGITS}}})-([0-9]{{1,{ID_DIGITS}}})"
"""What all of an event id matches."""

_CONTROL = re.compile(f"[{CONTROL_CHARACTERS}]")


class EventId(NamedTuple):
    """A hybrid logical clock, `<milliseconds>-<sequence>`; it orders all channels of one Redis."""

    milliseconds: int
    sequence: int

    @classmethod
    def parse(cls, text: str) -> EventId:
        """Read what matches ID_PATTERN, in half of its time; raises ValueError for all else."""
        head, dash, tail = text.partition("-")
        digits = head.isdigit() and tail.isdigit() and text.isascii()
        if not (dash and digits) or max(len(head), len(tail)) > ID_DIGITS:
            raise ValueError(f"not an event id: {text!r}")
        return cls(int(head), int(tail))

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.sequence}"


FIRST_ID = EventId(0, 0)
"""Below every id that is ever given out."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a publisher sends: text, and optionally a name and a reconnection time.

    Raises BadEvent when it can't be written as text/event-stream (WHATWG HTML 9.2) without
    another reader seeing something else.
    """

    data: str
    name: str | None = None
    retry_milliseconds: int | None = None

    def __post_init__(self) -> None:
        if not _encodable(self.data):
            raise BadEvent("data holds half of a surrogate pair, which UTF-8 can't carry")
        if self.name is not None and not isinstance(self, ServiceEvent):
            check_name(self.name)
        low, high = RETRY_RANGE_MILLISECONDS
        if self.retry_milliseconds is not None and not low <= self.retry_milliseconds <= high:
            raise BadEvent(
                f"retry is {self.retry_milliseconds}", fix=f"Use {low} to {high} milliseconds"
            )


class ServiceEvent(Event):
    """An event of the service itself: its name starts with `$`, and publishers can't send it."""

    __slots__ = ()


def is_larger(data: str, at_most_bytes: int) -> bool:
    """Whether `data` takes more than so many bytes in UTF-8, where no letter takes more than 4."""
    return 4 * len(data) > at_most_bytes and len(data.encode()) > at_most_bytes


def check_name(name: str) -> None:
    """Raise BadEvent unless `name` may be a publisher's event name."""
    if name == "":
        raise BadEvent("the event name is empty", fix="Leave it out for an ordinary message")
    if _CONTROL.search(name) or not _encodable(name):
        raise BadEvent(
            f"the event name {name!r} holds a control character or half a surrogate pair"
        )
    if len(name.encode()) > MAX_NAME_BYTES:
        raise BadEvent(f"the event name is longer than {MAX_NAME_BYTES} bytes")
    if name.startswith("$") or name in RESERVED_NAMES:
        raise BadEvent(
            f"the event name {name!r} is reserved",
            fix="Names that start with $ are the service's, open and error are EventSource's",
        )


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
