"""What the service keeps in Redis: events, histories, tails and the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from importlib.resources import files
from itertools import chain
from typing import Any

from service.channels import RedisNames
from service.errors import RedisError
from service.event import FIRST_ID, EventId
from service.frame import Frame
from service.publication import Publication, Receipt
from service.publish_script import Outcome, PublishScript, outcomes, receipts, shares
from service.redis_pool import Command, RedisPool, Unanswered
from service.redis_replies import (
    Clock,
    Tail,
    checked,
    frame_of,
    id_of,
    identity_of,
)
from service.retention import RetentionRules

CHANNELS_PER_READ = 1000
"""Channels that one round trip asks for, so that no reply is huge."""

TIME: Command = ("TIME",)

SCRIPTS = {
    name: files("service").joinpath(f"{name}.lua").read_bytes()
    for name in ("publish", "init", "sync", "forget", "presence")
}


class RedisStore:
    """Runs the scripts and reads what they have stored. Nothing is ever run twice.

    Every method raises RedisError when Redis can't answer.
    """

    def __init__(
        self,
        url: str,
        names: RedisNames,
        retention: RetentionRules,
        *,
        connections: int,
        idempotency_seconds: int,
        tls_verify: bool = True,
    ) -> None:
        self._names = names
        self._pool = RedisPool(url, SCRIPTS, connections=connections, tls_verify=tls_verify)
        self._script_of = PublishScript(
            self._pool.sha["publish"], names, retention, idempotency_seconds
        ).call
        self._identity = ""
        self._behind = math.inf
        """Monotonic seconds less those of Redis's clock, or somewhat more."""

    # -- publish -------------------------------------------------------------------------------

    def publish(
        self, publications: Sequence[Publication], floor: EventId, born: EventId = FIRST_ID
    ) -> list[Receipt]:
        """Publish in order, in one round trip; the new ids are above `floor`.

        With `born` only the data set that was born then takes them. Raises RedisDown, RedisChanged,
        RedisRefused, OutcomeUnknown, IdempotencyConflict or ChannelEnded; the ids of those events
        that went out all the same stand in its `published`.
        """
        return receipts(self.publish_each(publications, floor, born))

    def publish_each(
        self, publications: Sequence[Publication], floor: EventId, born: EventId = FIRST_ID
    ) -> list[Outcome]:
        """The same, where each event has an outcome of its own: a receipt, or the error."""
        calls = list(shares(publications))
        try:
            replies = self._pool.run_scripts(self._script_of(one, floor, born) for one in calls)
        except Unanswered as error:
            replies = [*error.replies, *[None] * (len(calls) - len(error.replies))]
        except RedisError as error:
            return [error.again() for _ in publications]
        return list(chain.from_iterable(map(outcomes, calls, replies)))

    # -- follow --------------------------------------------------------------------------------

    def open(self, floor: EventId) -> Clock:
        """What a client establishes when it connects: the clock, not below `floor` (init.lua)."""
        server, replication, moment, config = self._pool.run(
            [("INFO", "server"), ("INFO", "replication"), TIME, ("CONFIG", "GET", "append*")]
        )
        *info, moment = checked([server, replication, moment])
        identity, durable = identity_of(info, config)
        self._note_time(moment)
        arguments = (str(floor), identity, durable, self._identity)
        (reply,) = self._script("init", [self._names.clock], *arguments)
        self._identity = identity
        return Clock(*map(id_of, reply))

    def send_mark(self, channel: str, token: str) -> None:
        """Send a mark with `token` to whoever follows `channel` (sync.lua)."""
        names = self._names
        mark = ("EVALSHA", self._pool.sha["sync"], 1, names.clock, names.pubsub(channel), token)
        _, moment = checked(self._pool.run_scripts([mark, TIME]))
        self._note_time(moment)

    # -- time ----------------------------------------------------------------------------------

    def clock(self) -> EventId:
        """The last id given out: of what is published from now on, every id is above it."""
        (found,) = checked(self._pool.run([("HGET", self._names.clock, "id")]))
        return id_of(found) if found else FIRST_ID

    def seconds_at(self, moment: float) -> float:
        """What Redis's clock has shown at a moment of the monotonic one, or somewhat less.

        By what it showed with the last mark; in seconds since 1970.
        """
        return moment - self._behind

    def _note_time(self, reply: Sequence[bytes]) -> None:
        seconds, microseconds = map(int, reply)
        self._behind = time.monotonic() - (seconds + microseconds / 1e6)

    # -- history -------------------------------------------------------------------------------

    def tails(self, channels: Sequence[str]) -> list[Tail]:
        """The tail of each channel."""
        names = self._names
        replies = self._read([("HMGET", names.tail(one), *Tail._fields) for one in channels])
        return [Tail(*(id_of(one) if one else None for one in reply)) for reply in replies]

    def entries(self, reads: Sequence[tuple[str, EventId]], count: int) -> list[list[Frame]]:
        """For each (channel, id), up to `count` stored events after that id."""
        names = self._names
        replies = self._read(
            [
                ("XRANGE", names.history(channel), f"({after}", "+", "COUNT", count)
                for channel, after in reads
            ]
        )
        return [[frame_of(*one) for one in reply] for reply in replies]

    def entries_before(self, reads: Sequence[tuple[str, EventId]], count: int) -> list[list[Frame]]:
        """For each (channel, id), the last `count` stored events before that id, newest first."""
        names = self._names
        replies = self._read(
            [
                ("XREVRANGE", names.history(channel), f"({before}", "-", "COUNT", count)
                for channel, before in reads
            ]
        )
        return [[frame_of(*one) for one in reply] for reply in replies]

    def sizes(self, channels: Sequence[str]) -> list[int]:
        """How many events each channel's history holds."""
        return self._read([("XLEN", self._names.history(one)) for one in channels])

    def forget(self, channel: str) -> bool:
        """Remove a channel's history and end (forget.lua); False if there was nothing."""
        names = self._names
        keys = [names.clock, names.history(channel), names.tail(channel)]
        (reply,) = self._script("forget", keys, names.pubsub(channel))
        return bool(reply)

    # -- live only -----------------------------------------------------------------------------

    def is_followed(self, channel: str) -> bool:
        """Whether any worker follows `channel` now."""
        (reply,) = checked(self._pool.run([("PUBSUB", "NUMSUB", self._names.pubsub(channel))]))
        return int(reply[1]) > 0

    def tell(self, channel: str, text: str) -> None:
        """Send `text` to who follows `channel` now, as a foreign PUBLISH: without an id."""
        checked(self._pool.run([("PUBLISH", self._names.pubsub(channel), text)]))

    # -- tickets -------------------------------------------------------------------------------

    def keep_ticket(self, ticket: str, grant: str, seconds: int) -> None:
        """Remember what a ticket grants."""
        checked(self._pool.run([("SET", self._names.ticket(ticket), grant, "EX", seconds)]))

    def ticket(self, ticket: str) -> bytes | None:
        """What a ticket grants; None for one that is unknown or too old."""
        (grant,) = checked(self._pool.run([("GET", self._names.ticket(ticket))]))
        return grant if isinstance(grant, bytes) else None

    def keep_closing(self, user: str, command: EventId, seconds: int) -> None:
        """Remember which command has closed the streams of `user`."""
        key = self._names.closing(user)
        checked(self._pool.run([("SET", key, str(command), "EX", seconds)]))

    def closing(self, user: str) -> EventId:
        """The command that has closed the streams of `user`, FIRST_ID for none of late."""
        (found,) = checked(self._pool.run([("GET", self._names.closing(user))]))
        return id_of(found) if found else FIRST_ID

    # -- connections ---------------------------------------------------------------------------

    @property
    def pool(self) -> RedisPool:
        """The connections, for what else a worker keeps in Redis."""
        return self._pool

    def answers(self) -> bool:
        """Whether Redis answers a PING, or at least keeps all connections busy."""
        return self._pool.answers()

    def renew(self) -> None:
        """Use new connections from now on: those that are there may lead to an old master."""
        self._pool.renew()

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def _read(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = []
        for start in range(0, len(commands), CHANNELS_PER_READ):
            replies += checked(self._pool.run(commands[start : start + CHANNELS_PER_READ]))
        return replies

    def _script(self, name: str, keys: Sequence[str], *arguments: str | int) -> list[list[bytes]]:
        command = ("EVALSHA", self._pool.sha[name], len(keys), *keys, *arguments)
        return checked(self._pool.run_scripts([command]))
