"""Commands to all workers. They travel as stored events, so that a lost link misses none."""

from __future__ import annotations

import json
from typing import NamedTuple

from service.event import ServiceEvent
from service.frame import Frame
from service.publication import Publication
from service.sse import Parser

CONTROL = "$control"
"""The channel of commands; clients can't name it."""

CLOSE = "$close"
"""The name of the command that closes streams."""

KEPT_SECONDS = 300
"""How late a worker that was cut off from Redis still carries a command out."""


class Close(NamedTuple):
    """Close the streams of a user, or the stream of a name; the other one is empty."""

    user: str = ""
    stream: str = ""

    def publication(self) -> Publication:
        """The event that carries this to all workers."""
        event = ServiceEvent(json.dumps(self._asdict()), CLOSE)
        return Publication(event, (CONTROL,), ttl_seconds=KEPT_SECONDS)

    @classmethod
    def read(cls, frame: Frame) -> Close | None:
        """The command in a frame; None for anything else, such as one of a newer version.

        Nothing that anybody publishes makes this fail.
        """
        if frame.name != CLOSE:
            return None
        try:
            (message,) = Parser().feed(frame.data)
            command = cls(**message.json())
        except (ValueError, TypeError, RecursionError):
            return None
        return command if all(isinstance(one, str) for one in command) and any(command) else None
