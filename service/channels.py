"""Channel names, and the names that Redis knows them by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from service.errors import BadChannel, BadParameter

NAME_PATTERN = r"[A-Za-z0-9_.:-]{1,128}"
"""What all of a channel name matches."""

SYS = "$sys"
"""The channel where workers tell of themselves (system.py), for who may administrate."""

_NAME = re.compile(NAME_PATTERN, re.ASCII)


def is_channel(name: str) -> bool:
    """Whether all of `name` is a channel name."""
    return _NAME.fullmatch(name) is not None


def check_channel(name: str) -> str:
    """Return `name`; raises BadChannel unless all of it is a channel name."""
    if not is_channel(name):
        raise BadChannel(f"{name[:140]!r} is not a channel name")
    return name


def check_channels(names: Iterable[str], at_most: int) -> tuple[str, ...]:
    """Return `names` sorted and without repeats.

    Raises BadChannel for a bad name or none at all, BadParameter for more than `at_most`.
    """
    channels = tuple(sorted({check_channel(name) for name in names}))
    if not channels:
        raise BadChannel("no channel is named", fix="Add ?channel=NAME, once for each channel")
    if len(channels) > at_most:
        raise BadParameter(
            f"{len(channels)} channels are named",
            fix=f"Name at most {at_most} (MAX_CHANNELS_PER_STREAM)",
        )
    return channels


def check_streamed(names: Sequence[str], at_most: int) -> tuple[str, ...]:
    """The same for what a stream may name: `$sys` will do too, by itself."""
    return (SYS,) if list(names) == [SYS] else check_channels(names, at_most)


class ChannelPattern:
    """Selects channels: `*` stands for anything, dots too; nothing else is special."""

    def __init__(self, text: str) -> None:
        """Raises ValueError unless `text` is made of the characters of channel names and `*`."""
        if not re.fullmatch(r"[A-Za-z0-9_.:*-]{1,128}", text, re.ASCII):
            raise ValueError(f"not a channel pattern: {text!r}")
        self._head, *rest = text.split("*")
        self._between, self._tail = rest[:-1], rest[-1] if rest else None

    def matches(self, channel: str) -> bool:
        """Whether the whole of `channel` is selected.

        What stands between stars is looked for from the left, once: a regular expression would
        try all ways, for seconds.
        """
        if self._tail is None:
            return channel == self._head
        place, end = len(self._head), len(channel) - len(self._tail)
        if place > end or not (channel.startswith(self._head) and channel.endswith(self._tail)):
            return False
        for part in self._between:
            found = channel.find(part, place, end)
            if found < 0:
                return False
            place = found + len(part)
        return True


@dataclass(frozen=True, slots=True)
class RedisNames:
    """How channels and keys are called in Redis; the one place where such names are made."""

    prefix: str

    def pubsub(self, channel: str) -> str:
        """The Redis pub/sub channel of `channel`; it ignores the database number."""
        return self.prefix + channel

    def channel(self, pubsub: str) -> str:
        """The channel whose Redis pub/sub channel is `pubsub`."""
        return pubsub[len(self.prefix) :]

    @property
    def clock(self) -> str:
        """The key of the id clock."""
        return self._key("clock")

    def history(self, channel: str) -> str:
        """The key of a channel's history."""
        return self._key("s:" + channel)

    def tail(self, channel: str) -> str:
        """The key of a channel's tail."""
        return self._key("t:" + channel)

    def idempotency(self, credential: str, channels: Iterable[str], key: str) -> str:
        """The key of what a credential has published to `channels` under an Idempotency-Key."""
        # The slash is what no channel name has.
        whose = _hashed(credential)[:16] if credential else ""
        return self._key(f"i:{whose}:{','.join(channels)}/{key}")

    def ticket(self, ticket: str) -> str:
        """The key of a ticket's grant."""
        return self._key(f"ticket:{ticket}")

    def closing(self, user: str) -> str:
        """The key of the last command that has closed the streams of `user`."""
        return self._key("closing:" + _hashed(user))

    @property
    def workers(self) -> str:
        """The key of the workers that have reports, or hold users."""
        return self._key("workers")

    def report(self, worker: str) -> str:
        """The key of a worker's streams by channel."""
        return self._key("n:" + worker)

    def present(self, channel: str) -> str:
        """The key of the users of a channel."""
        return self._key("p:" + channel)

    def held(self, worker: str) -> str:
        """The key of the users that a worker has streams of."""
        return self._key("held:" + worker)

    @property
    def changing(self) -> str:
        """The key of the users who have come or may have left."""
        return self._key("changing")

    def _key(self, name: str) -> str:
        # Keys keep a prefix even where pub/sub channels have none.
        return (self.prefix or "pushline:") + name


def _hashed(text: str) -> str:
    """Stands in a key for what may hold anything."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
