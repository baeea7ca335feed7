"""POST /tickets: a short-lived `?ticket=` for a stream, in place of a credential."""

from __future__ import annotations

from flask import Blueprint, Response, request

from service.channels import check_streamed
from service.errors import BadChannel, BadParameter
from service.routes.answers import json_answer
from service.routes.gate import Gate


def ticket_routes(gate: Gate, max_channels: int) -> Blueprint:
    """The route of tickets."""
    routes = gate.origins.guard(Blueprint("tickets", __name__))

    @routes.post("/tickets", provide_automatic_options=False)
    def issue() -> Response:
        """Turn a credential into a ticket for the channels named in the query."""
        if "ticket" in request.args:  # it would live for ever
            raise BadParameter("a ticket gets no other ticket", fix="Show what got you the first")
        named = request.args.getlist("channel")
        if not named:
            raise BadChannel("no channel is named", fix="Add ?channel=NAME for each of the stream")
        channels = check_streamed(named, max_channels)
        tickets, grant = gate.access.tickets, gate.subscriber(request, channels)
        # Public channels need none: a grant of them would let their private events through.
        ticket = tickets.issue(grant, [*filter(grant.may_subscribe, channels)])
        return json_answer({"ticket": ticket, "expires_in": tickets.seconds})

    @routes.route("/tickets", methods=["OPTIONS"])
    def preflight() -> Response:
        """Answer a page's preflight."""
        return gate.origins.preflight(request, "OPTIONS, POST")

    return routes
