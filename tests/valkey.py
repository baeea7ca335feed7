"""A real Valkey server for tests, which can be killed, frozen and restarted under its clients."""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from service.embedded import server_binary

START_SECONDS = 60.0

PORTS = range(10_000, 32_000)
"""Below the ports that systems give to clients: a client that tries again and again to reach a dead
server on one of those sooner or later connects to itself."""

SHARE = 1000
"""How many of them one process has to itself, by holding the first."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now, nor will another test before it is used.

    Each test process draws from a share of its own, in turn.
    """
    while True:
        port = next(_share())
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@functools.cache
def _share() -> Iterator[int]:
    shares = PORTS[::SHARE]
    for first in random.sample(shares, len(shares)):
        with contextlib.suppress(OSError):
            atexit.register(socket.create_server(("127.0.0.1", first)).close)
            return itertools.cycle(range(first + 1, first + SHARE))
    raise RuntimeError("other tests hold all shares of ports")


class Valkey:
    """A context manager around one Valkey server on 127.0.0.1, which keeps its port when restarted.

    `aof` makes every write durable (`appendfsync always`); `unix_socket` adds a unix socket;
    `options` are more of the server's own, such as `{"maxmemory": "8mb"}`. It has no TLS.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        aof: bool = False,
        password: str | None = None,
        unix_socket: bool = False,
        options: dict[str, str] | None = None,
    ) -> None:
        self.port = port or free_port()
        self.password = password
        self.directory = Path(tempfile.mkdtemp(prefix="valkey-"))
        self.socket_path = str(self.directory / "valkey.sock") if unix_socket else None
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [
            server_binary(),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.directory),
        ]
        self._command += [
            "--save",
            "",
            "--logfile",
            str(self.directory / "valkey.log"),
            "--enable-debug-command",
            "yes",
        ]
        if aof:
            self._command += ["--appendonly", "yes", "--appendfsync", "always"]
        if password is not None:
            self._command += ["--requirepass", password]
        if self.socket_path is not None:
            self._command += ["--unixsocket", self.socket_path, "--unixsocketperm", "600"]
        for name, value in (options or {}).items():
            self._command += [f"--{name}", value]

    @property
    def url(self) -> str:
        """What REDIS_URL has to be to reach this server over TCP."""
        user = "" if self.password is None else f":{self.password}@"
        return f"redis://{user}127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """What REDIS_URL has to be to reach this server over its unix socket."""
        assert self.socket_path is not None, "made without unix_socket=True"
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int:
        """The server's process, which must be running."""
        assert self._process is not None, "not running"
        return self._process.pid

    def start(self) -> None:
        """Start the server; return when it takes commands."""
        assert self._process is None, "running already"
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            # While it loads its file it answers LOADING, which redis-py makes a ConnectionError.
            with contextlib.suppress(redis.ConnectionError):
                self.cli("PING")
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Valkey did not start:\n{self.log()}")
            time.sleep(0.01)

    def kill(self) -> None:
        """End it at once, as a crash does; what was not written to disk is lost."""
        self._end(signal.SIGKILL)

    def shutdown(self) -> None:
        """End it in the orderly way."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Start it again on the same port and directory, after ending it if it still runs."""
        if self._process is not None:
            self.shutdown()
        self.start()

    def stop_process(self) -> None:
        """Freeze it: the kernel still takes connections and bytes, but nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        """Let a frozen server go on."""
        os.kill(self.pid, signal.SIGCONT)

    def cli(self, *args: str | bytes | int | float) -> Any:
        """Send one command over a connection of its own; return the bare answer."""
        connection = redis.Connection(
            host="127.0.0.1", port=self.port, password=self.password, socket_timeout=10, protocol=2
        )
        try:
            connection.send_command(*args)
            return connection.read_response()
        finally:
            connection.disconnect()

    def log(self) -> str:
        """What the server has written to its log."""
        path = self.directory / "valkey.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def __enter__(self) -> Self:
        """Start it."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it and remove its directory."""
        self.close()

    def close(self) -> None:
        """End it if it runs, frozen or not, and remove its directory."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None, "not running"
        self._process.send_signal(number)
        self._process.wait(timeout=10)
        self._process = None
