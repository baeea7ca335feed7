"""The results as plots (SVG): bars for cost, speed, memory; lines for latency against streams."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.results import Cell, Results, Spread
from bench.tables import FEED_NAMES, number
from bench.targets import PUSHLINE

OURS, LIMITS, PEERS = "#d1495b", "#8d99ae", "#30638e"
LINES = {
    "limit": "#555b66",
    "limit, joined": "#a9b2bf",
    PUSHLINE: OURS,
    "Pushline, 2 workers": "#e79aa4",
    "Nchan": "#1b4965",
    "Nchan with Redis": "#62a8d8",
    "Pushpin": "#5c8a3a",
    "better-sse": "#edae49",
    "Flask tutorial": "#7a5195",
    "sse-starlette": "#00a08a",
    "flask-sse": "#b5651d",
    "Centrifugo": "#111111",
    "Mercure": "#c77dff",
}
MARKERS = "osD^vP*X"
LOG_FROM = 15
"""A bar so many times as long as another asks for a logarithmic axis."""


@dataclass(frozen=True)
class Bars:
    """A figure of a test, as bars."""

    file: str
    trial: str
    figure: str
    title: str
    axis: str


BARS = (
    Bars(
        "a-cpu.svg",
        "A",
        "cpu_us_per_delivery",
        "A: what a delivery costs at a steady rate",
        "CPU of the server, µs per delivery (less is better)",
    ),
    Bars(
        "b-deliveries.svg",
        "B",
        "deliveries_per_s",
        "B: deliveries in a flood",
        "deliveries/s (more is better)",
    ),
    Bars(
        "c-memory.svg",
        "C",
        "kib_per_stream",
        "C: what an idle stream occupies",
        "resident memory, KiB per stream (less is better)",
    ),
    Bars(
        "e-publishes.svg",
        "E",
        "publishes_per_s",
        "E: HTTP publishes from 8 connections",
        "publishes/s (more is better)",
    ),
)
LATENCY_FILE = "s-latency.svg"
PERCENTILES = ("p50", "p90", "p99")


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw what was measured; returns the files."""
    drawn = []
    with rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "pushline",  # the same results make the same file
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.6,
        }
    ):
        for bars in BARS:
            figure = _bars(results, bars)
            if figure is not None:
                drawn.append(_save(figure, folder / bars.file))
        figure = _latency(results)
        if figure is not None:
            drawn.append(_save(figure, folder / LATENCY_FILE))
    return drawn


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None})
    return path


def _name(results: Results, cell: Cell) -> str:
    """The server, and how it was fed if that is not clear."""
    ways = sum(1 for other in results.cells(cell.trial) if other.server == cell.server)
    return cell.server + (f", by {FEED_NAMES[cell.feed]}" if ways > 1 else "")


def _color(server: str) -> str:
    if server.startswith(PUSHLINE):
        return OURS
    return LIMITS if server.startswith("limit") else PEERS


def _bars(results: Results, bars: Bars) -> Figure | None:
    rows = [
        (cell, spread)
        for cell in results.cells(bars.trial)
        if (spread := results.spread(cell, bars.figure)) and spread.median > 0
    ]
    if not rows:
        return None
    figure = Figure(figsize=(8, 1.3 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_title(bars.title, loc="left", fontweight="bold")
    axes.set_xlabel(bars.axis)
    medians = [spread.median for _, spread in rows]
    if max(medians) > LOG_FROM * min(medians):
        axes.set_xscale("log")
        axes.set_xlabel(f"{bars.axis}, logarithmic")
        axes.set_xlim(min(medians) / 2, max(medians) * 4)
    else:
        axes.set_xlim(0, max(spread.most for _, spread in rows) * 1.15)
    colors = [_color(cell.server) for cell, _ in rows]
    axes.barh(range(len(rows)), medians, height=0.7, color=colors)
    axes.errorbar(
        medians,
        range(len(rows)),
        xerr=_whiskers([spread for _, spread in rows]),
        fmt="none",
        ecolor="#333333",
        elinewidth=1,
    )
    axes.set_yticks(range(len(rows)), [_name(results, cell) for cell, _ in rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for place, (_, spread) in enumerate(rows):
        axes.annotate(
            number(spread.median),
            (spread.most, place),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    return figure


def _whiskers(spreads: list[Spread]) -> list[list[float]]:
    """From the median to the least and to the greatest."""
    below = [spread.median - spread.least for spread in spreads]
    above = [spread.most - spread.median for spread in spreads]
    return [below, above]


def _latency(results: Results) -> Figure | None:
    cells = results.cells("S")
    if not cells:
        return None
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, len(PERCENTILES), sharex=True, sharey=True)
    figure.suptitle("S: latency against the number of streams", x=0.01, ha="left", weight="bold")
    for axes, percentile in zip(panels, PERCENTILES, strict=True):
        axes.set_title(percentile)
        for place, cell in enumerate(cells):
            _line(axes, results, cell, percentile, place)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("streams on one channel")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel("publisher to client, ms (less is better)")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    return figure


def _line(axes: Axes, results: Results, cell: Cell, percentile: str, place: int) -> None:
    stem = f"{percentile}_ms_"
    names = {name for one in results.samples if one.cell == cell for name in one.figures}
    counts = sorted(int(name.removeprefix(stem)) for name in names if name.startswith(stem))
    spreads = [results.spread(cell, f"{stem}{count}") for count in counts]
    axes.plot(
        counts,
        [spread.median for spread in spreads if spread],
        color=LINES.get(cell.server, PEERS),
        marker=MARKERS[place % len(MARKERS)],
        markersize=5,
        linewidth=2.4 if cell.server == PUSHLINE else 1.3,
        label=cell.server,
    )
