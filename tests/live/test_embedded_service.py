"""`python -m service serve` without REDIS_URL: one command, and nothing is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live_server import GUNICORN, ROOT, until
from tests.processes import alive, children, listening
from tests.sse_client import End, SseClient
from tests.valkey import Valkey, free_port

pytestmark = pytest.mark.live


class Serve:
    """The command `serve` with a temporary directory of its own, started from that directory."""

    def __init__(self, *command: str, **environ: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # Not pytest's own: the address of a unix socket is short.
        self.directory = Path(tempfile.mkdtemp(prefix="pushline-"))
        self.workers: list[int] = []
        self.valkey_pid = 0
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, "serve", "--port", str(self.port), "--workers", "2"],
                cwd=self.directory,
                env={
                    "PATH": os.environ["PATH"],
                    "TMPDIR": str(self.directory),
                    "DRAIN_SECONDS": "1",
                    **environ,
                },
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Serve:
        try:
            until(self._ready, 20, "ready")
            assert self.process.stdout is not None
            self.banner = [self.process.stdout.readline().decode() for _ in range(4)]
            self.workers = children(self.process.pid)
            self.valkey_pid = self._ask_valkey_pid()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for pid in filter(None, (self.process.pid, *self.workers, self.valkey_pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _ask_valkey_pid(self) -> int:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.valkey_directory / "valkey.sock"))
            client.sendall(b"INFO server\r\n")
            found = re.search(rb"process_id:(\d+)", client.recv(65536))
        assert found is not None
        return int(found[1])

    @property
    def valkey_directory(self) -> Path:
        """Where the private Valkey has its socket."""
        return self.directory / f"pushline-{os.getuid()}-{self.port}"

    @property
    def log(self) -> str:
        """What the service has logged."""
        return (self.directory / "log").read_text()

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def publish(self, data: bytes) -> dict[str, object]:
        """Publish to the channel news, as the banner says."""
        with urllib.request.urlopen(f"{self.url}/channels/news", data, timeout=5) as answer:
            return dict(json.load(answer))


def test_started_from_anywhere() -> None:
    """Named by its path, it also runs from any directory, and says in four lines how to use it."""
    with Serve(str(ROOT / "service")) as serve:
        demo, publish, stream, reach = serve.banner
        assert f"{serve.url}/" in demo
        assert f"curl -d hello {serve.url}/channels/news" in publish
        assert f"curl -N '{serve.url}/stream?channel=news'" in stream
        assert "this machine only" in reach
        with SseClient.connect(f"{serve.url}/stream?channel=news") as client:
            answer = serve.publish(b"hello")
            event = client.next_event(5)
        assert (event.data, event.last_event_id) == ("hello", answer["id"])
        assert serve.valkey_directory.stat().st_mode & 0o777 == 0o700
        assert serve.valkey_pid not in (serve.process.pid, *serve.workers)
        assert os.getsid(serve.valkey_pid) != os.getsid(serve.process.pid)


def terminate(serve: Serve) -> None:
    """SIGTERM to the master."""
    os.kill(serve.process.pid, signal.SIGTERM)


def terminate_all(serve: Serve) -> None:
    """SIGTERM to the whole process group."""
    os.killpg(serve.process.pid, signal.SIGTERM)


def interrupt(serve: Serve) -> None:
    """Ctrl-C: SIGINT to the whole process group."""
    os.killpg(serve.process.pid, signal.SIGINT)


def kill(serve: Serve) -> None:
    """SIGKILL to the master, which can then do nothing any more."""
    os.kill(serve.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("end", [terminate, terminate_all, interrupt, kill])
def test_nothing_is_left(end: Callable[[Serve], None]) -> None:
    """However it ends, Valkey and its directory are gone within 3 s; its streams end cleanly.

    In one of three tries, as this machine may hold things up.
    """
    limit = 3 + (end is not kill)  # up to a second of it is the drain
    for _ in range(3):
        with Serve("-m", "service", PYTHONPATH=str(ROOT)) as serve:
            seconds = seconds_to_end(serve, end)
        if seconds < limit:
            break
    assert seconds < limit
    print(f"{end.__name__}: nothing left after {seconds:.2f} s")


def seconds_to_end(serve: Serve, end: Callable[[Serve], None]) -> float:
    """How long a service with an open stream takes to end and leave nothing."""
    with SseClient.connect(f"{serve.url}/stream?channel=news") as client:
        serve.publish(b"before")
        assert client.next_event(5).data == "before"
        started = time.monotonic()
        end(serve)
        processes = (serve.process.pid, serve.valkey_pid, *serve.workers)
        client.read_until_end(10)
        until(lambda: serve.process.poll() is not None, 10, "the master has ended")
        until(lambda: not any(alive(pid) for pid in processes), 10, "every process has ended")
        until(lambda: not serve.valkey_directory.exists(), 10, "the directory is gone")
        seconds = time.monotonic() - started
    if end is not kill:
        assert client.ended is End.TERMINATED
        assert client.parser.retry is not None
        assert serve.process.returncode == 0
    assert sorted(path.name for path in serve.directory.iterdir()) == ["log"]
    assert "Traceback" not in serve.log
    return seconds


# ------------------------------------------------------------------------------------------ reach

BINDS = ["0.0.0.0:{}", "[::]:{}", "127.0.0.1:{} --bind 0.0.0.0:{}", "0.0.0.0:{} --reuse-port"]
"""What GUNICORN_CMD_ARGS may say after --bind, with a free port."""


@pytest.mark.parametrize("bind", BINDS)
def test_local_mode_stays_on_this_machine(bind: str) -> None:
    """`serve` listens where it says, and nowhere else, whatever GUNICORN_CMD_ARGS has."""
    arguments = f"--bind {bind}".replace("{}", str(free_port()))
    with Serve("-m", "service", PYTHONPATH=str(ROOT), GUNICORN_CMD_ARGS=arguments) as serve:
        pids = (serve.process.pid, *serve.workers, serve.valkey_pid)
        assert listening(pids) == {("127.0.0.1", serve.port)}


def gunicorn(valkey: Valkey, arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start gunicorn as `serve` does, but for the address, which `arguments` may name."""
    return subprocess.Popen(
        [sys.executable, *GUNICORN, "service.app:create_app()"],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "REDIS_URL": valkey.url,
            "PUSHLINE_EMBEDDED": "1",
            "PORT": str(free_port()),
            "DRAIN_SECONDS": "0",
            "GUNICORN_CMD_ARGS": arguments,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def answers(port: int) -> bool:
    """Whether a worker answers there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def check_refuses(started: subprocess.Popen[str]) -> None:
    """It ends by itself before it has any worker, and says why in a line."""
    with started:
        try:
            _, told = started.communicate(timeout=20)
        finally:
            started.kill()
        assert started.returncode == 1
        (line,) = (one for one in told.splitlines() if one.startswith("pushline: "))
        assert "can't be bound in local mode" in line
        assert "Booting worker" not in told


@pytest.mark.parametrize("bind", BINDS)
def test_local_mode_refuses_other_addresses(shared_valkey: Valkey, bind: str) -> None:
    """gunicorn itself serves nobody in local mode on an address that others reach."""
    check_refuses(gunicorn(shared_valkey, f"--bind {bind}".replace("{}", str(free_port()))))


def test_local_mode_refuses_sockets_that_others_reach(shared_valkey: Valkey) -> None:
    """The same for a socket that it gets already bound."""
    with socket.create_server(("0.0.0.0", 0)) as bound:
        descriptor = bound.fileno()
        bind = f"--bind fd://{descriptor}"
        check_refuses(gunicorn(shared_valkey, bind, pass_fds=(descriptor,)))


def test_local_mode_takes_other_addresses_of_this_machine(shared_valkey: Valkey) -> None:
    """Another port and a unix socket are fine."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pl-") as directory:
        arguments = f"--bind 127.0.0.1:{port} --bind unix:{directory}/socket"
        with gunicorn(shared_valkey, arguments) as started:
            try:
                until(lambda: answers(port), 10, "it serves")
                assert Path(directory, "socket").is_socket()
                assert listening([started.pid]) == {("127.0.0.1", port)}
            finally:
                started.terminate()
                started.communicate(timeout=20)
