"""How long a greenlet holds up all others."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import gevent

from service.fan_out import give_way

TRIES = 6


class Watch:
    """A greenlet that notes how much CPU time others take without a break, in seconds.

    Of this thread alone: other processes of a busy machine don't count.
    """

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            before = time.thread_time()
            give_way()  # a timer: served together with sockets, after one look at them
            self.gaps.append(time.thread_time() - before)

    def __enter__(self) -> Watch:
        give_way()
        self.gaps.clear()
        gc.disable()  # it would look through all that the tests before have left
        return self

    def __exit__(self, *_: object) -> None:
        give_way()
        self._greenlet.kill()
        gc.enable()


def stalls(work: Callable[[], object]) -> list[float]:
    """Each CPU time in seconds for which `work` let nobody else run, at the best of some tries.

    The machine may be slow at any moment, which only ever makes the longest one longer.
    """
    found = []
    for _ in range(TRIES):
        with Watch() as watch:
            work()
        found.append(watch.gaps)
    return min(found, key=max)


def burn(seconds: float) -> None:
    """Take so much CPU time of this thread."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
