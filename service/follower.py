"""Keeps the delivery of followed channels complete over one link to Redis after another.

Marks are the means: sync.lua sends one through pub/sub, and who receives it has received all events
up to the id that it names. A new link reads what is stored up to its first mark, and goes on with
what comes after it. Later marks prove that everything arrives.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from service.counts import Counts
from service.event import FIRST_ID, EventId
from service.following import Following
from service.frame import FORGET, Frame
from service.marks import Mark
from service.missed import Missed
from service.receiver import Receiver
from service.recent import RecentEvents
from service.redis_address import LinkLost
from service.redis_link import MARKS_PREFIX, RedisLink
from service.redis_replies import Tail
from service.redis_store import RedisStore

log = logging.getLogger("pushline.redis")

CHECK_SECONDS = 30.0
"""How often it is proved that everything arrives: a lost last event is revealed by no later one."""

MARK_SECONDS = 8.0
"""A mark that takes longer means that the link delivers nothing, however it answers PING."""

Frames = list[tuple[str, Frame]]


class Follower:
    """Delivers every stored event of the followed channels once, in order, or says what is lost.

    One greenlet or thread calls `start` and `step`; `position` is the id up to which all has been
    delivered, `born` the one from which Redis vouches for completeness.
    """

    def __init__(
        self,
        store: RedisStore,
        following: Following,
        recent: RecentEvents,
        tail_seconds: Callable[[str], int],
        receiver: Receiver,
        counts: Counts | None = None,
    ) -> None:
        self.position = FIRST_ID
        self.born = FIRST_ID
        self.marks_channel = MARKS_PREFIX + secrets.token_hex(8)
        self.awaited: dict[str, threading.Event] = {}
        self._store = store
        self._following = following
        self._recent = recent
        self._missed = Missed(store, following, recent, tail_seconds, receiver, counts)
        self._receiver = receiver
        self._mark_due: tuple[str, float] | None = None
        self._check_token = ""  # nosec B105 # a mark, no secret
        self._sweep_at = self._check_at = 0.0

    def start(self, link: RedisLink) -> None:
        """Follow all channels on a new link and deliver what was missed.

        Raises OSError and RedisError.
        """
        self._mark_due = None
        self._store.renew()
        self._check_at = time.monotonic() + CHECK_SECONDS
        later, confirmed = self._catch_up(link)
        self._take(later)
        self._confirm_late(confirmed)

    def step(self, link: RedisLink) -> None:
        """Deliver what comes within a tick; raises LinkLost when a new link is called for."""
        frames, confirmed = link.read()
        self._take(frames)
        self._confirm_late(confirmed)
        self._look_after(link)

    def check_soon(self) -> None:
        """Have it proved with the next step that the link still leads to the Redis that counts."""
        self._check_at = 0.0

    def stop(self) -> None:
        """The link is lost: no channel is ready any more, and unused ones are forgotten."""
        for _, followed in self._following.items():
            followed.confirmed = False
            followed.ready.clear()
        self.forget_idle()

    def forget_idle(self) -> None:
        """Forget the channels that no stream follows; only without a link."""
        self._forget(self._following.drop_idle())

    def _forget(self, channels: Iterable[str]) -> None:
        for channel in channels:
            self._recent.forget(channel)

    def _confirm(self, channels: Iterable[str]) -> bool:
        known = [one for channel in channels if (one := self._following.get(channel)) is not None]
        for followed in known:
            followed.confirmed = True
        return bool(known)

    def _confirm_late(self, channels: Iterable[str]) -> None:
        """A new mark lets these channels begin: one that was read with them may be older."""
        if self._confirm(channels):
            self._send_mark()

    def _send_mark(self) -> str:
        token = secrets.token_hex(8)
        self._store.send_mark(self.marks_channel, token)
        self._mark_due = self._mark_due or (token, time.monotonic() + MARK_SECONDS)
        return token

    # -- delivery ------------------------------------------------------------------------------

    def _take(self, frames: Iterable[tuple[str, Frame]]) -> None:
        """Deliver what is new of `frames`; raises LinkLost when one before them is missing."""
        new: Frames = []
        try:
            for channel, frame in frames:
                notice = channel == self.marks_channel or frame.name == FORGET
                if notice:
                    before, new = new, []
                    self._receiver.deliver(before)
                    self._obey(channel, frame)
                elif self._is_new(channel, frame):
                    new.append((channel, frame))
        finally:
            self._receiver.deliver(new)

    def _obey(self, channel: str, notice: Frame) -> None:
        if notice.name == FORGET:
            self._recent.drop(channel, notice.id or FIRST_ID)
        else:
            self._pass_mark(Mark.parse(notice.data))

    def _is_new(self, channel: str, frame: Frame) -> bool:
        followed = self._following.get(channel)
        if followed is None:
            return False
        if frame.prev is None or frame.id is None:
            return True
        if followed.last is None or frame.id <= followed.last:
            return False  # past when the channel began to be followed, or delivered by a replay
        if frame.prev > followed.last:
            before = f"an event of {channel} before {frame.id} did not come"
            raise LinkLost(before, reason="probe")
        followed.last = frame.id
        self.position = max(self.position, frame.id)
        return True

    def _pass_mark(self, mark: Mark) -> None:
        """All up to the mark has been delivered: tell who waits, and let new channels begin."""
        if mark.born != self.born:
            raise LinkLost("Redis has lost its data", reason="probe")
        if mark.token == self._check_token:
            self._check_tails(mark.id)  # before anybody is told that all has come
        self._move_to(mark.id)
        self._begin_new(mark.id)
        if self._mark_due is not None and self._mark_due[0] == mark.token:
            self._mark_due = None
        if mark.token in self.awaited:
            self.awaited[mark.token].set()

    def _move_to(self, position: EventId) -> None:
        self.position = max(self.position, position)
        self._receiver.advance(self.position)

    def _begin_new(self, position: EventId) -> None:
        new = [
            (channel, followed)
            for channel, followed in self._following.items()
            if followed.confirmed and not followed.ready.is_set()
        ]
        for channel, followed in new:
            if followed.last is None:
                followed.last = position
                self._recent.begin(channel, position)
        tails = self._read_tails([channel for channel, _ in new])
        for channel, followed in new:
            _, ended, forgotten = tails[channel]
            self._recent.drop(channel, forgotten or FIRST_ID)
            # One above the position is still to come.
            self._recent.set_ended(channel, ended if ended and ended <= position else None)
            followed.ready.set()

    def _read_tails(self, channels: Sequence[str]) -> dict[str, Tail]:
        return dict(zip(channels, self._store.tails(channels), strict=True))

    # -- catching up ---------------------------------------------------------------------------

    def _catch_up(self, link: RedisLink) -> tuple[Frames, list[str]]:
        """Deliver what was missed up to a mark; returns what came after it, and late channels."""
        link.subscribe([self.marks_channel, *self._following])
        self._store.open(self.position)
        held = self._await_confirmations(link)
        mark, later, confirmed_late = self._await_mark(link, held)
        self.born = mark.born
        self._missed.deliver(mark, self._move_to)
        self._begin_new(mark.id)
        return later, confirmed_late

    def _await_confirmations(self, link: RedisLink) -> Frames:
        held: Frames = []
        deadline = time.monotonic() + MARK_SECONDS
        waiting = {self.marks_channel, *self._following}
        while waiting:
            frames, confirmed = link.read()
            held += frames
            self._confirm(confirmed)
            waiting.difference_update(confirmed)
            _check_deadline(deadline)
        return held

    def _await_mark(self, link: RedisLink, held: Frames) -> tuple[Mark, Frames, list[str]]:
        """Read on to a mark; returns it, what came after it, and channels confirmed meanwhile.

        Stored events before the mark are dropped, as a replay has them; live-only ones are kept.
        """
        token = secrets.token_hex(8)
        confirmed_late: list[str] = []
        self._store.send_mark(self.marks_channel, token)
        deadline = time.monotonic() + MARK_SECONDS
        while True:
            frames, confirmed = link.read()
            confirmed_late += confirmed
            for place, (channel, frame) in enumerate(frames):
                if channel == self.marks_channel and frame.data.startswith(token.encode()):
                    live_only = [one for one in held + frames[:place] if one[1].prev is None]
                    return Mark.parse(frame.data), live_only + frames[place + 1 :], confirmed_late
            held += frames
            _check_deadline(deadline)

    # -- looking after the link ----------------------------------------------------------------

    def _look_after(self, link: RedisLink) -> None:
        now = time.monotonic()
        if self._mark_due is not None and now > self._mark_due[1]:
            raise LinkLost("Redis answers, but delivers nothing", reason="probe")
        if now >= self._sweep_at:
            self._sweep_at = now + 1.0
            done = self._following.drop_done()
            link.unsubscribe(done)
            self._forget(done)
        if now >= self._check_at:
            self._check_at = now + CHECK_SECONDS
            self._check_token = self._send_mark()

    def _check_tails(self, position: EventId) -> None:
        """Compare what was delivered with what is stored: a lost last event shows only here."""
        known = {name: one.last for name, one in self._following.items() if one.last is not None}
        for channel, tail in self._read_tails(list(known)).items():
            if tail.id is not None and known[channel] < tail.id <= position:
                raise LinkLost(f"the last event of {channel} did not come", reason="probe")
            followed = self._following.get(channel)
            # So that a tail that expires in a long silence is no loss. One above the mark is of an
            # event still to come, which tells by its `prev` whether any before it is missing.
            if followed is not None and (tail.id is None or tail.id <= position):
                followed.last = max(known[channel], position)


def _check_deadline(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise LinkLost("Redis answers, but delivers nothing", reason="probe")
