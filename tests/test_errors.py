"""The tree of errors: every class knows its answer, and the drawing is true."""

from __future__ import annotations

import inspect
import re

import pytest

from service import errors
from service.errors import (
    ConfigError,
    NothingToCome,
    OutcomeUnknown,
    PushlineError,
    RedisDown,
    RedisRefused,
)

CLASSES: list[type[PushlineError]] = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, PushlineError)
]


def drawn() -> dict[str, tuple[str | None, str]]:
    """The tree in the docstring: class -> the class above it, and the text beside it."""
    above: dict[int, str] = {}
    tree: dict[str, tuple[str | None, str]] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"([|` ]*(?:[|`]- )?)([A-Z]\w+) {2,}(.*)", line)
        if match is not None:
            depth = len(match[1]) // 3
            tree[match[2]] = (above.get(depth - 1), match[3])
            above[depth] = match[2]
    return tree


def test_the_drawing_is_the_tree() -> None:
    """The module's docstring draws exactly the classes that there are, each below its base."""
    expected = {
        one.__name__: None if one is PushlineError else one.__bases__[0].__name__ for one in CLASSES
    }
    assert {name: base for name, (base, _) in drawn().items()} == expected


@pytest.mark.parametrize("one", CLASSES, ids=lambda one: one.__name__)
def test_every_class_knows_its_answer(one: type[PushlineError]) -> None:
    """Each class has a status, a code and a title of its own, the ones that the drawing shows."""
    assert 400 <= one.status <= 599 or one is NothingToCome  # which must not be an error's
    assert re.fullmatch(r"[a-z_]+", one.code)
    assert one.title
    assert one.__doc__
    shown = drawn()[one.__name__][1]
    if one is ConfigError:
        assert "start-up only" in shown
    elif one is RedisRefused:
        assert shown.startswith(
            "503 redis_readonly, redis_loading, redis_out_of_memory, redis_busy"
        )
    else:
        assert re.match(rf"{one.status} {one.code}\b", shown)


def test_codes_are_unique() -> None:
    """A code names one kind of error; only RedisRefused takes its code from what Redis said."""
    codes = [one.code for one in CLASSES if one is not RedisRefused]
    assert len(set(codes)) == len(codes)


def test_temporary_errors_say_when_to_come_back() -> None:
    """Everything that is 503 or 429 has a Retry-After, nothing else has."""
    for one in CLASSES:
        assert (one.retry_after_seconds is not None) == (one.status in (429, 503)), one


def test_the_message_is_the_detail() -> None:
    """Without a detail the title stands in; a fix can be given for the case at hand."""
    assert str(RedisDown()) == RedisDown().detail == RedisDown.title
    error = PushlineError("it broke", fix="mend it")
    assert (str(error), error.detail, error.fix) == ("it broke", "it broke", "mend it")
    assert PushlineError.fix == ""
    assert OutcomeUnknown("x").fix == OutcomeUnknown.fix
    assert RedisRefused("redis_busy", "it is busy").code == "redis_busy"


def test_every_error_has_members_of_its_own() -> None:
    """What one answer tells in addition is not told by the next."""
    RedisDown().members["line"] = 5
    assert RedisDown().members == {}


def test_no_builtin_is_hidden() -> None:
    """No error has the name of one of Python's own."""
    assert {one.__name__ for one in CLASSES}.isdisjoint(dir(__builtins__))
