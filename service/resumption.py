"""How far a stream has been brought from its client's cursor to the present."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from service.batch import Batch, joined
from service.event import FIRST_ID, EventId
from service.frame import END, Frame
from service.reset import Loss, reset_frame
from service.view import Selection


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream begins: after `cursor`, or with the `last` events.

    Without `proving`, what is kept is all that is asked for. `unknown` is a cursor that is none.
    """

    cursor: EventId = FIRST_ID
    last: int = 0
    proving: bool = True
    unknown: bool = False


MAX_SELECTIONS = 16
"""Sets of event names and rights for which the batches of a step are kept."""


@dataclass(slots=True)
class Step:
    """A part of a replay: the events above a cursor, up to and including `until`.

    `ends` are the ids of those that finish a channel.
    """

    frames: list[Frame]
    until: EventId
    lost: Mapping[str, Loss] = field(default_factory=dict)
    oldest: EventId | None = None
    started: frozenset[str] = frozenset()
    size: int = 0
    partial: bool = False
    ends: set[EventId] = field(default_factory=set)
    _batches: dict[object, list[Batch]] = field(default_factory=dict)

    @classmethod
    def unexpired(cls, frames: Iterable[Frame], until: EventId) -> Self:
        """One of those events whose deadline is still to come."""
        now = time.time() * 1000
        step = cls([], until)
        step.extend(frame for frame in frames if frame.deadline is None or frame.deadline > now)
        return step

    def extend(self, frames: Iterable[Frame]) -> None:
        """Add events in order; one that is in several channels counts once."""
        for frame in frames:
            if not self.frames or self.frames[-1].id != frame.id:
                self.frames.append(frame)
                self.size += len(frame.data)
                if frame.name == END and frame.id is not None:
                    self.ends.add(frame.id)

    def batches(self, selection: Selection) -> list[Batch]:
        """The selected events, joined; made once for each set of event names and rights."""
        key = selection.names, selection.granted
        if key not in self._batches:
            if len(self._batches) == MAX_SELECTIONS:
                self._batches.clear()
            self._batches[key] = list(joined(filter(selection.selects, self.frames)))
        return self._batches[key]


@dataclass(slots=True)
class Resumption:
    """How far a stream has been resumed: `cursor` is the id up to which it has everything.

    It began after `begun`. `answer` is what the Mercure-Last-Event-ID header says: the client's
    cursor if, as far as is known, nothing is missing after it, else `earliest`. `born` is the id
    from which Redis vouched for completeness as this began, `started` names the channels of which
    events were replayed. `moves` says that the client's own position must be moved on in the end.
    """

    channels: tuple[str, ...]
    cursor: EventId
    lost: Mapping[str, Loss]
    last: int
    proving: bool
    born: EventId
    begun: EventId = FIRST_ID
    started: frozenset[str] = frozenset()
    oldest: EventId | None = None
    events: int = 0
    size: int = 0
    step: Step | None = None
    answer: str = "earliest"
    moves: bool = False
    ends: set[EventId] = field(default_factory=set)
    _told: set[tuple[str, Loss]] = field(default_factory=set)

    @property
    def told(self) -> set[Loss]:
        """The reasons of all `$reset` that were made."""
        return {loss for _, loss in self._told}

    def key(self) -> object:
        """What the next step depends on."""
        return (
            *(self.channels, self.cursor, frozenset(self.lost), self.last, self.proving),
            *(self.started, self.born),
        )

    def advance(self, step: Step) -> None:
        """Take the next step."""
        self.step = step
        self.lost = {**self.lost, **step.lost}
        self.oldest = step.oldest or self.oldest
        self.cursor, self.last = step.until, 0
        self.proving = self.proving or not step.partial
        self.started |= step.started
        self.events += len(step.frames)
        self.size += step.size
        self.ends |= step.ends

    def take(self, selection: Selection) -> list[Batch]:
        """What the step that was taken last has for a client, once.

        What is missing is told before any event with a higher id, and without an id: a client that
        is cut off in between comes back with its old cursor, and is told again.
        """
        step, self.step = self.step, None
        batches = [] if step is None else step.batches(selection)
        if not batches or len(self.channels) == 1:  # what one channel has comes before its hole
            return batches
        resets = self.resets(None)
        self.moves = self.moves or bool(resets)
        return [*joined(resets), *batches]

    def give_up(self, position: EventId, loss: Loss) -> None:
        """Replay no more: go on from `position`, and say why what comes before it is missing."""
        self.cursor, self.proving = position, True
        self.lost = dict.fromkeys(self.channels, loss)
        self.events = self.size = 0

    def resets(self, position: EventId | None) -> list[Frame]:
        """One `$reset` for each reason why events may be missing that was not told yet."""
        frames = []
        for loss in Loss:
            lost = [channel for channel, reason in self.lost.items() if reason is loss]
            channels = sorted(one for one in lost if (one, loss) not in self._told)
            if channels:
                frames.append(reset_frame(position, channels, loss, self.oldest))
                self._told |= {(channel, loss) for channel in channels}
        return frames
