"""Where a request wants its stream to begin: the header, its twins, `last` and `since`."""

from __future__ import annotations

import time

import pytest
from werkzeug.wrappers import Request

from service.errors import BadParameter
from service.event import FIRST_ID, EventId
from service.resumption import Start
from service.routes.cursors import MAX_LAST, read_start

CURSOR = EventId(1_700_000_000_000, 7)


def start(query: str = "", header: str | None = None) -> Start | None:
    """What a request asks for."""
    headers = {} if header is None else {"Last-Event-ID": header}
    return read_start(Request.from_values(f"/stream?channel=a&{query}", headers=headers))


def test_without_a_wish_it_begins_now() -> None:
    """No cursor, or an empty one as EventSource sends it at first, means from now on."""
    assert start() is None
    assert start(header="") is None
    assert start("last_event_id=") is None


@pytest.mark.parametrize("name", ["last_event_id", "lastEventID", "lastEventId"])
def test_the_header_has_twins(name: str) -> None:
    """Clients that can't set a header put the cursor into the query."""
    assert start(f"{name}={CURSOR}") == Start(CURSOR)
    assert start(header=str(CURSOR)) == Start(CURSOR)


def test_the_header_wins() -> None:
    """An EventSource repeats its URL when it reconnects: the header is newer. An empty one is
    none.
    """
    for query in ("last_event_id=1-1", "lastEventId=earliest", "last=5", "since=10m"):
        assert start(query, str(CURSOR)) == Start(CURSOR)
    assert start("last_event_id=1-1", "") == Start(EventId(1, 1))
    assert start("last_event_id=1-1&last=3&since=1h") == Start(EventId(1, 1))
    assert start("last=3&since=1h") == Start(last=3, proving=False)


def test_all_that_is_kept_can_be_asked_for() -> None:
    """`earliest` asks for what is there, and proves nothing."""
    expected = Start(FIRST_ID, proving=False)
    assert start("last_event_id=earliest") == start(header="earliest") == expected


@pytest.mark.parametrize(
    "cursor",
    ["x", "5", "1-2-3", "-1-1", "1 - 1", "Earliest", "9" * 16 + "-0", "a" * 5000, "1-\u0661",
     "0x1-1"],
)  # fmt: skip
def test_a_bad_cursor_is_no_error(cursor: str) -> None:
    """A client could not get rid of its cursor: the stream opens, and says what it doesn't know."""
    assert start(f"lastEventID={cursor}") == Start(unknown=True)
    if cursor.isascii():
        assert start(header=cursor) == Start(unknown=True)


@pytest.mark.parametrize("count", [1, 10, MAX_LAST])
def test_the_last_events(count: int) -> None:
    """`last=N` asks for so many, and proves nothing."""
    assert start(f"last={count}") == Start(last=count, proving=False)


@pytest.mark.parametrize("text", ["0", "", "-1", "x", "1.5", str(MAX_LAST + 1), "999999", "\u0661"])
def test_a_bad_last_is_named(text: str) -> None:
    """A number that can't be used is the client's mistake, with the range."""
    with pytest.raises(BadParameter) as raised:
        start(f"last={text}")
    assert "1 to 10000" in raised.value.fix


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("90s", 90), ("10m", 600), ("2h", 7200), ("7d", 604_800), ("999999999d", None)],
)
def test_since_some_time_ago(text: str, seconds: int | None) -> None:
    """`since` takes an age; one before 1970 is from the very first event on."""
    got = start(f"since={text}")
    assert got is not None
    assert not got.proving
    expected = 0 if seconds is None else (time.time() - seconds) * 1000
    assert got.cursor.milliseconds == pytest.approx(expected, abs=2000)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1700000000", 1_700_000_000_000),
        ("1700000000.25", 1_700_000_000_250),
        ("0", 0),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14T22:13:20", 1_700_000_000_000),
        ("2023-11-14T23:13:20%2B01:00", 1_700_000_000_000),
        ("2023-11-14", 1_699_920_000_000),
        ("1900-01-01", 0),
    ],
)
def test_since_a_moment(text: str, milliseconds: int) -> None:
    """`since` takes seconds since 1970, or a date, which is UTC unless it says otherwise; the first
    id of that moment is above the cursor, the last one before it isn't.
    """
    got = start(f"since={text}")
    assert got is not None
    assert not got.proving
    assert got.cursor <= EventId(milliseconds, 0)
    assert milliseconds == 0 or got.cursor > EventId(milliseconds - 1, 10**6)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "10M", "1e5", "-5m", "2023-13-01", "\u0661m", "1" * 13]
)
def test_a_bad_since_is_named(text: str) -> None:
    """What is no time is the client's mistake; the answer shows what would be one."""
    with pytest.raises(BadParameter) as raised:
        start(f"since={text}")
    assert "10m" in raised.value.fix
