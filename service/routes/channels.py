"""What happens to a channel as a whole: read its history, finish it, forget it."""

from __future__ import annotations

import re
import time
from typing import Any

from flask import Blueprint, Response, request

from service.channel_end import FINISHED, last_publication
from service.channels import check_channel
from service.errors import BadParameter, ChannelEnded
from service.event import CONTROL_CHARACTERS, FIRST_ID, EventId
from service.frame import Frame
from service.history import read_after
from service.publication import Publication, Receipt
from service.redis_store import RedisStore
from service.routes.answers import json_answer
from service.routes.gate import Gate
from service.sse import Parser

MAX_PAGE_EVENTS = 1000
PAGE_EVENTS = 100

PAGE_BYTES = 4_194_304
"""A page ends beyond this many bytes of events."""

MAX_REASON_LETTERS = 128
"""Longest reason of an end."""


def channel_routes(store: RedisStore, gate: Gate) -> Blueprint:
    """The routes of a channel as a whole."""
    routes = Blueprint("channels", __name__)
    origins = gate.origins

    @routes.before_request
    def check_origin() -> None:
        origins.check_change(request)

    @routes.after_request
    def allow_origin(response: Response) -> Response:
        return origins.allow(request, response)

    @routes.get("/channels/<channel>/events", provide_automatic_options=False)
    def events(channel: str) -> Response:
        """A page of the channel's history, oldest first."""
        grant = gate.subscriber(request, [check_channel(channel)])
        return json_answer(_history(store, channel, private=grant.may_subscribe(channel)))

    @routes.post("/channels/<channel>/end", provide_automatic_options=False)
    def end(channel: str) -> Response:
        """Finish the channel: its streams end, and it takes no more events."""
        publish = gate.publish_to(request, check_channel(channel))
        try:
            (receipt,) = publish([_last_event(channel)])
        except ChannelEnded:
            (tail,) = store.tails([channel])
            receipt = Receipt(tail.ended or FIRST_ID, replayed=True)
        return json_answer(
            {"id": str(receipt.id), "channel": channel, "replayed": receipt.replayed}
        )

    @routes.delete("/channels/<channel>", provide_automatic_options=False)
    def forget(channel: str) -> Response:
        """Forget the channel's history and that it is finished."""
        gate.publish_to(request, check_channel(channel))
        store.forget(channel)
        return Response(status=204)

    @routes.route("/channels/<channel>/end", methods=["OPTIONS"])
    @routes.route("/channels/<channel>/events", methods=["OPTIONS"])
    def preflight(channel: str) -> Response:
        """Answer a page's preflight."""
        return origins.preflight(request, _methods(request.path))

    return routes


def _methods(path: str) -> str:
    return "OPTIONS, POST" if path.endswith("/end") else "GET, HEAD, OPTIONS"


def _history(store: RedisStore, channel: str, *, private: bool) -> dict[str, Any]:
    limit = _limit()
    frames, more = read_after(store, channel, _after(), limit, PAGE_BYTES)
    now = time.time_ns() // 1_000_000
    kept = [one for one in frames if one.deadline is None or one.deadline > now]
    shown = [frame for frame in kept if private or frame.private is None]
    last = str(frames[-1].id) if more else None
    return {"channel": channel, "events": list(map(_readable, shown)), "next": last}


def _last_event(channel: str) -> Publication:
    reason = request.args.get("reason", FINISHED)
    if re.search(f"[{CONTROL_CHARACTERS}]", reason) or len(reason) > MAX_REASON_LETTERS:
        fix = f"Use up to {MAX_REASON_LETTERS} letters, none of them a control character"
        raise BadParameter("the reason can't be used", fix=fix)
    return last_publication(channel, reason)


def _after() -> EventId:
    text = request.args.get("after")
    try:
        return FIRST_ID if text is None else EventId.parse(text)
    except ValueError as error:
        raise BadParameter(str(error), fix="Use the id of an event") from None


def _limit() -> int:
    text = request.args.get("limit", str(PAGE_EVENTS))
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_PAGE_EVENTS:
        raise BadParameter(f"limit={text[:40]!r}", fix=f"Use 1 to {MAX_PAGE_EVENTS}")
    return int(text)


def _readable(frame: Frame) -> dict[str, Any]:
    (message,) = Parser().feed(frame.data)
    return {"id": message.id, "event": message.event, "data": message.data}
