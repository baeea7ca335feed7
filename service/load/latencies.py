"""How long things took: any number of them in little memory, within one percent."""

from __future__ import annotations

import math
from collections import Counter

STEP = math.log(1.01)
"""Neighbouring buckets differ by one percent."""

LEAST_SECONDS = 1e-6


class Latencies:
    """Counts seconds by their logarithm: percentiles are right to a percent, the longest exact."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.count = 0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[round(math.log(max(seconds, LEAST_SECONDS)) / STEP)] += 1
        self.count += 1
        self.longest = max(self.longest, seconds)

    def percentile(self, share: float) -> float:
        """The seconds within which `share` of them stayed, from 0 to 1; 0.0 of none."""
        rank = math.ceil(share * self.count)
        for bucket, count in sorted(self._counts.items()):
            rank -= count
            if rank <= 0:
                return min(math.exp(bucket * STEP), self.longest)
        return 0.0

    def milliseconds(self) -> dict[str, float]:
        """What is reported of them."""
        shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
        found = {name: round(1000 * self.percentile(share), 3) for name, share in shares.items()}
        return {**found, "max": round(1000 * self.longest, 3)}
