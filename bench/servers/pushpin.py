"""Pushpin (Debian's package): a proxy that holds what the application behind it tells it to hold.

The application is nginx with one line, the cheapest there is; its CPU counts as the server's.
"""

from __future__ import annotations

import shutil

from bench.publisher import Feed
from bench.servers.nchan import SEARCH
from bench.servers.server import Server
from tests.valkey import free_port

LIBRARY = "/usr/lib/pushpin"
CONFIGURATION = """
[global]
include={library}/internal.conf
rundir={folder}/run
ipc_prefix=bench-
[runner]
services=condure,zurl,pushpin-proxy,pushpin-handler
http_port=127.0.0.1:{port}
logdir={folder}/log
log_level=0
client_buffer_size=8192
client_maxconn=19900
condure_bin=condure
zurl_bin=zurl
[proxy]
routesfile={folder}/routes
updates_check=off
zurl_out_specs=ipc://{folder}/run/bench-zurl-in
zurl_out_stream_specs=ipc://{folder}/run/bench-zurl-in-stream
zurl_in_specs=ipc://{folder}/run/bench-zurl-out
[handler]
push_in_spec=ipc://{folder}/run/push
push_in_sub_specs=ipc://{folder}/run/push-sub
push_in_http_addr=127.0.0.1
push_in_http_port={publish_port}
command_spec=ipc://{folder}/run/command
message_rate=1000000
message_hwm=1000000
connection_subscription_max=20
stats_format=tnetstring
"""
APPLICATION = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4000; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    server {{
        listen 127.0.0.1:{application_port} backlog=4096;
        default_type text/event-stream;
        location ~ ^/(\\w+)$ {{
            add_header Grip-Hold stream;
            add_header Grip-Channel $1;
            return 200 "retry: 2000\\n\\n";
        }}
    }}
}}
"""


class Pushpin(Server):
    """Its limit of 2 500 messages a second is lifted: test B would measure that."""

    name = "Pushpin"

    def __init__(self) -> None:
        super().__init__()
        self._publish_port = free_port()

    @classmethod
    def missing(cls) -> str | None:
        """Needs pushpin, and nginx for the application."""
        found = shutil.which("pushpin") and shutil.which("nginx", path=SEARCH)
        return None if found else "apt-get install --no-install-recommends pushpin nginx-light"

    def launch(self) -> None:
        """Start the application, then Pushpin in front of it."""
        application_port = free_port()
        for name in ("run", "log"):
            (self.folder / name).mkdir()
        (self.folder / "routes").write_text(f"* 127.0.0.1:{application_port}\n")
        application, pushpin = self.folder / "nginx.conf", self.folder / "pushpin.conf"
        application.write_text(
            APPLICATION.format(folder=self.folder, application_port=application_port)
        )
        pushpin.write_text(
            CONFIGURATION.format(
                library=LIBRARY,
                folder=self.folder,
                port=self.port,
                publish_port=self._publish_port,
            )
        )
        nginx = str(shutil.which("nginx", path=SEARCH))
        self.run([nginx, "-c", application, "-p", self.folder])
        self.run(["pushpin", f"--config={pushpin}"])

    def is_ready(self) -> bool:
        """Whether it has held a stream's request; its parts start one after the other."""
        return super().is_ready() and self.answers("/ready")

    def stream_url(self, *channels: str) -> str:
        """The path is the channel."""
        (channel,) = channels
        return f"http://127.0.0.1:{self.port}/{channel}"

    def feed(self, name: str, channel: str = "%d") -> Feed:
        """JSON with the finished frame, as Pushpin wants it."""
        frame = '{"http-stream": {"content": "data: %s\\n\\n"}}'
        item = f'{{"items": [{{"channel": "{channel}", "formats": {frame}}}]}}'
        return Feed("http", self._publish_port, "/publish/", item, keeps_alive=False)
