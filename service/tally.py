"""Numbers by key, and which of them somebody else has not been told of yet."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Tally(Generic[Key]):
    """Counts by key. One that is 0 is forgotten once it is told."""

    def __init__(self) -> None:
        self._numbers: dict[Key, int] = {}
        self._untold: set[Key] = set()

    def __getitem__(self, key: Key) -> int:
        return self._numbers.get(key, 0)

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def waiting(self) -> int:
        """How many numbers are still to be told."""
        return len(self._untold)

    def add(self, key: Key) -> None:
        """Count one more."""
        self._numbers[key] = self._numbers.get(key, 0) + 1
        self._untold.add(key)

    def remove(self, key: Key) -> None:
        """Count one less."""
        left = self._numbers[key] - 1
        if left:
            self._numbers[key] = left
        else:
            del self._numbers[key]
        self._untold.add(key)

    def take(self, at_most: int) -> dict[Key, int]:
        """Some of what is to be told, and no longer is."""
        taken: dict[Key, int] = {}
        while self._untold and len(taken) < at_most:
            key = self._untold.pop()
            taken[key] = self._numbers.get(key, 0)
        return taken

    def put_back(self, keys: Iterable[Key]) -> None:
        """Those could not be told."""
        self._untold.update(keys)

    def tell_anew(self) -> None:
        """All numbers are to be told, and none that is 0: who hears them knows nothing yet."""
        self._untold = set(self._numbers)
