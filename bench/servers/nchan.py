"""Nchan, the push module of nginx (Debian's package), one worker as all others have."""

from __future__ import annotations

import contextlib
import os
import shutil
import urllib.request
from pathlib import Path

from bench.publisher import Feed
from bench.servers.server import Server

MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
CONFIGURATION = """
load_module {module};
worker_processes {workers};
worker_rlimit_nofile 20000;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 19900; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 100000000;
    nchan_shared_memory_size 512M;
    {upstream}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/pub/(\\w+)$ {{
            nchan_publisher;
            nchan_channel_id $1;
            nchan_message_buffer_length 5000;
            nchan_message_timeout 1d;
            {use}
        }}
        location ~ ^/sub/([\\w,]+)$ {{
            nchan_subscriber eventsource;
            nchan_channel_id $1;
            nchan_channel_id_split_delimiter ",";
            nchan_subscriber_first_message newest;
            {use}
        }}
    }}
}}
"""


class Nchan(Server):
    """Messages in nginx's shared memory, 5 000 kept per channel, so that floods lose nothing."""

    name = "Nchan"
    several_channels = True

    @classmethod
    def missing(cls) -> str | None:
        """Needs nginx and the module."""
        found = shutil.which("nginx", path=SEARCH) and MODULE.exists()
        return None if found else "apt-get install --no-install-recommends libnginx-mod-nchan"

    def launch(self) -> None:
        """Start nginx with a configuration of its own."""
        path = self.folder / "nginx.conf"
        text = CONFIGURATION.format(
            module=MODULE,
            workers=self.workers,
            folder=self.folder,
            port=self.port,
            upstream=f'upstream redis {{ nchan_redis_server "{self.redis_url}"; }}'
            if self.uses_redis
            else "",
            use="nchan_redis_pass redis;" if self.uses_redis else "",
        )
        path.write_text(text)
        self.run([str(shutil.which("nginx", path=SEARCH)), "-c", path, "-p", self.folder])

    def stream_url(self, *channels: str) -> str:
        """Several channels are joined by commas."""
        return f"http://127.0.0.1:{self.port}/sub/{','.join(channels)}"

    def feed(self, name: str, channel: str = "%d") -> Feed:
        """The body is the message."""
        return Feed("http", self.port, f"/pub/{channel}", headers={"Content-Type": "text/plain"})


class NchanRedis(Nchan):
    """Messages in Redis as well, which is what several nginx machines need."""

    name = "Nchan with Redis"
    uses_redis = True

    def is_ready(self) -> bool:
        """Whether a publish is taken: nginx answers before Nchan has Redis."""
        url = f"http://127.0.0.1:{self.port}/pub/ready"
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(url, data=b"ready", timeout=5) as answer,
        ):
            return bool(answer.status < 300)
        return False
