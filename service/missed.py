"""Delivers what was stored while there was no link, or says what of it is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from service.counts import Counts
from service.event import EventId
from service.following import Following
from service.marks import Mark
from service.receiver import Receiver
from service.recent import RecentEvents
from service.redis_store import RedisStore
from service.replay import Replay
from service.reset import Loss

log = logging.getLogger("pushline.redis")


class Missed:
    """Brings the followed channels from their last delivered events up to a mark."""

    def __init__(
        self,
        store: RedisStore,
        following: Following,
        recent: RecentEvents,
        tail_seconds: Callable[[str], int],
        receiver: Receiver,
        counts: Counts | None = None,
    ) -> None:
        self._store = store
        self._following = following
        self._recent = recent
        self._tail_seconds = tail_seconds
        self._receiver = receiver
        self._counts = counts or Counts()

    def deliver(self, mark: Mark, move_to: Callable[[EventId], None]) -> None:
        """Deliver what is stored above the last events delivered, up to the mark.

        `move_to` is called once all of it is delivered. Raises RedisError.
        """
        missed = {
            channel: followed.last
            for channel, followed in self._following.items()
            if followed.confirmed and followed.last is not None
        }
        told = {channel: Loss.UNKNOWN for channel, last in missed.items() if last > mark.id}
        kept = {channel: last for channel, last in missed.items() if channel not in told}
        replay = Replay(self._store, kept, mark.born, self._tail_seconds, until=mark.id)
        filled = 0
        for page in replay.pages():
            # Before any event with an id above what is missing: a client that leaves in between
            # would come back with a cursor from which on all is there.
            if page:
                self._tell(_without(replay.lost, told), replay.oldest, mark.id)
                told.update(replay.lost)
            self._receiver.deliver(page)
            filled += len(page)
            for channel, frame in page:
                self._set_last(channel, frame.id)  # so that a failure in the middle repeats nothing
        self._counts.gaps += filled > 0
        self._counts.gap_filled += filled
        for channel in missed:
            self._set_last(channel, mark.id)
        move_to(mark.id)
        unknown = {channel: loss for channel, loss in told.items() if loss is Loss.UNKNOWN}
        self._tell({**_without(replay.lost, told), **unknown}, replay.oldest, mark.id)

    def _set_last(self, channel: str, last: EventId | None) -> None:
        if (followed := self._following.get(channel)) is not None:
            followed.last = last

    def _tell(self, lost: Mapping[str, Loss], oldest: EventId | None, position: EventId) -> None:
        """Say of which channels something is missing; they begin anew at `position`."""
        for channel in lost:
            self._recent.begin(channel, position)
        for loss in Loss:
            channels = sorted(channel for channel, reason in lost.items() if reason is loss)
            if channels:
                log.warning("events of %d channels may be missing: %s", len(channels), loss.value)
                self._receiver.reset(channels, loss, oldest, position)


def _without(lost: Mapping[str, Loss], told: Mapping[str, Loss]) -> dict[str, Loss]:
    return {channel: loss for channel, loss in lost.items() if channel not in told}
