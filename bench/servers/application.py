"""What the applications in `bench/peers/` have in common: their routes, and Redis as their feed."""

from __future__ import annotations

from bench.publisher import Feed
from bench.servers.server import Server


class Application(Server):
    """Streams at /stream/<channel>, publishes at /publish/<channel>, follows Redis's bench:*."""

    feeds = ("redis",)
    uses_redis = True

    @property
    def settings(self) -> dict[str, str]:
        """What an application takes from its environment."""
        return {"REDIS_URL": self.redis_url, "PORT": str(self.port)}

    def stream_url(self, *channels: str) -> str:
        """One channel, in the path."""
        (channel,) = channels
        return f"http://127.0.0.1:{self.port}/stream/{channel}"

    def feed(self, name: str, channel: str = "%d") -> Feed:
        """Plain PUBLISH; over HTTP the application does the same."""
        if name == "redis":
            return Feed("redis", self.redis_port, f"bench:{channel}")
        return Feed("http", self.port, f"/publish/{channel}")
