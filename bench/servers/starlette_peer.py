"""sse-starlette on uvicorn with uvloop and httptools, in an environment of its own."""

from __future__ import annotations

from bench.servers.application import Application
from bench.servers.server import ROOT

PYTHON = ROOT / "build/peers/bin/python"


class SseStarlette(Application):
    """A queue per client, one Redis connection per worker."""

    name = "sse-starlette"

    @classmethod
    def missing(cls) -> str | None:
        """Needs the peers' environment."""
        return None if PYTHON.exists() else "make bench-tools"

    def launch(self) -> None:
        """Start uvicorn, without its access log."""
        command = [str(PYTHON), "-m", "uvicorn", "--port", str(self.port), "--loop", "uvloop"]
        command += ["--http", "httptools", "--no-access-log", "--log-level", "warning"]
        command += ["--timeout-keep-alive", "75", "--backlog", "4096"]
        self.run([*command, "bench.peers.starlette_app:app"], environ=self.settings)
