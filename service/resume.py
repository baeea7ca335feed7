"""Bring a stream from its client's cursor to the present, and let it join the hub without a gap.

The hub has collected everything up to its position. So what is read from Redis is bounded by that
position; the rest, which the hub has collected since, is taken from memory in one step with
joining, and nothing can come in between.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import gevent

from service.batch import Batch, joined
from service.broker import Broker
from service.channel_end import last_frame
from service.counts import Counts
from service.errors import NotFollowing, RedisError
from service.event import FIRST_ID, EventId
from service.history import read_last
from service.hub import Hub
from service.recent import RecentEvents
from service.redis_store import RedisStore
from service.replay import Replay
from service.reset import Loss
from service.resumption import Resumption, Start, Step
from service.sse import encode_position, encode_retry
from service.subscriber import GONE, Ending, Subscriber

STEP_EVENTS = 1000
STEP_BYTES = 1_048_576
"""A step of a replay ends beyond this many events or bytes: what one stream holds in memory."""

LAST_STEP_BYTES = 131_072
"""The last step is sent without waiting for the client, so it must fit into its outbox."""

SHARED_RESTS = 64
"""Replays from memory that are kept for the next client with the same cursor."""

SHARED_SECONDS = 1.0
"""How long a step is kept for the next client with the same cursor, as in a storm of reconnects."""

FLUSH_SECONDS = 0.005
"""How often a replay looks whether its client has taken the last step."""


class Resumer:
    """Replays what streams have missed, within limits for each of them."""

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        store: RedisStore,
        recent: RecentEvents,
        tail_seconds: Callable[[str], int],
        *,
        replay_events: int,
        replay_bytes: int,
        counts: Counts | None = None,
    ) -> None:
        self._hub = hub
        self._broker = broker
        self._store = store
        self._recent = recent
        self._tail_seconds = tail_seconds
        self._replay_events = replay_events
        self._replay_bytes = replay_bytes
        self._counts = counts or Counts()
        self._steps: dict[object, _Shared] = {}
        self._rests: dict[object, Step] = {}

    def prepare(self, channels: tuple[str, ...], start: Start) -> Resumption:
        """Find out where to go on from, and read the first step unless memory has it all.

        Raises NotFollowing when Redis can't tell.
        """
        try:
            cursor, lost = self._locate(channels, start)
            born = self._broker.born
            resumption = Resumption(channels, cursor, lost, start.last, start.proving, born)
            resumption.moves = not start.proving  # it has no cursor of its own to go on from
            if not start.proving or self._rest(channels, cursor) is None:
                resumption.advance(self._step(resumption))
        except RedisError as error:
            raise NotFollowing(error.detail) from error
        if start.proving and not start.unknown and not lost:
            resumption.begun = start.cursor
            if not resumption.lost:
                resumption.answer = str(start.cursor)
        return resumption

    def resume(self, subscriber: Subscriber, resumption: Resumption) -> None:
        """Replay to `subscriber` and attach it; blocks while the client is slow.

        When Redis fails the stream ends cleanly, and its client comes back with its cursor.
        """
        try:
            self._resume(subscriber, resumption)
        except (RedisError, NotFollowing):
            subscriber.finish(Ending.NOT_RESUMED, encode_retry(self._hub.jittered_retry()))
        except BaseException:
            subscriber.end(Ending.NOT_RESUMED)
            raise
        finally:
            self._note_end(subscriber, resumption)

    def _note_end(self, subscriber: Subscriber, resumption: Resumption) -> None:
        result = "reset" if resumption.told else "complete"
        if subscriber.ending not in (None, Ending.CHANNEL_ENDED):
            result = "failed" if subscriber.ending is Ending.NOT_RESUMED else "cut"
        self._counts.replays[result] += 1
        for loss in resumption.told:
            self._counts.resets[loss.value] += 1

    def _resume(self, subscriber: Subscriber, resumption: Resumption) -> None:
        channels = resumption.channels
        while subscriber.fd != GONE:
            self._write(subscriber, resumption.take(subscriber.selection))
            if self._hub.draining:
                subscriber.finish(Ending.DRAINED, encode_retry(self._hub.jittered_retry()))
                return
            if self._broker.born > resumption.born:
                resumption.give_up(self._hub.position_of(channels), Loss.LOST)
                resumption.born = self._broker.born
            rest = self._rest(channels, resumption.cursor) if resumption.proving else None
            if rest is not None and rest.size <= LAST_STEP_BYTES:
                self._finish(subscriber, rest, resumption)
                return
            if resumption.events > self._replay_events or resumption.size > self._replay_bytes:
                resumption.give_up(self._hub.position_of(channels), Loss.LIMIT)
            else:
                resumption.advance(rest or self._step(resumption))

    def check_ended(
        self, channels: tuple[str, ...], start: Start | None
    ) -> tuple[Start | None, bool]:
        """Where a stream of `channels` begins if they are all finished, and whether it has it all.

        A fresh client then gets what is kept. Raises NotFollowing when Redis can't tell.
        """
        if not self._recent.all_ended(channels):
            return start, False
        try:
            tails = self._store.tails(channels)
        except RedisError as error:
            raise NotFollowing(error.detail) from error
        position = self._hub.position_of(channels)
        for channel, tail in zip(channels, tails, strict=True):
            coming = tail.ended is not None and tail.ended > position
            self._recent.set_ended(channel, None if coming else tail.ended)
        last = max(tail.ended or FIRST_ID for tail in tails)
        if not self._recent.all_ended(channels):
            return start, False
        if start is None:
            return Start(proving=False), False
        return start, start.proving and not start.unknown and start.cursor >= last

    def _locate(self, channels: Sequence[str], start: Start) -> tuple[EventId, dict[str, Loss]]:
        """The cursor to go on from, and what is lost whatever is read."""
        if not start.unknown and start.cursor > self._hub.position_of(channels):
            self._broker.sync()  # it may come from a worker that is ahead of this one
        position = self._hub.position_of(channels)
        if start.cursor > position and not start.proving:
            return position, {}  # a time at which nothing had happened yet
        if start.unknown or start.cursor > position:
            return position, dict.fromkeys(channels, Loss.UNKNOWN)
        if start.proving and start.cursor < self._broker.born:
            return position, dict.fromkeys(channels, Loss.LOST)
        return start.cursor, {}

    def _finish(self, subscriber: Subscriber, rest: Step, resumption: Resumption) -> None:
        """Send the rest and attach, without yielding in between."""
        selection = subscriber.selection
        position = self._hub.position_of(selection.channels)
        batches = [*joined(resumption.resets(resumption.cursor)), *rest.batches(selection)]
        if resumption.moves:
            batches.append(Batch(encode_position(position)))
        for batch in batches:
            self._offer(subscriber, batch)
        if subscriber.fd == GONE:
            return
        if self._hub.draining:
            subscriber.finish(Ending.DRAINED, encode_retry(self._hub.jittered_retry()))
        elif self._recent.all_ended(selection.channels):
            subscriber.finish(Ending.CHANNEL_ENDED, self._untold_ends(resumption, rest))
        else:
            self._hub.attach(subscriber, position)

    def _untold_ends(self, resumption: Resumption, rest: Step) -> bytes:
        """The ends that the replay didn't have, as the history has expired or wasn't asked for."""
        told = resumption.ends | rest.ends
        ends = self._recent.ends(resumption.channels)
        frames = [
            last_frame(channel, end)
            for end, channel in ends
            if end > resumption.begun and end not in told
        ]
        return b"".join(frame.data for frame in frames)

    def _write(self, subscriber: Subscriber, batches: list[Batch]) -> None:
        for batch in batches:
            self._offer(subscriber, batch)
            gevent.sleep(0)  # compressing a batch takes a while
            while subscriber.unsent and subscriber.fd != GONE:
                gevent.sleep(FLUSH_SECONDS)

    def _offer(self, subscriber: Subscriber, batch: Batch) -> None:
        self._counts.replayed += len(batch.frames)
        self._counts.sent_bytes += len(batch.plain)
        subscriber.offer(batch)

    # -- steps -----------------------------------------------------------------------------------

    def _rest(self, channels: tuple[str, ...], cursor: EventId) -> Step | None:
        """All events above `cursor`, from memory; None when they aren't all there."""
        position = self._hub.position_of(channels)
        key = (channels, cursor, position, self._recent.version)
        if key not in self._rests:
            frames = self._recent.after(channels, cursor)
            if frames is None:
                return None
            rest = Step.unexpired(frames, position)
            if rest.size > STEP_BYTES:
                return None  # too much at once: in steps from Redis
            if rest.size > LAST_STEP_BYTES or any(frame.deadline for frame in frames):
                return rest
            if len(self._rests) >= SHARED_RESTS:
                self._rests.clear()
            self._rests[key] = rest
        return self._rests[key]

    def _step(self, resumption: Resumption) -> Step:
        """The next step from Redis; streams that ask for the same at the same time share it."""
        until = self._hub.position_of(resumption.channels) if resumption.last else None
        key = resumption.key(), until  # the last events are those of now
        shared = self._steps.get(key)
        if shared is None:
            shared = self._steps[key] = _Shared()
            gevent.spawn_later(SHARED_SECONDS, self._steps.pop, key, None)
            try:
                shared.step = self._read_step(resumption)
            finally:
                shared.done.set()
        shared.done.wait()
        if shared.step is None:
            raise NotFollowing
        return shared.step

    def _read_step(self, resumption: Resumption) -> Step:
        # That of all channels: of those that aren't lost it could be below the cursor.
        until = self._hub.position_of(resumption.channels)
        wanted = [one for one in resumption.channels if one not in resumption.lost]
        if resumption.last:
            return self._read_last(wanted, resumption.last, until)
        cursors = dict.fromkeys(wanted, resumption.cursor)
        replay = Replay(
            self._store,
            cursors,
            self._broker.born,
            self._tail_seconds,
            until=until,
            proving=resumption.proving,
            started=resumption.started,
        )
        step = Step([], until)
        for page in replay.pages():
            step.extend(frame for _, frame in page)
            step.started |= {channel for channel, _ in page}
            if len(step.frames) > STEP_EVENTS or step.size > STEP_BYTES:
                step.until, step.partial = step.frames[-1].id or until, True
                break
        step.lost, step.oldest = replay.lost, replay.oldest
        return step

    def _read_last(self, channels: list[str], last: int, until: EventId) -> Step:
        frames, fitted = read_last(self._store, channels, last, until, self._replay_bytes)
        step = Step.unexpired(frames, until)
        if not fitted:
            step.lost = dict.fromkeys(channels, Loss.LIMIT)
        return step


class _Shared:
    """A step that is being read, or was lately; `step` stays None if that failed."""

    __slots__ = ("done", "step")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.step: Step | None = None
