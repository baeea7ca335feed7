"""Three Sentinels that watch a master and its replica, for tests of failover."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from service.embedded import server_binary
from tests.live_server import until
from tests.valkey import Valkey, free_port

MASTER = "mymaster"
CONFIG = """
port {port}
bind 127.0.0.1
dir {directory}
sentinel monitor {master} 127.0.0.1 {master_port} 2
sentinel down-after-milliseconds {master} 1000
sentinel failover-timeout {master} 5000
sentinel parallel-syncs {master} 1
"""


class Failover:
    """A master with a replica, and three Sentinels that agree on which is which."""

    def __init__(self) -> None:
        self.first = Valkey()
        self.second = Valkey()
        self._directory = tempfile.TemporaryDirectory(prefix="pushline-sentinels-")
        self._ports = [free_port() for _ in range(3)]
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """What REDIS_URL is to be."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        return f"redis+sentinel://{hosts}/{MASTER}/0"

    def master_port(self) -> int:
        """The port of the master, as the first Sentinel sees it."""
        with redis.Redis(port=self._ports[0], decode_responses=True) as sentinel:
            return int(sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)[1])

    def __enter__(self) -> Self:
        self.first.start()
        self.second.start()
        self.second.cli("REPLICAOF", "127.0.0.1", self.first.port)
        until(lambda: "connected_slaves:1" in self._replication(), 15, "the replica is there")
        for port in self._ports:
            self._start_sentinel(port)
        until(self._agreed, 20, "the Sentinels know each other and the replica")
        return self

    def _replication(self) -> str:
        with redis.Redis.from_url(self.first.url) as client:
            return "\n".join(f"{k}:{v}" for k, v in client.info("replication").items())

    def _start_sentinel(self, port: int) -> None:
        config = Path(self._directory.name, f"{port}.conf")
        config.write_text(
            CONFIG.format(
                port=port,
                directory=self._directory.name,
                master=MASTER,
                master_port=self.first.port,
            )
        )
        command = [server_binary(), str(config), "--sentinel"]
        self._processes.append(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )

    def _agreed(self) -> bool:
        try:
            return all(self._knows_all(port) for port in self._ports)
        except redis.RedisError:
            return False

    def _knows_all(self, port: int) -> bool:
        with redis.Redis(port=port, decode_responses=True) as sentinel:
            facts = sentinel.execute_command("SENTINEL", "MASTER", MASTER)
        pairs = (
            facts if isinstance(facts, dict) else dict(zip(facts[::2], facts[1::2], strict=True))
        )
        return int(pairs["num-other-sentinels"]) == 2 and int(pairs["num-slaves"]) == 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.first.close()
        self.second.close()
        self._directory.cleanup()
