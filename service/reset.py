"""`$reset`: the event that says that events may be missing, of which channels, and why."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence

from service.event import EventId, ServiceEvent
from service.frame import RESET, Frame
from service.sse import encode, encode_id


class Loss(enum.Enum):
    """Why completeness can't be proved; the values stand in `$reset` and in the documentation."""

    LOST = "lost"
    TRIMMED = "trimmed"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    LIMIT = "limit"
    SKIPPED = "skipped"


def reset_frame(
    position: EventId | None, channels: Sequence[str], loss: Loss, oldest: EventId | None = None
) -> Frame:
    """The `$reset` event; a client that goes on from `position`, its id, isn't told again."""
    told = {"channels": channels, "reason": loss.value, "oldest": oldest and str(oldest)}
    before, after = encode(ServiceEvent(json.dumps(told), RESET))
    return Frame(position, RESET, before + (encode_id(position) if position else b"") + after)
