"""The newest stored events of followed channels, in memory: what most clients have missed."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from service.event import FIRST_ID, EventId
from service.frame import END, Frame

EVENTS_PER_CHANNEL = 256
"""A client that was away for longer is served from Redis."""

BYTES_IN_ALL = 67_108_864
"""Memory of a worker for all channels; the channels that were quiet longest give way."""

FRAME_BYTES = 500
"""What an event takes besides its bytes: its object, two ids, its name, its place."""


class _Channel:
    """All stored events of a channel with ids above `since`, and the id of its end, if any.

    `end_came` tells that this worker has seen the end, and did not only hear of it.
    """

    __slots__ = ("end_came", "ended", "frames", "since", "size")

    def __init__(self, since: EventId) -> None:
        self.since = since
        self.frames: deque[Frame] = deque()
        self.size = 0
        self.ended: EventId | None = None
        self.end_came = False


class RecentEvents:
    """What this worker has delivered lately, for each followed channel. Nothing here yields.

    `version` is another one after each change.
    """

    def __init__(self, at_most_bytes: int = BYTES_IN_ALL) -> None:
        self._at_most_bytes = at_most_bytes
        self._channels: OrderedDict[str, _Channel] = OrderedDict()
        self._size = 0
        self.version = 0

    def begin(self, channel: str, since: EventId) -> None:
        """From now on `add` gets every stored event of `channel` above `since`."""
        self.forget(channel)
        self.version += 1
        self._channels[channel] = _Channel(since)

    def forget(self, channel: str) -> None:
        """The channel is followed no more."""
        known = self._channels.pop(channel, None)
        if known is not None:
            self._size -= known.size

    def add(self, channel: str, frame: Frame) -> None:
        """Keep a stored event; those of one channel come in the order of their ids."""
        known = self._channels.get(channel)
        if known is None or frame.id is None:
            return
        self.version += 1
        known.frames.append(frame)
        known.end_came = frame.name == END
        known.ended = frame.id if known.end_came else None
        known.size += len(frame.data) + FRAME_BYTES
        self._size += len(frame.data) + FRAME_BYTES
        self._channels.move_to_end(channel)
        if len(known.frames) > EVENTS_PER_CHANNEL:
            self._drop_oldest(known)
        if self._size > self._at_most_bytes:
            self._make_room()

    def drop(self, channel: str, until: EventId) -> None:
        """Drop the events of `channel` up to `until`, and its end: they are forgotten."""
        known = self._channels.get(channel)
        if known is None or until == FIRST_ID:
            return
        self.version += 1
        while known.frames and (known.frames[0].id or FIRST_ID) <= until:
            self._drop_oldest(known)
        known.since = max(known.since, until)
        if known.ended is not None and known.ended <= until:
            known.ended = None

    def _drop_oldest(self, known: _Channel) -> None:
        oldest = known.frames.popleft()
        assert oldest.id is not None
        known.since = oldest.id
        known.size -= len(oldest.data) + FRAME_BYTES
        self._size -= len(oldest.data) + FRAME_BYTES

    def _make_room(self) -> None:
        for known in self._channels.values():
            while known.frames and self._size > self._at_most_bytes:
                self._drop_oldest(known)

    def set_ended(self, channel: str, ended: EventId | None) -> None:
        """Note the id of the channel's end, or that it has none, where no event has told."""
        known = self._channels.get(channel)
        if known is not None and known.ended != ended:
            known.ended, known.end_came = ended, False

    def all_ended(self, channels: Iterable[str]) -> bool:
        """Whether all of `channels` are followed and finished."""
        for channel in channels:
            known = self._channels.get(channel)
            if known is None or known.ended is None:
                return False
        return True

    def ends(self, channels: Iterable[str]) -> list[tuple[EventId, str]]:
        """The ends of those of `channels` that are finished, in order."""
        known = [(self._channels.get(channel), channel) for channel in channels]
        return sorted((one.ended, name) for one, name in known if one and one.ended is not None)

    def lost_ends(self, channels: Iterable[str]) -> list[tuple[EventId, str]]:
        """Those of `ends` that never came here, so that no stream was told."""
        return [end for end in self.ends(channels) if not self._channels[end[1]].end_came]

    def after(self, channels: Iterable[str], cursor: EventId) -> list[Frame] | None:
        """The events of all `channels` with ids above `cursor`, in the order of ids, each once.

        None when they aren't all here.
        """
        found: dict[EventId, Frame] = {}
        for channel in channels:
            newer = self._after(channel, cursor)
            if newer is None:
                return None
            found.update(newer)
        return [found[event_id] for event_id in sorted(found)]

    def _after(self, channel: str, cursor: EventId) -> list[tuple[EventId, Frame]] | None:
        known = self._channels.get(channel)
        if known is None or cursor < known.since:
            return None
        newer: list[tuple[EventId, Frame]] = []
        for frame in reversed(known.frames):
            if frame.id is None or frame.id <= cursor:
                break
            newer.append((frame.id, frame))
        return newer
