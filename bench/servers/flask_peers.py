"""The Flask applications that Pushline replaces, on gunicorn with one gevent worker as it has."""

from __future__ import annotations

import importlib.util
import sys

from bench.publisher import Feed
from bench.servers.application import Application

OPTIONS = (
    "--worker-class=gevent",
    "--worker-connections=19900",
    "--keep-alive=75",
    "--log-level=warning",
)


class FlaskTutorial(Application):
    """A generator with a queue per client, one Redis connection per worker."""

    name = "Flask tutorial"
    module = "bench.peers.flask_tutorial:app"

    def launch(self) -> None:
        """Start gunicorn."""
        bind = f"--bind=127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "gunicorn", *OPTIONS, bind, self.module]
        self.run(command, environ=self.settings)


class FlaskSse(FlaskTutorial):
    """flask-sse: a Redis connection for each client."""

    name = "flask-sse"
    most_streams = 9_000  # each has two sockets, and a process 20 000 files
    late_ms_per_stream = 5.0  # each subscribes after it has sent the head
    module = "bench.peers.flask_sse_app:app"

    @classmethod
    def missing(cls) -> str | None:
        """Among the tests' requirements."""
        found = importlib.util.find_spec("flask_sse")
        return None if found else "pip install -r requirements-dev.txt"

    def stream_url(self, *channels: str) -> str:
        """One channel, in the query."""
        (channel,) = channels
        return f"http://127.0.0.1:{self.port}/stream?channel={channel}"

    def feed(self, name: str, channel: str = "%d") -> Feed:
        """Its messages in Redis are JSON, its channels bare names."""
        if name == "redis":
            return Feed("redis", self.redis_port, channel, body='{"data": "%s"}')
        return super().feed(name, channel)
