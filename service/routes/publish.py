"""POST /channels/<channel> and POST /publish."""

from __future__ import annotations

from functools import partial
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.wrappers import Request

from service.channels import check_channel
from service.publication import Publication, Receipt
from service.routes.answers import json_answer, json_bytes
from service.routes.bodies import read_text
from service.routes.gate import Gate
from service.routes.headers import header
from service.routes.items import MAX_BATCH_FACTOR, TextOptions, parse, publications
from service.routes.uploads import Uploads

NDJSON_TYPES = ("application/x-ndjson", "application/ndjson")
"""One JSON object per line; none of the two is registered."""


def publish_routes(gate: Gate, uploads: Uploads, max_event_bytes: int) -> Blueprint:
    """The routes of bodies that are read whole; `uploads` takes JSON objects line by line."""
    origins = gate.origins
    routes = origins.guard(Blueprint("publish", __name__))

    @routes.post("/publish", provide_automatic_options=False)
    def publish_json() -> Response:
        """Publish one JSON object, or each of an array, in order."""
        if request.mimetype in NDJSON_TYPES:
            return uploads.receive_items(partial(gate.publisher, request))
        publish = gate.publish_to(request)
        body = parse(read_text(request, max_event_bytes * MAX_BATCH_FACTOR))
        items = publications(body, max_event_bytes)
        receipts = list(map(_told, items, publish(items)))
        return json_answer(receipts if isinstance(body, list) else receipts[0])

    @routes.route("/publish", methods=["OPTIONS"])
    def preflight() -> Response:
        """Answer a page's preflight; no event is published."""
        return origins.preflight(request, "OPTIONS, POST, PUT")

    @routes.route("/channels/<channel>", methods=["OPTIONS"])
    def preflight_channel(channel: str) -> Response:
        """The same for a channel, which routes/channels.py can forget."""
        return origins.preflight(request, "DELETE, GET, HEAD, OPTIONS, POST, PUT")

    return routes


class TextPublisher:
    """POST /channels/<channel>: publishes the body, byte for byte, as one event."""

    def __init__(self, gate: Gate, max_event_bytes: int) -> None:
        self._gate = gate
        self._max_event_bytes = max_event_bytes

    def __call__(self, request: Request, channel: str) -> bytes:
        """Publish the body of `request`; returns the JSON that answers it."""
        self._gate.origins.check_origin(request)
        publish = self._gate.publish_to(request, check_channel(channel))
        options = TextOptions.of_request(request)
        key = header(request, "Idempotency-Key")
        publication = options.publication(channel, read_text(request, self._max_event_bytes), key)
        (receipt,) = publish([publication])
        return json_bytes(_told(publication, receipt))


def _told(item: Publication, receipt: Receipt) -> dict[str, Any]:
    to = {"channel": item.channels[0]} if len(item.channels) == 1 else {"channels": item.channels}
    return {"id": str(receipt.id), **to, "replayed": receipt.replayed}
