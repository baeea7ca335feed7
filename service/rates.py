"""How often something may happen: a token bucket for each key, such as an address."""

from __future__ import annotations

import math
import time
from collections import OrderedDict

MAX_KEYS = 100_000
"""Buckets that are kept. Beyond it the one looked at longest ago is forgotten, as if it were full:
memory stays below some 20 MiB whatever comes.
"""

SWEEP = 2
"""Buckets looked at for each take; two, as each take adds at most one."""

SLACK_SECONDS = 1e-6
"""How much too early may be: clocks are floats, and who has waited as told is let in."""


class RateLimit:
    """Lets through `per_second` of each key on average, and `burst` at once; 0 is no limit.

    A bucket holds up to `burst` tokens, by default twice the rate, and is full at first. What is
    taken may be more than is there, as long as there is one token: the bucket then goes into debt,
    and whoever asks next waits until that is paid. So a batch of any size gets its turn among
    single events of the same key, and the average holds. In any t seconds a key gets at most
    `burst + per_second * t`, and what the last batch of them had beyond its first token.
    """

    def __init__(self, per_second: float, burst: float | None = None) -> None:
        """Raises ValueError for a number below 0 or none."""
        burst = 2 * per_second if burst is None else burst
        if not (0 <= per_second < math.inf and 0 <= burst < math.inf):
            raise ValueError(f"not a rate and a burst: {per_second} and {burst}")
        self._per_second = per_second
        self._burst = burst
        self._full_at: OrderedDict[str, float] = OrderedDict()
        """When each key's bucket is full again, in seconds of the clock; full ones are missing."""

    def take(self, key: str, count: int = 1, now: float | None = None) -> float:
        """Take `count` tokens and return 0.0, or take nothing and return the seconds to wait.

        After these seconds the same call succeeds, unless someone else has taken of `key` first:
        who waits among others adds a little chance to it. `now` is a monotonic clock in seconds.
        Raises ValueError for a count below 0.
        """
        if count < 0:
            raise ValueError(f"{count} can't be taken")
        if not self._per_second:
            return 0.0
        now = time.monotonic() if now is None else now
        self._sweep(now)
        full_at = max(self._full_at.get(key, now), now)
        needed = min(count, 1, self._burst)  # a bucket of less than a token only has to be full
        wait = full_at - now - (self._burst - needed) / self._per_second
        if wait > SLACK_SECONDS:
            return wait
        self._full_at[key] = full_at + count / self._per_second
        return 0.0

    def _sweep(self, now: float) -> None:
        """Forget full buckets, a few at a time: each is looked at within as many takes as keys."""
        for _ in range(min(SWEEP, len(self._full_at))):
            key, full_at = self._full_at.popitem(last=False)
            if full_at > now and len(self._full_at) < MAX_KEYS - 1:
                self._full_at[key] = full_at
