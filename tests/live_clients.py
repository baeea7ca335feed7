"""Real clients as processes of their own: the programs in live/clients, which print events."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.live_server import LiveService, until
from tests.untested import untested

CLIENTS = Path(__file__).with_name("live") / "clients"


def reload(service: LiveService) -> None:
    """Replace the workers: the old ones end their streams, the new ones take what comes."""
    before = service.worker_pids()
    service.signal(signal.SIGHUP)
    until(lambda: not set(before) & set(service.worker_pids()), 15, "the workers are new")


class Client:
    """A client's process, which prints events as JSON lines."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)

    def event(self) -> dict[str, Any]:
        """The next event."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the client ended with {self.process.wait(5)}"
        event: dict[str, Any] = json.loads(line)
        return event

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def node() -> str:
    """The path of Node.js, with its packages installed; skips the test where there is none."""
    program = shutil.which("node")
    if program is None or not (CLIENTS.parent / "node_modules" / "eventsource").is_dir():
        untested("node is needed, and `npm ci` in tests/live (make test does it)")
    return program


def command_of(client: str, url: str) -> list[str]:
    """How to run one of the programs in clients/."""
    program = node() if client.endswith(".mjs") else sys.executable
    return [program, str(CLIENTS / client), url]
