"""How a channel is finished: by `$end`, its last event."""

from __future__ import annotations

import json

from service.event import EventId, ServiceEvent
from service.frame import END, Frame
from service.publication import Publication
from service.sse import encode, encode_id

FINISHED = "finished"
"""The reason of an end for which none is given, or none is kept any more."""


def last_publication(channel: str, reason: str = FINISHED) -> Publication:
    """What finishes `channel`."""
    return Publication(_event(channel, reason), (channel,), ends=True)


def last_frame(channel: str, event_id: EventId) -> Frame:
    """`$end` as it is told where the history has it no more."""
    before, after = encode(_event(channel, FINISHED))
    return Frame(event_id, END, before + encode_id(event_id) + after)


def _event(channel: str, reason: str) -> ServiceEvent:
    return ServiceEvent(json.dumps({"channel": channel, "reason": reason}), END)
