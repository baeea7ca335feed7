"""All open streams of this worker: found by user or name, and ended when their time is over."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable

import gevent

from service.control import Close
from service.counts import Counts
from service.event import EventId
from service.fan_out import give_way
from service.logs import log_opened
from service.subscriber import Subscriber

ENDS = 64
"""Streams that are ended before other greenlets may run."""

TICK_SECONDS = 0.5
"""How often it is looked whose time is over."""

LATE_SECONDS = 5.0
"""A command that is not older closes all: no stream can have been opened since."""

SKEW_SECONDS = 1.0
"""How far the clocks of two masters of one Redis may differ: a failover must not save streams."""


class OpenStreams:
    """The streams from their opening to their end, also while they are brought up to date.

    `worker` is a name that no other worker has, also none before or after this one.
    `expired` is called with each one whose `expires_at`, in seconds since 1970, is over.
    """

    def __init__(
        self,
        expired: Callable[[Subscriber], None],
        redis_seconds_at: Callable[[float], float],
        counts: Counts | None = None,
        *,
        opened: Callable[[Subscriber, str], None] = lambda *_: None,
        closed: Callable[[Subscriber], None] = lambda _: None,
    ) -> None:
        """`redis_seconds_at` tells what Redis's clock has shown at a monotonic moment, or less.

        `opened` and `closed` are told of each stream once; the former of its user's `info` too.
        """
        self._expired = expired
        self._redis_seconds_at = redis_seconds_at
        self._counts = counts or Counts()
        self._told_opened = opened
        self._told_closed = closed
        self.worker = secrets.token_hex(4)
        self._opened = 0
        self._streams: dict[Subscriber, float] = {}
        """Each with what Redis's clock had shown when it opened, as it was told then, or less."""
        self._by_second: dict[int, set[Subscriber]] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def next_number(self) -> int:
        """A number for a new stream; none is given out twice."""
        self._opened += 1
        return self._opened

    def name_of(self, number: int) -> str:
        """The name of a stream, which no other one of any worker has."""
        return f"{self.worker}-{number}"

    def add(self, subscriber: Subscriber, info: str = "") -> None:
        """A stream has opened, whose user has shown `info`."""
        self._counts.opened += 1
        log_opened(
            address=subscriber.address,
            user=subscriber.user,
            channels=len(subscriber.selection.channels),
            stream=self.name_of(subscriber.number),
            request_id=subscriber.request_id,
        )
        self._streams[subscriber] = self._redis_seconds_at(subscriber.opened_at)
        self._told_opened(subscriber, info)
        if subscriber.expires_at is not None:
            second = math.ceil(subscriber.expires_at)
            self._by_second.setdefault(second, set()).add(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """A stream has ended."""
        if subscriber.ending is not None:
            self._counts.closed[subscriber.ending.value] += 1
        if self._streams.pop(subscriber, None) is not None:
            self._told_closed(subscriber)
        if subscriber.expires_at is not None:
            second = math.ceil(subscriber.expires_at)
            others = self._by_second.get(second, set())
            others.discard(subscriber)
            if not others:
                # Not left to its second: with tokens for days there would be one for each of them.
                self._by_second.pop(second, None)

    def of_user(self, user: str) -> list[Subscriber]:
        """The streams of `user`, as they are now; none of nobody."""
        return [one for one in self._streams if user and one.user == user]

    def named(self, name: str) -> list[Subscriber]:
        """The stream of this name, if it is here."""
        return [one for one in self._streams if self.name_of(one.number) == name]

    def meant_by(self, command: Close, given: EventId) -> list[Subscriber]:
        """The streams that a command is to close, which was given as the event of that id.

        A worker that was cut off gets it late, and the user may have been let in anew since.
        """
        if not command.user:
            return self.named(command.stream)
        return [one for one in self.of_user(command.user) if not self._is_later(one, given)]

    def _is_later(self, subscriber: Subscriber, given: EventId) -> bool:
        """Whether it is certain that this stream wasn't there yet, by Redis's clock alone.

        A grant from before the command ends with it, whenever the stream was opened.
        """
        if subscriber.as_of is not None:
            return subscriber.as_of >= given
        command = given.milliseconds / 1000
        if self._redis_seconds_at(time.monotonic()) < command + LATE_SECONDS:
            return False
        # As told then and as told now: that clock may have been set, or this machine suspended.
        opened = min(self._streams[subscriber], self._redis_seconds_at(subscriber.opened_at))
        return opened > command + SKEW_SECONDS

    def run(self) -> None:
        """End the streams whose time is over, for ever; the body of one greenlet."""
        while True:
            gevent.sleep(TICK_SECONDS)
            self.end_expired(time.time())

    def end_expired(self, now: float) -> None:
        """End the streams whose time is over at `now`, in seconds since 1970."""
        for second in sorted(second for second in self._by_second if second <= now):
            for number, subscriber in enumerate(self._by_second.pop(second, ()), 1):
                self._expired(subscriber)
                if number % ENDS == 0:
                    give_way()
