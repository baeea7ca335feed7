"""Reloads and rolling restarts behind nginx, counted by the oracle: nothing lost, nothing twice."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import pytest

from tests.chaos import PUBLISHERS, Chaos
from tests.live_server import LiveService, until
from tests.proxies import PlainNginx

pytestmark = pytest.mark.live

CLIENTS = 40
SEED = 8
FEW = 3 * PUBLISHERS
"""Publishes that meet a connection or a listener in the moment of its end, as each publisher may
once with the reload and with either restart."""


class Upgrade(Chaos):
    """Two services behind nginx, that are reloaded and restarted one after the other."""

    def __init__(self, folder: Path) -> None:
        super().__init__(seed=SEED, seconds=0, clients=CLIENTS, progress=lambda _: None)
        self._folder = folder

    def _start_services(self, stack: contextlib.ExitStack) -> None:
        super()._start_services(stack)
        ports = [service.port for service in self.services]
        self._nginx = stack.enter_context(PlainNginx(self._folder, ports))

    def ports(self) -> list[int]:
        """nginx's alone."""
        return [self._nginx.port]

    def _inject(self) -> None:
        first, second = self.services
        time.sleep(0.5)
        before = set(first.worker_pids())
        first.signal(signal.SIGHUP)  # as `systemctl reload`: the port stays open
        self._count("reload")
        self._restart(second)
        until(lambda: not before & set(first.worker_pids()), 20, "the old workers are gone")
        time.sleep(0.5)
        self._restart(first)
        time.sleep(0.5)

    def _restart(self, service: LiveService) -> None:
        """As an upgrade on one of two machines: the other one takes all until this is back."""
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        service.start()
        self._count("restart")

    def _count(self, kind: str) -> None:
        kinds = self.outcome.faults
        kinds[kind] = kinds.get(kind, 0) + 1
        self._note(kind)


def test_upgrades_lose_nothing(tmp_path: Path) -> None:
    """A node is reloaded while the other restarts, then it restarts too, under load: every
    acknowledged event reaches every client of its channels, once and in order.

    A publish may get 503, or nginx's 502, and is sent again with its key: nothing goes out twice.
    """
    upgrade = Upgrade(tmp_path)
    outcome = upgrade.run()
    print(outcome)
    assert outcome.failures == []
    assert (outcome.missing, outcome.unacknowledged) == (0, 0)
    assert outcome.faults == {"reload": 1, "restart": 2}
    assert outcome.acknowledged > 500
    assert outcome.unavailable.get(502, 0) <= FEW, "nginx finds one of the nodes"
    assert outcome.connections >= 2 * CLIENTS, "streams were ended"
