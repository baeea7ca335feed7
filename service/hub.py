"""channel -> views -> subscribers of this worker: attach, deliver, heartbeat, drain."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import gevent
from gevent.lock import Semaphore

from service.batch import Batch
from service.event import FIRST_ID, EventId
from service.frame import Frame
from service.sse import HEARTBEAT, encode_ping, encode_position, encode_retry
from service.subscriber import Ending, Subscriber
from service.view import Selection, Share, View

SLICE_SECONDS = 0.005
"""Other greenlets run at least this often while a batch is written."""

SLICE_WRITES = 64
"""Writes between two looks at the clock: a look costs about as much as 1 % of a write."""

REST_AFTER_SECONDS = 0.001
"""A fan-out pass cheaper than this is followed by the next one at once."""

LONGEST_REST_SECONDS = 0.050
"""The longest that a fan-out waits for the rest of the worker's work."""

POSITION_SECONDS = 60
"""How often a view's cursor is refreshed by an `id:` block."""

HEARTBEAT_JITTER = 0.2
"""A view's heartbeat comes up to this share earlier than it must."""

TICK_SECONDS = 0.25
"""How often heartbeats, stalled streams and a drain are looked at."""

FLUSH_SECONDS = 1.0
"""How long a drained stream may take for the rest of its outbox."""


class Hub:
    """All streams of this worker. Changes to its registry never yield to another greenlet.

    `hold` keeps descriptors from being reused while a batch is written (see sockets.py).
    """

    def __init__(
        self,
        *,
        heartbeat_seconds: float,
        send_timeout_seconds: float,
        retry_milliseconds: int,
        hold: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.slow: set[Subscriber] = set()
        self.position: EventId = FIRST_ID
        self.draining = False
        self.hold = hold
        self.streams = 0
        self._heartbeat_seconds = heartbeat_seconds
        self._send_timeout_seconds = send_timeout_seconds
        self._retry_milliseconds = retry_milliseconds
        self._views: dict[Selection, View] = {}
        self._views_of: dict[str, set[View]] = {}
        self._fan_out_turn = Semaphore(1)
        self._since_rest = 0.0

    # -- registry ------------------------------------------------------------------------------

    def attach(self, subscriber: Subscriber, position: EventId) -> None:
        """Let `subscriber` get what is delivered to its selection from now on, above `position`."""
        selection = subscriber.selection
        view = self._views.get(selection)
        if view is None:
            view = self._views[selection] = View(selection, time.monotonic())
            view.last_id = self.position  # half of an event of two channels may be still to come
            self._plan_heartbeat(view)
            for channel in selection.channels:
                self._views_of.setdefault(channel, set()).add(view)
        self.streams += 1
        view.join(subscriber, position)

    def detach(self, subscriber: Subscriber) -> None:
        """Forget `subscriber`; a view without subscribers goes too."""
        view = subscriber.view
        if view is None:
            return
        self.streams -= 1
        if view.subscribers or self._views.get(view.selection) is not view:
            return
        del self._views[view.selection]
        for channel in view.selection.channels:
            views = self._views_of[channel]
            views.discard(view)
            if not views:
                del self._views_of[channel]

    def jittered_retry(self) -> int:
        """A reconnection time in ms, 50 to 150 % of the setting, so that no herd forms."""
        return round(self._retry_milliseconds * random.uniform(0.5, 1.5))

    # -- delivery ------------------------------------------------------------------------------

    def deliver(self, frames: Iterable[tuple[str, Frame]]) -> None:
        """Send each (channel, frame), in order, to the subscribers of its channel.

        Returns when all of it is written or in outboxes, and the worker has had as long for its
        other work as this took: what arrives meanwhile joins the next batch (DESIGN section 4).
        """
        with self._fan_out_turn:
            # Collected inside the turn: no heartbeat may tell a position whose events still wait.
            touched = self._collect(frames)
            own_seconds = self._fan_out(chain.from_iterable(view.take() for view in touched))
        for view in touched:
            self._plan_heartbeat(view)
        self._rest(own_seconds)

    def _rest(self, own_seconds: float) -> None:
        """Leave the worker to others for as long; cheap passes let them run every few."""
        self._since_rest += own_seconds
        if own_seconds > REST_AFTER_SECONDS:
            self._since_rest = 0.0
            gevent.sleep(min(own_seconds, LONGEST_REST_SECONDS))
        elif self._since_rest > SLICE_SECONDS:
            self._since_rest = 0.0
            gevent.sleep(0)

    def _collect(self, frames: Iterable[tuple[str, Frame]]) -> dict[View, None]:
        touched: dict[View, None] = {}
        for channel, frame in frames:
            if frame.id is not None and frame.id > self.position:
                self.position = frame.id
            for view in self._views_of.get(channel, ()):
                if view.collect(frame):
                    touched[view] = None
        return touched

    def _fan_out(self, work: Iterable[Share]) -> float:
        """Write batches to their receivers; returns the seconds spent here alone."""
        clock = time.perf_counter
        spent = 0.0
        started = clock()
        countdown = SLICE_WRITES
        with self.hold():
            for batch, receivers, more in work:
                for subscriber in receivers:
                    subscriber.offer(batch, more)
                    countdown -= 1
                    if countdown == 0:
                        countdown = SLICE_WRITES
                        used = clock() - started
                        if used > SLICE_SECONDS:
                            spent += used
                            gevent.sleep(0)
                            started = clock()
        return spent + clock() - started

    # -- heartbeats and slow streams -----------------------------------------------------------

    def run(self) -> None:
        """Send heartbeats and end stalled streams, for ever; the body of one greenlet."""
        while True:
            gevent.sleep(TICK_SECONDS)
            self.end_stalled(time.monotonic())
            self.beat(time.monotonic())

    def end_stalled(self, now: float) -> None:
        """End the streams that have a backlog and took nothing for the send timeout."""
        deadline = now - self._send_timeout_seconds
        for subscriber in [slow for slow in self.slow if slow.moved_at < deadline]:
            subscriber.end(Ending.STALLED)

    def beat(self, now: float) -> None:
        """Send a heartbeat to each view that was quiet for long enough."""
        due = [view for view in self._views.values() if view.heartbeat_at <= now]
        for start in range(0, len(due), SLICE_WRITES):
            views = due[start : start + SLICE_WRITES]
            with self._fan_out_turn:
                self._fan_out(
                    Share(self._heartbeat(view, now), tuple(view.subscribers)) for view in views
                )
            for view in views:
                self._plan_heartbeat(view)
            gevent.sleep(0)

    def _heartbeat(self, view: View, now: float) -> Batch:
        visible = view.selection.visible_pings
        data = encode_ping(time.time_ns() // 1_000_000) if visible else HEARTBEAT
        if now >= view.position_at and self.position > FIRST_ID:
            view.position_at = now + POSITION_SECONDS
            data += encode_position(self.position)
        return Batch(data)

    def _plan_heartbeat(self, view: View) -> None:
        silence = self._heartbeat_seconds * random.uniform(1 - HEARTBEAT_JITTER, 1)
        view.heartbeat_at = time.monotonic() + silence - TICK_SECONDS

    # -- drain ---------------------------------------------------------------------------------

    def drain(self, window_seconds: float) -> None:
        """End every stream cleanly, spread evenly over the window, each with its own `retry:`.

        Returns when none is left, at most FLUSH_SECONDS after the window.
        """
        self.draining = True
        subscribers = [one for view in self._views.values() for one in view.subscribers]
        random.shuffle(subscribers)
        started = time.monotonic()
        for number, subscriber in enumerate(subscribers):
            due = started + window_seconds * number / len(subscribers)
            if due > time.monotonic() or number % SLICE_WRITES == 0:
                gevent.sleep(max(0.0, due - time.monotonic()))
            subscriber.finish(Ending.DRAINED, encode_retry(self.jittered_retry()))
        deadline = time.monotonic() + FLUSH_SECONDS
        while self.streams and time.monotonic() < deadline:
            gevent.sleep(0.02)
        for subscriber in subscribers:
            subscriber.end(Ending.DRAINED)
