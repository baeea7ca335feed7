"""One reading for all who ask at the same time: its value, its failure, and no endless wait."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest

from service.errors import RedisDown, RedisError, RedisPoolBusy
from service.shared_reading import SharedReading


def ask_together(reading: SharedReading[int], number: int = 20) -> list[int | str]:
    """What so many get who ask at once: a value, or the code of an error."""

    def ask() -> int | str:
        try:
            return reading.get()
        except RedisError as error:
            error.members["told"] = True
            return error.code

    return [one.get() for one in gevent.joinall([gevent.spawn(ask) for _ in range(number)])]


def counted(read: Callable[[int], int]) -> SharedReading[int]:
    """A reading that takes a moment; `read` is told how many there were before."""
    attempts: list[int] = []

    def one() -> int:
        attempts.append(1)
        gevent.sleep(0.02)
        return read(len(attempts) - 1)

    return SharedReading(one)


def fail_first(attempt: int) -> int:
    """The first attempt fails."""
    if not attempt:
        raise RedisDown
    return attempt


def test_what_was_read_serves_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """All who ask at once or soon after get the same; later it is read anew."""
    monkeypatch.setattr("service.shared_reading.KEPT_SECONDS", 0.3)
    reading = counted(lambda attempt: attempt)
    assert ask_together(reading) == [0] * 20
    assert (reading.get(), reading.is_over) == (0, False)
    gevent.sleep(0.31)
    assert reading.is_over
    assert reading.get() == 1
    reading.forget()
    assert reading.get() == 2


def test_a_failure_is_everybodys() -> None:
    """Who waits for a reading that fails doesn't try in turn, and whoever asks later does."""
    reading = counted(fail_first)
    assert ask_together(reading) == ["redis_down"] * 20
    with pytest.raises(RedisDown) as raised:
        gevent.spawn(counted(fail_first).get).get()
    assert raised.value.members == {}, "nobody's additions are another's"
    assert ask_together(reading) == [1] * 20


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that goes on and on holds nobody else up for longer than WAIT_SECONDS."""
    monkeypatch.setattr("service.shared_reading.WAIT_SECONDS", 0.05)
    reading = SharedReading(lambda: gevent.sleep(60))
    endless = gevent.spawn(reading.get)
    gevent.sleep(0)
    with gevent.Timeout(1), pytest.raises(RedisPoolBusy):
        reading.get()
    assert not reading.is_over
    endless.kill()
    assert reading.is_over


def test_who_is_killed_while_reading_leaves_it_to_the_next() -> None:
    """No failure of another kind is shared."""
    reading = counted(lambda attempt: attempt)
    killed = gevent.spawn(reading.get)
    gevent.sleep(0)
    waits = gevent.spawn(reading.get)
    gevent.sleep(0)
    killed.kill()
    assert waits.get(timeout=1) == 1
