"""What Pushline shall reach, as ratios in one run, and whether it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.results import Cell, Results, Spread

PUSHLINE, TWO = "Pushline", "Pushline, 2 workers"


@dataclass(frozen=True)
class Target:
    """A figure of a cell, or its ratio to that of another, and its bound."""

    measure: str
    cell: Cell
    figure: str
    reference: Cell | None = None
    reference_figure: str = ""
    sign: Literal["<=", ">=", ""] = ""
    bound: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """A target and what was measured; without a spread it was not."""

    target: Target
    spread: Spread | None

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the bound; None without one or without a measurement."""
        if self.spread is None or not self.target.sign:
            return None
        if self.target.sign == "<=":
            return self.spread.median <= self.target.bound
        return self.spread.median >= self.target.bound


def cell(trial: str, server: str, feed: str) -> Cell:
    """A cell, written shortly."""
    return Cell(trial, server, feed)


A_LIMIT = cell("A", "limit", "lines")
TARGETS: tuple[Target, ...] = (
    Target(
        "A, fed by Redis: CPU per delivery / limit",
        cell("A", PUSHLINE, "redis"),
        "cpu_us_per_delivery",
        A_LIMIT,
        sign="<=",
        bound=1.2,
    ),
    Target(
        "A, fed by HTTP: CPU per delivery / limit",
        cell("A", PUSHLINE, "http"),
        "cpu_us_per_delivery",
        A_LIMIT,
        sign="<=",
        bound=1.4,
    ),
    Target(
        "A, fed by Redis: p99 latency / limit",
        cell("A", PUSHLINE, "redis"),
        "p99_ms",
        A_LIMIT,
        sign="<=",
        bound=1.2,
    ),
    Target(
        "B, fed by Redis: deliveries/s / limit, joined",
        cell("B", PUSHLINE, "redis"),
        "deliveries_per_s",
        cell("B", "limit, joined", "lines"),
        sign=">=",
        bound=0.6,
    ),
    Target(
        "B, fed by HTTP: deliveries/s / Nchan",
        cell("B", PUSHLINE, "http"),
        "deliveries_per_s",
        cell("B", "Nchan", "http"),
        sign=">=",
        bound=5,
    ),
    Target(
        "B, fed by HTTP: p99 latency / Nchan",
        cell("B", PUSHLINE, "http"),
        "p99_ms",
        cell("B", "Nchan", "http"),
        sign="<=",
        bound=0.4,
    ),
    Target(
        "C: KiB per idle stream",
        cell("C", PUSHLINE, "redis"),
        "kib_per_stream",
        sign="<=",
        bound=1.0,
    ),
    Target(
        "C: CPU µs per connect",
        cell("C", PUSHLINE, "redis"),
        "cpu_us_per_connect",
        sign="<=",
        bound=200,
    ),
    Target(
        "D, fed by Redis: events/s / limit",
        cell("D", PUSHLINE, "redis"),
        "events_per_s",
        cell("D", "limit", "lines"),
        sign=">=",
        bound=0.8,
    ),
    Target(
        "E: stored publishes/s / Flask tutorial's plain PUBLISH",
        cell("E", PUSHLINE, "http"),
        "publishes_per_s",
        cell("E", "Flask tutorial", "http"),
        sign=">=",
        bound=2,
        note="better 3",
    ),
    Target(
        "E2: events/s of an upload / Nchan's publishes/s with Redis",
        cell("E2", PUSHLINE, "http"),
        "publishes_per_s",
        cell("E", "Nchan with Redis", "http"),
        sign=">=",
        bound=3,
    ),
    Target(
        "E3: MessagePublisher, events/s / redis-py's pipelined PUBLISH",
        cell("E3", PUSHLINE, "redis"),
        "publishes_per_s",
        cell("E3", PUSHLINE, "redis"),
        "plain_publishes_per_s",
        sign=">=",
        bound=0.5,
    ),
    Target(
        "F: CPU per resumed stream with 100 events / per connect",
        cell("F", PUSHLINE, "http"),
        "cpu_us_per_resume",
        cell("F", PUSHLINE, "http"),
        "cpu_us_per_connect",
        sign="<=",
        bound=2,
    ),
    Target(
        "Q, flooded by Redis: a quiet channel's p99 ms",
        cell("Q", PUSHLINE, "redis"),
        "quiet_p99_ms",
        sign="<=",
        bound=50,
    ),
    Target(
        "Q, flooded by HTTP: a quiet channel's p99 ms",
        cell("Q", PUSHLINE, "http"),
        "quiet_p99_ms",
        sign="<=",
        bound=50,
    ),
    Target(
        "A, fed by Redis: CPU per delivery, 2 workers / 1",
        cell("A", TWO, "redis"),
        "cpu_us_per_delivery",
        cell("A", PUSHLINE, "redis"),
    ),
    Target(
        "B, fed by Redis: deliveries/s, 2 workers / 1",
        cell("B", TWO, "redis"),
        "deliveries_per_s",
        cell("B", PUSHLINE, "redis"),
    ),
)


def outcomes(results: Results, targets: tuple[Target, ...] = TARGETS) -> list[Outcome]:
    """What was measured for each target."""
    return [Outcome(target, _spread(results, target)) for target in targets]


def _spread(results: Results, target: Target) -> Spread | None:
    if target.reference is None:
        return results.spread(target.cell, target.figure)
    ratios = results.ratios(target.cell, target.figure, target.reference, target.reference_figure)
    return Spread.of(ratios) if ratios else None
