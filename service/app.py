"""create_app: the only place that wires things together."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import gevent
from flask import Flask
from gevent import monkey

from service import sockets
from service.addresses import StreamLimits
from service.broker import Broker
from service.channels import RedisNames
from service.errors import ConfigError
from service.hub import Hub
from service.iterator import IteratorOutlet
from service.logs import log_request
from service.receiver import Receiver
from service.recent import RecentEvents
from service.redis_address import RedisAddress
from service.redis_link import RedisLink
from service.redis_store import RedisStore
from service.resume import Resumer
from service.retention import RetentionRules
from service.routes.channels import channel_routes
from service.routes.origins import Origins
from service.routes.page import page_routes
from service.routes.problems import register_error_handlers
from service.routes.publish import publish_routes
from service.routes.status import status_routes
from service.routes.stream import StreamOpener, stream_routes
from service.routes.uploads import Uploads, upload_routes
from service.settings import Settings
from service.subscriber import Subscriber

STOP_SECONDS = 0.5
"""How long the link to Redis may take to end by itself."""


class Service:
    """The parts of one worker's service, and their start and stop."""

    def __init__(self, settings: Settings) -> None:
        if settings.redis_url is None:
            raise ConfigError("REDIS_URL is not set: set it to a Redis or Valkey URL")
        names = RedisNames(settings.channel_prefix)
        self.drain_seconds = settings.drain_seconds
        rules = RetentionRules.of_settings(settings)
        recent = RecentEvents()
        self.hub = Hub(
            heartbeat_seconds=settings.heartbeat_seconds,
            send_timeout_seconds=settings.send_timeout_seconds,
            retry_milliseconds=settings.retry_milliseconds,
            recent=recent,
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
        connect = functools.partial(
            RedisLink,
            RedisAddress.parse(settings.redis_url),
            names,
            tls_verify=settings.redis_tls_verify,
        )
        self.broker = Broker(
            self.store,
            connect,
            recent,
            rules.tail_seconds,
            Receiver(self.hub.deliver, self.hub.advance, self.hub.reset),
            self.follower_store,
        )
        self.resumer = Resumer(
            self.hub,
            self.broker,
            self.store,
            recent,
            rules.tail_seconds,
            replay_events=settings.replay_events,
            replay_bytes=settings.replay_bytes,
        )
        self.uploads = Uploads(
            self.broker.publish, settings.max_event_bytes, at_once=max(1, settings.redis_pool - 1)
        )
        per_address = 0 if settings.local else settings.max_connections_per_ip
        self.limits = StreamLimits(settings.max_connections, per_address)
        self.sockets = self._make_sockets(settings) if sockets.SUPPORTED else None
        self.iterator = functools.partial(
            IteratorOutlet, self.ended, self.hub.slow, outbox_bytes=settings.outbox_bytes
        )
        self._greenlets: list[gevent.Greenlet[[], None]] = []

    def _make_sockets(self, settings: Settings) -> sockets.Sockets:
        made = sockets.Sockets(
            self.ended,
            self.hub.slow,
            outbox_bytes=settings.outbox_bytes,
            send_timeout_seconds=settings.send_timeout_seconds,
        )
        self.hub.hold = made.holding
        return made

    def ended(self, subscriber: Subscriber) -> None:
        """Give back what an ended stream took, and log it."""
        self.hub.detach(subscriber)
        self.broker.unfollow(subscriber.selection.channels)
        self.limits.release(subscriber.address)
        log_request(
            address=subscriber.address,
            method="GET",
            path="/stream",
            status=200,
            sent_bytes=subscriber.sent_bytes,
            seconds=time.monotonic() - subscriber.opened_at,
            events=subscriber.events,
            reason=subscriber.ending.value if subscriber.ending else "",
        )

    def start(self, failed: Callable[[], None] = lambda: None) -> None:
        """Start what runs for the worker's life, in the process that serves; once.

        `failed` is called if any of it ends by an error, as the worker is no use then.
        """
        if self._greenlets:
            return
        bodies = [self.broker.run, self.hub.run]
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
        self.broker.stop()
        # One that is killed while it connects would leave its socket to the garbage collector.
        gevent.joinall(self._greenlets[:1], timeout=STOP_SECONDS)
        gevent.killall(self._greenlets)
        self._greenlets = []
        self.store.close()
        self.follower_store.close()


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application. It starts with its worker, elsewhere with its first request.

    Raises ConfigError, also when gevent has not patched the process: a blocking Redis read would
    stop every stream.
    """
    if not monkey.is_module_patched("socket"):
        raise ConfigError(
            "gevent must patch first: run with gunicorn and service.gunicorn_conf,"
            " or under `python -m gevent.monkey`"
        )
    settings = settings or Settings.from_environ()
    service = Service(settings)
    origins = Origins(settings.cors_origins, local=settings.local)
    opener = StreamOpener(
        service.hub,
        service.broker,
        service.resumer,
        service.limits,
        service.sockets,
        service.iterator,
        settings.trusted_proxies,
    )
    app = Flask("pushline", static_folder=None)
    app.extensions["pushline"] = service
    app.before_request(service.start)
    app.before_request(origins.check_host)
    register_error_handlers(app)
    app.register_blueprint(stream_routes(opener, origins, settings.max_channels_per_stream))
    app.register_blueprint(
        publish_routes(
            service.broker.publish,
            service.uploads.receive_items,
            origins,
            settings.max_event_bytes,
        )
    )
    app.register_blueprint(upload_routes(service.uploads, origins))
    app.register_blueprint(channel_routes(service.store, service.broker.publish, origins))
    app.register_blueprint(status_routes(service.hub, service.broker))
    app.register_blueprint(page_routes())
    return app
