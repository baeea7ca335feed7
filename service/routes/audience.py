"""How many streams channels have, and who is on them."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, request

from service.attendance import AttendanceReader
from service.audience import Audience
from service.channels import check_channel
from service.errors import BadParameter, NoSuchPage
from service.grants import MAX_USER_LETTERS
from service.presence import Presence, companion, info_of
from service.redis_store import RedisStore
from service.routes.answers import json_answer
from service.routes.gate import Gate

MAX_LISTED = 1000
LISTED = 100

AFTER = "after"


def audience_routes(
    store: RedisStore,
    audience: Audience,
    presence: Presence,
    attendance: AttendanceReader,
    gate: Gate,
) -> Blueprint:
    """The routes that only count and list."""
    routes = Blueprint("audience", __name__)
    origins = gate.origins

    @routes.after_request
    def allow_origin(response: Response) -> Response:
        return origins.allow(request, response)

    @routes.get("/channels", provide_automatic_options=False)
    def channels() -> Response:
        """The channels with most streams."""
        shown = gate.lister(request)
        listing = audience.list(_limit(), shown)
        body = {
            "channels": _facts(store, listing.top),
            "total": listing.channels,
            "streams": listing.streams,
        }
        return json_answer(body)

    @routes.get("/channels/<channel>", provide_automatic_options=False)
    def channel(channel: str) -> Response:
        """One channel."""
        gate.reader(request, check_channel(channel))
        (facts,) = _facts(store, [(channel, audience.streams(channel))])
        return json_answer(facts)

    @routes.get("/channels/<channel>/presence", provide_automatic_options=False)
    def users(channel: str) -> Response:
        """Who is on a channel."""
        if not presence.covers(check_channel(channel)):
            gate.reader(request, channel)
            fix = "PRESENCE_CHANNELS names the channels that have"
            raise NoSuchPage(f"{channel} has no presence", fix=fix)
        gate.reader(request, companion(channel))
        return json_answer(_users(attendance, channel))

    @routes.route("/channels", methods=["OPTIONS"])
    @routes.route("/channels/<channel>/presence", methods=["OPTIONS"])
    def preflight(channel: str = "") -> Response:
        """Answer a page's preflight."""
        return origins.preflight(request, "GET, HEAD, OPTIONS")

    return routes


def _facts(store: RedisStore, counted: list[tuple[str, int]]) -> list[dict[str, Any]]:
    names = [name for name, _ in counted]
    return [
        {
            "channel": name,
            "streams": streams,
            "last_id": str(tail.id) if tail.id else None,
            "events": events,
            "ended": tail.ended is not None,
        }
        for (name, streams), tail, events in zip(
            counted, store.tails(names), store.sizes(names), strict=True
        )
    ]


def _users(attendance: AttendanceReader, channel: str) -> dict[str, Any]:
    limit = _limit()
    users, total, anonymous, last_id = attendance.page(channel, _after(), limit + 1)
    shown = users[:limit]
    return {
        "channel": channel,
        "users": [
            {"user": one.user, "info": info_of(one.info), "streams": one.streams} for one in shown
        ],
        "total": total,
        "anonymous": anonymous,
        "last_id": str(last_id),
        "next": shown[-1].user if len(users) > limit else None,
    }


def _after() -> str:
    user = request.args.get(AFTER, "")
    if len(user) > MAX_USER_LETTERS:
        fix = f"Users have at most {MAX_USER_LETTERS} letters"
        raise BadParameter(f"{AFTER} is too long", fix=fix)
    return user


def _limit() -> int:
    text = request.args.get("limit", str(LISTED))
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_LISTED:
        raise BadParameter(f"limit={text[:40]!r}", fix=f"Use 1 to {MAX_LISTED}")
    return int(text)
