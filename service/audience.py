"""How many streams each channel has, over all workers."""

from __future__ import annotations

import heapq
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from gevent.event import Event

from service.complaint import Complaint
from service.errors import RedisError
from service.event import FIRST_ID, EventId
from service.fan_out import give_way
from service.shared_reading import SharedReading
from service.slices import in_slices
from service.stream_reports import StreamReports
from service.tally import Tally

log = logging.getLogger("pushline.audience")

TICK_SECONDS = 1.0
"""How often a worker tells what has changed, and that it is alive."""

CHANGES = 250
"""Channels of one write: making it takes about half a millisecond."""


class Listing(NamedTuple):
    """The channels with most streams, and of how many channels and streams they are."""

    top: list[tuple[str, int]]
    channels: int
    streams: int


class Audience:
    """Counts this worker's streams, tells the others of them, and adds all up.

    A worker's report has a name of its own. When Redis has lost any of it, as by a failover or by
    being emptied, the worker begins a new one: nothing needs to be compared. `born` tells the id
    from which Redis vouches for completeness. The service's own channels don't count.
    """

    def __init__(
        self, reports: StreamReports, born: Callable[[], EventId] = lambda: FIRST_ID
    ) -> None:
        self.worker = ""
        """The name of this worker's report as soon as Redis has it, else empty."""
        self._reports = reports
        self._tally: Tally[str] = Tally()
        self._totals = SharedReading(self._read_totals)
        self._complaint = Complaint(log, "the streams can't be reported")
        self._born = born
        self._began = born()
        self._name = secrets.token_hex(8)
        self._written = self._tried = 0
        self._stopped = Event()

    # -- this worker ---------------------------------------------------------------------------

    def opened(self, channels: Iterable[str]) -> None:
        """A stream of `channels` has opened."""
        for channel in _counted(channels):
            self._tally.add(channel)

    def closed(self, channels: Iterable[str]) -> None:
        """A stream of `channels` has ended."""
        for channel in _counted(channels):
            self._tally.remove(channel)

    def run(self) -> None:
        """Report until `stop`; the body of one greenlet."""
        while not self._stopped.is_set():
            try:
                self.report()
                self._complaint.over()
            except RedisError as error:
                self._complaint.failed(error)
            self._stopped.wait(TICK_SECONDS)

    def stop(self) -> None:
        """End `run` when it has told what it is telling."""
        self._stopped.set()

    def report(self) -> None:
        """Tell what has changed since the last time, and that this worker is alive.

        Raises RedisError; what could not be told is told the next time.
        """
        if self._began != self._born():
            # Nothing may be missing here, but of what hangs on the report's name (presence.py).
            self._begin_anew()
        while True:
            changes = self._tally.take(CHANGES)
            try:
                self._write(changes)
            except BaseException:
                self._tally.put_back(changes)
                raise
            if not self._tally.waiting:
                return
            give_way()

    def _write(self, changes: Mapping[str, int]) -> None:
        before, self._tried = self._tried, self._tried + 1
        found = self._reports.write(self._name, self._tried, changes)
        # A write without an answer, between the last good one and this, may have been done or not.
        if self._written <= found <= before:
            self._written, self.worker = self._tried, self._name
            return
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._began = self._born()
        lost, self._name, self.worker = self._name, secrets.token_hex(8), ""
        self._written = self._tried = 0
        self._tally.tell_anew()
        self._reports.withdraw(lost)

    def withdraw(self) -> None:
        """This worker stops: its streams count no more. Raises RedisError."""
        if self.worker:
            self.worker = ""
            self._reports.withdraw(self._name)

    # -- all workers ---------------------------------------------------------------------------

    def streams(self, channel: str) -> int:
        """How many streams `channel` has; raises RedisError."""
        return self._reports.streams(channel)

    def list(self, at_most: int, shown: Callable[[str], bool]) -> Listing:
        """The channels with most streams, of those that `shown` lets through.

        Those with as many are in the order of their names. Raises RedisError.
        """
        totals = self._totals.get()
        found = [(-number, name) for name, number in in_slices(totals.items()) if shown(name)]
        top = heapq.nsmallest(at_most, in_slices(found))
        streams = -sum(number for number, _ in in_slices(found))
        return Listing([(name, -number) for number, name in top], len(found), streams)

    def _read_totals(self) -> Mapping[str, int]:
        totals: Counter[str] = Counter()
        # An answer that is there at once lets nobody else run.
        for page in in_slices(self._reports.pages()):
            totals.update(page)
        return totals


def _counted(channels: Iterable[str]) -> Iterator[str]:
    return (channel for channel in channels if not channel.startswith("$"))
