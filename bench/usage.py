"""What a tree of processes uses: CPU time with that of children that have ended, and memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
CPU_CLOCK_OF_PROCESS = 2
"""The lowest bits of a process's CPU clock; Linux makes its id from them and the process's."""


@dataclass(frozen=True)
class Cpu:
    """CPU time in seconds."""

    total: float = 0.0
    user: float = 0.0

    def __add__(self, other: Cpu) -> Cpu:
        return Cpu(self.total + other.total, self.user + other.user)

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.total - other.total, self.user - other.user)


def tree(pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    yield pid
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from tree(int(child))


def cpu(pid: int) -> Cpu:
    """Return utime + stime of a process tree, children that ended among them."""
    total = Cpu()
    for each in tree(pid):
        with contextlib.suppress(OSError):
            total += _process_cpu(each)
    return total


def _process_cpu(pid: int) -> Cpu:
    """Of one process and its ended children; its own total is to the nanosecond, not to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, _, ended_user, ended_system = (int(field) * TICK for field in fields[11:15])
    own = time.clock_gettime(~pid << 3 | CPU_CLOCK_OF_PROCESS)
    return Cpu(own + ended_user + ended_system, user + ended_user)


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process tree."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return total
