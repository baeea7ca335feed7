"""create_app: the application, which lets HTTP reach the service."""

from __future__ import annotations

from flask import Flask, request
from gevent import monkey

from service.errors import ConfigError
from service.routes.audience import audience_routes
from service.routes.channels import channel_routes
from service.routes.front import Front
from service.routes.gate import Gate
from service.routes.headers import harden
from service.routes.metrics import metrics_routes
from service.routes.openapi import document, openapi_routes
from service.routes.openapi_facts import Facts
from service.routes.origins import Origins
from service.routes.page import page_routes
from service.routes.problems import Problems
from service.routes.publish import TextPublisher, publish_routes
from service.routes.reference import reference_routes
from service.routes.request_ids import RequestIds
from service.routes.status import status_routes
from service.routes.stream import StreamOpener, StreamRoute, preflight_routes
from service.routes.streams import streams_routes
from service.routes.tickets import ticket_routes
from service.routes.uploads import upload_routes
from service.service import Service
from service.settings import Settings


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
    gate = Gate(
        service.access,
        service.publishing,
        origins,
        service.connects,
        settings.trusted_proxies,
        settings.cookie_name,
    )
    opener = StreamOpener(
        service.hub,
        service.broker,
        service.resumer,
        service.limits,
        service.streams,
        service.access.check_current,
        service.encodings,
        service.sockets,
        service.iterator,
    )
    app = Flask("pushline", static_folder=None)
    app.extensions["pushline"] = service
    app.before_request(service.start)
    app.before_request(lambda: origins.check_host(request))
    app.after_request(harden)
    problems = Problems(service.hub, service.counts.refused)
    problems.register(app)
    interface = document(Facts.of_settings(settings))
    for routes in (
        preflight_routes(origins),
        publish_routes(gate, service.uploads, settings.max_event_bytes),
        upload_routes(service.uploads, gate),
        channel_routes(service.store, gate),
        audience_routes(
            service.store, service.audience, service.presence, service.attendance, gate
        ),
        ticket_routes(gate, settings.max_channels_per_stream),
        streams_routes(gate, service.close_streams),
        status_routes(service.hub, service.broker),
        metrics_routes(gate, service.metrics, settings.metrics_token),
        openapi_routes(interface),
        reference_routes(interface),
        page_routes(),
    ):
        app.register_blueprint(routes)
    app.wsgi_app = Front(  # type: ignore[method-assign]  # as Flask's documentation asks
        app,
        TextPublisher(gate, settings.max_event_bytes),
        StreamRoute(opener, gate, settings.max_channels_per_stream),
        origins,
        problems,
        service.start,
        RequestIds(settings.trusted_proxies),
    )
    return app
