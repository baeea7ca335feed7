"""Long work in slices, so that other greenlets run in between."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from service.fan_out import give_way

Item = TypeVar("Item")

SLICE_SECONDS = 0.002
"""Other greenlets run at least this often."""


def in_slices(items: Iterable[Item]) -> Iterator[Item]:
    """The items; after each slice of work with them, whatever one takes, others may run."""
    ends = time.perf_counter() + SLICE_SECONDS
    for item in items:
        yield item
        if time.perf_counter() > ends:
            give_way()
            ends = time.perf_counter() + SLICE_SECONDS
