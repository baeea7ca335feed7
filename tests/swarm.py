"""The load client: drives swarm.c, which opens thousands of streams and checks what each receives.

The publisher puts `payload(number)` into its events: `seq N t <ns> xxx...`, with N counting up by
one and the sender's clock (monotonic or real). Per stream swarm.c then knows what was lost, came
twice or out of order, and how long it took. swarm.c itself is compiled when first needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

SOURCE = Path(__file__).with_name("swarm.c")
BUILD = Path(__file__).resolve().parent.parent / "build"
COMPILER = "cc"
COMPILER_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra")
REPLY_SECONDS = 20.0
"""How long the client may take to answer a command; it answers between two reads."""


class SwarmError(Exception):
    """The load client could not be built or has died."""


def unavailable() -> str | None:
    """Say why the load client cannot be built here, if so."""
    if not sys.platform.startswith("linux"):
        return "the load client needs Linux's epoll"
    if shutil.which(COMPILER) is None:
        return f"the load client needs a C compiler named {COMPILER}"
    return None


def need_swarm() -> None:
    """Skip the running test where the load client can't be built; in CI that is a failure."""
    from tests.untested import untested  # here: the benchmark has this module without pytest

    if reason := unavailable():
        untested(reason)


def compiled(source: Path) -> Path:
    """Compile one C file, unless that was done before, and return the program's path."""
    reason = unavailable()
    if reason:
        raise SwarmError(reason)
    digest = hashlib.sha256(source.read_bytes() + " ".join(COMPILER_FLAGS).encode()).hexdigest()[
        :12
    ]
    program = BUILD / f"{source.stem}-{digest}"
    if not program.exists():
        BUILD.mkdir(exist_ok=True)
        partial = program.with_suffix(f".{os.getpid()}")
        command = [COMPILER, *COMPILER_FLAGS, "-o", str(partial), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SwarmError(f"{' '.join(command)} failed:\n{done.stderr}")
        partial.replace(program)
    return program


def payload(number: int, size: int = 100) -> str:
    """Return the data of event `number`, padded to `size` bytes, with the time of now."""
    return f"seq {number} t {time.monotonic_ns()} ".ljust(size, "x")


@dataclass(frozen=True)
class Quantiles:
    """Times in milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True)
class Report:
    """What the streams saw since the start or `clear`; `*_ms` count from the start (-1: never)."""

    started_ns: int  # the monotonic clock when the client started
    ms: float
    streams: int
    waiting: int  # not opened yet, or waiting for their retry time
    connecting: int
    open: int
    over: int  # ended, and not going to be reopened
    stopped: int  # open streams that don't read
    stopped_over: int  # streams that ended while they didn't read
    first_connect_ms: float
    last_open_ms: float
    events: int  # events with data, without those named $...
    events_least: int  # on the stream with the fewest; vanished streams don't count
    events_most: int
    short_of_expected: int
    specials: int  # events named $..., resets among them
    resets: int  # events named $reset
    positions: int  # blocks with an id and no data, opening blocks among them
    comments: int
    comments_least: int
    stray_blanks: int  # blank lines that end no block
    unnumbered: int  # events whose data does not begin with seq N
    without_id: int
    lost: int  # numbers missing between the first and the last one of a stream
    duplicates: int
    inversions: int  # numbers that came after a higher one; not lost
    id_duplicates: int
    id_inversions: int
    odd_ids: int  # ids that are not <ms>-<seq>
    cut_chunks: int  # streams that ended inside a chunk
    cut_events: int  # streams that ended inside an event
    retry_least: int  # of the last retry of each stream, in milliseconds; -1: none
    retry_most: int
    bytes: int
    chunks: int
    cached_chunks: int
    first_event_ms: float
    last_event_ms: float
    first_end_ms: float
    last_end_ms: float
    cpu_seconds: float  # of the client itself: near the elapsed time, it was the bottleneck
    # terminated (last chunk), length, fin, rst, failed (another error), framing (broken, given up),
    # rejected (not 200, or no event stream), refused (200, retry and a clean end before any event),
    # unanswered (no connection or no response head), vanished (by command)
    endings: Mapping[str, int]
    statuses: Mapping[str, int]  # responses by status code
    latency_ms: Quantiles  # from the publisher's clock to the client's read
    opening_ms: Quantiles  # from connect to the response head

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> Report:
        """Build a report from the client's JSON."""
        values = {item.name: answer[item.name] for item in fields(cls)}
        for name in ("latency_ms", "opening_ms"):
            values[name] = Quantiles(**values[name])
        return cls(**values)

    @property
    def faults(self) -> dict[str, int]:
        """Everything that must not happen to a stream and did: empty for a good run."""
        names = (
            "lost",
            "duplicates",
            "inversions",
            "id_duplicates",
            "id_inversions",
            "odd_ids",
            "cut_chunks",
            "cut_events",
            "stray_blanks",
        )
        counts = {name: int(getattr(self, name)) for name in names} | {
            "framing": self.endings["framing"]
        }
        return {name: count for name, count in counts.items() if count}

    @property
    def events_per_second(self) -> float:
        """Deliveries per second between the first and the last one."""
        seconds = (self.last_event_ms - self.first_event_ms) / 1000
        return self.events / seconds if seconds > 0 else 0.0

    @property
    def opened_per_second(self) -> float:
        """Streams opened per second."""
        seconds = (self.last_open_ms - self.first_connect_ms) / 1000
        return self.opening_ms.count / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class StreamRow:
    """One stream; `ended` is how its last connection ended, "" while the first one lives."""

    state: str
    ended: str
    events: int
    lost: int
    comments: int
    retry: int
    last_id: str
    ended_ms: float


class Swarm:
    """A running load client, as a context manager.

    Each `%d` in the URL becomes the stream's number: `.../stream?channel=name-%d`; of several URLs,
    which differ in nothing but path and query, the streams take one after the other. `sources`
    spreads the streams over 127.0.0.1 and so on, past the ports of one address. At most `in_flight`
    streams wait for their response head, and at most `rate` a second are opened (0: no limit). With
    `reopen="refused"` a stream that was softly refused is opened again after its retry time (at
    most `retry_cap_ms`); with "ended" whatever ended it, and with its Last-Event-ID. A small
    `receive_buffer` lets the server feel sooner that a stream has stopped reading.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        streams: int,
        *,
        headers: Mapping[str, str] | None = None,
        http10: bool = False,
        in_flight: int = 64,
        rate: int = 0,
        sources: int = 1,
        expect: int = 0,
        receive_buffer: int = 0,
        reopen: Literal["never", "refused", "ended"] = "never",
        retry_cap_ms: int = 1000,
        cache: bool = True,
    ) -> None:
        urls = [urlsplit(one) for one in ([url] if isinstance(url, str) else url)]
        parts = urls[0]
        command = [
            str(compiled(SOURCE)),
            f"--host={parts.hostname}",
            f"--port={parts.port}",
            f"--streams={streams}",
        ]
        command += [
            f"--path={one.path or '/'}" + (f"?{one.query}" if one.query else "") for one in urls
        ]
        command += [f"--header={name}: {value}" for name, value in (headers or {}).items()]
        command += [
            f"--in-flight={in_flight}",
            f"--rate={rate}",
            f"--sources={sources}",
            f"--expect={expect}",
        ]
        command += [f"--receive-buffer={receive_buffer}", f"--retry-cap={retry_cap_ms}"]
        command += (
            ["--http10"] * http10
            + ["--no-cache"] * (not cache)
            + [f"--reopen={reopen}"] * (reopen != "never")
        )
        self._lines: list[dict[str, Any]] = []
        self._rest = b""
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno())

    def __enter__(self) -> Swarm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The client's process id."""
        return self._process.pid

    def wait_open(self, timeout: float = 60.0, *, all_of_them: bool = True) -> Report:
        """Wait until every stream is open; without `all_of_them`: is open or has failed."""
        report = self._wait_for("open", timeout)
        if all_of_them and report.open < report.streams:
            raise SwarmError(
                f"only {report.open} of {report.streams} streams are open: {self._why(report)}"
            )
        return report

    def wait_complete(self, timeout: float = 60.0) -> Report:
        """Wait until every open stream has had the expected number of events."""
        return self._wait_for("complete", timeout)

    def wait_ended(self, timeout: float = 60.0) -> Report:
        """Wait until no stream is left."""
        return self._wait_for("ended", timeout)

    def wait_until(self, condition: Callable[[Report], bool], timeout: float = 60.0) -> Report:
        """Ask for reports until one meets the condition."""
        deadline = time.monotonic() + timeout
        while not condition(report := self.report()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout} s: {report}")
            time.sleep(0.02)
        return report

    def report(self) -> Report:
        """Return all counters."""
        return Report.parse(self._ask("report", "report"))

    def streams(self) -> list[StreamRow]:
        """Return one row per stream, in the order of their numbers."""
        return [StreamRow(*row) for row in self._ask("streams", "streams")["rows"]]

    def vanish(self, count: int, how: Literal["fin", "rst"] = "fin") -> int:
        """Let the first `count` open streams that read leave; return how many did."""
        return int(self._ask(f"vanish {count} {how}", "vanish")["count"])

    def stop_reading(self, count: int) -> int:
        """Let the last `count` open streams stop reading; return how many did."""
        return int(self._ask(f"stop {count}", "stop")["count"])

    def resume(self) -> int:
        """Let all stopped streams read on; return how many do."""
        return int(self._ask("resume", "resume")["count"])

    def clear(self) -> None:
        """Set all counters to zero, and take the next number of each stream as its first."""
        self._forget("complete")
        self._ask("clear", "clear")

    def expect(self, count: int) -> None:
        """Set how many events each stream must have for `wait_complete`, counted since `clear`."""
        self._forget("complete")
        self._ask(f"expect {count}", "expect")

    def close(self) -> None:
        """End the client; all its streams are closed."""
        self._socket.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, command: str, what: str) -> dict[str, Any]:
        try:
            self._socket.settimeout(REPLY_SECONDS)
            self._socket.sendall(command.encode() + b"\n")
        except OSError as error:
            raise SwarmError(
                f"the load client is gone (exit code {self._process.poll()})"
            ) from error
        return self._next(what, REPLY_SECONDS)

    def _wait_for(self, what: str, timeout: float) -> Report:
        try:
            return Report.parse(self._next(what, timeout))
        except TimeoutError:
            raise TimeoutError(
                f"not {what} within {timeout} s: {self._why(self.report())}"
            ) from None

    def _next(self, what: str, timeout: float) -> dict[str, Any]:
        """Return the client's next line of this kind; others are kept for whoever asks for them."""
        deadline = time.monotonic() + timeout
        while True:
            for index, line in enumerate(self._lines):
                if line["what"] == what:
                    return self._lines.pop(index)
            self._read_lines(deadline)

    def _read_lines(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the load client did not answer in time")
        self._socket.settimeout(left)
        data = self._socket.recv(1 << 20)
        if not data:
            raise SwarmError(f"the load client has died (exit code {self._process.wait()})")
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += [json.loads(line) for line in lines]

    def _forget(self, what: str) -> None:
        self._lines = [line for line in self._lines if line["what"] != what]

    @staticmethod
    def _why(report: Report) -> str:
        endings = {name: count for name, count in report.endings.items() if count}
        waiting = f"{report.waiting} waiting, {report.connecting} connecting, {report.open} open"
        counts = f"{report.events_least} to {report.events_most} events per stream"
        return f"{waiting}; endings {endings}, statuses {dict(report.statuses)}; {counts}"
