"""GET /metrics."""

from __future__ import annotations

import hmac

from flask import Blueprint, Response, request

from service.metrics import Metrics
from service.routes.gate import Gate
from service.routes.headers import header

OPENMETRICS = "application/openmetrics-text"


def metrics_routes(gate: Gate, metrics: Metrics, token: str | None) -> Blueprint:
    """The route that Prometheus asks, with `token` or as somebody who may administrate."""
    routes = Blueprint("metrics", __name__)

    @routes.get("/metrics")
    def read() -> Response:
        """The numbers of all workers."""
        if not _shows(token):
            gate.admin(request)
        body, kind = metrics.page(as_openmetrics=OPENMETRICS in (header(request, "Accept") or ""))
        return Response(body, headers={"Cache-Control": "no-store", "Content-Type": kind})

    return routes


def _shows(token: str | None) -> bool:
    """Whether the request shows the token; how long this takes doesn't tell how nearly."""
    scheme, _, shown = (header(request, "Authorization") or "").partition(" ")
    if token is None or scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(shown.strip().encode("utf-8", "surrogatepass"), token.encode())
