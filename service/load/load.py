"""Opens streams, publishes to them, and counts what arrives, and when."""

from __future__ import annotations

import contextlib
import secrets
import ssl
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from typing import Any

import gevent
import gevent.pool
import gevent.socket
import gevent.ssl

from service.errors import ConfigError
from service.load.latencies import Latencies
from service.load.plan import Plan
from service.load.tally import Tally
from service.remote import Remote, RemoteStream, reason_of

OPENING_AT_ONCE = 20
OPENING_SECONDS = 10.0
ANSWER_SECONDS = 10.0

LAST_SECONDS = 3.0
"""How long the last deliveries may take before they count as lost."""

BUSY_SHARE = 0.85
"""Beyond this share of a CPU the client waits for itself, and measures that."""

WANTED = "set PUSHLINE_TOKEN to a token that may publish and stream bench-*"

CREDENTIAL_CODES = ("no_credential", "bad_credential", "expired_credential", "not_granted")

PAUSE_SECONDS = 0.2
"""After a publish that was refused."""


def connect_in_turn(host: str, port: int, tls: bool, seconds: float) -> Any:
    """A socket of gevent's, without a timeout: who waits for too long is told otherwise."""
    plain = gevent.socket.create_connection((host, port), seconds)
    plain.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
    plain.settimeout(None)
    if not tls:
        return plain
    try:
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_default_certs()
        return context.wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


class Load:
    """One measurement of the service of `remote`, on a channel of its own.

    `phase` is opening, publishing, waiting or done; the numbers may be read at any time.
    """

    def __init__(self, remote: Remote, plan: Plan) -> None:
        self.plan = plan
        self.phase = "opening"
        self.opened = 0
        self.refused: Counter[str] = Counter()
        self.cut = 0
        self.published: Counter[int] = Counter()
        self.failed: Counter[str] = Counter()
        self.connecting, self.latencies = Latencies(), Latencies()
        self.opening_seconds = self.publishing_seconds = self.cpu_share = 0.0
        self.began_at = 0.0
        self._remote = remote
        self._channel = f"bench-{secrets.token_hex(8)}"
        self._tallies: list[Tally] = []
        self._unknown: set[tuple[int, int]] = set()
        self._forbidden = False
        self._readers = gevent.pool.Group()

    @property
    def delivered(self) -> int:
        """How many events have come, over all streams."""
        return sum(one.delivered for one in self._tallies)

    @property
    def twice(self) -> int:
        """How many of them had come before."""
        return sum(one.twice for one in self._tallies)

    @property
    def disordered(self) -> int:
        """How many of them should have come before others."""
        return sum(one.disordered for one in self._tallies)

    @property
    def lost(self) -> int:
        """How many have not come, or not yet."""
        return sum(one.lost(self.published, self._unknown) for one in self._tallies)

    def run(self) -> None:
        """Measure. Raises ConfigError when the service refuses what is wanted."""
        try:
            self._open_streams()
            if not self.opened:
                raise ConfigError(f"no stream could be opened: {self._refusals()}")
            self._publish()
            self._await_last()
        finally:
            self.phase = "done"
            self._readers.kill()
            with contextlib.suppress(OSError, HTTPException, gevent.Timeout):
                self._forget_channel()

    # -- streams -------------------------------------------------------------------------------

    def _open_streams(self) -> None:
        began = time.perf_counter()
        pool = gevent.pool.Pool(OPENING_AT_ONCE)
        pause = 1 / self.plan.connects_per_second if self.plan.connects_per_second else 0
        for number in range(self.plan.streams):
            gevent.sleep(max(0.0, began + number * pause - time.perf_counter()))
            pool.spawn(self._open_stream)
        pool.join()
        self.opening_seconds = time.perf_counter() - began

    def _refusals(self) -> str:
        told = ", ".join(f"{reason} ({count})" for reason, count in self.refused.most_common())
        wants = any(reason in CREDENTIAL_CODES for reason in self.refused)
        return f"{told}; {WANTED}" if wants else told

    def _open_stream(self) -> None:
        began = time.perf_counter()
        with contextlib.ExitStack() as unless_opened:
            try:
                with gevent.Timeout(OPENING_SECONDS, TimeoutError):
                    stream = unless_opened.enter_context(self._remote.stream(self._channel))
                    if not stream.opened:
                        self.refused[stream.read_code()] += 1
                        return
                    opening = stream.read()
            except (OSError, HTTPException) as error:
                self.refused[reason_of(error)] += 1
                return
            self.connecting.add(time.perf_counter() - began)
            self.opened += 1
            self._tallies.append(Tally())
            list(stream.messages(opening))
            unless_opened.pop_all()
            self._readers.start(gevent.Greenlet(self._read, stream, self._tallies[-1]))

    def _read(self, stream: RemoteStream, tally: Tally) -> None:
        with stream:
            try:
                while data := stream.read():
                    now = time.perf_counter()
                    for message in stream.messages(data):
                        self._take(tally, message.data, now)
            except (OSError, HTTPException):
                pass  # counted as any other early end
            self.cut += 1

    def _take(self, tally: Tally, data: str, now: float) -> None:
        try:
            publisher, number, sent = data.split()[:3]
            tally.take(int(publisher), int(number))
            self.latencies.add(now - float(sent))
        except ValueError:
            pass  # an event of the service itself, such as $reset

    # -- publishing ----------------------------------------------------------------------------

    def _publish(self) -> None:
        self.phase = "publishing"
        self.began_at, busy = time.perf_counter(), time.process_time()
        publishers = [
            gevent.spawn(self._publish_all, number) for number in range(self.plan.publishers)
        ]
        gevent.joinall(publishers, raise_error=True)
        if self._forbidden:
            raise ConfigError(f"the service takes no events of this one: {WANTED}")
        self.publishing_seconds = time.perf_counter() - self.began_at
        self.cpu_share = (time.process_time() - busy) / self.publishing_seconds

    def _publish_all(self, publisher: int) -> None:
        """Publish one after the other, each at its time or as soon as the one before is taken."""
        every = self.plan.publishers / self.plan.rate if self.plan.rate else 0.0
        due = self.began_at + every * publisher / self.plan.publishers
        end = self.began_at + self.plan.seconds - every / 2
        connection: HTTPConnection | None = None
        number = 0
        while (now := max(due, time.perf_counter())) < end and not self._forbidden:
            gevent.sleep(max(0.0, due - time.perf_counter()))
            due = max(due + every, now - 1)  # what is late is caught up with, up to a second
            try:
                with gevent.Timeout(ANSWER_SECONDS, TimeoutError):
                    if connection is None or connection.sock is None:  # an answer has ended it
                        connection = self._remote.connection()
                    taken = self._publish_one(connection, publisher, number + 1)
            except (OSError, HTTPException) as error:
                self._unknown.add((publisher, number + 1))
                self.failed[reason_of(error)] += 1
                if connection is not None:
                    connection.close()  # a late answer would be taken for that of the next
                taken = True
                gevent.sleep(PAUSE_SECONDS)
            number += taken
            self.published[publisher] = number
        if connection is not None:
            connection.close()

    def _publish_one(self, connection: HTTPConnection, publisher: int, number: int) -> bool:
        data = f"{publisher} {number} {time.perf_counter():.7f} ".ljust(self.plan.size, "x")
        path, shown = f"/channels/{self._channel}", self._remote.authorization()
        response = self._remote.request(connection, "POST", path, data.encode(), shown)
        response.read()
        if response.status == 200:
            return True
        self.failed[str(response.status)] += 1
        self._forbidden = self._forbidden or response.status in (401, 403)
        gevent.sleep(PAUSE_SECONDS)
        return False

    def _await_last(self) -> None:
        self.phase = "waiting"
        deadline = time.perf_counter() + LAST_SECONDS
        while self.lost and time.perf_counter() < deadline:
            gevent.sleep(0.05)

    def _forget_channel(self) -> None:
        with gevent.Timeout(ANSWER_SECONDS):
            self._remote.ask(
                "DELETE", f"/channels/{self._channel}", headers=self._remote.authorization()
            )
