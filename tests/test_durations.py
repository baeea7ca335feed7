"""Lengths of time as people write them."""

from __future__ import annotations

import pytest

from service.durations import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("30s", 30), ("15m", 900), ("1h", 3600), ("7d", 604_800), ("010m", 600)],
)
def test_lengths_of_time(text: str, seconds: int) -> None:
    """A number and its unit."""
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "1", "s", "-1h", "1.5h", "1 h", "1w", "1H", "1h\n", "1h1m", "\u0661h", "9" * 10 + "d"],
)
def test_what_is_none(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="not a length of time"):
        seconds_of(text)
