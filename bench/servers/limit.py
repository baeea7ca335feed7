"""limit.c: a C program that does nothing but send, the least that a server must do."""

from __future__ import annotations

from pathlib import Path

from bench.publisher import Feed
from bench.servers.server import Server
from tests.swarm import compiled

SOURCE = Path(__file__).parents[1] / "limit.c"


class Limit(Server):
    """One `send` per event and stream."""

    name = "limit"
    feeds = ("lines",)
    options: tuple[str, ...] = ()

    def launch(self) -> None:
        """Start limit.c."""
        self.run([compiled(SOURCE), str(self.port), *self.options])

    def stream_url(self, *channels: str) -> str:
        """The path is the channel's number."""
        (channel,) = channels
        return f"http://127.0.0.1:{self.port}/{channel}"

    def feed(self, name: str, channel: str = "%d") -> Feed:
        """A line per event; HTTP has a server's least work for a publish."""
        if name == "http":
            return Feed("http", self.port, f"/{channel}")
        return Feed("lines", self.port, body=f"{channel} %s")


class JoinedLimit(Limit):
    """One `send` for all events that a stream has not had."""

    name = "limit, joined"
    answers_publishes = False
    options = ("--join",)
