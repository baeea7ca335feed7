"""Channel names, and the names that Redis knows them by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from service.errors import BadChannel, BadParameter

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)


def check_channel(name: str) -> str:
    """Return `name`; raises BadChannel unless all of it is a channel name."""
    if not _NAME.fullmatch(name):
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


class ChannelPattern:
    """Selects channels: `*` stands for anything, dots too; nothing else is special."""

    def __init__(self, text: str) -> None:
        """Raises ValueError unless `text` is made of the characters of channel names and `*`."""
        if not re.fullmatch(r"[A-Za-z0-9_.:*-]{1,128}", text, re.ASCII):
            raise ValueError(f"not a channel pattern: {text!r}")
        self._matches = re.compile(re.escape(text).replace(r"\*", ".*")).fullmatch

    def matches(self, channel: str) -> bool:
        """Whether the whole of `channel` is selected."""
        return self._matches(channel) is not None


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

    def idempotency(self, channels: Iterable[str], key: str) -> str:
        """The key of what was published to `channels` under an Idempotency-Key."""
        return self._key(f"i:{','.join(channels)}/{key}")  # the slash is in no channel's name

    def _key(self, name: str) -> str:
        # Keys keep a prefix even where pub/sub channels have none.
        return (self.prefix or "pushline:") + name
