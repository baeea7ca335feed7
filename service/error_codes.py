"""Every error that an answer may tell of, and its code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from service import errors
from service.errors import ConfigError, PushlineError, RedisRefused


def kinds() -> Iterator[type[PushlineError]]:
    """Every error that an answer may tell of."""
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, PushlineError) and kind is not ConfigError:
            yield kind


def codes_of(some: Iterable[type[PushlineError]]) -> list[str]:
    """The codes that some kinds of errors may have."""
    found: set[str] = set()
    for kind in some:
        found.update(RedisRefused.codes if kind is RedisRefused else (kind.code,))
    return sorted(found)


def problem_codes() -> list[str]:
    """The codes of all problem documents and soft refusals."""
    return codes_of(kind for kind in kinds() if kind.status >= 400)
