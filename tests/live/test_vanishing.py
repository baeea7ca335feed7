"""Clients that vanish: noticed at once when they say so, and by silence when they can't."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.live_server import LiveService, until
from tests.processes import open_files
from tests.sse_client import SseClient
from tests.swarm import Swarm, need_swarm
from tests.untested import untested
from tests.valkey import Valkey

pytestmark = pytest.mark.live

VANISHING = 500
"""How many clients leave in each of the two ways."""

STAYING = 100
HALF_OPEN = 40
SEND_TIMEOUT = 2
USER_TIMEOUT = 3 * SEND_TIMEOUT
"""What TCP may leave unacknowledged (UNACKNOWLEDGED_FACTOR in sockets.py)."""

POOLED = 4
"""Connections to Redis that a worker may open while files are counted (REDIS_POOL)."""

CLONE_NEWNET = 0x40000000


def endings(service: LiveService) -> Counter[str]:
    """Count the ended streams by their reason."""
    return Counter(line["reason"] for line in service.log_lines() if "reason" in line)


def seconds_to_release(worker: int, vanish: Callable[[], int]) -> float:
    """Let clients vanish and measure until the worker has closed their files."""
    before = open_files(worker)
    started = time.monotonic()
    assert vanish() == VANISHING
    until(lambda: open_files(worker) <= before - VANISHING + POOLED, 5, "all are released")
    return time.monotonic() - started


def test_clients_that_say_goodbye(shared_valkey: Valkey) -> None:
    """1 000 clients that leave, by FIN or RST, are released within 1 s without any traffic.

    Or 2.5 s, when this machine holds things up.
    """
    need_swarm()
    with LiveService(shared_valkey.url, HEARTBEAT_SECONDS=50) as service:
        (worker,) = service.worker_pids()
        with Swarm(f"{service.url}/stream?channel=v-%d", 2 * VANISHING + STAYING) as swarm:
            swarm.wait_open(30)
            opened = open_files(worker)
            fin = seconds_to_release(worker, lambda: swarm.vanish(VANISHING, "fin"))
            rst = seconds_to_release(worker, lambda: swarm.vanish(VANISHING, "rst"))
            until(lambda: endings(service) == {"client_left": 2 * VANISHING}, 5, "all are logged")
            assert max(fin, rst) < 2.5
            assert open_files(worker) <= opened - 2 * VANISHING + POOLED
            assert swarm.report().open == STAYING
            assert swarm.report().comments == 0, "no heartbeat has helped"
    print(f"{VANISHING} clients each: released {fin:.3f} s after FIN, {rst:.3f} s after RST")


class Distant:
    """A network namespace behind a pair of virtual interfaces, whose cable can be pulled."""

    def __init__(self) -> None:
        # Names and addresses are this process's own: what a killed one has left doesn't matter.
        own = os.getpid()
        self.name = f"pushline-{own}"
        self.here, self.there = f"pl{own}a", f"pl{own}b"
        subnet = ipaddress.ip_address("10.213.0.0") + own % 2**14 * 4
        self.address, self._far_address = str(subnet + 1), str(subnet + 2)

    def __enter__(self) -> Distant:
        self.__exit__()  # one that was killed may have had the same number
        try:
            self._ip("netns", "add", self.name)
            self._ip("link", "add", self.here, "type", "veth", "peer", self.there)
            self._ip("link", "set", self.there, "netns", self.name)
            self._ip("addr", "add", f"{self.address}/30", "dev", self.here)
            self._ip("link", "set", self.here, "up")
            self._ip("-n", self.name, "addr", "add", f"{self._far_address}/30", "dev", self.there)
            self._ip("-n", self.name, "link", "set", self.there, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for command in (("link", "del", self.here), ("netns", "del", self.name)):
            with contextlib.suppress(OSError):
                self._ip(*command)

    @staticmethod
    def _ip(*arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Sockets made meanwhile belong to the namespace."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/self/ns/net") as home, open(f"/run/netns/{self.name}") as away:
            if libc.setns(away.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                libc.setns(home.fileno(), CLONE_NEWNET)

    def pull_cable(self) -> None:
        """From now on nothing gets through, and nobody is told."""
        self._ip("-n", self.name, "link", "set", self.there, "down")

    def swallow_answers(self) -> None:
        """From now on the namespace hears everything, but no answer leaves it."""
        self._ip("-n", self.name, "route", "replace", "blackhole", f"{self.address}/32")


@pytest.fixture
def distant() -> Iterator[Distant]:
    """A network of its own; the test is skipped where the machine allows none, but not in CI."""
    if shutil.which("ip") is None:
        untested("half-open clients need the command ip (Debian: iproute2)")
    with contextlib.ExitStack() as stack:
        try:
            network = stack.enter_context(Distant())
            with network.inside():
                pass
        except OSError as error:
            untested(f"half-open clients need network namespaces: {error}")
        yield network


@pytest.mark.parametrize("cut", [Distant.pull_cable, Distant.swallow_answers])
def test_half_open_clients(
    distant: Distant, shared_valkey: Valkey, cut: Callable[[Distant], None]
) -> None:
    """Clients whose network has died are ended as stalled, by their unacknowledged heartbeats."""
    settings = {"HOST": "0.0.0.0", "HEARTBEAT_SECONDS": 1, "SEND_TIMEOUT_SECONDS": SEND_TIMEOUT}
    with (
        LiveService(shared_valkey.url, **settings) as service,
        SseClient.connect(f"{service.url}/stream?channel=near") as near,
        contextlib.ExitStack() as stack,
    ):
        (worker,) = service.worker_pids()
        url = f"http://{distant.address}:{service.port}/stream?channel=far"
        baseline = open_files(worker)
        with distant.inside():
            for _ in range(HALF_OPEN):
                stack.enter_context(SseClient.connect(url))
        assert open_files(worker) >= baseline + HALF_OPEN
        cut(distant)
        started = time.monotonic()
        until(lambda: endings(service).total() >= 1, USER_TIMEOUT + 6, "the first one ends")
        first = time.monotonic() - started
        until(lambda: endings(service).total() == HALF_OPEN, 4, "all end")
        last = time.monotonic() - started
        assert endings(service) == {"stalled": HALF_OPEN}
        assert open_files(worker) <= baseline + POOLED
        assert first > USER_TIMEOUT / 2, "a short loss of packets does no harm"
        service.publish("near", "hello")
        assert near.next_event(5).data == "hello"
    print(f"half-open: {HALF_OPEN} ended as stalled after {first:.1f} to {last:.1f} s")
