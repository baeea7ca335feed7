"""How much each channel keeps: the default, rules by pattern, and how long its tail lives."""

from __future__ import annotations

import pytest

from service.control import KEPT_SECONDS
from service.retention import (
    SERVICE_EVENTS,
    SERVICE_SECONDS,
    TAIL_SECONDS,
    Retention,
    RetentionRules,
)
from service.settings import Settings

DEFAULT = Retention(1000, 86_400)


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ("orders.new", Retention(100, 3600)),
        ("orders.", Retention(100, 3600)),
        ("orders", DEFAULT),
        ("x.orders.new", DEFAULT),
        ("log", Retention(0, 60)),
        ("logs", DEFAULT),
        ("a.b-end", Retention(5, 5)),
    ],
)
def test_the_first_rule_that_selects_a_channel_counts(channel: str, expected: Retention) -> None:
    """A pattern selects whole names, `*` is anything, nothing else is special, the order counts."""
    rules = RetentionRules(
        DEFAULT, [("orders.*", 100, 3600), ("log", 0, 60), ("*-end", 5, 5), ("orders.new", 1, 1)]
    )
    assert rules.of(channel) == expected
    assert rules.of(channel) is rules.of(channel), "it is looked up once"


@pytest.mark.parametrize("default", [Retention(0, 1), Retention(1_000_000, 31_536_000)])
def test_settings_are_not_for_the_services_own_channels(default: Retention) -> None:
    """Commands to workers outlive a lost link whatever is set for channels, and stay few."""
    rules = RetentionRules(default, [("*", 0, 1)])
    assert rules.of("$control") == Retention(SERVICE_EVENTS, SERVICE_SECONDS)
    assert rules.of("control") == Retention(0, 1)
    assert SERVICE_SECONDS > KEPT_SECONDS


def test_a_tail_outlives_the_history_by_a_day() -> None:
    """The id of the last event is remembered for a day longer than the events are."""
    rules = RetentionRules(DEFAULT, [("short", 1, 10)])
    assert TAIL_SECONDS == 86_400
    assert rules.tail_seconds("short") == 10 + TAIL_SECONDS
    assert rules.tail_seconds("other") == DEFAULT.tail_seconds == 86_400 + TAIL_SECONDS


def test_rules_come_from_the_settings() -> None:
    """HISTORY_EVENTS and HISTORY_SECONDS are the default, HISTORY_RULES the exceptions."""
    environ = {
        "HISTORY_EVENTS": "7",
        "HISTORY_SECONDS": "60",
        "HISTORY_RULES": "a.*=0/1, *=9999999/99999999",
    }
    rules = RetentionRules.of_settings(Settings.from_environ(environ))
    assert rules.of("a.b") == Retention(0, 1)
    assert rules.of("b") == Retention(9_999_999, 99_999_999)
    environ["HISTORY_RULES"] = ""
    assert RetentionRules.of_settings(Settings.from_environ(environ)).of("b") == Retention(7, 60)


def test_many_channels_are_forgotten() -> None:
    """What is remembered of channels is bounded, however many there ever were."""
    rules = RetentionRules(DEFAULT)
    for number in range(20_000):
        rules.of(str(number))
    assert rules.of.cache_info().currsize <= 10_000
