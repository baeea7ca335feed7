"""The run: in each round each test measures its servers one after the other, each started fresh."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.plan import Plan
from bench.progress import Progress
from bench.publisher import PublisherError
from bench.results import Results, Sample
from bench.servers.server import Server, ServerError
from bench.trials.trial import Skipped, Trial
from tests.swarm import SwarmError

FAILURES = (PublisherError, ServerError, SwarmError, TimeoutError, RuntimeError, OSError)
"""What a server may do to a measurement without ending the run."""


class Step(NamedTuple):
    """What is measured once in each round."""

    trial: Trial
    server: type[Server]
    feed: str


def machine() -> dict[str, str]:
    """What a reader wants to know of the machine."""
    with open("/proc/cpuinfo") as lines:
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": f"{os.cpu_count()} cores, {models[0] if models else platform.machine()}",
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
    }


def run(
    trials: Sequence[Trial],
    servers: Sequence[type[Server]],
    plan: Plan,
    rounds: int = 0,
    keep: Callable[[Results], None] = lambda _: None,
) -> Results:
    """Measure everything `rounds` times (0: as often as the plan says).

    `keep` is called after each round, and when Ctrl-C ends the run. A server that is not installed
    is left out by name; one that fails in a test is told among the troubles, and is not tried
    again in that test.
    """
    rounds = rounds or plan.rounds
    results = Results(about={**machine(), "sizes": str(plan)})
    present = [server for server in servers if not _absent(server, results)]
    steps = [
        Step(trial, server, feed)
        for trial in trials
        for server in present
        for feed in trial.feeds(server)
    ]
    progress = Progress(len(steps) * rounds)
    with contextlib.suppress(KeyboardInterrupt):  # what was measured until then is worth having
        for turn in range(1, rounds + 1):
            steps = [step for step in steps if _measure(step, plan, turn, results, progress)]
            keep(results)
    progress.close()
    keep(results)
    return results


def _absent(server: type[Server], results: Results) -> bool:
    command = server.missing()
    if command:
        results.absent[server.name] = command
    return command is not None


def _measure(step: Step, plan: Plan, turn: int, results: Results, progress: Progress) -> bool:
    """Add a sample; whether that was possible."""
    trial, server, feed = step
    what = f"{trial.letter}, {server.name}, {feed}"
    progress.begin(f"round {turn}: {what}")
    try:
        with server() as running:
            figures = dict(trial.measure(running, feed, plan))
    except Skipped as reason:
        results.troubles.append(f"{what}: not measured: {reason}")
        return False
    except FAILURES as error:
        results.troubles.append(f"{what}: failed: {error}")
        return False
    finally:
        progress.done()
    results.samples.append(Sample(trial.letter, server.name, feed, turn, figures))
    return True
