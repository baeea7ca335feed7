"""Held log lines: together and in order, none late, none lost at the end."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import pytest

from service.line_handler import HELD_LINES, HOLD_SECONDS, LineHandler


class Stream(io.StringIO):
    """Remembers what each write brought."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        """Note `text`."""
        self.writes.append(text)
        return len(text)


class Setup:
    """A handler whose lines wait, until the test calls what is due."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.stream = Stream()
        self.handler = LineHandler()
        self.handler.stream = self.stream
        self.handler.hold(lambda seconds, call: self.due.append((seconds, call)))

    def log(self, message: str, *args: object, level: int = logging.INFO) -> None:
        """Pass a record to the handler."""
        self.handler.handle(logging.LogRecord("x", level, "f.py", 1, message, args, None))


@pytest.fixture
def setup() -> Setup:
    """One of them."""
    return Setup()


def test_lines_go_out_together(setup: Setup) -> None:
    """The first line sets the time; those that come until then are in the same write, in order."""
    setup.log("one")
    setup.log("two")
    assert setup.stream.writes == []
    ((seconds, flush),) = setup.due
    assert seconds == HOLD_SECONDS
    flush()
    assert setup.stream.writes == ["one\ntwo\n"]
    setup.log("three")
    assert len(setup.due) == 2


def test_a_warning_goes_out_at_once(setup: Setup) -> None:
    """With what came before it; nothing is written twice."""
    setup.log("one")
    setup.log("careful", level=logging.WARNING)
    assert setup.stream.writes == ["one\ncareful\n"]
    setup.due[0][1]()
    assert len(setup.stream.writes) == 1


def test_no_more_than_so_many_wait(setup: Setup) -> None:
    """A burst is written in parts."""
    for number in range(HELD_LINES):
        setup.log("%d", number)
    (text,) = setup.stream.writes
    assert text.splitlines() == [str(number) for number in range(HELD_LINES)]


def test_nothing_waits_any_more(setup: Setup) -> None:
    """The end of holding writes what waits, and so does closing, as logging does at exit."""
    setup.log("one")
    setup.handler.hold(None)
    setup.log("two")
    assert setup.stream.writes == ["one\n", "two\n"]


def test_a_bad_line_costs_no_other(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    """A record that can't be written is told on standard error, as logging does."""
    setup.log("one")
    setup.log("%d", "no number")
    setup.log("two")
    setup.handler.flush()
    assert setup.stream.writes == ["one\ntwo\n"]
    assert "no number" in capsys.readouterr().err


def test_a_stream_that_fails(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk does not stop the service."""
    told: list[object] = []
    monkeypatch.setattr(setup.handler, "handleError", told.append)
    setup.stream.close()
    monkeypatch.setattr(setup.stream, "write", lambda _: 1 / 0)
    setup.log("lost", level=logging.ERROR)
    assert len(told) == 1
