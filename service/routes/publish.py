"""POST /channels/<channel> and POST /publish."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, request

from service.channels import check_channel
from service.publication import Publication, Receipt
from service.routes.answers import json_answer
from service.routes.bodies import read_text
from service.routes.gate import Gate
from service.routes.items import MAX_BATCH_FACTOR, TextOptions, parse, publications
from service.routes.uploads import Uploads

NDJSON_TYPES = ("application/x-ndjson", "application/ndjson")
"""One JSON object per line; none of the two is registered."""


def publish_routes(gate: Gate, uploads: Uploads, max_event_bytes: int) -> Blueprint:
    """The routes of bodies that are read whole; `uploads` takes JSON objects line by line."""
    origins = gate.origins
    routes = origins.guard(Blueprint("publish", __name__))

    @routes.post("/channels/<channel>", provide_automatic_options=False)
    def publish_body(channel: str) -> Response:
        """Publish the body, byte for byte, as one event."""
        publish = gate.publish_to(check_channel(channel))
        options = TextOptions.of_request()
        key = request.headers.get("Idempotency-Key")
        publication = options.publication(channel, read_text(max_event_bytes), key)
        (receipt,) = publish([publication])
        return json_answer(_told(publication, receipt))

    @routes.post("/publish", provide_automatic_options=False)
    def publish_json() -> Response:
        """Publish one JSON object, or each of an array, in order."""
        if request.mimetype in NDJSON_TYPES:
            return uploads.receive_items(gate.publisher)
        publish = gate.publish_to()
        body = parse(read_text(max_event_bytes * MAX_BATCH_FACTOR))
        items = publications(body, max_event_bytes)
        receipts = list(map(_told, items, publish(items)))
        return json_answer(receipts if isinstance(body, list) else receipts[0])

    @routes.route("/publish", methods=["OPTIONS"])
    def preflight() -> Response:
        """Answer a page's preflight; no event is published."""
        return origins.preflight("OPTIONS, POST, PUT")

    @routes.route("/channels/<channel>", methods=["OPTIONS"])
    def preflight_channel(channel: str) -> Response:
        """The same for a channel, which routes/channels.py can forget."""
        return origins.preflight("DELETE, OPTIONS, POST, PUT")

    return routes


def _told(item: Publication, receipt: Receipt) -> dict[str, Any]:
    to = {"channel": item.channels[0]} if len(item.channels) == 1 else {"channels": item.channels}
    return {"id": str(receipt.id), **to, "replayed": receipt.replayed}
