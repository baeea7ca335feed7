"""What a check has found, why that matters, and how to mend it."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TextIO

WHY = {
    "settings": "The service does not start with a setting that it can't use.",
    "publish_open": "Anyone who reaches the service may publish to every channel.",
    "public_channels": "Anyone who reaches the service may read every channel.",
    "heartbeat": "Routers cut a connection that is silent for too long: HAProxy after 50 s,"
    " Heroku after 55 s, nginx and AWS's load balancer after 60 s.",
    "file_limit": "Each stream is an open file: beyond the limit clients are turned away.",
    "redis": "Without Redis nothing can be published, and no stream opens.",
    "redis_version": "The scripts that publish need commands of Redis 6.2.",
    "redis_replica": "A replica takes no writes: every publish fails.",
    "redis_eviction": "A Redis that drops keys by itself loses history without a trace.",
    "redis_memory": "A full Redis refuses every publish.",
    "redis_persistence": "A restart of Redis loses all history, and every stream is told so.",
    "redis_connections": "Workers that get no connection publish nothing and follow nothing;"
    " during a rolling restart there are twice as many.",
    "redis_pubsub_buffer": "Redis cuts a worker off that lags behind by this much: all its"
    " channels then have to catch up.",
    "redis_clock": "Ids are times of Redis's clock: `since=` and lags are wrong by as much.",
    "service": "Clients get no answer from it, or another one than they need.",
    "ready": "A worker that is not ready opens no streams, or publishes nothing.",
    "clock": "Tokens and tickets are taken for expired, or for not yet valid.",
    "stream": "A stream that does not open, or breaks off, delivers nothing.",
    "publish": "An event that is not taken reaches nobody.",
    "buffering": "What passes this address comes late, or only when a buffer is full.",
    "gzip": "Browsers ask for compressed streams, and get none that they can read in time.",
}
"""Each check by its name, which scripts may rely on."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: `what`, and the command or setting that mends it."""

    check: str
    what: str
    fix: str

    @property
    def why(self) -> str:
        """Why it matters."""
        return WHY[self.check]


@dataclass
class Report:
    """Collects what checks find; those of the names in `ignored` are taken for good.

    `passed` are the checks that found nothing, `skipped` those that could not look, and why.
    """

    ignored: Collection[str] = ()
    findings: list[Finding] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def check(self, name: str, good: object, what: str = "", fix: str = "") -> bool:
        """Note how the check `name` has turned out; returns whether it was good."""
        assert name in WHY, name
        if good:
            if name not in self.passed:
                self.passed.append(name)
        elif name in self.ignored:
            self.skipped[name] = f"ignored: {what}"
        elif all(one.check != name for one in self.findings):  # it may be seen from two sides
            self.findings.append(Finding(name, what, fix))
        return bool(good)

    def fault(self, name: str, what: str, fix: str) -> None:
        """Note a finding."""
        self.check(name, False, what, fix)

    def skip(self, name: str, why: str) -> None:
        """Note that the check `name` could not look."""
        assert name in WHY, name
        self.skipped[name] = why

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        found = [
            {"check": one.check, "what": one.what, "why": one.why, "fix": one.fix}
            for one in self.findings
        ]
        open_ones = {one.check for one in self.findings} | self.skipped.keys()
        passed = [name for name in self.passed if name not in open_ones]
        return {"findings": found, "passed": passed, "skipped": self.skipped}

    def print(self, out: TextIO = sys.stdout) -> None:
        """All of it, for people; in colour on a terminal."""
        bold, red, plain = ("\x1b[1m", "\x1b[31m", "\x1b[0m") if out.isatty() else ("", "", "")
        for one in self.findings:
            print(f"{red}{one.check}{plain}: {bold}{one.what}{plain}", file=out)
            print(f"  why: {one.why}\n  fix: {one.fix}\n", file=out)
        for name, why in self.skipped.items():
            print(f"{name}: not checked: {why}", file=out)
        good = len(self.as_json()["passed"])
        found = len(self.findings)
        print(f"{good} checks are fine, {found or 'no'} finding{'s' * (found != 1)}.", file=out)
