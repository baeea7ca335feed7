"""The chaos oracle: publishers and resuming clients, while everything between them is broken.

Pass: every acknowledged event reached every client of its channels, no id came twice to a client or
went back, and there was no `$reset`, as Redis writes each event to disk before it answers. Faults
and their times follow from the seed alone. `python -m tests.chaos` runs it; `make chaos` for long.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import dataclasses
import http.client
import json
import os
import queue
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fault_proxy import FaultProxy
from tests.live_server import LiveService, until
from tests.resuming import Received, Report, Resuming, packed, unpacked
from tests.valkey import Valkey

CHANNELS = 20
PUBLISHES_PER_SECOND = 200
PUBLISHERS = 16
BACKLOG = 400
"""Events that wait for a publisher: after a fault, or on a slow machine, publishing falls behind
by no more than this."""

PUBLISH_SECONDS = 6.0
"""How long a publisher waits for an answer: longer than a worker or Redis is ever stopped."""

UNAVAILABLE = (502, 503)
"""Answers after which a publisher tries again, with the same key; 502 is a proxy's."""

ACKNOWLEDGE_SECONDS = 60.0
"""How long the backlog may take in the end: what isn't acknowledged isn't promised, yet may not
hang."""

BETWEEN_FAULTS = (2.0, 4.0)
CATCH_UP_SECONDS = 20.0
CALM_BEFORE = 1.5
"""Seconds of undisturbed traffic before the first fault."""

SETTINGS = {
    "WEB_CONCURRENCY": 2,
    "HEARTBEAT_SECONDS": 1,
    "RETRY_MILLISECONDS": 400,
    "DRAIN_SECONDS": 1,
}

KINDS = {
    # kind: what it harms (faults of one thing don't overlap) and for how many seconds
    "pub/sub killed": ("redis", 0.0),
    "redis stopped": ("redis", 4.0),
    "redis killed": ("redis", 1.0),
    "worker killed": ("workers", 0.0),
    "worker stopped": ("workers", 3.0),
    "proxy cut": ("proxy", 0.0),
    "proxy closed": ("proxy", 1.5),
    "proxy frozen": ("proxy", 3.0),
    "proxy swallows": ("proxy", 2.0),
    "proxy dribbles": ("proxy", 3.0),
    "clients aborted": ("clients", 0.0),
    "reloaded": ("services", 4.0),
    "rolling restart": ("services", 5.0),
}


@dataclass(frozen=True)
class Fault:
    """A fault of the plan; `pick` in [0, 1) chooses the victim or the manner."""

    at: float
    kind: str
    pick: float

    @property
    def until(self) -> float:
        """When it is over."""
        return self.at + KINDS[self.kind][1]


def plan(seed: int, seconds: float) -> list[Fault]:
    """The faults of a run: every kind once before any comes again."""
    chance = random.Random(seed)
    faults: list[Fault] = []
    deck: list[str] = []
    busy: dict[str, float] = {}
    at = CALM_BEFORE
    while True:
        deck = deck or chance.sample(sorted(KINDS), len(KINDS))
        kind = deck.pop()
        harmed, lasting = KINDS[kind]
        at = max(at, busy.get(harmed, 0.0))
        if at + lasting > seconds:
            return faults
        faults.append(Fault(at, kind, chance.random()))
        busy[harmed] = at + lasting + 0.2
        at += chance.uniform(*BETWEEN_FAULTS)


@dataclass
class Outcome:
    """What came of a run; `failures` is empty if it passed."""

    seed: int
    seconds: float
    clients: int
    faults: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    publish_retries: int = 0
    unavailable: dict[int, int] = field(default_factory=dict)
    replayed: int = 0
    slowest_publish_seconds: float = 0.0
    deliveries: int = 0
    missing: int = 0
    unacknowledged: int = 0
    connections: int = 0
    catch_up_seconds: float = -1.0
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = dataclasses.asdict(self)
        return json.dumps({**told, "faults_in_all": sum(self.faults.values())}, indent=1)


class Publishers:
    """Publish over HTTP at a rate, and again with the same key until it is acknowledged."""

    def __init__(self, ports: Callable[[], list[int]], seed: int) -> None:
        self.acknowledged: dict[str, tuple[str, ...]] = {}
        self.failures: list[str] = []
        self.retries = self.replayed = 0
        self.unavailable: Counter[int] = Counter()
        self.slowest_seconds = 0.0
        self._ports = ports
        self._random = random.Random(seed)
        self._work: queue.Queue[int] = queue.Queue(BACKLOG)
        self._lock = threading.Lock()
        self._stopping = self._giving_up = False
        self._threads = [threading.Thread(target=self._serve) for _ in range(PUBLISHERS)]
        self._threads.append(threading.Thread(target=self._issue))
        for thread in self._threads:
            thread.start()

    def finish(self, timeout: float) -> None:
        """Issue no more; wait until all is acknowledged."""
        self._stopping = True
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self.failures.append(f"not all publishes were acknowledged within {timeout} s")
        self.close()

    def close(self) -> None:
        """End at once."""
        self._stopping = self._giving_up = True
        for thread in self._threads:
            thread.join(2 * PUBLISH_SECONDS)

    def _issue(self) -> None:
        started, number = time.monotonic(), 0
        while not self._stopping:
            due = (time.monotonic() - started) * PUBLISHES_PER_SECOND
            with contextlib.suppress(queue.Full):
                while number < due:
                    self._work.put(number, timeout=0.1)
                    number += 1
            time.sleep(0.005)
        for _ in self._threads[:-1]:
            with contextlib.suppress(queue.Full):  # nobody takes any more: they have failed
                self._work.put(-1, timeout=2 * PUBLISH_SECONDS)

    def _serve(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", 1)
        try:
            while (number := self._work.get()) >= 0 and not self._giving_up:
                connection = self._publish(connection, number)
        except Exception as error:
            self.failures.append(f"a publisher failed: {error!r}")
            raise
        finally:
            connection.close()

    def _publish(
        self, connection: http.client.HTTPConnection, number: int
    ) -> http.client.HTTPConnection:
        """Publish one event, every tenth to two channels; returns the connection for the next."""
        channels = tuple(
            f"c{(number * step) % CHANNELS}" for step in (7, 3)[: 1 + (number % 10 == 9)]
        )
        channels = tuple(dict.fromkeys(channels))
        body = {"channels": channels, "data": f"{','.join(channels)} {number}"}
        text = json.dumps({**body, "idempotency_key": f"key-{number}"})
        started = time.monotonic()
        while not self._giving_up:
            try:
                connection.request("POST", "/publish", text)
                answer = connection.getresponse()
                reply = answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                connection = self._connect()
            else:
                if self._take(answer.status, reply, channels, started):
                    break
            self.retries += 1
            time.sleep(self._random.uniform(0.02, 0.1))
        return connection

    def _connect(self) -> http.client.HTTPConnection:
        port = self._random.choice(self._ports())
        return http.client.HTTPConnection("127.0.0.1", port, timeout=PUBLISH_SECONDS)

    def _take(self, status: int, reply: bytes, channels: tuple[str, ...], started: float) -> bool:
        if status in UNAVAILABLE:
            self.unavailable[status] += 1
            return False
        with self._lock:
            if status != 200:
                self.failures.append(f"a publish was answered {status}: {reply[:300]!r}")
                return True
            told = json.loads(reply)
            if told["id"] in self.acknowledged:
                self.failures.append(f"the id {told['id']} was given out twice")
            self.acknowledged[told["id"]] = channels
            self.replayed += told["replayed"]
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)
        return True


class Chaos:
    """One run: Valkey behind a proxy, two services, publishers, clients, and the plan."""

    def __init__(
        self, *, seed: int, seconds: float, clients: int, progress: Callable[[str], None]
    ) -> None:
        self.outcome = Outcome(seed, seconds, clients)
        self.log: list[str] = []
        self.services: list[LiveService] = []
        self.retired: list[LiveService] = []
        self._plan = plan(seed, seconds)
        self._progress = progress
        self._undo: list[tuple[float, str, Callable[[], object]]] = []
        self._restarts: list[threading.Thread] = []
        self._replaced: list[LiveService] = []
        self._tell_at = 0.0
        self._told = 0

    def run(self) -> Outcome:
        """Run the plan and compare; everything that was started has ended then."""
        with contextlib.ExitStack() as stack:
            self.valkey = stack.enter_context(Valkey(aof=True))
            self.proxy = stack.enter_context(
                FaultProxy(("127.0.0.1", self.valkey.port), seed=self.outcome.seed)
            )
            stack.callback(self._stop_services)
            self._start_services(stack)
            self.clients = stack.enter_context(
                Resuming(self.outcome.clients, channels=CHANNELS, seed=self.outcome.seed)
            )
            self.clients.use(self.ports())
            until(lambda: self._all_begun(), 60, "all clients have begun")
            publishers = Publishers(self.ports, self.outcome.seed)
            stack.callback(publishers.close)
            self._inject()
            publishers.finish(ACKNOWLEDGE_SECONDS)
            self._judge(publishers)
        return self.outcome

    def _start_services(self, stack: contextlib.ExitStack) -> None:
        for _ in range(2):
            self._add_service()

    def ports(self) -> list[int]:
        """Where the services listen that new connections may go to."""
        return [service.port for service in self.services]

    def _all_begun(self) -> bool:
        report = self.clients.report()
        return report.begun == report.open == self.outcome.clients

    # -- faults ----------------------------------------------------------------------------------

    def _inject(self) -> None:
        started = time.monotonic()
        steps = [*self._plan, None]
        for fault in steps:
            due = fault.at if fault else self.outcome.seconds
            while (now := time.monotonic() - started) < due:
                self._undo_due(now)
                self._tell(now)
                time.sleep(min(0.05, due - now))
            self._undo_due(now)
            if fault is not None:
                self._harm(fault)
        self._undo_due(float("inf"))

    def _harm(self, fault: Fault) -> None:
        kinds = self.outcome.faults
        kinds[fault.kind] = kinds.get(fault.kind, 0) + 1
        act: Callable[[Fault], str] = getattr(self, "_" + fault.kind.translate(_NO_SIGNS))
        self._note(f"{fault.kind}: {act(fault)}")

    def _note(self, text: str) -> None:
        self.log.append(f"{time.time():.3f} {text}")

    def _later(self, fault: Fault, text: str, undo: Callable[[], object]) -> None:
        self._undo.append((fault.until, text, undo))

    def _undo_due(self, now: float) -> None:
        for each in [each for each in self._undo if each[0] <= now]:
            self._undo.remove(each)
            each[2]()
            self._note(each[1])

    def _tell(self, now: float) -> None:
        if now < self._tell_at:
            return
        self._tell_at = now + 1.0
        report = self.clients.report()
        for text in report.noted[self._told :]:
            self._note(text)
            print(text, flush=True)
        self._told = len(report.noted)
        self._progress(
            f"{now:.0f} of {self.outcome.seconds:.0f} s,"
            f" {sum(self.outcome.faults.values())} faults, {report.events} deliveries,"
            f" {report.open} of {self.outcome.clients} streams open, {len(report.noted)} wrong"
        )

    def _pubsubkilled(self, fault: Fault) -> str:
        return f"{self.valkey.cli('CLIENT', 'KILL', 'TYPE', 'pubsub')} connections"

    def _redisstopped(self, fault: Fault) -> str:
        self.valkey.stop_process()
        self._later(fault, "redis goes on", self.valkey.cont)
        return ""

    def _rediskilled(self, fault: Fault) -> str:
        self.valkey.kill()
        self._later(fault, "redis is back", self.valkey.start)
        return ""

    def _victim(self, fault: Fault) -> int:
        """A worker of any service."""
        workers = [pid for service in self.services for pid in service.worker_pids()]
        return workers[int(fault.pick * len(workers))]

    def _workerkilled(self, fault: Fault) -> str:
        pid = self._victim(fault)
        _signal(pid, signal.SIGKILL)
        return f"process {pid}"

    def _workerstopped(self, fault: Fault) -> str:
        pid = self._victim(fault)
        _signal(pid, signal.SIGSTOP)
        self._later(fault, f"process {pid} goes on", lambda: _signal(pid, signal.SIGCONT))
        return f"process {pid}"

    def _proxycut(self, fault: Fault) -> str:
        return f"{self.proxy.cut('rst' if fault.pick < 0.5 else 'fin')} connections"

    def _proxyclosed(self, fault: Fault) -> str:
        self.proxy.refuse()
        self._later(fault, "proxy accepts", self.proxy.heal)
        return f"{self.proxy.cut()} connections"

    def _proxyfrozen(self, fault: Fault) -> str:
        self.proxy.freeze(new_too=fault.pick < 0.5)
        self._later(fault, "proxy thaws", self.proxy.heal)
        return ""

    def _proxyswallows(self, fault: Fault) -> str:
        self.proxy.swallow_replies(0.01, then="hang" if fault.pick < 0.5 else "rst")
        self._later(fault, "proxy swallows nothing", self.proxy.heal)
        return ""

    def _proxydribbles(self, fault: Fault) -> str:
        self.proxy.dribble(200, 0.0005)
        self._later(fault, "proxy dribbles no more", self.proxy.heal)
        return ""

    def _clientsaborted(self, fault: Fault) -> str:
        count = int((0.2 + 0.8 * fault.pick) * self.outcome.clients)
        self.clients.abort(count)
        return f"{count} of them"

    def _reloaded(self, fault: Fault) -> str:
        service = self.services[int(fault.pick * len(self.services))]
        service.signal(signal.SIGHUP)
        return f"the service on port {service.port}"

    def _rollingrestart(self, fault: Fault) -> str:
        old = self.services[int(fault.pick * len(self.services))]
        thread = threading.Thread(target=self._replace, args=[old])
        thread.start()
        self._restarts.append(thread)
        return f"the service on port {old.port}"

    def _replace(self, old: LiveService) -> None:
        if old in self._replaced:
            return  # on a slow machine the last restart may still be going on
        self._replaced.append(old)
        try:
            new = self._add_service(ready=False)
            self._note(f"a new service is on port {new.port}")
            self.services.remove(old)
            self.retired.append(old)
            self.clients.use(self.ports())
            old.signal(signal.SIGTERM)
            self._note(f"the service on port {old.port} ended with {old.wait(40)}")
        except Exception as error:
            self.outcome.failures.append(f"a rolling restart failed: {error!r}")

    def _add_service(self, *, ready: bool = True) -> LiveService:
        service = LiveService(f"redis://127.0.0.1:{self.proxy.port}/0", **SETTINGS)
        try:
            service.start(ready=ready)
        except BaseException:
            self.retired.append(service)
            raise
        self.services.append(service)
        return service

    def _stop_services(self) -> None:
        for thread in self._restarts:
            thread.join(60)
        for service in [*self.services, *self.retired]:
            service.stop()
            service.log_path.unlink()

    # -- judgement -------------------------------------------------------------------------------

    def _judge(self, publishers: Publishers) -> None:
        outcome = self.outcome
        outcome.acknowledged = len(publishers.acknowledged)
        outcome.unavailable = dict(publishers.unavailable)
        outcome.publish_retries, outcome.replayed = publishers.retries, publishers.replayed
        outcome.slowest_publish_seconds = round(publishers.slowest_seconds, 2)
        outcome.failures += publishers.failures
        expected = Expected(publishers.acknowledged)
        started = time.monotonic()
        while any(got < expected.count(client) for got, client in self.clients.counts()):
            if time.monotonic() - started > CATCH_UP_SECONDS:
                break
            time.sleep(0.2)
        seconds = time.monotonic() - started
        with tempfile.TemporaryDirectory() as folder:
            received = self.clients.received(Path(folder) / "ids")
        outcome.catch_up_seconds = round(seconds, 1)
        report = self.clients.report()
        outcome.deliveries, outcome.connections = report.events, report.connections
        outcome.counts = dict(report.counts)
        self._compare(expected, received)
        self._judge_report(report)
        if outcome.failures:
            self._explain(report)

    def _compare(self, expected: Expected, received: Sequence[Received]) -> None:
        for one in received:
            wanted = expected.of(one)
            missing = sorted(set(wanted).difference(one.ids))
            extra = sorted(set(one.ids).difference(wanted))
            self.outcome.missing += len(missing)
            self.outcome.unacknowledged += len(extra)
            if (missing or extra) and len(self.outcome.failures) < 5:
                self.outcome.failures += self._about(one, missing, extra)

    def _about(self, one: Received, missing: list[int], extra: list[int]) -> Iterator[str]:
        who = f"client {one.number} {one.channels}"
        for what, ids in (("missing", missing), ("never acknowledged", extra)):
            for number in ids[:3]:
                place = bisect.bisect_left(one.ids, number)
                around = [unpacked(near) for near in one.ids[max(0, place - 1) : place + 2]]
                yield f"{who}: {unpacked(number)} {what} ({len(ids)} in all), got {around} near it"
        seconds = (missing + extra)[0] / 2**20 / 1000
        for row in self.clients.history(one.number):
            if row["opened"] - 10 < seconds < (row["ended"] or 2e9) + 10:
                yield f"  {row}"

    def _judge_report(self, report: Report) -> None:
        for what in ("duplicate", "inversion", "position inverted", "reset", "broken", "stray"):
            if report.counts.get(what):
                self.outcome.failures.append(f"{what}: {report.counts[what]}")
        if report.counts.get("rejected"):
            self.outcome.failures.append(f"an EventSource gave up: {report.counts['rejected']}")
        if not sum(self.outcome.faults.values()):
            self.outcome.failures.append("nothing was put to the test")
        self.outcome.failures += report.noted[:10]

    def _explain(self, report: Report) -> None:
        """Add what led to the failure: the faults, and what the services say of that."""
        print(f"--- faults of seed {self.outcome.seed}:", *self.log, sep="\n")
        print("--- noted by clients:", *report.noted[:50], sep="\n")
        for service in [*self.services, *self.retired]:
            lines = [line for line in service.log().splitlines() if _tells(line)]
            print(f"--- log of the service on port {service.port}:", *lines[-200:], sep="\n")


class Expected:
    """What each client must have got, by what it follows and where it began."""

    def __init__(self, acknowledged: dict[str, tuple[str, ...]]) -> None:
        self._channels = [
            (packed(event_id), frozenset(channels)) for event_id, channels in acknowledged.items()
        ]
        self._channels.sort()
        self._known: dict[tuple[str, ...], list[int]] = {}

    def of(self, client: Received) -> list[int]:
        """The ids, in order."""
        if client.channels not in self._known:
            followed = frozenset(client.channels)
            self._known[client.channels] = [
                number for number, channels in self._channels if channels & followed
            ]
        ids = self._known[client.channels]
        return ids[bisect.bisect_right(ids, client.first) :]

    def count(self, client: Received) -> int:
        """How many."""
        return len(self.of(client))


_NO_SIGNS = {ord(sign): None for sign in " /"}


def _tells(line: str) -> bool:
    """Whether a log line is more than a request's."""
    return '"logger": "pushline.access"' not in line


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def main() -> int:
    """Run it; the exit status tells whether it passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    outcome = Chaos(
        seed=options.seed, seconds=options.seconds, clients=options.clients, progress=_progress()
    ).run()
    print(f"\n{outcome}\n{'FAILED' if outcome.failures else 'passed'}")
    return bool(outcome.failures)


def _progress() -> Callable[[str], None]:
    """A line that is written over on a terminal, else one a minute."""
    terminal = sys.stdout.isatty()
    due = time.monotonic()

    def progress(text: str) -> None:
        nonlocal due
        if terminal:
            print(f"\r{text:<100}", end="", flush=True)
        elif time.monotonic() >= due:
            due = time.monotonic() + 60
            print(text, flush=True)

    return progress


if __name__ == "__main__":
    raise SystemExit(main())
