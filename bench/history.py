"""Measures what history costs: a stored publish, and a storm of clients that resume.

`python bench/history.py` starts its own service and Valkey and takes about a minute. It prints a
Markdown table: microseconds of a publish in Redis (by its own count) and in Python, and how many
commands 10 000 resuming clients cost Redis.
"""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # so that it runs from anywhere

from service.client import MessagePublisher  # noqa: E402  after the path is set
from tests.live_server import LiveService  # noqa: E402
from tests.processes import cpu_seconds  # noqa: E402
from tests.swarm import Swarm, payload  # noqa: E402
from tests.valkey import Valkey  # noqa: E402

PUBLISHES = 10_000
STREAMS = 10_000
MISSED = 100
EVENT_BYTES = 100


def calls(valkey: Valkey, command: str) -> tuple[int, float]:
    """How often Redis has run a command, and the microseconds of one call."""
    told = valkey.cli("INFO", "commandstats").decode()
    found = re.search(rf"cmdstat_{command}:calls=(\d+),.*?usec_per_call=([0-9.]+)", told)
    return (int(found[1]), float(found[2])) if found else (0, 0.0)


def own_cpu_us(work: Callable[[], None], times: int) -> float:
    """Microseconds of this process's CPU for each of `times` steps of `work`."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent / times * 1e6


def measure_publish(valkey: Valkey) -> None:
    """A stored publish by MessagePublisher, one after the other."""
    with MessagePublisher("cost", valkey.url) as publisher:
        publisher.publish_message("warm")
        valkey.cli("CONFIG", "RESETSTAT")

        def publish() -> None:
            for number in range(PUBLISHES):
                publisher.publish_message(payload(number, EVENT_BYTES))

        started = time.monotonic()
        python_us = own_cpu_us(publish, PUBLISHES)
        seconds = time.monotonic() - started
    _, redis_us = calls(valkey, "evalsha")
    print(f"| stored publish | µs in Redis | {redis_us:.1f} |")
    print(f"| | µs of CPU in Python | {python_us:.0f} |")
    print(f"| | publishes/s, one after the other | {PUBLISHES / seconds:.0f} |")


def measure_storm(valkey: Valkey, service: LiveService) -> None:
    """Connects, and the same with MISSED events to replay: from memory, and from Redis."""
    for channel in ("memory", "redis"):
        ids = [service.publish(channel, payload(n, EVENT_BYTES)) for n in range(MISSED + 1)]
        url = f"{service.url}/stream?channel={channel}"
        fresh_us = opened(service, url, {})
        if channel == "redis":
            time.sleep(8)  # until the worker has forgotten the channel
        valkey.cli("CONFIG", "RESETSTAT")
        resumed_us = opened(service, url, {"Last-Event-ID": ids[0]}, MISSED)
        reads = sum(calls(valkey, name)[0] for name in ("xrange", "hmget"))
        print(f"| {STREAMS} clients resume, {MISSED} events each, {channel} | reads | {reads} |")
        print(f"| | µs of CPU per stream / per fresh connect | {resumed_us:.0f} / {fresh_us:.0f} |")


def opened(service: LiveService, url: str, headers: dict[str, str], expect: int = 0) -> float:
    """Open all streams; returns microseconds of the worker's CPU for each."""
    (worker,) = service.worker_pids()
    before = cpu_seconds(worker)
    with Swarm(url, STREAMS, headers=headers, expect=expect) as swarm:
        report = swarm.wait_open(90)
        if expect:
            report = swarm.wait_complete(90)
        assert report.faults == {}, report.faults
        spent = cpu_seconds(worker) - before
    return spent / STREAMS * 1e6


def main() -> None:
    """Run all, with a progress line on a terminal."""
    print("| what | measure | value |\n|---|---|---|")
    with Valkey() as valkey, LiveService(valkey.url, LOG_LEVEL="warning") as service:
        measure_publish(valkey)
        measure_storm(valkey, service)


if __name__ == "__main__":
    main()
