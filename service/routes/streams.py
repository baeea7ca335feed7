"""DELETE /streams: close live streams on all workers."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, Response, request

from service.control import Close
from service.errors import BadParameter
from service.grants import MAX_USER_LETTERS
from service.routes.gate import Gate


def streams_routes(gate: Gate, close: Callable[[Close], None]) -> Blueprint:
    """The route that closes streams; `close` tells all workers."""
    routes = gate.origins.guard(Blueprint("streams", __name__))

    @routes.delete("/streams", provide_automatic_options=False)
    def close_streams() -> Response:
        """Close the streams of `?user=`, or the one that `?stream=` names."""
        gate.admin(request)
        close(Close(**_wanted()))
        return Response(status=202)

    @routes.route("/streams", methods=["OPTIONS"])
    def preflight() -> Response:
        """Answer a page's preflight."""
        return gate.origins.preflight(request, "DELETE, OPTIONS")

    return routes


def _wanted() -> dict[str, str]:
    named = list(request.args.items(multi=True))
    if len(named) != 1 or named[0][0] not in ("user", "stream") or not named[0][1]:
        raise BadParameter("not one user or stream is named", fix="?user=ID or ?stream=NAME")
    if len(named[0][1]) > MAX_USER_LETTERS:
        raise BadParameter("it is too long", fix=f"Use at most {MAX_USER_LETTERS} letters")
    return dict(named)
