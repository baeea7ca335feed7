"""better-sse on Node, with ioredis."""

from __future__ import annotations

import shutil

from bench.servers.application import Application
from bench.servers.server import ROOT

PEERS = ROOT / "bench/peers"


class BetterSse(Application):
    """A session per client, registered with its channel; one Redis connection to listen."""

    name = "better-sse"

    @classmethod
    def missing(cls) -> str | None:
        """Needs Node and two packages."""
        found = shutil.which("node") and (PEERS / "node_modules/better-sse").is_dir()
        return None if found else "make bench-tools"

    def launch(self) -> None:
        """Start Node, in production."""
        environ = {**self.settings, "NODE_ENV": "production"}
        self.run(["node", PEERS / "better_sse.mjs"], environ=environ)
