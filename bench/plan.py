"""How much of everything is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Sizes of all tests; the defaults are the full ones."""

    rounds: int = 3
    streams: int = 1_000
    """Of tests A, B, G and Q."""

    rate: int = 20
    seconds: float = 10
    """Of the steady tests: events a second, and for how long; also how long test E publishes."""

    flood_events: int = 2_000
    flood_seconds: float = 3
    """A flood of test B is repeated for as long, and medians are taken: a fast one is short."""

    idle_streams: int = 10_000
    idle_events: int = 20
    many_channels: int = 2_000
    many_events: int = 20_000
    uploaded: int = 100_000
    resumed: int = 10_000
    replayed: int = 100
    mixed_channels: int = 50
    mixed_rate: int = 200
    held: int = 38_000
    stream_counts: tuple[int, ...] = (100, 1_000, 3_000, 10_000)
    """Of test S."""


FULL = Plan()
QUICK = Plan(
    rounds=1,
    streams=300,
    seconds=1,
    flood_events=500,
    flood_seconds=0,
    idle_streams=1_000,
    idle_events=2,
    many_channels=200,
    many_events=2_000,
    uploaded=10_000,
    resumed=500,
    held=3_000,
    stream_counts=(100, 1_000),
)
TINY = Plan(
    rounds=1,
    streams=20,
    seconds=0.5,
    flood_events=50,
    flood_seconds=0,
    idle_streams=30,
    idle_events=1,
    many_channels=10,
    many_events=100,
    uploaded=200,
    resumed=20,
    replayed=10,
    held=40,
    stream_counts=(10, 20),
)
"""For the tests of the harness: the figures mean nothing."""
