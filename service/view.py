"""What a stream selects. Streams with the same view share every byte that they are sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from service.batch import Batch, joined
from service.event import FIRST_ID, EventId
from service.frame import Frame
from service.subscriber import Subscriber


@dataclass(frozen=True, slots=True)
class Selection:
    """The channels of a stream, its event names (None: all) and the kind of its heartbeats.

    `granted` are those of the channels whose private events it may see.
    """

    channels: tuple[str, ...]
    names: frozenset[str] | None = None
    visible_pings: bool = False
    granted: frozenset[str] = frozenset()

    def selects(self, frame: Frame) -> bool:
        """Whether a frame of one of the channels is wanted and granted.

        The service's own are wanted always.
        """
        if frame.private is not None and self.granted.isdisjoint(frame.private):
            return False
        return self.names is None or frame.name in self.names or frame.name.startswith("$")


class Share(NamedTuple):
    """A batch and whom it is for. `more`: it follows another of the same pass."""

    batch: Batch
    receivers: tuple[Subscriber, ...]
    more: bool = False


class View:
    """The subscribers of one selection, and the frames that wait for their next batch.

    Nothing here yields to another greenlet, so a change is never seen half done. `has_turn`,
    `rests_until` and `waiting_bytes` are the fan-out's: whether it is to write what waits here, not
    before when, and how many bytes that is.
    """

    __slots__ = ("_pending", "_sealed", "events", "has_turn", "heartbeat_at", "last_id",
                 "position_at", "rests_until", "selection", "sent_bytes", "subscribers",
                 "waiting_bytes")  # fmt: skip

    def __init__(self, selection: Selection, now: float = 0.0) -> None:
        self.selection = selection
        self.subscribers: set[Subscriber] = set()
        self.last_id = FIRST_ID
        self.heartbeat_at = self.position_at = now
        self.events = 0
        self.sent_bytes = 0
        self.has_turn = False
        self.rests_until = 0.0
        self.waiting_bytes = 0
        self._pending: list[Frame] = []
        self._sealed: list[tuple[Iterable[Batch], tuple[Subscriber, ...]]] = []

    @property
    def has_work(self) -> bool:
        """Whether anything waits to be taken."""
        return bool(self._pending or self._sealed)

    def collect(self, frame: Frame) -> bool:
        """Keep `frame` for the next batch; False when it is not selected or came before.

        An event of several channels reaches a view of several of them more than once, under one id.
        """
        if frame.id is not None:
            if frame.id <= self.last_id:
                return False
            self.last_id = frame.id
        if not self.selection.selects(frame):
            return False
        self._pending.append(frame)
        return True

    def is_late(self, frame: Frame) -> bool:
        """Whether a stored event that is selected has come too late to be in order."""
        if frame.prev is None or frame.id is None or frame.id >= self.last_id:
            return False
        return self.selection.selects(frame)

    def push(self, frame: Frame) -> None:
        """Keep `frame` for the next batch, whatever the selection and its id say."""
        self._pending.append(frame)

    def append(self, batch: Batch) -> None:
        """Let a batch without events, for those who are here now, follow what is pending."""
        if self._pending:
            self._seal()
        self._sealed.append(([batch], tuple(self.subscribers)))

    def join(self, subscriber: Subscriber, position: EventId) -> None:
        """Let `subscriber` in at a batch boundary: of the frames pending here it gets those above
        `position`, joined anew, and none of the batches that they end up in.
        """
        missed = [frame for frame in self._pending if frame.id and frame.id > position]
        if self._pending:
            self._seal()
        subscriber.joined(self, len(missed), sum(len(frame.data) for frame in missed))
        self.subscribers.add(subscriber)
        for batch in joined(missed):
            subscriber.offer(batch)

    def leave(self, subscriber: Subscriber) -> None:
        """Forget `subscriber`, if it is here."""
        self.subscribers.discard(subscriber)

    def take(self) -> Iterator[Share]:
        """Yield what is pending as batches, each with the subscribers that it is for."""
        if self._pending:
            self._seal()
        sealed, self._sealed = self._sealed, []
        for batches, receivers in sealed:
            for place, batch in enumerate(batches):
                yield Share(batch, receivers, more=place > 0)

    def _seal(self) -> None:
        pending, self._pending = self._pending, []
        self.events += len(pending)
        self.sent_bytes += sum([len(frame.data) for frame in pending])
        # Joined one by one as they are written: many views may be on their way at a time.
        self._sealed.append((joined(pending), tuple(self.subscribers)))
