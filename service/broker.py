"""What crosses workers: publish and follow.

Promises. An event that `publish` returned an id for was accepted by Redis, and Redis has sent it
to every worker that follows one of its channels. Frames of one Redis arrive in the order of their
ids. While the link is down events are missed; the next link follows the same channels.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from service.errors import NotFollowing, RedisError
from service.event import FIRST_ID, EventId
from service.frame import Frame
from service.redis_link import Backoff, RedisLink
from service.redis_store import Publication, RedisStore

log = logging.getLogger("pushline.redis")

FOLLOW_SECONDS = 5.0
"""How long a stream waits for its channels, also while the link is down."""

CONFIRM_SECONDS = 1.0
"""How long Redis may take to confirm a new channel before the worker counts as not ready."""

LINGER_SECONDS = 5.0
"""How long a channel that nobody follows any more is kept: reconnecting clients come right back."""


class _Followed:
    """A channel that this worker follows: for how many streams, and whether Redis confirmed it."""

    __slots__ = ("confirmed", "linger_until", "position_read", "since", "streams")

    def __init__(self) -> None:
        self.streams = 0
        self.since = time.monotonic()
        self.confirmed = threading.Event()
        self.linger_until = 0.0
        self.position_read = False


class Broker:
    """Carries events between workers over one Redis. `deliver` gets what others published.

    `connect` opens a link or raises OSError; it is called again, with back-off, for ever.
    """

    def __init__(
        self,
        store: RedisStore,
        connect: Callable[[], RedisLink],
        deliver: Callable[[Iterable[tuple[str, Frame]]], None],
    ) -> None:
        self._store = store
        self._connect = connect
        self._deliver = deliver
        self._link: RedisLink | None = None
        self._followed: dict[str, _Followed] = {}
        self._idle: set[str] = set()
        self._position = FIRST_ID
        self._reading_position = threading.Lock()
        self._sweep_at = 0.0
        self._stopped = False
        self._outage_told = False

    # -- publish -------------------------------------------------------------------------------

    def publish(self, publications: Sequence[Publication], floor: EventId) -> list[EventId]:
        """Publish events in order; returns their ids, once Redis has accepted them all.

        Ids are above `floor`. Never retried here. Raises RedisDown, RedisRefused or
        OutcomeUnknown; the ids of those that went out before stand in its `published`.
        """
        return self._store.publish(publications, floor)

    # -- follow --------------------------------------------------------------------------------

    def follow(self, channels: Sequence[str]) -> EventId:
        """Deliver what is published to `channels` from now on; each call wants its `unfollow`.

        Returns when Redis has confirmed them all, with an id below which nothing of them is to
        come. Raises NotFollowing, with nothing followed, when it takes over FOLLOW_SECONDS.
        """
        fresh = [channel for channel in channels if channel not in self._followed]
        for channel in channels:
            self._followed.setdefault(channel, _Followed()).streams += 1
            self._idle.discard(channel)
        try:
            self._subscribe(fresh)
            deadline = time.monotonic() + FOLLOW_SECONDS
            for channel in channels:
                left = max(0.0, deadline - time.monotonic())
                if not self._followed[channel].confirmed.wait(left):
                    raise NotFollowing
            return self._past(channels)
        except BaseException:
            self.unfollow(channels)
            raise

    def _past(self, channels: Sequence[str]) -> EventId:
        """An id not below the last one of `channels` when they began to be followed; read once."""
        if all(self._followed[channel].position_read for channel in channels):
            return self._position
        with self._reading_position:
            fresh = [one for one in channels if not self._followed[one].position_read]
            if fresh:
                self._position = max(self._position, self._read_position())
            for channel in fresh:
                self._followed[channel].position_read = True
        return self._position

    def _read_position(self) -> EventId:
        try:
            return self._store.clock()
        except RedisError as error:
            raise NotFollowing(error.detail) from error

    def _subscribe(self, channels: list[str]) -> None:
        if self._link is None or not channels:
            return  # a new link subscribes to everything that is followed
        try:
            self._link.subscribe(channels)
        except OSError as error:
            log.debug("SUBSCRIBE failed, the link is about to be replaced: %s", error)

    def unfollow(self, channels: Iterable[str]) -> None:
        """Undo one `follow`; never blocks, as Redis hears of it only after LINGER_SECONDS."""
        for channel in channels:
            followed = self._followed[channel]
            followed.streams -= 1
            followed.linger_until = time.monotonic() + LINGER_SECONDS
            if followed.streams == 0:
                self._idle.add(channel)
        if self._link is None:
            self._forget([channel for channel in channels if channel in self._idle])

    # -- the link ------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether every followed channel is confirmed on a living link, but for brand-new ones."""
        fresh = time.monotonic() - CONFIRM_SECONDS
        return self._link is not None and all(
            one.confirmed.is_set() or one.since > fresh for one in self._followed.values()
        )

    def answers(self) -> bool:
        """Ask Redis for a sign of life on a command connection; takes up to a second."""
        return self._store.answers()

    def run(self) -> None:
        """Keep a link to Redis and deliver what it brings, until `stop`; the body of one thread."""
        backoff = Backoff()
        while not self._stopped:
            try:
                link = self._connect()
                self._serve(link, backoff)
            except OSError as error:
                self._lost(str(error))
            except Exception:
                # Whatever is wrong with one batch, the worker must go on following Redis.
                log.exception("a message from Redis could not be delivered")
                self._lost("delivery failed")
            time.sleep(backoff.next())

    def stop(self) -> None:
        """Close the link and let `run` return."""
        self._stopped = True
        if self._link is not None:
            self._link.close()

    def _serve(self, link: RedisLink, backoff: Backoff) -> None:
        try:
            self._link = link
            link.subscribe(list(self._followed))
            log.info("Redis is connected: following %d channels", len(self._followed))
            self._outage_told = False
            while not self._stopped:
                frames, confirmed = link.read()
                backoff.reset()
                for channel in confirmed:
                    if channel in self._followed:
                        self._followed[channel].confirmed.set()
                if frames:
                    self._deliver(frames)
                self._drop_lingering(link)
        finally:
            self._link = None
            for followed in self._followed.values():
                followed.confirmed.clear()
            self._forget(list(self._idle))
            link.close()

    def _lost(self, why: str) -> None:
        # One line for each outage, not for each attempt.
        if not self._outage_told and not self._stopped:
            log.warning("Redis is lost (%s); reconnecting until it is back", why)
        self._outage_told = True

    def _drop_lingering(self, link: RedisLink) -> None:
        now = time.monotonic()
        if now < self._sweep_at:
            return
        self._sweep_at = now + 1.0
        done = [channel for channel in self._idle if self._is_done(channel, now)]
        self._forget(done)
        link.unsubscribe(done)

    def _forget(self, channels: Iterable[str]) -> None:
        for channel in channels:
            self._idle.discard(channel)
            del self._followed[channel]

    def _is_done(self, channel: str, now: float) -> bool:
        # An unconfirmed SUBSCRIBE on its way could be taken for the answer to a later one.
        followed = self._followed[channel]
        unused = followed.streams == 0 and now >= followed.linger_until
        return unused and followed.confirmed.is_set()
