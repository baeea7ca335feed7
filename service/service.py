"""The parts of one worker's service, and their start and stop."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import gevent

from service import sockets
from service.access import Access
from service.addresses import StreamLimits
from service.attendance import AttendanceReader
from service.audience import Audience
from service.authorizer import Authorizer
from service.broker import FOLLOW_SECONDS, Broker
from service.channels import RedisNames
from service.control import CONTROL, Close
from service.encoding import Encodings
from service.errors import ConfigError, RedisError
from service.frame import Frame
from service.grants import Grant
from service.hub import Hub
from service.iterator import IteratorOutlet
from service.keys import PublishKeys
from service.logs import log_request
from service.observation import gauges, new_counts, observed
from service.open_streams import OpenStreams
from service.presence import Presence
from service.presence_store import PresenceStore
from service.publishing import Publishing
from service.rates import RateLimit
from service.receiver import Receiver
from service.recent import RecentEvents
from service.redis_address import RedisAddress
from service.redis_link import RedisLink
from service.redis_store import RedisStore
from service.resume import Resumer
from service.retention import RetentionRules
from service.revocations import Revocations
from service.routes.uploads import Uploads
from service.settings import Settings
from service.snapshot import Snapshots
from service.sse import encode_end, encode_retry
from service.stream_reports import StreamReports
from service.subscriber import Ending, Subscriber
from service.system import SystemChannel
from service.tickets import Tickets
from service.tokens import TokenVerifier

STOP_SECONDS = 0.5
"""How long what calls Redis may take to end by itself."""


class Service:
    """The parts of one worker's service, and their start and stop."""

    def __init__(self, settings: Settings) -> None:
        if settings.redis_url is None:
            raise ConfigError("REDIS_URL is not set: set it to a Redis or Valkey URL")
        names = RedisNames(settings.channel_prefix)
        self.drain_seconds = settings.drain_seconds
        rules = RetentionRules.of_settings(settings)
        recent = RecentEvents()
        self.counts = counts = new_counts()
        self.hub = Hub(
            heartbeat_seconds=settings.heartbeat_seconds,
            send_timeout_seconds=settings.send_timeout_seconds,
            retry_milliseconds=settings.retry_milliseconds,
            recent=recent,
            obey=self._obey,
            counts=counts,
        )
        make_store = functools.partial(
            RedisStore,
            settings.redis_url,
            names,
            rules,
            idempotency_seconds=settings.idempotency_seconds,
            tls_verify=settings.redis_tls_verify,
        )
        self.store = make_store(connections=settings.redis_pool)
        self.follower_store = make_store(connections=1)
        self.broker = Broker(
            self.store,
            functools.partial(
                RedisLink,
                RedisAddress.parse(settings.redis_url),
                names,
                tls_verify=settings.redis_tls_verify,
            ),
            recent,
            rules.tail_seconds,
            Receiver(self.hub.deliver, self.hub.advance, self.hub.reset),
            self.follower_store,
            always=[CONTROL],
            counts=counts,
        )
        self.resumer = Resumer(
            self.hub,
            self.broker,
            self.store,
            recent,
            rules.tail_seconds,
            replay_events=settings.replay_events,
            replay_bytes=settings.replay_bytes,
            counts=counts,
        )
        self.access = _access(settings, self.store)
        self.publishing = Publishing(
            self.broker.publish, RateLimit(settings.max_publishes_per_second), counts
        )
        self.uploads = Uploads(
            self.publishing, settings.max_event_bytes, at_once=max(1, settings.redis_pool - 1)
        )
        # In local mode all streams come from one address: this machine's.
        per_address = 0 if settings.local else settings.max_connections_per_ip
        self.limits = StreamLimits(
            settings.max_connections, per_address, settings.max_connections_per_user
        )
        self.connects = RateLimit(0 if settings.local else settings.max_connects_per_second_per_ip)
        self._make_audience(settings, names)
        self.streams = OpenStreams(
            self._expire,
            self.follower_store.seconds_at,
            counts,
            opened=self._opened,
            closed=self._closed,
        )
        self.metrics = observed(settings, counts, self.hub, self.broker, self.streams)
        self.snapshots = Snapshots(self.streams.worker, counts, settings.max_connections)
        self.system = SystemChannel(self.store, self.broker, self.hub, self._snapshot)
        self._callers = (self.broker, self.audience, self.presence, self.system)
        """What calls Redis by itself; its greenlets are the first ones."""
        self.encodings = Encodings(settings.compress_min_bytes, counts)
        self.sockets = self._make_sockets(settings) if sockets.SUPPORTED else None
        self.iterator = functools.partial(
            IteratorOutlet, self.ended, self.hub.slow, outbox_bytes=settings.outbox_bytes
        )
        self._greenlets: list[gevent.Greenlet[[], None]] = []

    def _make_audience(self, settings: Settings, names: RedisNames) -> None:
        reports = StreamReports(self.store.pool, names)
        self.audience = Audience(reports, lambda: self.broker.born)
        users = PresenceStore(self.store.pool, names, settings.presence_grace_seconds)
        self.attendance = AttendanceReader(users, self.audience, self.store.clock)
        self.presence = Presence(
            users,
            reports,
            self.audience,
            self.broker.publish,
            settings.presence_channels,
        )

    def _make_sockets(self, settings: Settings) -> sockets.Sockets:
        return sockets.Sockets(
            self.ended,
            self.hub.slow,
            outbox_bytes=settings.outbox_bytes,
            send_timeout_seconds=settings.send_timeout_seconds,
        )

    def _snapshot(self) -> dict[str, Any]:
        return self.snapshots.take(
            gauges(self.hub, self.broker, self.streams),
            self.broker.followed(),
            draining=self.hub.draining,
        )

    def _opened(self, subscriber: Subscriber, info: str) -> None:
        channels = subscriber.selection.channels
        self.audience.opened(channels)
        self.presence.opened(channels, subscriber.user, info)

    def _closed(self, subscriber: Subscriber) -> None:
        channels = subscriber.selection.channels
        self.audience.closed(channels)
        self.presence.closed(channels, subscriber.user)

    def ended(self, subscriber: Subscriber) -> None:
        """Give back what an ended stream took, and log it."""
        self.streams.remove(subscriber)
        self.hub.detach(subscriber)
        self.broker.unfollow(subscriber.selection.channels)
        self.limits.release(subscriber.address, subscriber.user)
        log_request(
            address=subscriber.address,
            method="GET",
            path="/stream",
            status=200,
            sent_bytes=subscriber.sent_bytes,
            seconds=time.monotonic() - subscriber.opened_at,
            events=subscriber.events,
            reason=subscriber.ending.value if subscriber.ending else "",
            stream=self.streams.name_of(subscriber.number),
            request_id=subscriber.request_id,
        )

    def close_streams(self, command: Close) -> None:
        """Close streams on all workers; raises RedisError."""
        (receipt,) = self.broker.publish([command.publication()])
        if command.user:
            self.access.tickets.take_back(command.user, receipt.id)

    def _obey(self, frame: Frame) -> None:
        command = Close.read(frame)
        if command is None or frame.id is None:
            return
        if command.user:
            self.access.revoke(command.user, frame.id)
        for subscriber in self.streams.meant_by(command, frame.id):
            self._end(subscriber, Ending.REVOKED)

    def _expire(self, subscriber: Subscriber) -> None:
        self._end(subscriber, Ending.EXPIRED)

    def _end(self, subscriber: Subscriber, ending: Ending) -> None:
        farewell = encode_end(ending.value) + encode_retry(self.hub.jittered_retry())
        subscriber.finish(ending, farewell)

    def start(self, failed: Callable[[], None] = lambda: None) -> None:
        """Start what runs for the worker's life, in the process that serves; once.

        `failed` is called if any of it ends by an error, as the worker is no use then.
        """
        if self._greenlets:
            return
        bodies = [part.run for part in self._callers]
        bodies += [self.hub.run, self.hub.fan_out.run, self.streams.run, self.metrics.run]
        if self.sockets is not None:
            bodies.append(self.sockets.run)
        self._greenlets = [gevent.spawn(body) for body in bodies]
        for greenlet in self._greenlets:
            greenlet.link_exception(lambda _: failed())

    def drain(self, window_seconds: float | None = None) -> None:
        """End all uploads, and all streams over the window (by default DRAIN_SECONDS).

        Returns when there are no streams.
        """
        self.uploads.drain()
        self.hub.drain(self.drain_seconds if window_seconds is None else window_seconds)

    def stop(self) -> None:
        """Stop what `start` has started, and close Redis."""
        # One that is killed while it connects would leave its socket to the garbage collector.
        for part in self._callers:
            part.stop()
        gevent.joinall(self._greenlets[: len(self._callers)], timeout=STOP_SECONDS)
        gevent.killall(self._greenlets)
        self._greenlets = []
        self.metrics.flush()
        for withdraw in (self.presence.withdraw, self.audience.withdraw):
            with contextlib.suppress(RedisError):
                withdraw()
        self.store.close()
        self.follower_store.close()


def _access(settings: Settings, store: RedisStore) -> Access:
    authorizer = None
    if settings.authorize_url is not None:
        authorizer = Authorizer(
            settings.authorize_url,
            clock=store.clock,
            timeout_seconds=settings.authorize_timeout_seconds,
            cache_seconds=settings.authorize_cache_seconds,
        )
    anybody = None
    if settings.local or settings.publish_open:
        anybody = Grant(publish=("*",), admin=settings.local)
    return Access(
        keys=PublishKeys(settings.publish_keys),
        verifier=TokenVerifier.of_settings(settings),
        tickets=Tickets(store, settings.ticket_seconds),
        authorizer=authorizer,
        public=settings.public_patterns,
        anybody=anybody,
        # Longer than the oldest ticket or answer that may still count.
        revocations=Revocations(
            settings.ticket_seconds
            + settings.authorize_cache_seconds
            + settings.authorize_timeout_seconds
            + FOLLOW_SECONDS
        ),
    )
