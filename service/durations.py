"""Lengths of time as people write them: 30s, 15m, 1h, 7d."""

from __future__ import annotations

import re

DURATION_PATTERN = "[0-9]{1,9}[smhd]"
"""What all of such a text matches."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds_of(text: str) -> int:
    """How many seconds that are; raises ValueError for what is no such text."""
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"not a length of time: {text!r}")
    return int(text[:-1]) * _UNITS[text[-1]]
