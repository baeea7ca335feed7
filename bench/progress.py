"""A progress bar on a terminal, a line per step elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

WIDTH = 30


class Progress:
    """Tells how far a run of `steps` steps is."""

    def __init__(self, steps: int, out: TextIO = sys.stderr) -> None:
        self._steps = steps
        self._done = 0
        self._out = out
        self._started = time.monotonic()

    def begin(self, what: str) -> None:
        """The next step begins."""
        if self._out.isatty():
            self._out.write("\r\x1b[K" + self._bar(what))
        else:
            self._out.write(f"[{self._done + 1}/{self._steps}] {what}\n")
        self._out.flush()

    def done(self) -> None:
        """The step is over."""
        self._done += 1

    def close(self) -> None:
        """Remove the bar."""
        if self._out.isatty():
            self._out.write("\r\x1b[K")
            self._out.flush()

    def _bar(self, what: str) -> str:
        full = WIDTH * self._done // max(1, self._steps)
        elapsed = time.monotonic() - self._started
        left = elapsed / self._done * (self._steps - self._done) if self._done else 0
        bar = "█" * full + "░" * (WIDTH - full)
        rest = f", about {clock(left)} left" if self._done else ""
        return f"{bar} {self._done}/{self._steps} {clock(elapsed)}{rest}  {what}"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
