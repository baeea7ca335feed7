"""GET /livez and GET /readyz."""

from __future__ import annotations

import gevent
from flask import Blueprint, Response

from service.broker import Broker
from service.hub import Hub
from service.routes.answers import json_answer
from service.version import VERSION

ANSWER_SECONDS = 1.0
"""A Redis that takes longer for a PING is no use to publishers."""

REASONS = ("draining", "redis_not_followed", "redis_not_answering")
"""Why a worker is not ready."""


def status_routes(hub: Hub, broker: Broker) -> Blueprint:
    """The routes that load balancers and supervisors ask."""
    routes = Blueprint("status", __name__)

    @routes.get("/livez")
    def livez() -> Response:
        """200 while the worker turns; Redis has no part in it, as a restart would not mend it."""
        return json_answer({"live": True, "version": VERSION})

    @routes.get("/readyz")
    def readyz() -> Response:
        """200 only when streams and publishes will work; else 503 with the reasons."""
        answers = gevent.with_timeout(ANSWER_SECONDS, broker.answers, timeout_value=False)
        faults = (hub.draining, not broker.ready, not answers)
        reasons = [reason for reason, is_so in zip(REASONS, faults, strict=True) if is_so]
        body = {"ready": not reasons, "reasons": reasons}
        return json_answer(body, 503 if reasons else 200)

    return routes
