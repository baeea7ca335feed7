"""The results as Markdown: the targets, then a table per test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.results import Cell, Results, Spread
from bench.targets import Outcome, outcomes
from bench.trials.catalogue import TRIALS
from bench.trials.trial import FAULTS, Trial

HEADINGS = {
    "streams": "streams",
    "deliveries_per_s": "deliveries/s",
    "events_per_s": "events/s",
    "publishes_per_s": "publishes/s",
    "plain_publishes_per_s": "plain PUBLISH/s",
    "connects_per_s": "connects/s",
    "refusals": "soft refusals",
    "opening_s": "s to open all",
    "kib_per_stream": "KiB per stream",
    "cpu_us_per_delivery": "CPU µs per delivery",
    "user_us_per_delivery": "of it user",
    "redis_us_per_delivery": "Redis µs",
    "cpu_us_per_connect": "CPU µs per connect",
    "cpu_us_per_resume": "CPU µs per resume",
    "cpu_us_per_cold_resume": "CPU µs per resume, from Redis",
    "cpu_us_per_publish": "CPU µs per publish",
    "user_us_per_publish": "of it user",
    "redis_us_per_publish": "Redis µs",
    "quiet_p50_ms": "quiet p50 ms",
    "quiet_p99_ms": "quiet p99 ms",
    "livez_p50_ms": "/livez p50 ms",
    "livez_p99_ms": "/livez p99 ms",
    "flood_events_per_s": "flood, events/s",
    "flood_p99_ms": "flood p99 ms",
    "p50_ms": "p50 ms",
    "p90_ms": "p90 ms",
    "p99_ms": "p99 ms",
}
"""The columns in their order; faults and what else was measured have none of their own."""

BUSY = 0.9
FEED_NAMES = {"http": "HTTP", "redis": "Redis", "lines": "lines"}


def markdown(results: Results) -> str:
    """Everything that was measured, as a page."""
    rounds = results.rounds
    lines = ["# Results", "", f"{results.about.get('machine')}; {results.about.get('system')}."]
    lines += [f"Medians of {rounds} round{'s' * (rounds != '1')}, ranges in brackets.", ""]
    lines += target_table(outcomes(results))
    for trial in TRIALS:
        if cells := results.cells(trial.letter):
            lines += ["", f"## {trial.letter}: {trial.title}", "", *_table(results, trial, cells)]
    lines += _absent(results)
    return "\n".join(lines) + "\n"


def target_table(rows: Iterable[Outcome]) -> list[str]:
    """The targets, each with what was measured."""
    lines = ["| target | measured | range | wanted | met |", "|---|---|---|---|---|"]
    for row in rows:
        target, spread = row.target, row.spread
        wanted = f"{target.sign} {target.bound:g}" if target.sign else "reported"
        wanted += f", {target.note}" if target.note else ""
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        median = number(spread.median) if spread else "not measured"
        extent = f"{number(spread.least)} to {number(spread.most)}" if spread else ""
        lines.append(f"| {target.measure} | {median} | {extent} | {wanted} | {met} |")
    return lines


def _table(results: Results, trial: Trial, cells: Sequence[Cell]) -> list[str]:
    columns = [
        name for name in _columns(results, trial) if any(results.spread(c, name) for c in cells)
    ]
    heads = ["server", "fed by", *(_heading(name) for name in columns), "faults"]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for cell in cells:
        spreads = (results.spread(cell, name) for name in columns)
        values = [shown(spread) if spread else "" for spread in spreads]
        lines.append(
            _row([cell.server, FEED_NAMES[cell.feed], *values, remarks(results, cell)]),
        )
    return lines


def _columns(results: Results, trial: Trial) -> list[str]:
    """The headings' figures, then those whose names end with a number of streams."""
    names = dict.fromkeys(
        name for one in results.samples if one.trial == trial.letter for name in one.figures
    )
    counted = [name for name in names if name.rpartition("_")[2].isdigit()]
    return [name for name in HEADINGS if name in names] + counted


def _heading(name: str) -> str:
    if name in HEADINGS:
        return HEADINGS[name]
    stem, _, streams = name.rpartition("_")
    return f"{HEADINGS[stem]}, {streams}"


def _row(values: Iterable[str]) -> str:
    return "| " + " | ".join(values) + " |"


def shown(spread: Spread) -> str:
    """A median with its range, which is left out if there is none."""
    if spread.least == spread.most:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.least)} to {number(spread.most)})"


def number(value: float) -> str:
    """Three significant digits, without an exponent; thousands are set apart."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 100:
        return f"{rounded:,.0f}".replace(",", " ")
    return f"{rounded:.2f}".rstrip("0").rstrip(".") if abs(rounded) >= 0.1 else f"{rounded:.2g}"


def remarks(results: Results, cell: Cell) -> str:
    """What went wrong in any round, and whether a client was the bottleneck."""
    told = []
    for name in FAULTS:
        spread = results.spread(cell, name)
        if spread and spread.most:
            told.append(f"{name.replace('_', ' ')} {number(spread.most)}")
    for who in ("client", "publisher"):
        spread = results.spread(cell, f"{who}_busy")
        if spread and spread.most > BUSY:
            told.append(f"{who} busy")
    return ", ".join(told) or "none"


def _absent(results: Results) -> list[str]:
    lines = [f"- {name} is not installed: `{how}`" for name, how in results.absent.items()]
    lines += [f"- {trouble}" for trouble in dict.fromkeys(results.troubles)]
    return ["", "## Not measured", "", *lines] if lines else []
