"""Log lines that go out together: a write of its own costs more than making the line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TextIO

HOLD_SECONDS = 0.05
"""How long a line may wait for others."""

HELD_LINES = 256
"""As many go out at once."""

Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after so many seconds."""


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each line at once, or from `hold` on those of HOLD_SECONDS together.

    A warning or worse never waits, and what came before it goes out with it.
    """

    def __init__(self) -> None:
        """Lines go to standard error."""
        super().__init__()
        self._later: Later | None = None
        self._held: list[logging.LogRecord] = []

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a record; without a lock, as nothing here lets another greenlet run."""
        passed = bool(self.filter(record))
        if passed:
            self.emit(record)
        return passed

    def hold(self, later: Later | None) -> None:
        """Let lines wait from now on, until `later` writes them; with None no more."""
        self._later = later
        self.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, now or soon."""
        self._held.append(record)
        if (
            self._later is None
            or record.levelno >= logging.WARNING
            or len(self._held) >= HELD_LINES
        ):
            self.flush()
        elif len(self._held) == 1:
            self._later(HOLD_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what waits; logging does it too, when the process ends."""
        held, self._held = self._held, []
        text = "".join(map(self._line, held))
        if text:
            try:
                self.stream.write(text)
                self.stream.flush()
            except Exception:  # as logging's own handlers do
                self.handleError(held[-1])

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record) + self.terminator
        except Exception:  # as logging's own handlers do
            self.handleError(record)
            return ""
