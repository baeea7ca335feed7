"""What an adapter is: how to start a server, stream from it, publish to it, and install it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from bench.publisher import Feed
from bench.usage import Cpu, cpu, resident_kib, tree
from tests.valkey import Valkey, free_port

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
REDIS_CLIENTS = "40000"
SURROUNDINGS = {
    name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ
}
"""The environment without what would be a setting of some server."""


class ServerError(Exception):
    """A server did not start."""


class Server:
    """One server in one configuration, as a context manager; each measurement starts a fresh one.

    Channels are numbers, since the limit knows no names: "0", or "%d" for the stream's own number.
    """

    name: ClassVar[str]
    feeds: ClassVar[tuple[str, ...]] = ("http",)
    """The ways in which it is fed when deliveries are measured: http, redis, lines."""
    answers_publishes: ClassVar[bool] = True
    """Whether it takes publishes over HTTP, for test E."""
    workers: ClassVar[int] = 1
    uses_redis: ClassVar[bool] = False
    most_streams: ClassVar[int] = 15_000
    late_ms_per_stream: ClassVar[float] = 0.0
    """How much later than its response head a stream follows its channel."""

    several_channels: ClassVar[bool] = False
    """Whether one stream may be on several channels."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path()  # of this server alone, while it runs
        self.valkey: Valkey | None = None
        self._processes: list[subprocess.Popen[bytes]] = []

    @classmethod
    def missing(cls) -> str | None:
        """Return the command that installs what is missing here, or None."""
        return None

    def launch(self) -> None:
        """Start the server with `run`."""
        raise NotImplementedError

    def stream_url(self, *channels: str) -> str:
        """Return the URL that streams these channels."""
        raise NotImplementedError

    def feed(self, name: str, channel: str = "%d") -> Feed:
        """Return how `name` (http, redis, lines) publishes to a channel."""
        raise NotImplementedError

    # -- for adapters

    def run(
        self, command: Sequence[str | Path], *, environ: Mapping[str, str] | None = None
    ) -> None:
        """Start a program of the server, with its output in the server's log."""
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                env={**SURROUNDINGS, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)

    def is_ready(self) -> bool:
        """Whether the server answers; adapters may ask more of it."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def answers(self, path: str) -> bool:
        """Whether a GET is answered with 200."""
        url = f"http://127.0.0.1:{self.port}{path}"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    @property
    def redis_url(self) -> str:
        """Where the server's Redis is."""
        assert self.valkey is not None, f"{self.name} has no Redis"
        return self.valkey.url

    @property
    def redis_port(self) -> int:
        """The port of the server's Redis."""
        assert self.valkey is not None, f"{self.name} has no Redis"
        return self.valkey.port

    @property
    def log_path(self) -> Path:
        """What the server prints."""
        return self.folder / "server.log"

    # -- for measurements

    def cpu(self) -> Cpu:
        """CPU time of all its processes so far; Redis apart."""
        return sum((cpu(process.pid) for process in self._processes), Cpu())

    def redis_cpu(self) -> Cpu:
        """CPU time of its Redis so far."""
        return cpu(self.valkey.pid) if self.valkey is not None else Cpu()

    def resident_kib(self) -> int:
        """Resident memory of all its processes; Redis apart."""
        return sum(resident_kib(process.pid) for process in self._processes)

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-"))
        try:
            if self.uses_redis:
                self.valkey = Valkey(options={"maxclients": REDIS_CLIENTS})
                self.valkey.start()
            self.launch()
            self._wait_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            over = any(process.poll() is not None for process in self._processes)
            if over or time.monotonic() > deadline:
                log = self.log_path.read_text(errors="replace")[-3000:]
                raise ServerError(f"{self.name} did not start:\n{log}")
            time.sleep(0.02)

    def _stop(self) -> None:
        for process in self._processes:
            for pid in list(tree(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        if self.valkey is not None:
            self.valkey.close()
        shutil.rmtree(self.folder, ignore_errors=True)
