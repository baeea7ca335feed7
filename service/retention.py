"""How much history each channel keeps."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from service.channels import ChannelPattern
from service.settings import Settings

TAIL_SECONDS = 86_400
"""How much longer than its last event the end of a channel is remembered."""

SERVICE_EVENTS, SERVICE_SECONDS = 1000, 3600
"""What the service's own channels keep, whatever the settings say: commands must not get lost."""


@dataclass(frozen=True, slots=True)
class Retention:
    """A channel keeps its newest `events`, until `seconds` after the last of them."""

    events: int
    seconds: int

    @property
    def tail_seconds(self) -> int:
        """How long the id of the last event is remembered."""
        return self.seconds + TAIL_SECONDS


class RetentionRules:
    """The retention of each channel: of the first rule whose pattern selects it, else the default.

    A rule is a pattern, a number of events and a number of seconds. None is for the service's own
    channels, whose names begin with `$`.
    """

    def __init__(self, default: Retention, rules: Iterable[tuple[str, int, int]] = ()) -> None:
        self._default = default
        self._rules = [(ChannelPattern(text), Retention(*numbers)) for text, *numbers in rules]
        self.of = functools.lru_cache(maxsize=10_000)(self._of)

    @classmethod
    def of_settings(cls, settings: Settings) -> RetentionRules:
        """The rules of HISTORY_EVENTS, HISTORY_SECONDS and HISTORY_RULES."""
        default = Retention(settings.history_events, settings.history_seconds)
        return cls(default, settings.history_rules)

    def tail_seconds(self, channel: str) -> int:
        """How long the end of `channel` is remembered."""
        return self.of(channel).tail_seconds

    def _of(self, channel: str) -> Retention:
        if channel.startswith("$"):
            return Retention(SERVICE_EVENTS, SERVICE_SECONDS)
        for pattern, retention in self._rules:
            if pattern.matches(channel):
                return retention
        return self._default
