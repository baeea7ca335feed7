"""How many streams each channel has, over all workers."""

from __future__ import annotations

import heapq
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import NamedTuple

import gevent

from service.errors import RedisError
from service.fan_out import give_way
from service.stream_reports import StreamReports
from service.tally import Tally

log = logging.getLogger("pushline.audience")

TICK_SECONDS = 1.0
"""How often a worker tells what has changed, and that it is alive."""

CHANGES = 250
"""Channels of one write: making it takes about half a millisecond."""

SLICE = 500
"""Channels that are sorted before other greenlets may run."""

KEPT_SECONDS = 1.0
"""For how long all channels, once read, are not read again."""


class Listing(NamedTuple):
    """The channels with most streams, and of how many channels and streams they are."""

    top: list[tuple[str, int]]
    channels: int
    streams: int


class Audience:
    """Counts this worker's streams, tells the others of them, and adds all up.

    A worker's report has a name of its own. When Redis has lost any of it, as by a failover or by
    being emptied, the worker begins a new one: nothing needs to be compared.
    """

    def __init__(self, reports: StreamReports) -> None:
        self.worker = ""
        """The name of this worker's report as soon as Redis has it, else empty."""
        self._reports = reports
        self._tally: Tally[str] = Tally()
        self._totals: Mapping[str, int] = {}
        self._totals_until = 0.0
        self._totals_turn = threading.Lock()
        self._name = secrets.token_hex(8)
        self._written = self._tried = 0

    # -- this worker ---------------------------------------------------------------------------

    def opened(self, channels: Iterable[str]) -> None:
        """A stream of `channels` has opened."""
        for channel in channels:
            self._tally.add(channel)

    def closed(self, channels: Iterable[str]) -> None:
        """A stream of `channels` has ended."""
        for channel in channels:
            self._tally.remove(channel)

    def run(self) -> None:
        """Report, for ever; the body of one greenlet."""
        while True:
            try:
                self.report()
            except RedisError as error:
                log.debug("the streams can't be reported: %s", error)
            gevent.sleep(TICK_SECONDS)

    def report(self) -> None:
        """Tell what has changed since the last time, and that this worker is alive.

        Raises RedisError; what could not be told is told the next time.
        """
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
        totals = self._read_totals()
        top: list[tuple[int, str]] = []
        channels = streams = 0
        remaining = iter(totals.items())
        while some := list(islice(remaining, SLICE)):
            found = [(-number, name) for name, number in some if shown(name)]
            channels += len(found)
            streams -= sum(number for number, _ in found)
            top = heapq.nsmallest(at_most, [*top, *found])
            give_way()
        return Listing([(name, -number) for number, name in top], channels, streams)

    def _read_totals(self) -> Mapping[str, int]:
        with self._totals_turn:
            if time.monotonic() >= self._totals_until:
                totals: Counter[str] = Counter()
                for page in self._reports.pages():
                    totals.update(page)
                self._totals = totals
                self._totals_until = time.monotonic() + KEPT_SECONDS
            return self._totals
