"""All open streams of this worker: found by user or name, and ended when their time is over."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable

import gevent

from service.control import Close
from service.subscriber import Subscriber

TICK_SECONDS = 0.5
"""How often it is looked whose time is over."""


class OpenStreams:
    """The streams from their opening to their end, also while they are brought up to date.

    `expired` is called with each one whose `expires_at`, in seconds since 1970, is over.
    """

    def __init__(self, expired: Callable[[Subscriber], None]) -> None:
        self._expired = expired
        self._worker = secrets.token_hex(4)
        self._opened = 0
        self._streams: set[Subscriber] = set()
        self._by_second: dict[int, set[Subscriber]] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def next_number(self) -> int:
        """A number for a new stream; none is given out twice."""
        self._opened += 1
        return self._opened

    def name_of(self, number: int) -> str:
        """The name of a stream, which no other one of any worker has."""
        return f"{self._worker}-{number}"

    def add(self, subscriber: Subscriber) -> None:
        """A stream has opened."""
        self._streams.add(subscriber)
        if subscriber.expires_at is not None:
            second = math.ceil(subscriber.expires_at)
            self._by_second.setdefault(second, set()).add(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """A stream has ended."""
        self._streams.discard(subscriber)
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

    def meant_by(self, command: Close) -> list[Subscriber]:
        """The streams that a command is to close."""
        return self.of_user(command.user) if command.user else self.named(command.stream)

    def run(self) -> None:
        """End the streams whose time is over, for ever; the body of one greenlet."""
        while True:
            gevent.sleep(TICK_SECONDS)
            self.end_expired(time.time())

    def end_expired(self, now: float) -> None:
        """End the streams whose time is over at `now`, in seconds since 1970."""
        for second in sorted(second for second in self._by_second if second <= now):
            for subscriber in self._by_second.pop(second, ()):
                self._expired(subscriber)
