"""What a publisher may ask for, and what an Idempotency-Key stands for."""

from __future__ import annotations

import dataclasses

import pytest

from service.errors import BadEvent
from service.event import Event, EventId
from service.publication import MAX_KEY_BYTES, TTL_RANGE_SECONDS, Publication, Receipt

EVENT = Event("hello", "tick", 2000)
WHOLE = Publication(EVENT, ("a", "b"), ttl_seconds=60, key="k")


@pytest.mark.parametrize("seconds", [None, *TTL_RANGE_SECONDS])
def test_a_lifetime_is_optional(seconds: int | None) -> None:
    """From a second to a year, or none."""
    assert Publication(EVENT, ("a",), ttl_seconds=seconds).ttl_seconds == seconds


@pytest.mark.parametrize("seconds", [0, -1, TTL_RANGE_SECONDS[1] + 1])
def test_a_bad_lifetime_is_named(seconds: int) -> None:
    """Anything else is refused, with the range."""
    with pytest.raises(BadEvent, match=f"ttl is {seconds}") as raised:
        Publication(EVENT, ("a",), ttl_seconds=seconds)
    assert "1 to 31536000" in raised.value.fix


@pytest.mark.parametrize("key", ["k", "!~", "x" * MAX_KEY_BYTES, 'a"b:c,d'])
def test_keys_are_printable_ascii(key: str) -> None:
    """Every visible ASCII character may be in a key."""
    assert Publication(EVENT, ("a",), key=key).key == key


@pytest.mark.parametrize("key", ["", "a b", "x" * (MAX_KEY_BYTES + 1), "é", "a\n", "\x7f"])
def test_bad_keys_are_refused(key: str) -> None:
    """A key that a header or a Redis key could change on its way is refused."""
    with pytest.raises(BadEvent, match="Idempotency-Key"):
        Publication(EVENT, ("a",), key=key)


@pytest.mark.parametrize(
    "changes",
    [
        {"event": Event("hello!", "tick", 2000)},
        {"event": Event("hello", "tock", 2000)},
        {"event": Event("hello", None, 2000)},
        {"event": Event("hello", "tick", 2001)},
        {"event": Event("hello", "tick")},
        {"channels": ("a",)},
        {"channels": ("a,b",)},
        {"stored": False},
        {"ttl_seconds": 61},
        {"ttl_seconds": None},
        {"private": True},
    ],
)
def test_everything_counts_in_the_fingerprint(changes: dict[str, object]) -> None:
    """A key stands for all fields: with any other of them it is another event."""
    assert dataclasses.replace(WHOLE, **changes).fingerprint() != WHOLE.fingerprint()  # type: ignore[arg-type]


def test_a_fingerprint_is_repeatable() -> None:
    """The same event has the same fingerprint, in any process, whatever its key."""
    again = Publication(Event("hello", "tick", 2000), ("a", "b"), ttl_seconds=60, key="other")
    assert again.fingerprint() == WHOLE.fingerprint()
    assert len(WHOLE.fingerprint()) == 64
    assert Publication(Event("né\0"), ("a",)).fingerprint()


def test_an_event_is_public_and_of_nobody_unless_it_says_otherwise() -> None:
    """Nothing is private by itself; whose the key is, is no part of the event."""
    assert (WHOLE.private, WHOLE.credential) == (False, "")
    theirs = dataclasses.replace(WHOLE, credential="key:1")
    assert theirs.fingerprint() == WHOLE.fingerprint()


def test_a_receipt_is_new_unless_it_says_otherwise() -> None:
    """A receipt is of this call, unless an earlier one had published the event."""
    assert not Receipt(EventId(1, 0)).replayed
    assert Receipt(EventId(1, 0), True).replayed
