"""What /proc tells about a process (Linux)."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path


def rss_kib(pid: int) -> int:
    """Resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise LookupError(f"process {pid} has no VmRSS")


def cpu_seconds(pid: int) -> float:
    """User and system time spent so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> int:
    """How many file descriptors are open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


GONE = (FileNotFoundError, ProcessLookupError)
"""How a read in /proc fails once the process has ended: it isn't found, or was when it opened."""


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except GONE:
        return False
    return state != "Z"


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are still there; none once it has ended."""
    try:
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except GONE:
        return []
    return [int(child) for child in pids.split()]


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def descriptors(pid: int) -> list[Path]:
    """The links to what a process has open; none once it has ended."""
    try:
        return list(Path(f"/proc/{pid}/fd").iterdir())
    except GONE:
        return []


LISTENING = "0A"
"""TCP_LISTEN, as /proc/net/tcp has it."""


def listening(pids: Iterable[int]) -> set[tuple[str, int]]:
    """The TCP addresses and ports on which these processes listen."""
    inodes = set()
    for pid in pids:
        for descriptor in descriptors(pid):
            with contextlib.suppress(*GONE):  # it was closed meanwhile
                inodes.add(os.readlink(descriptor).removeprefix("socket:[").rstrip("]"))
    found = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *more = line.split()
            if state == LISTENING and more[5] in inodes:
                address, port = local.split(":")
                words = [int(address[n : n + 8], 16) for n in range(0, len(address), 8)]
                packed = struct.pack(f"={len(words)}I", *words)
                found.add((socket.inet_ntop(family, packed), int(port, 16)))
    return found
