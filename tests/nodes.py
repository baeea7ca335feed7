"""The parts of a worker that deal with Redis, as tests put them together."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import gevent

from service.broker import Broker
from service.channels import RedisNames
from service.counts import Counts
from service.event import FIRST_ID, Event, EventId, ServiceEvent
from service.frame import END, Frame
from service.publication import Publication
from service.receiver import Receiver
from service.recent import RecentEvents
from service.redis_address import RedisAddress
from service.redis_link import RedisLink
from service.redis_store import RedisStore
from service.reset import Loss
from service.retention import Retention, RetentionRules
from tests.live_server import until
from tests.sse_client import event_data, parse_stream
from tests.valkey import Valkey

NAMES = RedisNames("p:")


def make_rules(
    events: int = 1000, seconds: int = 3600, rules: Sequence[tuple[str, int, int]] = ()
) -> RetentionRules:
    """How much history channels keep."""
    return RetentionRules(Retention(events, seconds), rules)


def make_store(
    url: str,
    *,
    names: RedisNames = NAMES,
    connections: int = 2,
    idempotency_seconds: int = 300,
    rules: RetentionRules | None = None,
    **options: Any,
) -> RedisStore:
    """A store; the caller closes it."""
    return RedisStore(
        url,
        names,
        rules or make_rules(),
        connections=connections,
        idempotency_seconds=idempotency_seconds,
        **options,
    )


def publish(store: RedisStore, channel: str, *data: str, **options: Any) -> list[EventId]:
    """Publish events to one channel, or to several with commas between; returns their ids."""
    channels = tuple(channel.split(","))
    publications = [Publication(Event(one), channels, **options) for one in data]
    return [receipt.id for receipt in store.publish(publications, FIRST_ID)]


def end(store: RedisStore, *channels: str) -> EventId:
    """Finish channels."""
    publication = Publication(ServiceEvent("over", END), channels, ends=True)
    (receipt,) = store.publish([publication], FIRST_ID)
    return receipt.id


class Node:
    """A broker that runs, with a record of what it told its receiver."""

    def __init__(
        self,
        url: str,
        *,
        store_url: str = "",
        rules: RetentionRules | None = None,
        always: Sequence[str] = (),
    ) -> None:
        self.delivered: list[tuple[str, Frame]] = []
        self.position = FIRST_ID
        self.resets: list[tuple[list[str], Loss, EventId | None]] = []
        self.fail = 0
        self.counts = Counts()
        self.recent = RecentEvents()
        rules = rules or make_rules()
        self.store = make_store(store_url or url, rules=rules)
        connect = functools.partial(RedisLink, RedisAddress.parse(url), NAMES)
        self.receiver = Receiver(self._deliver, self._advance, self._reset)
        self.broker = Broker(
            self.store,
            connect,
            self.recent,
            rules.tail_seconds,
            self.receiver,
            always=always,
            counts=self.counts,
        )
        self.greenlet = gevent.spawn(self.broker.run)

    def _deliver(self, frames: Sequence[tuple[str, Frame]]) -> None:
        frames = list(frames)
        if self.fail and frames:
            self.fail -= 1
            raise ZeroDivisionError
        for channel, frame in frames:
            if frame.prev is not None:
                self.recent.add(channel, frame)
            self.delivered.append((channel, frame))

    def _advance(self, position: EventId) -> None:
        assert position >= self.position
        self.position = position

    def _reset(
        self, channels: Sequence[str], loss: Loss, oldest: EventId | None, until: EventId
    ) -> None:
        self.resets.append((list(channels), loss, oldest))

    def publish(self, channel: str, *data: str, **options: Any) -> list[EventId]:
        """Publish events to one channel, or to several with commas between."""
        channels = tuple(channel.split(","))
        publications = [Publication(Event(one), channels, **options) for one in data]
        return [receipt.id for receipt in self.broker.publish(publications)]

    @property
    def data(self) -> list[str]:
        """The data of all events that were delivered."""
        return event_data(parse_stream(b"".join(frame.data for _, frame in self.delivered)))

    def wait_data(self, count: int, seconds: float = 3.0) -> list[str]:
        """The data of the first events, once `count` were delivered."""
        until(lambda: len(self.delivered) >= count, seconds, f"{count} events")
        return self.data

    def wait_ready(self, seconds: float = 10.0) -> None:
        """Wait until it follows everything."""
        until(lambda: self.broker.ready, seconds, "the broker is ready")

    @property
    def link(self) -> RedisLink:
        """The link that it has now."""
        assert self.broker._link is not None
        return self.broker._link

    def counted(self) -> int:
        """How many streams it believes to follow something."""
        return sum(one.streams for _, one in self.broker._following.items())

    def close(self) -> None:
        """Stop it; its greenlet ends by itself."""
        self.broker.stop()
        self.greenlet.join(timeout=6)
        self.store.close()
        assert self.greenlet.successful()


def followers(valkey: Valkey, channel: str) -> int:
    """How many connections are subscribed to a channel."""
    reply: list[object] = valkey.cli("PUBSUB", "NUMSUB", NAMES.pubsub(channel))
    assert isinstance(reply[1], int)
    return reply[1]
