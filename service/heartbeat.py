"""What breaks the silence of a view, and when."""

from __future__ import annotations

import random
import time

from service.batch import Batch
from service.event import FIRST_ID, EventId
from service.sse import HEARTBEAT, encode_ping, encode_position
from service.view import View

POSITION_SECONDS = 60
"""How often a view's cursor is refreshed by an `id:` block."""

JITTER = 0.2
"""A view's heartbeat comes up to this share earlier than it must."""


class Heartbeat:
    """Plans the heartbeats of views, so that none is silent for longer than `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def plan(self, view: View) -> None:
        """Something is sent to `view` now: the next heartbeat is due after a silence."""
        silence = self._seconds * random.uniform(1 - JITTER, 1)
        view.heartbeat_at = time.monotonic() + silence

    def batch(self, view: View, position: EventId, now: float) -> Batch:
        """The bytes: a comment or `$ping`, and now and then the position; `now` is monotonic."""
        visible = view.selection.visible_pings
        data = encode_ping(time.time_ns() // 1_000_000) if visible else HEARTBEAT
        if now >= view.position_at and position > FIRST_ID:
            view.position_at = now + POSITION_SECONDS
            data += encode_position(position)
        return Batch(data)
