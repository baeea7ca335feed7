"""What systemd and container engines do with the service, done to it by the files of deploy/."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import gevent
import pytest

from tests.live_server import ROOT, LiveService, until
from tests.sse_client import SseClient
from tests.valkey import Valkey

pytestmark = pytest.mark.live

FIRST_FD = 3
"""Where a service finds the first socket that systemd hands to it."""

SEVERE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 38, 65
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
libc.prctl(PR_SET_MDWE, 1, 0, 0, 0)  # kernels before 6.3 don't have it
os.umask(0o077)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Starts a program as the unit does, as far as that goes without systemd."""


def start_command() -> list[str]:
    """The unit's, with the Python of these tests."""
    unit = configparser.RawConfigParser(strict=False, delimiters=["="])
    unit.read(ROOT / "deploy" / "pushline.service")
    program, *rest = shlex.split(unit["Service"]["ExecStart"])
    assert program == "/opt/pushline/.venv/bin/python"
    return [sys.executable, *rest]


class Supervised(LiveService):
    """The service as systemd runs it: with a socket that systemd holds, and a place to tell."""

    def __init__(self, redis_url: str, held: socket.socket, told: Path, **settings: object) -> None:
        super().__init__(redis_url, **settings)
        self.port = held.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._held = held
        self.settings |= {"LISTEN_FDS": 1, "NOTIFY_SOCKET": told}

    def start(self, *, ready: bool = True) -> Supervised:
        """Start the unit's command."""

        def inherit() -> None:
            os.dup2(self._held.fileno(), FIRST_FD)

        environ = {**os.environ, **{name: str(value) for name, value in self.settings.items()}}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SEVERE, *start_command()],
                cwd=ROOT,
                env=environ,
                stdout=log,
                stderr=log,
                close_fds=False,
                preexec_fn=inherit,
            )
        if ready:
            until(lambda: self._answers("/readyz"), 20, f"it is ready\n{self.log()}")
        return self


def test_systemd_restarts_refuse_nobody(shared_valkey: Valkey, tmp_path: Path) -> None:
    """The service tells systemd that it is ready, serves the port that systemd holds, and while it
    is stopped and started again a client waits, and is answered.
    """
    told = tmp_path / "notify"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
        socket.create_server(("127.0.0.1", 0), backlog=128) as held,
    ):
        notified.bind(str(told))
        service = Supervised(shared_valkey.url, held, told, PORT=1, DRAIN_SECONDS=0.3)
        statuses: list[int] = []
        with service:
            _wait_told(notified)
            with SseClient.connect(f"{service.url}/stream?channel=held") as client:
                service.publish("held", "before")
                assert client.next_event(5).data == "before"
                publishing = gevent.spawn(_publish_on, service, statuses)
                until(lambda: len(statuses) > 5, 5, "it publishes")
                service.signal(signal.SIGTERM)
                assert service.wait() == 0
                service.start(ready=False)
                _wait_told(notified)
                until(lambda: service.get("/readyz")[0] == 200, 10, "it is ready again")
                assert client.read_until_end(5) == []
            before = len(statuses)
            until(lambda: len(statuses) > before + 5, 5, "it publishes again")
            publishing.kill()
        assert set(statuses) <= {200, 503}, "503: Redis is not followed yet, or a worker drains"


def _wait_told(notified: socket.socket) -> None:
    with gevent.Timeout(10):
        assert notified.recv(100).startswith(b"READY=1")


def _publish_on(service: LiveService, statuses: list[int]) -> None:
    while True:
        statuses.append(service.post("/channels/other", b"x")[0])
        gevent.sleep(0.01)


def healthcheck(port: int) -> subprocess.CompletedProcess[str]:
    """What the image's health check says."""
    return subprocess.run(
        [sys.executable, ROOT / "deploy" / "healthcheck.py"],
        env={"PORT": str(port), "HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "elsewhere"},
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )


def test_the_health_check_of_the_image() -> None:
    """It passes while the service turns, also without a Redis: engines end what is unhealthy, and
    that would not mend a Redis. It fails where there is no service. No proxy is asked.
    """
    service = LiveService("redis://127.0.0.1:1")
    try:
        service.start(ready=False)
        assert service.get("/readyz")[0] == 503
        healthy = healthcheck(service.port)
        assert healthy.returncode == 0, healthy.stderr
    finally:
        service.stop()
    gone = healthcheck(service.port)
    assert (gone.returncode, gone.stdout, "Traceback" in gone.stderr) == (1, "", False)


def copy(name: str, target: Path) -> None:
    """Copy a file or folder of the project."""
    if (ROOT / name).is_dir():
        shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(ROOT / name, target)


def read_only(folder: Path, mode: int = 0o555) -> None:
    """Take from all that is in a folder the right to write, or give it `mode`."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(mode)


def powerless() -> list[str]:
    """What runs a program in such a way that permissions count, also for root."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def test_the_image_starts_where_nothing_can_be_written(
    shared_valkey: Valkey, tmp_path: Path
) -> None:
    """The files that the Dockerfile copies are enough to serve, from a folder that is read-only and
    without a home; what is left to write is in /tmp and /dev/shm.
    """
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    for names in re.findall(r"^COPY (?!--|requirements)(.*) \./\S*$", dockerfile, re.MULTILINE):
        for name in names.split():
            copy(name, tmp_path / Path(name).name)
    (command,) = re.findall(r'^CMD \["gunicorn", (.*)\]$', dockerfile, re.MULTILINE)
    words = [word.strip().strip('"') for word in command.split('", "')]
    read_only(tmp_path)
    probe = [*powerless(), "touch", str(tmp_path / "service" / "written")]
    assert b"Permission denied" in subprocess.run(probe, capture_output=True, check=False).stderr
    service = LiveService(shared_valkey.url)
    environ = {name: str(value) for name, value in service.settings.items()}
    with service.log_path.open("ab") as log:
        service.process = subprocess.Popen(
            [*powerless(), sys.executable, "-m", "gunicorn", *words],
            cwd=tmp_path,
            env={**environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent"},
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: service._answers("/readyz"), 20, f"it is ready\n{service.log()}")
        for path in ("/docs", "/", "/dashboard"):
            assert service.get(path)[0] == 200
    finally:
        service.stop()
        read_only(tmp_path, 0o700)  # so that pytest can remove it
