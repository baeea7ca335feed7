"""nginx and Caddy before services, each as deploy/ has it, with a certificate for `localhost`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from tests.live_server import ROOT, until
from tests.processes import children
from tests.untested import untested
from tests.valkey import free_port

DEPLOY = ROOT / "deploy"

NGINX = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {inside}
}}
"""

CADDY = """
{{
    admin unix/{folder}/admin.sock
    auto_https disable_redirects
    servers {{
        protocols h1 h2
    }}
}}
"""


def need(name: str) -> str:
    """The path of a program; skips the test where there is none, and fails it in CI."""
    path = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"
    found = shutil.which(name, path=path)
    if found is None:
        untested(f"{name} is not installed (Debian: {name})")
    return found


def nginx_command(folder: Path, inside: str) -> list[str]:
    """What starts nginx with all its files in `folder`, and `inside` its block http."""
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, inside=inside))
    return [need("nginx"), "-p", str(folder), "-c", str(configuration)]


def replaced(text: str, changes: dict[str, str]) -> str:
    """`text` with each change made, in a place that has to be there."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is no longer in the file"
        text = text.replace(old, new)
    return text


class Proxy:
    """A proxy at https://localhost:`port` before services on other ports of this machine."""

    command: Sequence[str]

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        self.authority = folder / "authority.pem"
        self.certificate, self.key = folder / "certificate.pem", folder / "certificate.key"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.authority))
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(str(self.key))
        self.certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
        self._write([f"127.0.0.1:{port}" for port in ports])
        self._log = folder / "log"

    def _write(self, services: Sequence[str]) -> None:
        """Write the configuration."""
        raise NotImplementedError

    def reload(self) -> None:
        """Let it read its configuration anew, as after a change or a new certificate."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        homes = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), str(self.folder))
        environ = {**os.environ, **homes}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(self.command, env=environ, stderr=log, stdout=log)
        try:
            until(self._listens, 10, f"{self.command[0]} listens")
        except BaseException:
            self.stop()
            raise
        return self

    def _listens(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End it and what it has started."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if error is not None:
            print(f"--- log of {self.command[0]}\n{self._log.read_text()[-5000:]}")


class Nginx(Proxy):
    """nginx with deploy/nginx.conf."""

    listen = "ssl http2"

    def _write(self, services: Sequence[str]) -> None:
        site = (DEPLOY / "nginx.conf").read_text()
        options = " max_fails=1 fail_timeout=1s;"
        changes = {
            f"server 127.0.0.1:8000{options}": "".join(
                f"server {one}{options}" for one in services
            ),
            "listen 443 ssl http2": f"listen 127.0.0.1:{self.port} {self.listen}",
            "push.example.com;": "localhost;",
            "/etc/ssl/push.example.com.pem": str(self.certificate),
            "/etc/ssl/push.example.com.key": str(self.key),
        }
        (self.folder / "site.conf").write_text(replaced(site, changes))
        self.command = nginx_command(self.folder, f"include {self.folder}/site.conf;")

    def reload(self) -> None:
        """As `nginx -s reload` does it."""
        self.process.send_signal(signal.SIGHUP)
        pid = self.process.pid
        until(lambda: len(children(pid)) > 1 or self._reloaded(), 5, "nginx has new workers")

    def _reloaded(self) -> bool:
        return "gracefully shutting down" in (self.folder / "error.log").read_text()


class PlainNginx(Nginx):
    """The same without TLS, for clients that have none."""

    listen = ""


class Caddy(Proxy):
    """Caddy with deploy/Caddyfile."""

    patience = "5s"

    def _write(self, services: Sequence[str]) -> None:
        site = (DEPLOY / "Caddyfile").read_text()
        secured = f"{self.url} {{\n\tbind 127.0.0.1\n\ttls {self.certificate} {self.key}"
        changes = {
            "push.example.com {": secured,
            "reverse_proxy 127.0.0.1:8000 {": f"reverse_proxy {' '.join(services)} {{",
            "lb_try_duration 5s": f"lb_try_duration {self.patience}",
        }
        self._file = self.folder / "Caddyfile"
        self._file.write_text(CADDY.format(folder=self.folder) + replaced(site, changes))
        self.command = [need("caddy"), "run", "--config", str(self._file)]

    def reload(self) -> None:
        """As `systemctl reload caddy` does it."""
        address = f"unix/{self.folder}/admin.sock"
        command = [self.command[0], "reload", "--config", str(self._file), "--address", address]
        done = subprocess.run([*command, "--force"], capture_output=True, check=False, timeout=20)
        assert done.returncode == 0, done.stderr


class HastyCaddy(Caddy):
    """The same that hardly waits for a node to come back."""

    patience = "0.2s"
