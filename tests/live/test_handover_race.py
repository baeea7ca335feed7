"""5 000 reconnects with random cursors while events flow: replay and live meet without a seam."""

from __future__ import annotations

import bisect
import json
import os
import random
import re
import socket
import struct
import time

import gevent
import pytest

from service.recent import EVENTS_PER_CHANNEL
from tests.fault_proxy import FaultProxy
from tests.live_server import LiveService, until
from tests.resuming import packed, unpacked
from tests.sse_client import ChunkedBody
from tests.valkey import Valkey

pytestmark = pytest.mark.live

CHANNELS = 8
EVENTS_PER_SECOND = 500
BATCH = 25
RECONNECTS = 5_000
CLIENTS = 24
REMEMBERED = CHANNELS * EVENTS_PER_CHANNEL
FURTHEST_BACK = 3000
"""How many events a cursor lies behind at most: of its channel, more than a worker remembers, and
less than Redis keeps."""

EVENT = re.compile(rb"^id: (\d+-\d+)\ndata: ", re.MULTILINE)
FAREWELL = re.compile(rb"\n\nretry: \d+\n\n\Z")
READ_BYTES = 262_144


class Race:
    """One publisher of events to one to three channels, and clients that come and go."""

    def __init__(
        self, service: LiveService, publishing: LiveService, seed: int, reconnects: int
    ) -> None:
        self.service = service
        self.publishing = publishing
        self.chance = random.Random(seed)
        self.left = reconnects
        self.refused = 0
        self.ids: list[int] = []
        self.channels: list[frozenset[str]] = []
        self.deliveries = self.from_far = 0
        self.faults: list[str] = []

    def run(self) -> None:
        """Until all reconnects are made."""
        publisher = gevent.spawn(self._publish)
        until(lambda: len(self.ids) > FURTHEST_BACK, 30, "there is a past")
        clients = [gevent.spawn(self._come_and_go) for _ in range(CLIENTS)]
        gevent.joinall(clients, raise_error=True)
        assert not publisher.dead, "the publisher has failed"
        publisher.kill()

    def _pick(self) -> list[str]:
        names = self.chance.sample(range(CHANNELS), self.chance.choice((1, 1, 2, 3)))
        return [f"race-{number}" for number in names]

    def _publish(self) -> None:
        started, sent = time.monotonic(), 0
        while True:
            events = [{"channels": self._pick(), "data": f"{sent + n}"} for n in range(BATCH)]
            status, body, _ = self.publishing.post("/publish", json.dumps(events).encode())
            assert status == 200, body
            for event, receipt in zip(events, json.loads(body), strict=True):
                self.ids.append(packed(receipt["id"]))
                self.channels.append(frozenset(event["channels"]))
            sent += BATCH
            gevent.sleep(max(0.0, started + sent / EVENTS_PER_SECOND - time.monotonic()))

    def _come_and_go(self) -> None:
        while self.left > 0 and len(self.faults) < 5:
            self.left -= 1
            channels = self._pick()
            far = self.chance.random() < 0.05
            back = (
                self.chance.randint(1, FURTHEST_BACK) if far else int(300 ** self.chance.random())
            )
            cursor = self.ids[-back]
            known = self.ids[-1]
            got = self._stream(channels, cursor, self._wanted(channels, cursor, known))
            if got is None:
                self.refused += 1
                continue
            wanted = self._await_wanted(channels, cursor, got)
            self.deliveries += len(got)
            self.from_far += back > REMEMBERED
            if got != wanted[: len(got)] or len(got) < len(self._wanted(channels, cursor, known)):
                self._tell(channels, cursor, got, wanted)

    def _wanted(self, channels: list[str], cursor: int, last: int) -> list[int]:
        first = bisect.bisect_right(self.ids, cursor)
        followed = frozenset(channels)
        return [
            event_id
            for event_id, told in zip(self.ids[first:], self.channels[first:], strict=True)
            if told & followed and event_id <= last
        ]

    def _await_wanted(self, channels: list[str], cursor: int, got: list[int]) -> list[int]:
        """What had to come, once the receipts of all that came are here."""
        if got:
            until(lambda: self.ids[-1] >= got[-1], 10, "the receipt of what was received")
        return self._wanted(channels, cursor, got[-1] if got else cursor)

    def _stream(self, channels: list[str], cursor: int, wanted: list[int]) -> list[int] | None:
        """Stream until all `wanted` have come, and a moment longer; None for a soft refusal."""
        query = "&".join(f"channel={channel}" for channel in channels)
        request = f"GET /stream?{query} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
        with socket.create_connection(("127.0.0.1", self.service.port), 15) as sock:
            sock.sendall(f"{request}Last-Event-ID: {unpacked(cursor)}\r\n\r\n".encode())
            text = self._read(sock, len(wanted))
            if text is None:
                return None
            if self.chance.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if b"$reset" in text:
            self.faults.append(f"a reset: {text[-500:]!r}")
        return [packed(event_id.decode()) for event_id in EVENT.findall(text)]

    def _read(self, sock: socket.socket, wanted: int) -> bytes | None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(READ_BYTES)
        head, _, rest = head.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        if b"Transfer-Encoding: chunked" not in head:
            return None  # a busy machine: the worker could not catch up within 5 s
        body = ChunkedBody()
        text = body.feed(rest)
        deadline = time.monotonic() + 15
        enough = False
        while time.monotonic() < deadline:
            if not enough and len(EVENT.findall(text)) >= wanted:
                enough = True
                deadline = time.monotonic() + self.chance.uniform(0.001, 0.06)
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = sock.recv(READ_BYTES)
            except TimeoutError:
                break
            if not data and FAREWELL.search(text):
                return None  # the same, when some of it was sent already
            if not data:
                self.faults.append(f"the stream ended: {text[-200:]!r}")
                break
            text += body.feed(data)
        return text

    def _tell(self, channels: list[str], cursor: int, got: list[int], wanted: list[int]) -> None:
        missing = [unpacked(one) for one in wanted if one not in got][:3]
        twice = [unpacked(one) for one in got if got.count(one) > 1][:3]
        strange = [unpacked(one) for one in got if one not in wanted][:3]
        self.faults.append(
            f"{channels} after {unpacked(cursor)}: {len(got)} of {len(wanted)} events,"
            f" missing {missing}, twice {twice}, not to come {strange}, sorted {got == sorted(got)}"
        )


@pytest.mark.timeout(240)
@pytest.mark.parametrize("piece_bytes", [0, 200], ids=["whole", "in pieces"])
def test_reconnects_during_a_flood(own_valkey: Valkey, piece_bytes: int) -> None:
    """Every stream gets what is above its cursor, once, in order, however the bytes are cut.

    Also an event of several channels, of which one half has come. TEST_SEED repeats.
    """
    seed = int(os.environ.get("TEST_SEED") or random.randrange(1_000_000))
    print(f"seed {seed}")
    reconnects = RECONNECTS if not piece_bytes else RECONNECTS // 5
    with (
        FaultProxy(("127.0.0.1", own_valkey.port)) as proxy,
        LiveService(
            f"redis://127.0.0.1:{proxy.port}/0" if piece_bytes else own_valkey.url,
            WEB_CONCURRENCY=2,
        ) as service,
        LiveService(own_valkey.url) as publishing,
    ):
        service.wait_workers()
        proxy.dribble(piece_bytes, 0.0002)
        race = Race(service, publishing, seed, reconnects)
        started = time.monotonic()
        race.run()
        seconds = time.monotonic() - started
    print(
        f"{reconnects} reconnects in {seconds:.1f} s, {len(race.ids)} events,"
        f" {race.deliveries} deliveries, {race.from_far} from far back, {race.refused} refused"
    )
    assert race.refused <= reconnects / 50
    assert race.faults == []
