"""What each worker has told Redis of its streams: a hash of channels, which expires with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from service.channels import RedisNames
from service.redis_pool import RedisPool
from service.redis_replies import checked

EXPIRY_SECONDS = 4.0
"""How long a worker that is silent still counts."""

VERSION = "/version"
"""Where a report has the number of its last change; the slash is what no channel name has."""

PAGE_CHANNELS = 250
"""Channels that one reply brings: reading it takes less than a millisecond."""


class StreamReports:
    """Writes and reads the reports. Every method raises RedisError when Redis can't answer."""

    def __init__(self, pool: RedisPool, names: RedisNames) -> None:
        self._pool = pool
        self._names = names

    def write(self, worker: str, version: int, streams: Mapping[str, int]) -> int:
        """Change some channels' numbers of streams, and let the report live on.

        Returns the version that it had before; 0 when there was none.
        """
        key = self._names.report(worker)
        pairs = [part for pair in streams.items() if pair[1] for part in pair]
        gone = [channel for channel, number in streams.items() if not number]
        # In one step: what expires by itself is never without its expiry.
        replies = self._pool.run(
            [
                ("MULTI",),
                ("HGET", key, VERSION),
                ("HSET", key, VERSION, version, *pairs),
                *([("HDEL", key, *gone)] if gone else []),
                ("PEXPIRE", key, round(EXPIRY_SECONDS * 1000)),
                ("SADD", self._names.workers, worker),
                ("EXEC",),
            ]
        )
        found = checked(checked(replies)[-1])[0]
        return int(found or 0)

    def withdraw(self, worker: str) -> None:
        """Remove the report of `worker`: its streams count no more."""
        checked(self._pool.run([("DEL", self._names.report(worker))]))

    def dead(self) -> list[str]:
        """The workers that had a report and have none any more."""
        workers = self._workers()
        found = checked(self._pool.run(("EXISTS", self._names.report(one)) for one in workers))
        return [worker for worker, there in zip(workers, found, strict=True) if not there]

    def streams(self, channel: str) -> int:
        """How many streams `channel` has on all workers."""
        reads = [("HGET", self._names.report(one), channel) for one in self._workers()]
        return sum(int(found) for found in checked(self._pool.run(reads)) if found)

    def pages(self) -> Iterator[dict[str, int]]:
        """Streams by channel, in pieces: a channel has one for each worker."""
        for worker in self._workers():
            seen: set[str] = set()
            for page in self._pages_of(worker):
                # A hash that is just growing shows some of its fields twice.
                yield {name: number for name, number in page.items() if name not in seen}
                seen.update(page)

    def _pages_of(self, worker: str) -> Iterator[dict[str, int]]:
        cursor: bytes | int = 0
        while True:
            scan = ("HSCAN", self._names.report(worker), cursor, "COUNT", PAGE_CHANNELS)
            ((cursor, found),) = checked(self._pool.run([scan]))
            pairs = zip(found[::2], found[1::2], strict=True)
            page = {name.decode(): int(number) for name, number in pairs}
            page.pop(VERSION, None)
            yield page
            if int(cursor) == 0:
                return

    def _workers(self) -> list[str]:
        (found,) = checked(self._pool.run([("SMEMBERS", self._names.workers)]))
        return [worker.decode() for worker in found]
