"""What streams have received of numbered events: each once and in order, or not."""

from __future__ import annotations

from collections.abc import Mapping, Set


class Tally:
    """What one stream has received. Each publisher numbers its events from 1, and awaits each."""

    def __init__(self) -> None:
        self.delivered = 0
        self.twice = 0
        self.disordered = 0
        self._last: dict[int, int] = {}
        self._missing: set[tuple[int, int]] = set()

    def take(self, publisher: int, number: int) -> None:
        """The event `number` of a publisher has come."""
        self.delivered += 1
        last = self._last.get(publisher, 0)
        if number > last:
            self._missing.update((publisher, n) for n in range(last + 1, number))
            self._last[publisher] = number
        elif (publisher, number) in self._missing:
            self._missing.remove((publisher, number))
            self.disordered += 1
        else:
            self.twice += 1

    def lost(self, published: Mapping[int, int], unknown: Set[tuple[int, int]]) -> int:
        """How many have not come of those that were `published`: the last number of each.

        `unknown` are those of which no publisher knows whether they were taken.
        """
        later = {
            (publisher, n)
            for publisher, count in published.items()
            for n in range(self._last.get(publisher, 0) + 1, count + 1)
        }
        return len((self._missing | later) - unknown)
