"""What crosses workers: publish and follow.

Promises. An event that `publish` returned a receipt for was accepted by Redis. Every stored event
of a followed channel is delivered once, in the order of ids, also when it was published while the
link was lost; where that can't be proved, the receiver's `reset` is called instead. Live-only
events come at most once.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from service.counts import Counts
from service.errors import NotFollowing, RedisChanged, RedisError
from service.event import EventId
from service.follower import Follower
from service.following import Followed, Following
from service.group_commit import GroupCommit
from service.publication import Publication, Receipt
from service.publish_script import Outcome, receipts
from service.receiver import Receiver
from service.recent import RecentEvents
from service.redis_address import LinkLost
from service.redis_link import Backoff, RedisLink
from service.redis_store import RedisStore
from service.reset import Loss

log = logging.getLogger("pushline.redis")

FOLLOW_SECONDS = 5.0
"""How long a stream waits for its channels, also while the link is down."""


class Broker:
    """Carries events between workers over one Redis.

    `connect` opens a link or raises OSError; it is called again, with back-off, for ever.
    """

    def __init__(
        self,
        store: RedisStore,
        connect: Callable[[], RedisLink],
        recent: RecentEvents,
        tail_seconds: Callable[[str], int],
        receiver: Receiver,
        follower_store: RedisStore | None = None,
        always: Sequence[str] = (),
        counts: Counts | None = None,
    ) -> None:
        """With a `follower_store` of its own the follower never waits for publishers.

        The channels `always` are followed as long as there is a link.
        """
        self._store = store
        self._receiver = receiver
        self._connect = connect
        self._counts = counts or Counts()
        self._always = len(always)
        self._following = Following()
        self._following.add(always)
        self._follower = Follower(
            follower_store or store, self._following, recent, tail_seconds, receiver, counts
        )
        self._group = GroupCommit(self._publish_each)
        self._link: RedisLink | None = None
        self._sync_turn = threading.Lock()
        self._syncs_begun = self._syncs_done = 0
        self._caught_up = False
        self._stopped = False
        self._lost_at: float | None = None

    @property
    def born(self) -> EventId:
        """The id from which Redis vouches for completeness."""
        return self._follower.born

    # -- publish -------------------------------------------------------------------------------

    def publish(self, publications: Sequence[Publication]) -> list[Receipt]:
        """Publish events in order; returns once Redis has accepted them all.

        Never repeated, but where Redis says that it took none. Raises as RedisStore.publish does.
        """
        if len(publications) == 1:
            return receipts([self._group.publish(publications[0])])
        return receipts(self._publish_each(publications))

    def _publish_each(self, publications: Sequence[Publication]) -> list[Outcome]:
        follower = self._follower
        outcomes = self._store.publish_each(publications, follower.position, follower.born)
        if _all_changed(outcomes):
            self._store.renew()  # these connections lead to an old master, or else the link does
            outcomes = self._store.publish_each(publications, follower.position, follower.born)
            if _all_changed(outcomes):
                follower.check_soon()
        return outcomes

    # -- follow --------------------------------------------------------------------------------

    def follow(self, channels: Sequence[str]) -> None:
        """Deliver what is published to `channels` from now on; each call wants its `unfollow`.

        Returns when everything above the receiver's position is sure to come. Raises NotFollowing,
        with nothing followed, when that takes over FOLLOW_SECONDS.
        """
        new = self._following.add(channels)
        try:
            self._subscribe(new)
            deadline = time.monotonic() + FOLLOW_SECONDS
            for channel in channels:
                followed = self._following.get(channel)
                left = max(0.0, deadline - time.monotonic())
                if followed is None or not followed.ready.wait(left):
                    raise NotFollowing
        except BaseException:
            self.unfollow(channels)
            raise

    def _subscribe(self, channels: Sequence[str]) -> None:
        try:
            if self._link is not None and channels:
                self._link.subscribe(channels)
        except OSError as error:
            log.debug("SUBSCRIBE failed, the link is about to be replaced: %s", error)

    def unfollow(self, channels: Iterable[str]) -> None:
        """Undo one `follow`; never blocks, as Redis hears of it only after a while."""
        self._following.remove(channels)
        if self._link is None:
            self._follower.forget_idle()

    def sync(self) -> None:
        """Wait until everything that was published before this call is delivered.

        Calls at the same time share the work, and its failure. Raises NotFollowing when it takes
        too long.
        """
        wanted = self._syncs_begun + 1
        if not self._sync_turn.acquire(timeout=FOLLOW_SECONDS):
            raise NotFollowing
        try:
            if self._syncs_done < wanted:
                if self._syncs_begun >= wanted:
                    raise NotFollowing  # the attempt that was begun for this call has failed
                self._syncs_begun += 1
                self._await_mark()
                self._syncs_done = self._syncs_begun
        finally:
            self._sync_turn.release()

    def _await_mark(self) -> None:
        token = secrets.token_hex(8)
        arrived = self._follower.awaited[token] = threading.Event()
        try:
            self._store.send_mark(self._follower.marks_channel, token)
            if not arrived.wait(FOLLOW_SECONDS):
                raise NotFollowing
        except RedisError as error:
            raise NotFollowing(error.detail) from error
        finally:
            del self._follower.awaited[token]

    # -- the link ------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a living link has caught up and follows everything that it should."""
        return self._caught_up and self._following.all_ready()

    @property
    def connected(self) -> bool:
        """Whether there is a link that has caught up; some new channels may not be ready yet."""
        return self._caught_up

    @property
    def channels(self) -> int:
        """How many channels are followed for streams, or were a moment ago."""
        return len(self._following) - self._always

    @property
    def subscriptions(self) -> int:
        """The streams of each of them, added up."""
        return self._following.streams - self._always

    def followed(self) -> list[tuple[str, Followed]]:
        """All channels that are followed, the service's own among them."""
        return self._following.items()

    def answers(self) -> bool:
        """Ask Redis for a sign of life on a command connection; takes up to a second."""
        return self._store.answers()

    def run(self) -> None:
        """Keep a link to Redis and deliver what it brings, until `stop`; the body of one thread."""
        backoff = Backoff()
        while not self._stopped:
            try:
                self._serve(self._connect(), backoff)
            except (OSError, RedisError) as error:
                self._lost(str(error), _reason(error))
            except Exception:
                # Whatever is wrong with one batch, the worker must go on following Redis.
                log.exception("a message from Redis could not be delivered")
                with contextlib.suppress(Exception):  # what has failed may fail again
                    position = self._follower.position
                    self._receiver.reset(sorted(self._following), Loss.LOST, None, position)
                self._lost("delivery failed", "error")
            if not self._stopped:
                time.sleep(backoff.next())

    def stop(self) -> None:
        """Close the link and let `run` return."""
        self._stopped = True
        if self._link is not None:
            self._link.close()

    def _serve(self, link: RedisLink, backoff: Backoff) -> None:
        try:
            self._link = link
            self._store.renew()
            self._follower.start(link)
            self._caught_up = True
            backoff.reset()
            fields = {"channels": self.channels, "outage_seconds": self._outage_seconds()}
            message = "Redis is connected: following %d channels"
            log.info(message, len(self._following), extra={"fields": fields})
            self._lost_at = None
            while not self._stopped:
                self._follower.step(link)
        finally:
            self._link = None
            self._caught_up = False
            self._follower.stop()
            link.close()

    def _lost(self, why: str, reason: str) -> None:
        # One line for each outage, not for each attempt.
        if self._lost_at is None and not self._stopped:
            self._counts.redis_losses[reason] += 1
            fields = {"reason": reason}
            message = "Redis is lost (%s); reconnecting until it is back"
            log.warning(message, why, extra={"fields": fields})
        self._lost_at = self._lost_at or time.monotonic()

    def _outage_seconds(self) -> float:
        """How long there has been no link; 0.0 for the first one."""
        return 0.0 if self._lost_at is None else round(time.monotonic() - self._lost_at, 3)


def _all_changed(outcomes: Sequence[Outcome]) -> bool:
    return all(isinstance(one, RedisChanged) for one in outcomes)


def _reason(error: Exception) -> str:
    """Which of LOST_REASONS (counts.py) an error of the link is."""
    if isinstance(error, LinkLost):
        return error.reason
    if isinstance(error, TimeoutError):
        return "timeout"
    return "eof" if isinstance(error, ConnectionError) else "error"
