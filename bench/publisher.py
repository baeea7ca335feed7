"""The publishing side: drives publisher.c, which publishes numbered events over three protocols."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.swarm import compiled

SOURCE = Path(__file__).with_name("publisher.c")
EVENT_BYTES = 100


class PublisherError(Exception):
    """Events could not be published."""


@dataclass(frozen=True)
class Feed:
    """A way to publish to a server.

    `%d` in `target` (a path, or the name of a Redis channel) and `body` becomes the channel's
    number, `%s` in `body` the payload.
    """

    protocol: Literal["http", "redis", "lines"]
    port: int
    target: str = "/"
    body: str = "%s"
    headers: Mapping[str, str] = field(default_factory=dict)
    keeps_alive: bool = True
    """False for a server that closes the connection after each answer."""


@dataclass(frozen=True)
class Published:
    """What publisher.c says at its end; times are of the monotonic clock."""

    started_ns: int
    ended_ns: int
    sent: int
    accepted: int
    refused: int
    refusal: str  # the first one
    cpu_seconds: float

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return (self.ended_ns - self.started_ns) / 1e9


class Publisher:
    """A running publisher; `finish` waits for its end.

    It publishes `count` events over `channels` channels in turn, or for `seconds`, at `rate` a
    second (0: as fast as they are taken) over `connections`, each with at most `in_flight`
    requests without an answer.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        count: int = 0,
        seconds: float = 0,
        rate: float = 0,
        channels: int = 1,
        connections: int = 1,
        in_flight: int = 1,
    ) -> None:
        command = [
            str(compiled(SOURCE)),
            f"--protocol={feed.protocol}",
            f"--port={feed.port}",
            f"--target={feed.target}",
            f"--body={feed.body}",
            f"--bytes={EVENT_BYTES}",
            f"--rate={rate}",
            f"--seconds={seconds}",
            f"--channels={channels}",
            f"--connections={connections}",
            f"--in-flight={in_flight}",
            *(f"--header={name}: {value}" for name, value in feed.headers.items()),
        ]
        if not feed.keeps_alive:
            command.append("--reopen")
        if count:
            command.append(f"--count={count}")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def finish(self, *, may_be_refused: bool = False) -> Published:
        """Wait for the end. Raises PublisherError if something broke or, mostly, was refused."""
        answer, errors = self._process.communicate()
        if self._process.returncode:
            raise PublisherError(errors.decode().strip() or f"exit {self._process.returncode}")
        published = Published(**json.loads(answer))
        if published.refused and not may_be_refused:
            raise PublisherError(f"{published.refused} refused, the first: {published.refusal}")
        return published
