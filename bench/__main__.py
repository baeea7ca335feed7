"""The benchmark: `python -m bench` measures everything and writes bench/results/.

docs/benchmark.md says what the tests are, how each server is set up, and what the figures mean.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.plan import FULL, QUICK, TINY
from bench.plots import draw
from bench.results import Results
from bench.run import run
from bench.servers.roster import SERVERS
from bench.servers.server import Server
from bench.tables import markdown
from bench.trials.catalogue import TRIALS
from bench.trials.trial import Trial

RESULTS = Path(__file__).with_name("results")
TRIED = Path(__file__).resolve().parents[1] / "build/bench"
FILE, PAGE = "results.json", "results.md"
PLANS = {"full": FULL, "quick": QUICK, "tiny": TINY}
QUICK_SERVERS = ("limit", "limit, joined", "Pushline", "Pushline, 2 workers", "Nchan")


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; 0 if everything that was to be measured was."""
    options = parser().parse_args(arguments)
    trials = chosen_trials(options.tests)
    servers = chosen_servers(options.servers or (() if options.size == "full" else QUICK_SERVERS))
    folder = options.out or (RESULTS if is_whole(options) else TRIED)
    before = earlier(folder) if options.add or options.more else Results()

    merge = before.with_rounds_of if options.more else before.with_cells_of

    def keep(measured: Results) -> None:
        write(merge(measured), folder)

    results = run(trials, servers, PLANS[options.size], options.rounds, keep)
    print((folder / PAGE).read_text())
    print(f"written to {folder}", file=sys.stderr)
    return 1 if any("failed" in trouble for trouble in results.troubles) else 0


def earlier(folder: Path) -> Results:
    """The results that are in the folder."""
    return Results.read(folder / FILE) if (folder / FILE).exists() else Results()


def is_whole(options: argparse.Namespace) -> bool:
    """Whether a run may replace the published results."""
    return (options.size == "full" and not (options.tests or options.servers)) or (
        options.add or options.more
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    names = ", ".join(f'"{server.name}"' for server in SERVERS)
    letters = ", ".join(trial.letter for trial in TRIALS)
    made = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    made.add_argument("--tests", nargs="*", default=(), metavar="TEST", help=f"of {letters}")
    made.add_argument("--servers", nargs="*", default=(), metavar="SERVER", help=f"of {names}")
    made.add_argument("--rounds", type=int, default=0, help="how often (full: 3, quick: 1)")
    made.add_argument("--size", choices=PLANS, default="full", help="quick and tiny prove little")
    kept = made.add_mutually_exclusive_group()
    kept.add_argument("--add", action="store_true", help="keep the other results in the folder")
    kept.add_argument("--more", action="store_true", help="keep all of them; this is more rounds")
    made.add_argument(
        "--out", type=Path, help="folder (bench/results; for a part or a small run build/bench)"
    )
    return made


def chosen_trials(letters: list[str]) -> list[Trial]:
    """The tests of these letters, all of them if there are none."""
    known = {trial.letter: trial for trial in TRIALS}
    _refuse_unknown("test", set(letters) - known.keys())
    return [trial for trial in TRIALS if not letters or trial.letter in letters]


def chosen_servers(names: tuple[str, ...] | list[str]) -> list[type[Server]]:
    """The servers of these names, all of them if there are none."""
    _refuse_unknown("server", set(names) - {server.name for server in SERVERS})
    return [server for server in SERVERS if not names or server.name in names]


def _refuse_unknown(what: str, names: set[str]) -> None:
    if names:
        sys.exit(f"bench: no such {what}: {', '.join(sorted(names))}")


def write(results: Results, folder: Path) -> None:
    """Write JSON, Markdown and plots."""
    folder.mkdir(parents=True, exist_ok=True)
    results.write(folder / FILE)
    (folder / PAGE).write_text(markdown(results))
    draw(results, folder)


if __name__ == "__main__":
    sys.exit(main())
