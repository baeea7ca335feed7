"""Cursor in, missing events out, and whether anything is lost (DESIGN section 5)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from service.event import FIRST_ID, EventId
from service.frame import Frame
from service.history import Pace
from service.redis_store import RedisStore
from service.reset import Loss


class _Chain:
    """How far one channel has been read, link by link."""

    __slots__ = ("channel", "entries", "exhausted", "read_to", "started", "until")

    def __init__(self, channel: str, cursor: EventId, until: EventId, *, started: bool) -> None:
        self.channel = channel
        self.read_to = cursor
        self.until = until
        self.entries: list[Frame] = []
        self.exhausted = False
        self.started = started

    def extend(self, entries: list[Frame], tail: EventId, proving: bool) -> Loss | None:
        """Add what was read after `read_to`; returns the reason when a link is missing.

        Without `proving` the first link isn't asked for, but each one after it is.
        """
        for place, entry in enumerate(entries):
            prev, entry_id = entry.prev, entry.id
            assert prev is not None
            assert entry_id is not None
            if (proving or self.started) and prev > self.read_to:
                return Loss.LOST if place else Loss.TRIMMED
            if entry_id > self.until:
                self.exhausted = True
                return None
            self.started = True
            self.read_to = entry_id
            self.entries.append(entry)
        gone = self.exhausted and self.read_to < tail and (proving or self.started)
        return Loss.EXPIRED if gone else None


class Replay:
    """Reads what channels have stored after their cursors, in the order of ids over all of them.

    A channel that can't be proved complete is named in `lost`, with the reason. `tails` has the
    newest stored id of each channel as this began, `ended` those of finished channels.
    """

    def __init__(
        self,
        store: RedisStore,
        cursors: Mapping[str, EventId],
        born: EventId,
        tail_seconds: Callable[[str], int],
        *,
        until: EventId,
        proving: bool = True,
        started: frozenset[str] = frozenset(),
    ) -> None:
        """Events above `until` are left out.

        Without `proving`, only what is kept is asked for; but channels that have `started`, of
        which events were replayed before, must go on without a gap.
        """
        self.lost: dict[str, Loss] = {}
        self.oldest: EventId | None = None
        self.tails: dict[str, EventId] = {}
        self.ended: dict[str, EventId] = {}
        self._store = store
        self._cursors = cursors
        self._born = born
        self._tail_seconds = tail_seconds
        self._until = until
        self._proving = proving
        self._started = started
        self._pace = Pace()

    def pages(self) -> Iterator[list[tuple[str, Frame]]]:
        """Yield (channel, frame) pairs, some at a time; `lost` is complete when this ends.

        Raises RedisError.
        """
        # Tails are read first: an event that is published meanwhile must not look like a lost one.
        self._read_tails()
        for channel, cursor in self._cursors.items():
            if self._proving and cursor < self._born:
                self.lost[channel] = Loss.LOST
        chains = [
            _Chain(channel, cursor, self._until, started=channel in self._started)
            for channel, cursor in self._cursors.items()
            if channel not in self.lost
        ]
        while chains:
            self._read(chains)
            chains = [chain for chain in chains if chain.channel not in self.lost]
            yield _merged(chains)
            chains = [chain for chain in chains if chain.entries or not chain.exhausted]

    def _read_tails(self) -> None:
        now = time.time_ns() // 1_000_000
        channels = list(self._cursors)
        for channel, tail in zip(channels, self._store.tails(channels), strict=True):
            forgotten = EventId(max(0, now - 1000 * self._tail_seconds(channel)), 0)
            self.tails[channel] = tail.id or min(max(self._born, forgotten), self._until)
            if tail.ended is not None:
                self.ended[channel] = tail.ended

    def _read(self, chains: list[_Chain]) -> None:
        hungry = [chain for chain in chains if not chain.entries and not chain.exhausted]
        reads = [(chain.channel, chain.read_to) for chain in hungry]
        count = self._pace.count(len(reads))
        pages = self._store.entries(reads, count)
        self._pace.note(pages)
        for chain, entries in zip(hungry, pages, strict=True):
            chain.exhausted = len(entries) < count
            loss = chain.extend(entries, self.tails[chain.channel], self._proving)
            if loss is not None:
                self.lost[chain.channel] = loss
                self.oldest = self.oldest or (entries[0].id if entries else None)


def _merged(chains: list[_Chain]) -> list[tuple[str, Frame]]:
    """Take from `chains` what is in order for sure: up to where every one of them has been read."""
    bound = min((chain.read_to for chain in chains if not chain.exhausted), default=None)
    now = time.time_ns() // 1_000_000
    page: list[tuple[str, Frame]] = []
    for chain in chains:
        ready = [one for one in chain.entries if bound is None or (one.id or FIRST_ID) <= bound]
        del chain.entries[: len(ready)]
        fresh = [one for one in ready if one.deadline is None or one.deadline > now]
        page += ((chain.channel, frame) for frame in fresh)
    page.sort(key=lambda pair: pair[1].id or FIRST_ID)
    return page
