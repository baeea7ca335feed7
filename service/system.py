"""`$sys`, the channel on which each worker tells of itself while somebody follows it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from gevent.event import Event as Stopped

from service.broker import Broker
from service.channels import SYS
from service.errors import RedisError
from service.event import Event
from service.frame import Frame
from service.hub import Hub
from service.redis_store import RedisStore
from service.sse import encode

log = logging.getLogger("pushline.system")

TELL_SECONDS = 1.0
"""How often a worker tells of itself."""


class SystemChannel:
    """Sends snapshots: live only, without an id, and not counted as anybody's events."""

    def __init__(
        self,
        store: RedisStore,
        broker: Broker,
        hub: Hub,
        snapshot: Callable[[], dict[str, Any]],
    ) -> None:
        self._store = store
        self._broker = broker
        self._hub = hub
        self._snapshot = snapshot
        self._stopped = Stopped()

    def run(self) -> None:
        """Tell until `stop`; the body of one greenlet."""
        while not self._stopped.wait(TELL_SECONDS):
            self.tell()

    def stop(self) -> None:
        """End `run` when it has told what it is telling."""
        self._stopped.set()

    def tell(self) -> None:
        """Send a snapshot to all who follow, on any worker; when nobody does, it isn't made.

        While Redis is lost, this worker's own streams get it: they are to see just that.
        """
        try:
            if not self._broker.connected:
                self._tell_here()
            elif self._store.is_followed(SYS):
                self._store.tell(SYS, self._text())
        except RedisError as error:
            log.debug("no snapshot this time: %s", error)
            self._tell_here()

    def _tell_here(self) -> None:
        if any(name == SYS and one.streams for name, one in self._broker.followed()):
            before, after = encode(Event(self._text()))
            self._hub.collect([(SYS, Frame(None, "message", before + after))])

    def _text(self) -> str:
        return json.dumps(self._snapshot(), separators=(",", ":"))
