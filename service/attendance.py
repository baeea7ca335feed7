"""Lists of who is on a channel, over all workers."""

from __future__ import annotations

import functools
import heapq
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from service.audience import Audience
from service.event import EventId
from service.presence_store import PresenceStore, Present
from service.shared_reading import SharedReading
from service.slices import in_slices


class Attendance(NamedTuple):
    """Users of a channel in the order of their names, of how many, and the streams that no user is
    known of. What changes after that is told after `last_id`.
    """

    users: list[Present]
    total: int
    anonymous: int
    last_id: EventId


class AttendanceReader:
    """Reads all users of a channel at once, for all who ask for any page of them just then.

    `clock` tells the last id given out.
    """

    def __init__(
        self, store: PresenceStore, audience: Audience, clock: Callable[[], EventId]
    ) -> None:
        self._store = store
        self._audience = audience
        self._clock = clock
        self._readings: dict[str, SharedReading[Attendance]] = {}

    def page(self, channel: str, after: str, at_most: int) -> Attendance:
        """The users of `channel`, those after the name `after`. Raises RedisError."""
        found = self._reading(channel).get()
        first = bisect_right(found.users, after, key=lambda one: one.user)
        return found._replace(users=found.users[first : first + at_most])

    def _reading(self, channel: str) -> SharedReading[Attendance]:
        for old in [name for name, one in self._readings.items() if one.is_over]:
            del self._readings[old]
        if channel not in self._readings:
            self._readings[channel] = SharedReading(functools.partial(self._read, channel))
        return self._readings[channel]

    def _read(self, channel: str) -> Attendance:
        # Before the users are read: what changes from then on is told after this id.
        last_id = self._clock()
        named: set[str] = set()
        pages: list[list[Present]] = []
        streams = 0
        for page in in_slices(self._store.pages(channel)):
            # A hash that is just growing shows some of its fields twice.
            new = [one for one in page if one.user not in named]
            named.update(one.user for one in new)
            streams += sum(one.streams for one in new)
            pages.append(sorted(one for one in new if one.listed))
        users = [*in_slices(heapq.merge(*pages))]
        anonymous = max(0, self._audience.streams(channel) - streams)
        return Attendance(users, len(users), anonymous, last_id)
