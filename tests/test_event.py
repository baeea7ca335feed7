"""Events and ids are checked where they are made, and never change."""

from __future__ import annotations

import dataclasses

import pytest

from service.errors import BadEvent
from service.event import FIRST_ID, MAX_NAME_BYTES, RETRY_RANGE_MILLISECONDS, Event, EventId


@pytest.mark.parametrize("text", ["0-0", "1700000000000-5", "999999999999999-999999999999999"])
def test_ids_are_read_and_written(text: str) -> None:
    """An id is `<milliseconds>-<sequence>` and is written as it was read."""
    assert str(EventId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "1", "-", "1-", "-1", "1-2-3", " 1-2", "1-2\n", "+1-2", "1--2", "a-b", "1.0-2", "1_0-2",
     "\u0661-1", "1" * 16 + "-0", "0-" + "1" * 16],
)  # fmt: skip
def test_other_texts_are_no_ids(text: str) -> None:
    """Anything else is refused: an id goes back to us in a header that anybody can write."""
    with pytest.raises(ValueError, match="not an event id"):
        EventId.parse(text)


def test_ids_are_ordered() -> None:
    """Ids order by time, then by sequence, as numbers; the first one is below all."""
    ids = [EventId.parse(text) for text in ("10-0", "9-10", "9-9", "100-0", "0-1")]
    assert [str(one) for one in sorted(ids)] == ["0-1", "9-9", "9-10", "10-0", "100-0"]
    assert all(one > FIRST_ID for one in ids)


@pytest.mark.parametrize(
    "name", ["tick", "Tick", "opened", "a b", "naïve ✓", ":", "data: x", "x$", "é" * 64, "x" * 128]
)
def test_names_that_may_be_used(name: str) -> None:
    """A name is any text without control characters, up to 128 bytes."""
    assert Event("x", name).name == name


@pytest.mark.parametrize(
    "name",
    ["", "a\nb", "a\rb", "\0", "\t", "\x7f", "\x85", "\x9f", "$reset", "$", "open", "error",
     "\ud800", "x" * (MAX_NAME_BYTES + 1), "é" * 65],
)  # fmt: skip
def test_names_that_may_not_be_used(name: str) -> None:
    """A name that would break the stream, hide the service's own, or look like one of
    EventSource's own events is refused.
    """
    with pytest.raises(BadEvent) as raised:
        Event("x", name)
    assert raised.value.detail.isprintable()


@pytest.mark.parametrize("retry", [499, 0, -1, 60_001])
def test_retry_is_kept_in_range(retry: int) -> None:
    """A reconnection time that makes a herd, or looks dead, is refused with the range."""
    with pytest.raises(BadEvent) as raised:
        Event("x", None, retry)
    assert "500 to 60000" in raised.value.fix


def test_retry_at_its_bounds() -> None:
    """The bounds themselves are allowed."""
    for retry in RETRY_RANGE_MILLISECONDS:
        assert Event("x", None, retry).retry_milliseconds == retry


def test_events_are_values() -> None:
    """Events are equal by value and can't be changed after they were checked."""
    event = Event("x", "tick")
    assert event == Event("x", "tick")
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.data = "y"  # type: ignore[misc]
