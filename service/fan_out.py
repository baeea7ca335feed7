"""The writer of a worker: what views have collected goes to their streams, in turns and slices.

A view with work is in one of two places: among the turns, or at rest until a later one.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import count

import gevent
from gevent.event import Event as Wakeup

from service.channels import SYS
from service.counts import Counts
from service.event import EventId
from service.frame import RESET
from service.subscriber import Ending
from service.view import View

log = logging.getLogger("pushline.fan_out")

SLICE_SECONDS = 0.005
"""Other greenlets run at least this often while batches are written."""

SLICE_WRITES = 64
"""Writes between two looks at the clock: a look costs about as much as 1 % of a write."""

REST_AFTER_SECONDS = 0.001
"""A pass cheaper than this may be followed by the view's next one at once."""

LONGEST_REST_SECONDS = 0.050
"""The longest that a view waits for its next pass."""

WAITING_BYTES = 1_048_576
"""Beyond this nothing more is collected: Redis's buffer is the bound. An outbox may grow by it in
one pass, in which no stream is ended as too slow."""

GIVE_WAY_SECONDS = 1e-9
"""A timer: gevent looks at its sockets before it ends. After a sleep(0) it may run the same few
greenlets 50 times before it does."""


def give_way() -> None:
    """Let all greenlets run that can, also those whose socket is ready."""
    gevent.sleep(GIVE_WAY_SECONDS)


class Pass:
    """What a view had waiting, on its way to the streams. `steps` does it, True when it is done."""

    __slots__ = ("began", "first", "frames", "own_seconds", "steps", "view")

    def __init__(self, view: View) -> None:
        self.view = view
        self.began = 0.0
        self.own_seconds = 0.0
        self.frames = 0
        self.first: EventId | None = None
        self.steps: Iterator[bool]


class FanOut:
    """Gives each view with work a turn, one slice at a time, so that none waits for another's pass.

    `written` is told each view of which no frame waits any more. One greenlet runs `run`, or calls
    `write`; what others call here never yields, but for `await_room`.
    """

    def __init__(self, counts: Counts, written: Callable[[View], None]) -> None:
        self._counts = counts
        self._written = written
        self._turns: deque[Pass] = deque()
        self._resting: list[tuple[float, int, View]] = []
        self._tie_breaker = count()
        self._waiting_bytes = 0
        self._slice_ends = 0.0
        self._wakeup = Wakeup()
        self._room = Wakeup()

    def add(self, view: View, more_bytes: int = 0) -> None:
        """Have it written what waits in `view`, so many bytes more than before.

        Those of an event that several views have collected are to be counted once.
        """
        self._waiting_bytes += more_bytes
        view.waiting_bytes += more_bytes
        if view.has_turn:
            return
        view.has_turn = True
        if view.rests_until and view.rests_until > time.perf_counter():
            heappush(self._resting, (view.rests_until, next(self._tie_breaker), view))
        else:
            self._turns.append(self._begin(view))
        self._wakeup.set()

    def await_room(self) -> None:
        """Wait while more than WAITING_BYTES wait for their pass."""
        while self._waiting_bytes > WAITING_BYTES:
            self._room.clear()
            self._room.wait()

    def run(self) -> None:
        """Write whatever is added, for ever; the body of one greenlet."""
        while True:
            self._wakeup.wait()
            self._wakeup.clear()
            self.write()

    def write(self) -> None:
        """Write all that waits, also what is added meanwhile."""
        owed = 0.0
        while self._turns or self._resting:
            self._end_rests()
            if not self._turns:
                self._wakeup.wait(max(0.0, self._resting[0][0] - time.perf_counter()))
                self._wakeup.clear()
                continue
            started = time.perf_counter()
            paused = self._use_slice()
            if paused or self._turns:
                owed = self._let_others_run(owed - (time.perf_counter() - started))
            if paused:
                # Last, also behind what was added meanwhile.
                self._turns.append(paused)

    def _let_others_run(self, owed: float) -> float:
        """Returns how long they have had beyond the writer's own time: on a busy worker it keeps
        half, or else what it has to write would pile up behind new requests.
        """
        if owed > 0:
            gevent.sleep(0)
            return owed
        started = time.perf_counter()
        give_way()
        return min(time.perf_counter() - started, LONGEST_REST_SECONDS)

    def _end_rests(self) -> None:
        while self._resting and self._resting[0][0] <= time.perf_counter():
            view = heappop(self._resting)[2]
            self._turns.append(self._begin(view))

    def _use_slice(self) -> Pass | None:
        """Give turns until the slice is used up; returns the pass that is not done, if any."""
        started = time.perf_counter()
        self._slice_ends = started + SLICE_SECONDS
        while self._turns:
            one = self._turns.popleft()
            done = self._go_on(one)
            now = time.perf_counter()
            one.own_seconds += now - started
            if not done:
                return one
            self._finish(one, now)
            if now > self._slice_ends:
                return None
            started = now
        return None

    def _go_on(self, one: Pass) -> bool:
        try:
            return next(one.steps)
        except Exception:
            # The others must go on. The clients of these come back with their cursors.
            log.exception("a batch could not be written: the streams of its view end")
            for subscriber in tuple(one.view.subscribers):
                subscriber.end(Ending.NOT_RESUMED)
            return True

    def _begin(self, view: View) -> Pass:
        one = Pass(view)
        one.steps = self._steps(one)
        return one

    def _steps(self, one: Pass) -> Iterator[bool]:
        """Write batches to their receivers; stops with False wherever the slice is used up."""
        clock, counts, view = time.perf_counter, self._counts, one.view
        one.began = clock()
        self._waiting_bytes -= view.waiting_bytes
        view.waiting_bytes = 0
        if self._waiting_bytes <= WAITING_BYTES:
            self._room.set()
        countdown = SLICE_WRITES
        of_sys = view.selection.channels == (SYS,)  # which stands alone
        for batch, receivers, more in view.take():
            frames = batch.frames
            if not one.frames and frames and frames[0].name != RESET:
                one.first = frames[0].id
            one.frames += len(frames)
            counts.events += len(frames) * len(receivers)
            counts.sys_events += len(frames) * len(receivers) * of_sys
            counts.sent_bytes += len(batch.plain) * len(receivers)
            countdown -= len(batch.plain) >> 10  # compressing 1 KiB takes as long as a write
            for subscriber in receivers:
                subscriber.offer(batch, more)
                countdown -= 1
                if countdown <= 0:
                    countdown = SLICE_WRITES
                    if clock() > self._slice_ends:
                        yield False
        yield True

    def _finish(self, one: Pass, now: float) -> None:
        view = one.view
        view.has_turn = False
        if one.frames:  # else it was a heartbeat
            self._counts.note_pass(one.first, one.own_seconds)
            if one.own_seconds > REST_AFTER_SECONDS:
                # What others have had between the slices is theirs already.
                half_time = one.began + 2 * one.own_seconds
                view.rests_until = min(half_time, now + LONGEST_REST_SECONDS)
        if view.has_work:
            self.add(view)
        elif one.frames:
            self._written(view)
