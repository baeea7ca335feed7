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
from service.event import EventId
from service.hub import Hub
from service.iterator import IteratorOutlet
from service.logs import log_request
from service.redis_link import RedisAddress, RedisLink
from service.redis_store import Publication, RedisStore
from service.routes.origins import Origins
from service.routes.page import page_routes
from service.routes.problems import register_error_handlers
from service.routes.publish import publish_routes
from service.routes.status import status_routes
from service.routes.stream import StreamOpener, stream_routes
from service.settings import Settings
from service.subscriber import Subscriber


class Service:
    """The parts of one worker's service, and their start and stop."""

    def __init__(self, settings: Settings) -> None:
        if settings.redis_url is None:
            raise ConfigError("REDIS_URL is not set: set it to a Redis or Valkey URL")
        names = RedisNames(settings.channel_prefix)
        self.drain_seconds = settings.drain_seconds
        self.hub = Hub(
            heartbeat_seconds=settings.heartbeat_seconds,
            send_timeout_seconds=settings.send_timeout_seconds,
            retry_milliseconds=settings.retry_milliseconds,
        )
        self.store = RedisStore(
            settings.redis_url,
            names,
            connections=settings.redis_pool,
            tls_verify=settings.redis_tls_verify,
        )
        connect = functools.partial(
            RedisLink,
            RedisAddress.parse(settings.redis_url),
            names,
            tls_verify=settings.redis_tls_verify,
        )
        self.broker = Broker(self.store, connect, self.hub.deliver)
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

    def publish(self, publications: list[Publication]) -> list[EventId]:
        """Publish, with ids above all that this worker has seen."""
        return self.broker.publish(publications, self.hub.position)

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
        """End all streams over the window (by default DRAIN_SECONDS); returns without any."""
        self.hub.drain(self.drain_seconds if window_seconds is None else window_seconds)

    def stop(self) -> None:
        """Stop what `start` has started, and close Redis."""
        self.broker.stop()
        gevent.killall(self._greenlets)
        self._greenlets = []
        self.store.close()


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
        service.limits,
        service.sockets,
        service.iterator,
        settings.trusted_proxies,
    )
    app = Flask("pushline", static_folder=None)
    app.extensions["pushline"] = service
    app.before_request(service.start)
    register_error_handlers(app)
    app.register_blueprint(stream_routes(opener, origins, settings.max_channels_per_stream))
    app.register_blueprint(publish_routes(service.publish, origins, settings.max_event_bytes))
    app.register_blueprint(status_routes(service.hub, service.broker))
    app.register_blueprint(page_routes())
    return app
