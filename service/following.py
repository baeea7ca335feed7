"""Which channels this worker follows, for how many streams, and up to which event. No I/O."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from service.event import EventId

LINGER_SECONDS = 5.0
"""How long a channel that nobody follows any more is kept: reconnecting clients come right back."""

CONFIRM_SECONDS = 2.0
"""How long a brand-new channel may wait for its confirmation while the worker counts as ready."""


class Followed:
    """One channel. `last` is its newest stored event that was delivered, or that is past."""

    __slots__ = ("confirmed", "last", "linger_until", "ready", "since", "streams")

    def __init__(self) -> None:
        self.streams = 0
        self.since = time.monotonic()
        self.linger_until = 0.0
        self.confirmed = False
        self.ready = threading.Event()
        self.last: EventId | None = None


class Following:
    """The followed channels, counted by streams; one lingers when its last stream has left.

    `streams` counts each stream once for each of its channels.
    """

    def __init__(self) -> None:
        self.streams = 0
        self._channels: dict[str, Followed] = {}
        self._idle: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._channels))

    def __len__(self) -> int:
        return len(self._channels)

    def get(self, channel: str) -> Followed | None:
        """What is known of `channel`, or None if it isn't followed."""
        return self._channels.get(channel)

    def items(self) -> list[tuple[str, Followed]]:
        """All channels, as they are now."""
        return list(self._channels.items())

    def add(self, channels: Iterable[str]) -> list[str]:
        """Count one more stream for each of `channels`; returns those that are new."""
        new = []
        for channel in channels:
            if channel not in self._channels:
                self._channels[channel] = Followed()
                new.append(channel)
            self._channels[channel].streams += 1
            self.streams += 1
            self._idle.discard(channel)
        return new

    def remove(self, channels: Iterable[str]) -> None:
        """Undo one `add`."""
        for channel in channels:
            followed = self._channels[channel]
            followed.streams -= 1
            self.streams -= 1
            followed.linger_until = time.monotonic() + LINGER_SECONDS
            if followed.streams == 0:
                self._idle.add(channel)

    def drop_done(self) -> list[str]:
        """Forget the channels that have lingered long enough; returns them.

        One whose SUBSCRIBE isn't confirmed stays: the answer could be taken for a later one's.
        """
        now = time.monotonic()
        return self._drop(lambda one: one.confirmed and now >= one.linger_until)

    def drop_idle(self) -> list[str]:
        """Forget all channels without streams; returns them."""
        return self._drop(lambda _: True)

    def _drop(self, is_done: Callable[[Followed], bool]) -> list[str]:
        done = [channel for channel in self._idle if is_done(self._channels[channel])]
        for channel in done:
            self._idle.discard(channel)
            del self._channels[channel]
        return done

    def all_ready(self) -> bool:
        """Whether every channel is ready, but for brand-new ones."""
        fresh = time.monotonic() - CONFIRM_SECONDS
        return all(one.ready.is_set() or one.since > fresh for one in self._channels.values())
