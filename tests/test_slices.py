"""Long work in slices."""

from __future__ import annotations

import time

import gevent
import pytest

from service.slices import SLICE_SECONDS, in_slices


def test_others_run_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long each item takes, others run about every SLICE_SECONDS; quick work isn't cut."""
    turns: list[float] = []

    def note() -> None:
        while True:
            turns.append(time.perf_counter())
            gevent.sleep(0.0001)

    other = gevent.spawn(note)
    gevent.sleep(0)
    turns.clear()
    for _ in in_slices(range(20)):
        busy_until = time.perf_counter() + SLICE_SECONDS / 4
        while time.perf_counter() < busy_until:
            pass
    assert len(turns) >= 3
    turns.clear()
    monkeypatch.setattr("service.slices.SLICE_SECONDS", 60.0)
    assert list(in_slices(range(10))) == list(range(10))
    assert turns == []
    other.kill()
