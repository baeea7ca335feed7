"""channel -> views -> subscribers of this worker: attach, deliver, heartbeat, drain."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence

import gevent

from service.channel_end import last_frame
from service.channels import SYS
from service.control import CONTROL
from service.counts import Counts
from service.event import FIRST_ID, EventId
from service.fan_out import FanOut, give_way
from service.frame import Frame
from service.heartbeat import Heartbeat
from service.recent import RecentEvents
from service.reset import Loss, reset_frame
from service.sse import encode_retry
from service.subscriber import Ending, Subscriber
from service.view import Selection, View

COLLECT_SECONDS = 0.001
"""Others run after so much collecting; reading and parsing the same takes about twice as long."""

BEATS = 64
"""Heartbeats, or ends, that are made before other greenlets may run."""

TICK_SECONDS = 0.25
"""How often heartbeats, stalled streams and a drain are looked at."""

FLUSH_SECONDS = 1.0
"""How long a drained stream may take for the rest of its outbox."""


class Hub:
    """All streams of this worker. Changes to its registry never yield to another greenlet.

    `fan_out` writes what is collected here. `obey` gets what comes on the control channel; it must
    not yield.
    """

    def __init__(
        self,
        *,
        heartbeat_seconds: float,
        send_timeout_seconds: float,
        retry_milliseconds: int,
        recent: RecentEvents | None = None,
        obey: Callable[[Frame], None] = lambda _: None,
        counts: Counts | None = None,
    ) -> None:
        self.slow: set[Subscriber] = set()
        self.position: EventId = FIRST_ID
        self._newest: EventId = FIRST_ID
        self._have_newest: set[str] = set()
        self.draining = False
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
        self.fan_out = FanOut(self._counts, self._written)
        self._collecting_seconds = 0.0

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
        """Have each (channel, frame) sent, in order, to the subscribers of its channel.

        Returns when they are collected, and not too much of all that is waits to be written: what
        arrives meanwhile waits in Redis.
        """
        started = time.perf_counter()
        self.collect(frames)
        self._collecting_seconds += time.perf_counter() - started
        if self._collecting_seconds > COLLECT_SECONDS:
            self._collecting_seconds = 0.0
            give_way()
        self.fan_out.await_room()

    def collect(self, frames: Sequence[tuple[str, Frame]]) -> None:
        """Let the views of each channel have its frames, for their next pass."""
        self._counts.received += len(frames)
        for channel, frame in frames:
            self._note_position(channel, frame)
            if frame.prev is not None:
                self._recent.add(channel, frame)
            if channel == CONTROL:
                self._obey(frame)
            elif channel == SYS:
                self._counts.sys_received += 1
            more_bytes = len(frame.data)  # of the first view, as all share them
            for view in self._views_of.get(channel, ()):
                if view.collect(frame):
                    self.fan_out.add(view, more_bytes)
                    more_bytes = 0
                elif view.is_late(frame):
                    # As good as lost: say so.
                    view.push(self._reset_frame(view, [channel], Loss.LOST))
                    self.fan_out.add(view)

    def _written(self, view: View) -> None:
        self._heartbeat.plan(view)
        self._end_if_over(view)

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
        for view in self.views.values():
            concerned = [one for one in view.selection.channels if one in lost]
            if concerned:
                least = until if len(concerned) == len(view.selection.channels) else FIRST_ID
                view.push(self._reset_frame(view, concerned, loss, oldest, least))
                self.fan_out.add(view)

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
        """Have a heartbeat sent to each view that was quiet for long enough, and has no work.

        It takes its place among the view's batches, as it may tell the position: no event that is
        below comes later, and none that is above was sent before.
        """
        due = [view for view in self.views.values() if view.heartbeat_at <= now]
        for number, view in enumerate(due, 1):
            if not view.has_turn:
                self._end_if_over(view)
                position = self.position_of(view.selection.channels)
                view.append(self._heartbeat.batch(view, position, now))
                self._heartbeat.plan(view)
                self.fan_out.add(view)
            if number % BEATS == 0:
                give_way()

    def _end_if_over(self, view: View) -> None:
        """End the streams of finished channels, after an `$end` for each that was lost."""
        channels = view.selection.channels
        if not self._recent.all_ended(channels):
            return
        ends = [last_frame(channel, end) for end, channel in self._recent.lost_ends(channels)]
        farewell = b"".join(frame.data for frame in ends)
        for number, subscriber in enumerate(tuple(view.subscribers), 1):
            subscriber.finish(Ending.CHANNEL_ENDED, farewell)
            if number % BEATS == 0:
                give_way()

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
            if due > time.monotonic() or number % BEATS == 0:
                gevent.sleep(max(0.0, due - time.monotonic()))
            subscriber.finish(Ending.DRAINED, encode_retry(self.jittered_retry()))
        deadline = time.monotonic() + FLUSH_SECONDS
        while self.streams and time.monotonic() < deadline:
            gevent.sleep(0.02)
        for subscriber in subscribers:
            subscriber.end(Ending.DRAINED)
