"""Marks: what sync.lua sends through pub/sub to prove that everything before it has come."""

from __future__ import annotations

from typing import NamedTuple

from service.event import EventId
from service.redis_address import LinkLost


class Mark(NamedTuple):
    """A mark that came through pub/sub: all events up to `id` have come before it."""

    token: str
    id: EventId
    born: EventId

    @classmethod
    def parse(cls, text: bytes) -> Mark:
        """Read what sync.lua sends; raises LinkLost for anything else."""
        try:
            token, event_id, born = text.decode().split(" ")
            return cls(token, EventId.parse(event_id), EventId.parse(born))
        except ValueError as error:
            raise LinkLost(f"a mark can't be read: {error}") from error
