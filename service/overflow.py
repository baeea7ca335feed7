"""What becomes of a stream that is read too slowly: it ends, or skips events and says so."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.batch import Batch, joined
from service.event import EventId
from service.frame import RESET, Frame
from service.reset import Loss, reset_frame


class Overflow(enum.Enum):
    """A stream's policy; the values are those of the query parameter `overflow`."""

    CLOSE = "close"
    DROP_OLDEST = "drop-oldest"
    CONFLATE = "conflate"


class Piece(NamedTuple):
    """What waits in an outbox: bytes, and the events in them, for policies that may drop them.

    A fixed piece is none that may be dropped, such as the head of a response.
    """

    data: bytes
    frames: Sequence[Frame] = ()
    fixed: bool = False


def thinned(
    waiting: Sequence[Piece],
    policy: Overflow,
    at_most_bytes: int,
    channels: Sequence[str],
    framed: Callable[[Batch], bytes],
) -> list[Piece]:
    """What remains of `waiting`, whole pieces that none has been sent of.

    DROP_OLDEST drops from the front until it is small enough. CONFLATE drops all, and keeps the
    newest frame of each event name, as far as half of that holds them. Both put a `$reset` where
    something was dropped. `framed` gives the bytes of a batch as the stream is to get them.
    """
    rest = list(waiting)
    dropped = _drop(rest, at_most_bytes if policy is Overflow.DROP_OLDEST else -1)
    frames = [frame for piece in dropped for frame in piece.frames]
    if not frames:
        return rest  # no event was dropped, at most heartbeats
    if policy is Overflow.CONFLATE:
        new = [_skipped(None, channels), *joined(_newest_of_each_name(frames, at_most_bytes // 2))]
    else:
        ids = [frame.id for frame in frames if frame.id is not None]
        new = [_skipped(max(ids, default=None), channels)]
    return [*(Piece(framed(batch), batch.frames) for batch in new), *rest]


def _drop(rest: list[Piece], at_most_bytes: int) -> list[Piece]:
    size = sum(len(piece.data) for piece in rest)
    dropped: list[Piece] = []
    while rest and size > at_most_bytes:
        size -= len(rest[0].data)
        dropped.append(rest.pop(0))
    return dropped


def _newest_of_each_name(frames: Sequence[Frame], at_most_bytes: int) -> list[Frame]:
    newest: dict[str, Frame] = {}
    for frame in frames:
        newest.pop(frame.name, None)  # so that the order is that of the newest ones
        if frame.name != RESET:
            newest[frame.name] = frame
    kept: list[Frame] = []
    for frame in reversed(newest.values()):
        at_most_bytes -= len(frame.data)
        if kept and at_most_bytes < 0:
            break
        kept.append(frame)
    return kept[::-1]


def _skipped(position: EventId | None, channels: Sequence[str]) -> Batch:
    frame = reset_frame(position, channels, Loss.SKIPPED)
    return Batch(frame.data, (frame,))
