"""Numbers by key, and which of them are still to be told."""

from __future__ import annotations

from service.tally import Tally


def test_what_has_changed_is_told_once() -> None:
    """A number is told after it has changed, as it is then, and not again."""
    tally: Tally[str] = Tally()
    tally.add("a")
    tally.add("a")
    tally.add("b")
    assert (tally["a"], len(tally), tally.waiting) == (2, 2, 2)
    assert tally.take(10) == {"a": 2, "b": 1}
    assert (tally.take(10), tally.waiting) == ({}, 0)
    tally.remove("a")
    assert tally.take(10) == {"a": 1}


def test_zero_is_told_and_forgotten() -> None:
    """What has come to nothing is told as 0, and takes no room."""
    tally: Tally[str] = Tally()
    tally.add("a")
    tally.remove("a")
    assert (tally["a"], len(tally)) == (0, 0)
    assert tally.take(10) == {"a": 0}


def test_much_is_told_in_pieces() -> None:
    """No piece is larger than asked for, and together they are everything."""
    tally: Tally[int] = Tally()
    for number in range(10):
        tally.add(number)
    pieces = [tally.take(4) for _ in range(4)]
    assert [len(piece) for piece in pieces] == [4, 4, 2, 0]
    assert sorted(key for piece in pieces for key in piece) == list(range(10))


def test_what_failed_is_told_as_it_is_by_then() -> None:
    """A number that is put back is told once more, with what has come to it since."""
    tally: Tally[str] = Tally()
    tally.add("a")
    taken = tally.take(1)
    tally.add("a")
    tally.put_back(taken)
    assert tally.take(10) == {"a": 2}


def test_who_knows_nothing_is_told_everything() -> None:
    """Anew, all numbers are told, but no 0."""
    tally: Tally[str] = Tally()
    for key in "ab":
        tally.add(key)
    tally.take(10)
    tally.remove("b")
    tally.tell_anew()
    assert tally.take(10) == {"a": 1}
