"""What was measured: a sample per test, server, way of feeding and round."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self


class Cell(NamedTuple):
    """What is measured in each round."""

    trial: str
    server: str
    feed: str


@dataclass(frozen=True)
class Sample:
    """One measurement of a cell."""

    trial: str
    server: str
    feed: str
    round: int
    figures: dict[str, float]

    @property
    def cell(self) -> Cell:
        """What this is a measurement of."""
        return Cell(self.trial, self.server, self.feed)


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Raises ValueError if there are no values."""
        if not values:
            raise ValueError("no values")
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Results:
    """All samples of a run, and what is not among them."""

    about: dict[str, str] = field(default_factory=dict)
    """Machine, versions, sizes."""

    samples: list[Sample] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Servers that are not installed, each with the command that installs it."""

    troubles: list[str] = field(default_factory=list)
    """Measurements that were skipped or failed."""

    def cells(self, trial: str) -> list[Cell]:
        """The cells of a test, in the order in which they were measured."""
        return list(dict.fromkeys(one.cell for one in self.samples if one.trial == trial))

    def by_round(self, cell: Cell, figure: str) -> dict[int, float]:
        """The values of one figure; empty if it was not measured."""
        return {
            one.round: one.figures[figure]
            for one in self.samples
            if one.cell == cell and figure in one.figures
        }

    def spread(self, cell: Cell, figure: str) -> Spread | None:
        """Median and range of one figure over the rounds."""
        values = list(self.by_round(cell, figure).values())
        return Spread.of(values) if values else None

    def ratios(
        self, cell: Cell, figure: str, reference: Cell, reference_figure: str = ""
    ) -> list[float]:
        """The ratio of two figures in each round that has both: noise of the machine is in both."""
        above = self.by_round(cell, figure)
        below = self.by_round(reference, reference_figure or figure)
        return [above[turn] / below[turn] for turn in above if below.get(turn)]

    def with_cells_of(self, other: Results) -> Results:
        """These results, with the cells that `other` has measured in place of the same ones."""
        measured = {one.cell for one in other.samples}
        kept = [one for one in self.samples if one.cell not in measured]
        troubles = [*self.troubles, *other.troubles]
        return Results(other.about, kept + other.samples, other.absent, troubles)

    def with_rounds_of(self, other: Results) -> Results:
        """These results, and those of `other` as later rounds of the same cells."""
        past = max((one.round for one in self.samples), default=0)
        later = [replace(one, round=one.round + past) for one in other.samples]
        troubles = [*self.troubles, *other.troubles]
        return Results(other.about, self.samples + later, other.absent, troubles)

    @property
    def rounds(self) -> str:
        """How often the cells were measured, as a number or as two, from the least to the most."""
        counts = Counter(one.cell for one in self.samples).values() or [0]
        return " to ".join(map(str, sorted({min(counts), max(counts)})))

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` has written."""
        told = json.loads(path.read_text())
        samples: Iterable[Sample] = (Sample(**one) for one in told.pop("samples"))
        return cls(samples=list(samples), **told)
