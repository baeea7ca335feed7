"""A long reading of Redis that serves all who ask for it within a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from service.errors import RedisError, RedisPoolBusy

Value = TypeVar("Value")

KEPT_SECONDS = 1.0
"""For how long what was read is not read again."""

WAIT_SECONDS = 5.0
"""How long somebody waits while another reads."""


class SharedReading(Generic[Value]):
    """What `read` returns, at most about KEPT_SECONDS old. Whoever waits for it shares its failure.

    So it never happens that many requests try a Redis that hangs, one after the other.
    """

    def __init__(self, read: Callable[[], Value]) -> None:
        self._read = read
        self._turn = threading.Lock()
        self._value: Value
        self._error: RedisError | None = None
        self._kept_until = 0.0
        self._attempts = 0

    @property
    def is_over(self) -> bool:
        """Whether nobody reads, and what was read is too old."""
        return not self._turn.locked() and time.monotonic() >= self._kept_until

    def get(self) -> Value:
        """Read it, or what another has just read; raises RedisError."""
        attempts = self._attempts
        if not self._turn.acquire(timeout=WAIT_SECONDS):
            raise RedisPoolBusy("somebody else has been reading this for too long")
        try:
            if attempts == self._attempts and time.monotonic() >= self._kept_until:
                self._attempt()
            if self._error is not None:
                raise self._error.again()
            return self._value
        finally:
            self._turn.release()

    def _attempt(self) -> None:
        try:
            self._value, self._error = self._read(), None
            self._kept_until = time.monotonic() + KEPT_SECONDS
        except RedisError as error:
            self._error = error
        self._attempts += 1

    def forget(self) -> None:
        """Whoever asks next has it read anew."""
        self._kept_until = 0.0
