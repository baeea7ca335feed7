"""How much load is put on a service, and how much of it nobody puts on one by accident."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import ConfigError

MOST_STREAMS, MOST_RATE, MOST_SECONDS = 500, 100, 60
"""What a service elsewhere bears without being asked: it may be one that people use."""

CONNECTS_PER_SECOND = 15
"""Below MAX_CONNECTS_PER_SECOND_PER_IP, as all come from one address."""

EVENTS_OF_ONE = 50
"""Events a second that one publisher makes; each waits for its answer before the next."""

MOST_PUBLISHERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`streams` open; then for `seconds` `rate` events a second of `size` bytes; 0: as many as go.

    `connects_per_second` is how fast streams are opened; 0: as fast as goes.
    """

    streams: int
    seconds: float
    rate: float
    size: int
    connects_per_second: float = 0

    def check_harmless(self) -> None:
        """Raise ConfigError for what may hurt a service that people use."""
        over = [
            f"{name} {asked:g} (up to {most})"
            for name, asked, most in (
                ("--streams", self.streams, MOST_STREAMS),
                ("--rate", self.rate, MOST_RATE),
                ("--seconds", self.seconds, MOST_SECONDS),
            )
            if asked > most
        ]
        if not self.rate:
            over.append("--rate max")
        if over:
            raise ConfigError(
                f"this may hurt a service that people use: {', '.join(over)};"
                " add --force if you may do that"
            )

    @property
    def publishers(self) -> int:
        """How many publish at the same time."""
        if not self.rate:
            return MOST_PUBLISHERS
        return max(1, min(MOST_PUBLISHERS, round(self.rate / EVENTS_OF_ONE)))
