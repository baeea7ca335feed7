"""Pushline as its Procfile runs it: production, with a publish key and default settings."""

from __future__ import annotations

import sys
from typing import ClassVar

from bench.publisher import Feed
from bench.servers.server import Server

KEY = "benchmark-publish-key"
READY = "Redis is connected"
SETTINGS = {
    "PUBLISH_KEYS": KEY,
    "PUBLIC_CHANNELS": "*",
    "MAX_CONNECTIONS_PER_IP": "0",
    "MAX_CONNECTS_PER_SECOND_PER_IP": "0",
}
"""All else is as it is by default."""


class Pushline(Server):
    """One worker. Only the limits per client address are lifted: all streams come from one."""

    name = "Pushline"
    feeds: ClassVar[tuple[str, ...]] = ("redis", "http")
    uses_redis = True
    several_channels = True

    def launch(self) -> None:
        """Start gunicorn with our configuration."""
        command = [sys.executable, "-m", "gunicorn", "-c", "python:service.gunicorn_conf"]
        environ = {
            "REDIS_URL": self.redis_url,
            "PORT": str(self.port),
            "WEB_CONCURRENCY": str(self.workers),
        }
        self.run([*command, "service.app:create_app()"], environ={**environ, **SETTINGS})

    def is_ready(self) -> bool:
        """Whether every worker follows Redis."""
        if self.log_path.read_text(errors="replace").count(READY) < self.workers:
            return False
        return self.answers("/readyz")

    def stream_url(self, *channels: str) -> str:
        """The stream route takes several channels."""
        query = "&".join(f"channel={channel}" for channel in channels)
        return f"http://127.0.0.1:{self.port}/stream?{query}"

    def feed(self, name: str, channel: str = "%d") -> Feed:
        """Plain PUBLISH, or a stored publish over HTTP."""
        if name == "redis":
            return Feed("redis", self.redis_port, f"pushline:{channel}")
        headers = {"Authorization": f"Bearer {KEY}"}
        return Feed("http", self.port, f"/channels/{channel}", headers=headers)


class PushlineTwo(Pushline):
    """Two workers."""

    name = "Pushline, 2 workers"
    workers = 2
    most_streams = 38_000
