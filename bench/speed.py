"""`python -m bench.speed`: has Pushline become slower than the recorded baseline says?

It runs tests A, B and E for Pushline and the C limits, and compares Pushline's ratios to the limit
of the same round with those of baseline.json: a slow machine is slow for both. A loss of 15 %
fails, but is measured a second time before it counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bench.plan import FULL
from bench.results import Cell, Results, Spread
from bench.run import run
from bench.servers.limit import JoinedLimit, Limit
from bench.servers.pushline import Pushline
from bench.servers.server import Server
from bench.tables import number
from bench.trials.delivering import Flood, Steady
from bench.trials.publishing import Publishes
from bench.trials.trial import Trial

BASELINE = Path(__file__).with_name("baseline.json")
LOSS = 0.15
PLAN = replace(FULL, rounds=5, seconds=4)


class ByRedis(Pushline):
    """Pushline as test A and B want it here: fed by Redis alone."""

    feeds = ("redis",)


@dataclass(frozen=True)
class Gauge:
    """A ratio that is watched."""

    name: str
    figure: str
    pushline: Cell
    limit: Cell
    better: Literal["less", "more"]

    def ratios(self, results: Results) -> list[float]:
        """Pushline's figure over the limit's, in each round."""
        return results.ratios(self.pushline, self.figure, self.limit)

    def loss(self, now: float, baseline: float) -> float:
        """How much worse `now` is: 0.15 for 15 %, negative if it is better."""
        return now / baseline - 1 if self.better == "less" else baseline / now - 1


GAUGES = (
    Gauge(
        "A, fed by Redis: CPU per delivery / limit",
        "cpu_us_per_delivery",
        Cell("A", Pushline.name, "redis"),
        Cell("A", Limit.name, "lines"),
        "less",
    ),
    Gauge(
        "B, fed by Redis: deliveries/s / limit, joined",
        "deliveries_per_s",
        Cell("B", Pushline.name, "redis"),
        Cell("B", JoinedLimit.name, "lines"),
        "more",
    ),
    Gauge(
        "B, fed by Redis: CPU per delivery / limit, joined",
        "cpu_us_per_delivery",
        Cell("B", Pushline.name, "redis"),
        Cell("B", JoinedLimit.name, "lines"),
        "less",
    ),
    Gauge(
        "E: CPU per publish / limit",
        "cpu_us_per_publish",
        Cell("E", Pushline.name, "http"),
        Cell("E", Limit.name, "http"),
        "less",
    ),
)

STEPS: tuple[tuple[Trial, tuple[type[Server], ...]], ...] = (
    (Steady(), (Limit, ByRedis)),
    (Flood(), (JoinedLimit, ByRedis)),
    (Publishes(), (Limit, ByRedis)),
)


@dataclass(frozen=True)
class Verdict:
    """A gauge, what was measured now, and what the baseline says."""

    gauge: Gauge
    spread: Spread
    baseline: float

    @property
    def loss(self) -> float:
        """How much slower Pushline has become."""
        return self.gauge.loss(self.spread.median, self.baseline)

    @property
    def failed(self) -> bool:
        """Whether that is too much."""
        return self.loss > LOSS


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and compare, or record; 1 for a loss."""
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write a new baseline.json")
    options = parser.parse_args(arguments)
    results = measure(STEPS)
    if options.record:
        record(results)
        return 0
    verdicts = judge(results, json.loads(BASELINE.read_text()))
    if suspects := {one.gauge.pushline.trial for one in verdicts if one.failed}:
        again = measure([step for step in STEPS if step[0].letter in suspects])
        results.samples += [replace(one, round=one.round + PLAN.rounds) for one in again.samples]
        verdicts = judge(results, json.loads(BASELINE.read_text()))
    print("\n".join(table(verdicts)))
    return 1 if any(one.failed for one in verdicts) else 0


def measure(steps: Sequence[tuple[Trial, tuple[type[Server], ...]]]) -> Results:
    """Run these tests; ends the program if one could not be measured."""
    together = Results()
    for trial, servers in steps:
        results = run([trial], servers, PLAN)
        if results.troubles:
            sys.exit("\n".join(results.troubles))
        together.samples += results.samples
    return together


def judge(results: Results, baseline: dict[str, float]) -> list[Verdict]:
    """Compare with a baseline; raises KeyError for a gauge that it lacks."""
    return [
        Verdict(gauge, Spread.of(gauge.ratios(results)), baseline[gauge.name]) for gauge in GAUGES
    ]


def record(results: Results) -> None:
    """Make what was measured the baseline."""
    medians = {each.name: round(Spread.of(each.ratios(results)).median, 3) for each in GAUGES}
    BASELINE.write_text(json.dumps(medians, indent=1) + "\n")


def table(verdicts: Sequence[Verdict]) -> list[str]:
    """The comparison as Markdown."""
    lines = ["| ratio | now | range | baseline | loss | |", "|---|---|---|---|---|---|"]
    for one in verdicts:
        spread = one.spread
        extent = f"{number(spread.least)} to {number(spread.most)}"
        lines.append(
            f"| {one.gauge.name} | {number(spread.median)} | {extent} | {number(one.baseline)} "
            f"| {one.loss:+.0%} | {'**slower**' if one.failed else 'ok'} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
