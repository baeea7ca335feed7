"""What a publisher asks for: an event, its channels, and how it is kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from service.errors import BadEvent
from service.event import Event, EventId

TTL_RANGE_SECONDS = (1, 31_536_000)
"""What `ttl` may be: up to a year."""

MAX_KEY_BYTES = 128
"""Longest Idempotency-Key."""


@dataclass(frozen=True, slots=True)
class Publication:
    """One event and the channels that it goes to, under one id.

    `stored` is False for an event that is delivered live only. A replay skips it after
    `ttl_seconds`. `key` is the Idempotency-Key, and `credential` names whose it is. Only streams
    with a grant get what is `private`. Raises BadEvent when one of them can't be used.
    """

    event: Event
    channels: tuple[str, ...]
    stored: bool = True
    ttl_seconds: int | None = None
    key: str | None = None
    ends: bool = False
    private: bool = False
    credential: str = ""

    def __post_init__(self) -> None:
        low, high = TTL_RANGE_SECONDS
        if self.ttl_seconds is not None and not low <= self.ttl_seconds <= high:
            raise BadEvent(f"ttl is {self.ttl_seconds}", fix=f"Use {low} to {high} seconds")
        if self.key is not None and not _is_key(self.key):
            raise BadEvent(
                "the Idempotency-Key can't be used",
                fix=f"Use 1 to {MAX_KEY_BYTES} printable ASCII characters without spaces",
            )

    def fingerprint(self) -> str:
        """A hash of everything that the Idempotency-Key stands for."""
        event = self.event
        fields = [event.data, event.name, event.retry_milliseconds, self.channels, self.stored]
        more = [self.ttl_seconds, self.private]
        return sha256(json.dumps([*fields, *more]).encode()).hexdigest()


def _is_key(key: str) -> bool:
    return 1 <= len(key) <= MAX_KEY_BYTES and all("!" <= letter <= "~" for letter in key)


class Receipt(NamedTuple):
    """What Redis has accepted: the event's id, and whether an earlier call had published it."""

    id: EventId
    replayed: bool = False
