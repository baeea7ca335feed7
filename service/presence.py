"""Who is on a channel, over all workers: `$join` and `$leave`, once for each user."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from gevent.event import Event

from service.audience import Audience
from service.channels import is_channel
from service.complaint import Complaint
from service.errors import ChannelEnded, IdempotencyConflict, PushlineError, RedisError
from service.event import ServiceEvent
from service.fan_out import give_way
from service.grants import selects
from service.presence_store import USERS, Change, Place, PresenceStore
from service.publication import Publication
from service.stream_reports import StreamReports
from service.tally import Tally

log = logging.getLogger("pushline.presence")

SUFFIX = ":presence"
"""What a channel's companion has after the channel's own name."""

JOIN, LEAVE = "$join", "$leave"

TICK_SECONDS = 0.25
"""How soon a worker tells of users that have come or left."""

LOOK_SECONDS = 1.0
"""How often a worker looks for what others didn't tell."""

IDLE_LOOK_SECONDS = 10.0
"""The same where presence isn't followed: mostly the names of dead workers are to be forgotten."""

FRESH_SECONDS = 2.0
"""A change that was claimed longer ago is left to others: this worker was held up."""

CREDENTIAL = "$presence"
"""Whose Idempotency-Keys these are; no client's credential is called so."""

Publish = Callable[[Sequence[Publication]], object]


class Presence:
    """Follows the users of the channels that `patterns` select.

    Each worker tells Redis which users it has streams of; what follows from that is decided there
    (presence.lua) and told by whichever worker comes first.
    """

    def __init__(
        self,
        store: PresenceStore,
        reports: StreamReports,
        audience: Audience,
        publish: Publish,
        patterns: Sequence[str],
    ) -> None:
        self._store = store
        self._reports = reports
        self._audience = audience
        self._publish = publish
        self._patterns = patterns
        self._tally: Tally[Place] = Tally()
        self._infos: dict[Place, str] = {}
        self._told_as = ""
        self._look_at = 0.0
        self._complaint = Complaint(log, "presence can't be told")
        self._stopped = Event()

    def covers(self, channel: str) -> bool:
        """Whether it is followed who is on `channel`. Companions have no companions."""
        if not self._patterns or channel.endswith(SUFFIX):
            return False
        return is_channel(channel + SUFFIX) and selects(self._patterns, channel)

    # -- this worker ---------------------------------------------------------------------------

    def opened(self, channels: Iterable[str], user: str, info: str) -> None:
        """A stream of `channels` has opened; `info` is JSON about `user`, or empty."""
        for place in self._places(channels, user):
            self._tally.add(place)
            self._infos[place] = info

    def closed(self, channels: Iterable[str], user: str) -> None:
        """A stream of `channels` has ended."""
        for place in self._places(channels, user):
            self._tally.remove(place)
            if not self._tally[place]:
                del self._infos[place]

    def _places(self, channels: Iterable[str], user: str) -> Iterator[Place]:
        if user and self._patterns:
            for channel in channels:
                if self.covers(channel):
                    yield Place(channel, user)

    def run(self) -> None:
        """Tell of users that come and leave until `stop`; the body of one greenlet."""
        tick_seconds = TICK_SECONDS if self._patterns else IDLE_LOOK_SECONDS
        while not self._stopped.wait(tick_seconds):
            try:
                if self.tick():
                    self._complaint.over()
            except RedisError as error:
                self._complaint.failed(error)

    def stop(self) -> None:
        """End `run` when it has told what it is telling."""
        self._stopped.set()

    def tick(self) -> bool:
        """Tell Redis what has changed here, and look what else is to be told.

        Returns whether there was any need to; raises RedisError.
        """
        if not self._audience.worker:
            return False
        if not self._hold() and time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._look()
        return True

    def withdraw(self) -> None:
        """This worker stops, and its streams have ended: say so. Raises RedisError."""
        if self._told_as:
            self._hold()

    def _hold(self) -> bool:
        """Tell Redis what has changed; returns whether anything has."""
        worker = self._audience.worker or self._told_as
        if worker != self._told_as:  # what was told under another name goes with that
            self._tally.tell_anew()
            self._told_as = worker
        if not self._tally.waiting:
            return False
        while changes := self._tally.take(USERS):
            self._hold_some(worker, changes)
            give_way()
        return True

    def _hold_some(self, worker: str, changes: Mapping[Place, int]) -> None:
        held = [(place, streams, self._infos.get(place, "")) for place, streams in changes.items()]
        try:
            self._store.hold(worker, held)
        except BaseException:
            self._tally.put_back(changes)
            raise

    # -- all workers ---------------------------------------------------------------------------

    def _look(self) -> None:
        """Take the place of workers that have died, and tell all that is to be told now."""
        for worker in self._reports.dead():
            while places := self._store.held_by(worker):
                self._store.hold(worker, [(place, 0, "") for place in places])
            self._store.forget(worker)
        while self._tell():
            give_way()

    def _tell(self) -> bool:
        """Tell some changes; returns whether there may be more."""
        claimed_at = time.monotonic()
        changes = self._store.claim()
        if time.monotonic() > claimed_at + FRESH_SECONDS:
            return False
        if changes:
            self._publish_all([*map(publication_of, changes)])
            self._store.told(changes)
        return bool(changes)

    def _publish_all(self, publications: Sequence[Publication]) -> None:
        try:
            self._publish(publications)
        except PushlineError:
            for one in publications:  # some may have gone out, and do so only once
                # It is told already, with what was known then; or nobody is to hear more.
                with contextlib.suppress(IdempotencyConflict, ChannelEnded):
                    self._publish([one])


def companion(channel: str) -> str:
    """The channel of the events that tell who comes to `channel` and leaves it."""
    return channel + SUFFIX


def info_of(text: str) -> Any:
    """What a token says about its user; None for nothing."""
    return json.loads(text) if text else None


def publication_of(change: Change) -> Publication:
    """The event of a change. Whoever tells it, and however often: it is published once."""
    (channel, user), joined, generation, info = change
    name = JOIN if joined else LEAVE
    data = {"channel": channel, "user": user, "info": info_of(info)}
    whose = sha256(user.encode()).hexdigest()[:32]
    event = ServiceEvent(json.dumps(data, ensure_ascii=False, separators=(",", ":")), name)
    key = f"{name}/{generation}/{whose}"
    return Publication(event, (companion(channel),), key=key, credential=CREDENTIAL)
