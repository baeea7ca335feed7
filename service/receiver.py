"""Who gets what comes from Redis: the contract between a follower and a hub, or a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.event import EventId
from service.frame import Frame
from service.reset import Loss


class Receiver(NamedTuple):
    """Who gets what a follower brings.

    `deliver` gets events in the order of their ids; `advance` the id up to which all have been
    delivered; `reset` the channels of which events may be missing, why, the oldest one kept, and
    the id up to which none of them comes any more.
    """

    deliver: Callable[[Sequence[tuple[str, Frame]]], None]
    advance: Callable[[EventId], None]
    reset: Callable[[Sequence[str], Loss, EventId | None, EventId], None]
