"""What a worker's two greenlets do, one after the other: collect, and write all that waits."""

from __future__ import annotations

from collections.abc import Sequence

from service.event import EventId
from service.frame import Frame
from service.hub import Hub
from service.reset import Loss


def deliver(hub: Hub, frames: Sequence[tuple[str, Frame]]) -> None:
    """Send each (channel, frame) to the subscribers of its channel."""
    hub.collect(frames)
    hub.fan_out.write()


def reset(
    hub: Hub, channels: Sequence[str], loss: Loss, oldest: EventId | None, until: EventId
) -> None:
    """Tell the streams of `channels` that events may be missing."""
    hub.reset(channels, loss, oldest, until)
    hub.fan_out.write()


def beat(hub: Hub, now: float) -> None:
    """Send the heartbeats that are due at `now`."""
    hub.beat(now)
    hub.fan_out.write()
