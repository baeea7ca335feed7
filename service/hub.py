"""channel -> views -> subscribers of this worker: attach, deliver, heartbeat, drain."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, repeat

import gevent
from gevent.lock import Semaphore

from service.channel_end import last_frame
from service.control import CONTROL
from service.counts import Counts
from service.event import FIRST_ID, EventId
from service.frame import Frame
from service.heartbeat import Heartbeat
from service.recent import RecentEvents
from service.reset import Loss, reset_frame
from service.sse import encode_retry
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

TICK_SECONDS = 0.25
"""How often heartbeats, stalled streams and a drain are looked at."""

FLUSH_SECONDS = 1.0
"""How long a drained stream may take for the rest of its outbox."""


class Hub:
    """All streams of this worker. Changes to its registry never yield to another greenlet.

    `hold` keeps descriptors from being reused while a batch is written (see sockets.py). `obey`
    gets what comes on the control channel; it must not yield.
    """

    def __init__(
        self,
        *,
        heartbeat_seconds: float,
        send_timeout_seconds: float,
        retry_milliseconds: int,
        recent: RecentEvents | None = None,
        obey: Callable[[Frame], None] = lambda _: None,
        hold: Callable[[], AbstractContextManager[None]] = nullcontext,
        counts: Counts | None = None,
    ) -> None:
        self.slow: set[Subscriber] = set()
        self.position: EventId = FIRST_ID
        self._newest: EventId = FIRST_ID
        self._have_newest: set[str] = set()
        self.draining = False
        self.hold = hold
        self.streams = 0
        self._recent = recent or RecentEvents()
        self._obey = obey
        self._counts = counts or Counts()
        # A tick earlier, as heartbeats are looked at no more often.
        self._heartbeat = Heartbeat(heartbeat_seconds - TICK_SECONDS)
        self._send_timeout_seconds = send_timeout_seconds
        self._retry_milliseconds = retry_milliseconds
        self.views: dict[Selection, View] = {}
        self._views_of: dict[str, set[View]] = {}
        self._fan_out_turn = Semaphore(1)
        self._since_rest = 0.0

    # -- registry ------------------------------------------------------------------------------

    def attach(self, subscriber: Subscriber, position: EventId) -> None:
        """Let `subscriber` get what is delivered to its selection from now on, above `position`."""
        selection = subscriber.selection
        view = self.views.get(selection)
        if view is None:
            view = self.views[selection] = View(selection, time.monotonic())
            view.last_id = self.position_of(selection.channels)
            self._heartbeat.plan(view)
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
        if view.subscribers or self.views.get(view.selection) is not view:
            return
        del self.views[view.selection]
        for channel in view.selection.channels:
            views = self._views_of[channel]
            views.discard(view)
            if not views:
                del self._views_of[channel]

    def jittered_retry(self) -> int:
        """A reconnection time in ms, 50 to 150 % of the setting, so that no herd forms."""
        return round(self._retry_milliseconds * random.uniform(0.5, 1.5))

    # -- delivery ------------------------------------------------------------------------------

    def deliver(self, frames: Sequence[tuple[str, Frame]]) -> None:
        """Send each (channel, frame), in order, to the subscribers of its channel.

        Returns when all of it is written or in outboxes, and the worker has had as long for its
        other work as this took: what arrives meanwhile joins the next batch (DESIGN section 4).
        """
        with self._fan_out_turn:
            # Collected inside the turn: no heartbeat may tell a position whose events still wait.
            touched = self._collect(frames)
            own_seconds = self._fan_out(chain.from_iterable(view.take() for view in touched))
        self._counts.received += len(frames)
        if touched:
            self._counts.note_pass(frames[0][1].id, own_seconds)
        for view in touched:
            self._heartbeat.plan(view)
            if self._recent.all_ended(view.selection.channels):
                self._end_all(view)
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
            self._note_position(channel, frame)
            if frame.prev is not None:
                self._recent.add(channel, frame)
            if channel == CONTROL:
                self._obey(frame)
            for view in self._views_of.get(channel, ()):
                if view.collect(frame):
                    touched[view] = None
                elif view.is_late(frame):
                    # As good as lost: say so.
                    view.push(self._reset_frame(view, [channel], Loss.LOST))
                    touched[view] = None
        return touched

    def _note_position(self, channel: str, frame: Frame) -> None:
        if frame.id is None or frame.id < self._newest:
            return
        if frame.id > self._newest:
            self.position, self._newest = self._newest, frame.id
            self._have_newest.clear()
        self._have_newest.add(channel)
        if not frame.more:
            self.position = frame.id

    def position_of(self, channels: Iterable[str]) -> EventId:
        """The id up to which every event of `channels` has been collected.

        `position` is that of all channels: it lags while copies of an event are on their way.
        """
        return self.position if self._have_newest.isdisjoint(channels) else self._newest

    def _end_all(self, view: View, farewell: bytes = b"") -> None:
        for subscriber in tuple(view.subscribers):
            subscriber.finish(Ending.CHANNEL_ENDED, farewell)

    def advance(self, position: EventId) -> None:
        """Note that everything up to `position` has been delivered."""
        self.position = max(self.position, position)
        self._newest = max(self._newest, position)

    def reset(
        self, channels: Sequence[str], loss: Loss, oldest: EventId | None, until: EventId
    ) -> None:
        """Tell the streams of `channels` that events may be missing, and why.

        None of theirs up to `until` will come, so who follows nothing else goes on from there.
        """
        lost = set(channels)
        with self._fan_out_turn:
            touched = []
            for view in self.views.values():
                concerned = [one for one in view.selection.channels if one in lost]
                if concerned:
                    least = until if len(concerned) == len(view.selection.channels) else FIRST_ID
                    view.push(self._reset_frame(view, concerned, loss, oldest, least))
                    touched.append(view)
            self._fan_out(chain.from_iterable(view.take() for view in touched))

    def _reset_frame(
        self,
        view: View,
        channels: Sequence[str],
        loss: Loss,
        oldest: EventId | None = None,
        least: EventId = FIRST_ID,
    ) -> Frame:
        self._counts.resets[loss.value] += len(view.subscribers)
        position = max(self.position_of(view.selection.channels), least)
        return reset_frame(position, channels, loss, oldest)

    def _fan_out(self, work: Iterable[Share]) -> float:
        """Write batches to their receivers; returns the seconds spent here alone."""
        clock, counts = time.perf_counter, self._counts
        spent = 0.0
        started = clock()
        countdown = SLICE_WRITES
        with self.hold():
            for batch, receivers, more in work:
                counts.events += len(batch.frames) * len(receivers)
                counts.sent_bytes += len(batch.plain) * len(receivers)
                countdown -= len(batch.plain) >> 10  # compressing 1 KiB takes as long as a write
                for subscriber in receivers:
                    subscriber.offer(batch, more)
                    countdown -= 1
                    if countdown <= 0:
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
        due = [view for view in self.views.values() if view.heartbeat_at <= now]
        for view in due:
            self._end_if_over(view)
        for start in range(0, len(due), SLICE_WRITES):
            views = due[start : start + SLICE_WRITES]
            with self._fan_out_turn:
                positions = [self.position_of(view.selection.channels) for view in views]
                batches = map(self._heartbeat.batch, views, positions, repeat(now))
                self._fan_out(map(Share, batches, [tuple(view.subscribers) for view in views]))
            for view in views:
                self._heartbeat.plan(view)
            gevent.sleep(0)

    def _end_if_over(self, view: View) -> None:
        """End the streams of channels whose `$end` was lost with all that came before it."""
        channels = view.selection.channels
        if self._recent.all_ended(channels):
            ends = [last_frame(channel, end) for end, channel in self._recent.ends(channels)]
            self._end_all(view, b"".join(frame.data for frame in ends))

    # -- drain ---------------------------------------------------------------------------------

    def drain(self, window_seconds: float) -> None:
        """End every stream cleanly, spread evenly over the window, each with its own `retry:`.

        Returns when none is left, at most FLUSH_SECONDS after the window.
        """
        self.draining = True
        subscribers = [one for view in self.views.values() for one in view.subscribers]
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
