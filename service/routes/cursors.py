"""Where a stream begins: Last-Event-ID and its twins in the query."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from flask import request

from service.errors import BadParameter
from service.event import FIRST_ID, MAX_SEQUENCE, EventId
from service.resumption import Start

TWINS = ("last_event_id", "lastEventID", "lastEventId")
"""Names by which clients that can't set a header send their cursor."""

MAX_LAST = 10_000
"""Events that `last` may ask for."""

AGO_PATTERN = "([0-9]{1,9})([smhd])"
SECONDS_PATTERN = r"[0-9]{1,12}(\.[0-9]{1,6})?"
"""What `since` may be besides a date: how long ago, or seconds since 1970."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def read_start() -> Start | None:
    """Where this request wants its stream to begin; None for now.

    A header wins over the query, because an EventSource repeats its URL when it reconnects. A
    cursor that can't be read is no error: the client could not get rid of it. Raises BadParameter.
    """
    header = request.headers.get("Last-Event-ID", "")
    if header:
        return _from_cursor(header)
    for name in TWINS:
        if request.args.get(name):
            return _from_cursor(request.args[name])
    if "last" in request.args:
        return Start(last=_count(request.args["last"]), proving=False)
    if "since" in request.args:
        return Start(_just_before(_milliseconds(request.args["since"])), proving=False)
    return None


def _from_cursor(text: str) -> Start:
    if text == "earliest":
        return Start(FIRST_ID, proving=False)
    try:
        return Start(EventId.parse(text))
    except ValueError:
        return Start(unknown=True)


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= MAX_LAST:
        raise BadParameter(f"last={text[:40]!r} can't be used", fix=f"Use 1 to {MAX_LAST}")
    return int(text)


def _just_before(milliseconds: int) -> EventId:
    """Below the first id of that millisecond, and above all before it."""
    return EventId(milliseconds - 1, MAX_SEQUENCE) if milliseconds else FIRST_ID


def _milliseconds(text: str) -> int:
    now = time.time()
    if match := re.fullmatch(AGO_PATTERN, text):
        return max(0, int((now - int(match[1]) * _UNITS[match[2]]) * 1000))
    if re.fullmatch(SECONDS_PATTERN, text):
        return int(float(text) * 1000)
    try:
        # A bare number would be read as a date of some century, and is milliseconds by mistake.
        moment = datetime.fromisoformat(text if "-" in text else "")
    except ValueError:
        raise BadParameter(
            f"since={text[:40]!r} can't be used",
            fix="Use 10m (s, m, h, d), seconds since 1970, or a date such as 2026-01-31T12:00:00Z",
        ) from None
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0, int(zoned.timestamp() * 1000))
