"""Where a stream begins: Last-Event-ID and its twins in the query."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from werkzeug.wrappers import Request

from service.durations import DURATION_PATTERN, seconds_of
from service.errors import BadParameter
from service.event import FIRST_ID, MAX_SEQUENCE, EventId
from service.resumption import Start
from service.routes.headers import header, parameter

TWINS = ("last_event_id", "lastEventID", "lastEventId")
"""Names by which clients that can't set a header send their cursor."""

BEGINNINGS = frozenset([*TWINS, "last", "since"])
"""All parameters that say where a stream begins."""

MAX_LAST = 10_000
"""Events that `last` may ask for."""

SECONDS_PATTERN = r"[0-9]{1,12}(\.[0-9]{1,6})?"
"""What `since` may be besides a date and how long ago: seconds since 1970."""


def read_start(request: Request) -> Start | None:
    """Where `request` wants its stream to begin; None for now.

    A header wins over the query, because an EventSource repeats its URL when it reconnects. A
    cursor that can't be read is no error: the client could not get rid of it. Raises BadParameter.
    """
    cursor = header(request, "Last-Event-ID")
    if cursor:
        return _from_cursor(cursor)
    if BEGINNINGS.isdisjoint(request.args):
        return None
    for name in TWINS:
        if twin := parameter(request, name):
            return _from_cursor(twin)
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
    if re.fullmatch(DURATION_PATTERN, text):
        return max(0, int((time.time() - seconds_of(text)) * 1000))
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
