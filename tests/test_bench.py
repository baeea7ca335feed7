"""The benchmark's arithmetic: statistics, ratios, targets, tables, the check of the speed."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.__main__ import chosen_servers, chosen_trials, parser
from bench.plan import FULL, QUICK, TINY
from bench.progress import Progress
from bench.results import Cell, Results, Sample, Spread
from bench.servers.pushline import Pushline
from bench.servers.roster import SERVERS
from bench.speed import GAUGES, Gauge, judge, table
from bench.tables import markdown, number, shown, target_table
from bench.targets import TARGETS, Outcome, Target, outcomes
from bench.trials.catalogue import TRIALS
from bench.trials.delivering import medians, mixed_urls
from bench.trials.fairness import at_quantile
from bench.usage import cpu, resident_kib

OURS, LIMIT = Cell("A", "Pushline", "redis"), Cell("A", "limit", "lines")


def results(*samples: tuple[Cell, int, dict[str, float]]) -> Results:
    """Results of these cells, rounds and figures."""
    return Results(samples=[Sample(*cell, turn, figures) for cell, turn, figures in samples])


def test_spread() -> None:
    """Median and range; an even number of values has its median between two."""
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)
    assert Spread.of([1, 2, 3, 10]) == Spread(2.5, 1, 10)
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_ratios_are_of_the_same_round() -> None:
    """A round that lacks one of the two, or divides by nothing, has no ratio."""
    measured = results(
        (OURS, 1, {"cpu": 10}),
        (LIMIT, 1, {"cpu": 5}),
        (OURS, 2, {"cpu": 90}),
        (LIMIT, 2, {"cpu": 30}),
        (OURS, 3, {"cpu": 90}),
        (OURS, 4, {"cpu": 90}),
        (LIMIT, 4, {"cpu": 0}),
    )
    assert measured.ratios(OURS, "cpu", LIMIT) == [2, 3]
    assert measured.ratios(OURS, "cpu", OURS, "other") == []


def test_results_survive_a_file(tmp_path: Path) -> None:
    """What is written is read."""
    path = tmp_path / "results.json"
    measured = results((OURS, 1, {"cpu_us": 1.5}))
    measured.absent["Nchan"] = "apt-get"
    measured.write(path)
    assert Results.read(path) == measured


def test_a_part_replaces_its_cells() -> None:
    """A later run of one cell leaves the others, and drops all rounds of its own."""
    before = results((OURS, 1, {"cpu": 1}), (OURS, 2, {"cpu": 1}), (LIMIT, 1, {"cpu": 5}))
    after = before.with_cells_of(results((OURS, 1, {"cpu": 2})))
    assert after.by_round(OURS, "cpu") == {1: 2}
    assert after.by_round(LIMIT, "cpu") == {1: 5}


def test_more_rounds() -> None:
    """They count on after those that were there, so that ratios stay within a round."""
    before = results((OURS, 1, {"cpu": 1}), (LIMIT, 1, {"cpu": 5}))
    assert before.rounds == "1"
    after = before.with_rounds_of(results((OURS, 1, {"cpu": 2})))
    assert after.by_round(OURS, "cpu") == {1: 1, 2: 2}
    assert after.by_round(LIMIT, "cpu") == {1: 5}
    assert after.rounds == "1 to 2"
    assert Results().rounds == "0"


@pytest.mark.parametrize(
    ("sign", "bound", "met"),
    [("<=", 2.0, True), ("<=", 1.99, False), (">=", 2.0, True), (">=", 2.01, False), ("", 0, None)],
)
def test_targets(sign: str, bound: float, met: bool | None) -> None:
    """The median decides; a target without a bound is only reported."""
    measured = results(
        *((OURS, turn, {"cpu": value}) for turn, value in enumerate((2.0, 4.0, 6.0))),
        *((LIMIT, turn, {"cpu": 2.0}) for turn in range(3)),
    )
    target = Target("x", OURS, "cpu", LIMIT, sign=sign, bound=bound)  # type: ignore[arg-type]
    (outcome,) = outcomes(measured, (target,))
    assert outcome == Outcome(target, Spread(2.0, 1.0, 3.0))
    assert outcome.met is met


def test_a_target_that_was_not_measured() -> None:
    """It is neither met nor missed, and the table says so."""
    (outcome,) = outcomes(results(), (TARGETS[0],))
    assert outcome.met is None
    assert "| not measured |" in target_table([outcome])[-1]


def test_targets_name_cells_that_are_measured() -> None:
    """Each target's cells are measured by some test of some server."""
    cells = {
        Cell(trial.letter, server.name, feed)
        for trial in TRIALS
        for server in SERVERS
        for feed in trial.feeds(server)
    }
    named = {target.cell for target in TARGETS} | {
        target.reference for target in TARGETS if target.reference
    }
    assert named <= cells
    assert {gauge.pushline for gauge in GAUGES} | {gauge.limit for gauge in GAUGES} <= cells


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.000123, "0.00012"),
        (0.456, "0.46"),
        (1.0, "1"),
        (7.654, "7.65"),
        (12.34, "12.3"),
        (123.4, "123"),
        (15_612_345, "15 600 000"),
        (-2, "-2"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    """Three digits at most, thousands apart, no exponents."""
    assert number(value) == text
    assert shown(Spread(value, value, value)) == text


def test_the_page() -> None:
    """It has targets, a table per test with faults, and what is not measured, each with why."""
    measured = results(
        (OURS, 1, {"cpu_us_per_delivery": 10, "p99_ms": 3, "lost": 0, "client_busy": 0.95}),
        (OURS, 2, {"cpu_us_per_delivery": 12, "p99_ms": 3, "lost": 2, "client_busy": 0.2}),
        (LIMIT, 1, {"cpu_us_per_delivery": 5, "p99_ms": 3, "lost": 0}),
        (LIMIT, 2, {"cpu_us_per_delivery": 5, "p99_ms": 3, "lost": 0}),
    )
    measured.absent["Nchan"] = "apt-get install nchan"
    measured.troubles += ["E3, Pushline: not measured: no such call"] * 2
    page = markdown(measured)
    assert (
        "| A, fed by Redis: CPU per delivery / limit | 2.2 | 2 to 2.4 | <= 1.2 | **no** |" in page
    )
    assert "| Pushline | Redis | 11 (10 to 12) | 3 | lost 2, client busy |" in page
    assert "| limit | lines | 5 | 3 | none |" in page
    assert "- Nchan is not installed: `apt-get install nchan`" in page
    assert page.count("no such call") == 1
    assert "## B" not in page


def test_medians_hide_no_faults() -> None:
    """Of several floods each figure is the median, and each fault the worst."""
    floods = [{"p99_ms": value, "lost": lost} for value, lost in ((1, 0), (9, 7), (2, 0))]
    assert medians(floods) == {"p99_ms": 2, "lost": 7}


@pytest.mark.parametrize(
    ("better", "now", "loss"),
    [("less", 1.2, 0.2), ("less", 0.9, -0.1), ("more", 0.8, 0.25), ("more", 1.25, -0.2)],
)
def test_losses(better: str, now: float, loss: float) -> None:
    """A loss is positive whichever way is better."""
    gauge = Gauge("x", "cpu", OURS, LIMIT, better)  # type: ignore[arg-type]
    assert gauge.loss(now, 1.0) == pytest.approx(loss)


@pytest.mark.parametrize(("factor", "failed"), [(1.0, False), (1.14, False), (1.16, True)])
def test_the_check_fails_on_a_loss_of_15_percent(factor: float, failed: bool) -> None:
    """The ratios' median over the rounds is held against the baseline."""
    samples = []
    for turn, noise in enumerate((0.7, 1.0, 1.4)):
        for gauge in GAUGES:
            slow = noise * factor if gauge.better == "less" else noise / factor
            samples.append((gauge.pushline, turn, {gauge.figure: 10 * slow}))
            samples.append((gauge.limit, turn, {gauge.figure: 5.0}))
    verdicts = judge(results(*samples), {gauge.name: 2.0 for gauge in GAUGES})
    assert [one.failed for one in verdicts] == [failed] * len(GAUGES)
    assert ("**slower**" in "".join(table(verdicts))) == failed


def test_choices() -> None:
    """Tests and servers are chosen by name, and an unknown name ends the program."""
    assert [trial.letter for trial in chosen_trials(["B", "A"])] == ["A", "B"]
    assert chosen_servers(["Pushline"]) == [Pushline]
    assert (len(chosen_trials([])), len(chosen_servers([]))) == (len(TRIALS), len(SERVERS))
    with pytest.raises(SystemExit, match="no such test: Z"):
        chosen_trials(["Z"])
    with pytest.raises(SystemExit, match="no such server: x"):
        chosen_servers(["x"])
    assert parser().parse_args(["--tests", "A", "B"]).tests == ["A", "B"]


@pytest.mark.parametrize("plan", [FULL, QUICK, TINY])
def test_sizes_fit(plan: object) -> None:
    """Each channel of test D gets as many events, and two clients can hold what test H holds."""
    assert isinstance(plan, type(FULL))
    assert plan.many_events % plan.many_channels == 0
    assert plan.held % 2 == 0


def test_mixed_streams() -> None:
    """Streams of test G are each on three different channels, and the same in every run."""
    server = Pushline()
    urls = mixed_urls(server, replace(FULL, streams=300))
    assert urls == mixed_urls(server, replace(FULL, streams=300))
    assert len(urls) == 200
    assert all(len(set(url.partition("?")[2].split("&"))) == 3 for url in urls)


def test_quantiles() -> None:
    """The value that a part of all don't exceed; nothing has none."""
    values = [float(value) for value in range(100)]
    assert (at_quantile(values, 0.5), at_quantile(values, 0.99)) == (50, 99)
    assert at_quantile([], 0.5) == 0


class Terminal(io.StringIO):
    """A terminal that keeps what is written."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def test_progress() -> None:
    """A bar on a terminal, cleared in the end; a line per step elsewhere."""
    terminal, file = Terminal(), io.StringIO()
    for out in (terminal, file):
        progress = Progress(2, out)
        for what in ("first", "second"):
            progress.begin(what)
            progress.done()
        progress.close()
    assert "█" * 15 + "░" * 15 + " 1/2 0:00, about 0:00 left  second" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert file.getvalue() == "[1/2] first\n[2/2] second\n"


BURN = "import time\nwhile time.process_time() < 0.2: sum(range(20_000))\n"
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN!r}])
child = subprocess.Popen([sys.executable, "-c", {BURN!r} + "print(flush=True); input()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(flush=True)
input()
child.communicate(b"\\n")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_usage_is_of_the_whole_tree() -> None:
    """CPU time of a child that lives and of one that has ended, and the memory of all that live."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdout.readline()
        used, kib = cpu(parent.pid), resident_kib(parent.pid)
        parent.stdin.write(b"\n")
    assert 0.4 <= used.total < 1.5
    assert 0.3 <= used.user <= used.total
    assert kib > 10_000  # two Python processes have no less
