"""All tests, in the order in which they run and are reported."""

from __future__ import annotations

from bench.trials.delivering import Flood, ManyChannels, Mixed, Steady
from bench.trials.fairness import Fairness
from bench.trials.holding import Held, Idle, Scale
from bench.trials.publishing import FromPython, Publishes, Upload
from bench.trials.resuming import Resumed
from bench.trials.trial import Trial

TRIALS: tuple[Trial, ...] = (
    Steady(),
    Flood(),
    Idle(),
    ManyChannels(),
    Publishes(),
    Upload(),
    FromPython(),
    Resumed(),
    Mixed(),
    Held(),
    Fairness(),
    Scale(),
)
