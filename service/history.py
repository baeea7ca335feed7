"""Reads of histories that stay small, however many events are asked for and however large."""

from __future__ import annotations

from collections.abc import Sequence

from service.event import FIRST_ID, EventId
from service.frame import Frame
from service.redis_store import RedisStore

PAGE_EVENTS = 500
"""Events of a channel that one read fetches at most."""

FIRST_EVENTS = 4
"""Events of a channel that a read fetches at least, and the first one, as their size is unknown."""

PAGE_BYTES = 1_048_576
"""What a read should bring, over all its channels."""


class Pace:
    """How many events of each channel to ask for next, by the size of those that came last."""

    def __init__(self) -> None:
        self._mean_bytes = 0.0

    def count(self, channels: int) -> int:
        """How many events of each of so many channels one read asks for."""
        if not self._mean_bytes:
            return min(FIRST_EVENTS, PAGE_EVENTS)
        fitting = int(PAGE_BYTES / (self._mean_bytes * max(1, channels)))
        return min(max(FIRST_EVENTS, fitting), PAGE_EVENTS)

    def note(self, pages: Sequence[Sequence[Frame]]) -> None:
        """Learn from what a read has brought."""
        sizes = [len(frame.data) for page in pages for frame in page]
        if sizes:
            self._mean_bytes = sum(sizes) / len(sizes)


def read_after(
    store: RedisStore, channel: str, after: EventId, at_most: int, at_most_bytes: int
) -> tuple[list[Frame], bool]:
    """The events of `channel` after an id, and whether there may be more. Raises RedisError."""
    pace, found, size = Pace(), list[Frame](), 0
    while len(found) < at_most and size < at_most_bytes:
        count = min(pace.count(1), at_most - len(found))
        (page,) = pages = store.entries([(channel, after)], count)
        pace.note(pages)
        found += page
        size += sum(len(frame.data) for frame in page)
        if len(page) < count:
            return found, False
        after = page[-1].id or after
    return found, True


def read_last(
    store: RedisStore, channels: Sequence[str], last: int, until: EventId, at_most_bytes: int
) -> tuple[list[Frame], bool]:
    """The `last` events over all `channels` up to `until`, oldest first, and whether all fitted.

    An event of several channels counts once. Raises RedisError.
    """
    pace, size = Pace(), 0
    found: dict[EventId, Frame] = {}
    next_before = dict.fromkeys(channels, EventId(until.milliseconds, until.sequence + 1))
    seen = dict.fromkeys(channels, 0)
    while next_before and size < at_most_bytes:
        count = min(pace.count(len(next_before)), last)
        pages = store.entries_before(list(next_before.items()), count)
        pace.note(pages)
        for channel, page in zip(list(next_before), pages, strict=True):
            found.update((frame.id, frame) for frame in page if frame.id is not None)
            size += sum(len(frame.data) for frame in page)
            seen[channel] += len(page)
            if len(page) < count or seen[channel] >= last:
                del next_before[channel]
            else:
                next_before[channel] = page[-1].id or FIRST_ID
    # Of a channel that was read in part, events below its oldest one are missing.
    whole_from = max(next_before.values(), default=FIRST_ID)
    newest = sorted(event_id for event_id in found if event_id >= whole_from)[-last:]
    return [found[event_id] for event_id in newest], not next_before or len(newest) == last
