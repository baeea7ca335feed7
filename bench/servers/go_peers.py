"""Centrifugo and Mercure, measured where their program is on the PATH."""

from __future__ import annotations

import json
import shutil
from urllib.parse import quote

import jwt

from bench.publisher import Feed
from bench.servers.server import Server

KEY = "benchmark-key-of-more-than-32-bytes"
CADDYFILE = """
{{
    auto_https off
    admin off
}}
http://127.0.0.1:{port} {{
    mercure {{
        publisher_jwt {key}
        anonymous
        transport bolt {{
            path {folder}/mercure.db
            size 1000
        }}
    }}
    respond 404
}}
"""


class Centrifugo(Server):
    """Version 6, in memory, without history; its unidirectional event streams wrap data in JSON."""

    name = "Centrifugo"

    @classmethod
    def missing(cls) -> str | None:
        """Needs the program."""
        return None if shutil.which("centrifugo") else "put centrifugo on the PATH"

    def launch(self) -> None:
        """Start it open to everybody."""
        path = self.folder / "centrifugo.json"
        settings = {
            "http_server": {"address": "127.0.0.1", "port": self.port},
            "http_api": {"insecure": True},
            "client": {"insecure": True, "ping_interval": "600s", "pong_timeout": "10s"},
            "uni_sse": {"enabled": True},
            "log": {"level": "error"},
        }
        path.write_text(json.dumps(settings))
        self.run(["centrifugo", f"--config={path}"])

    def stream_url(self, *channels: str) -> str:
        """The channels are in a JSON object in the query."""
        wanted = json.dumps({"subs": {channel: {} for channel in channels}})
        query = quote(wanted).replace("%25d", "%d")
        return f"http://127.0.0.1:{self.port}/connection/uni_sse?cf_connect={query}"

    def feed(self, name: str, channel: str = "%d") -> Feed:
        """Its HTTP API."""
        body = f'{{"channel": "{channel}", "data": "%s"}}'
        return Feed("http", self.port, "/api/publish", body, {"Content-Type": "application/json"})


class Mercure(Server):
    """The free hub, with its history of 1 000 events on disk."""

    name = "Mercure"

    @classmethod
    def missing(cls) -> str | None:
        """Needs the program."""
        return None if shutil.which("mercure") else "put mercure on the PATH"

    def launch(self) -> None:
        """Start it for anonymous subscribers."""
        path = self.folder / "Caddyfile"
        path.write_text(CADDYFILE.format(port=self.port, key=KEY, folder=self.folder))
        self.run(["mercure", "run", "--adapter", "caddyfile", "--config", path])

    def stream_url(self, *channels: str) -> str:
        """Topics in the query."""
        query = "&".join(f"topic={channel}" for channel in channels)
        return f"http://127.0.0.1:{self.port}/.well-known/mercure?{query}"

    def feed(self, name: str, channel: str = "%d") -> Feed:
        """A form, with a token that may publish everything."""
        token = jwt.encode({"mercure": {"publish": ["*"]}}, KEY, "HS256")
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        body = f"topic={channel}&data=%s"
        return Feed("http", self.port, "/.well-known/mercure", body, headers)
