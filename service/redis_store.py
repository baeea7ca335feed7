"""What the service keeps in Redis: events, histories, tails and the clock."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from service.channels import RedisNames
from service.event import FIRST_ID, EventId
from service.frame import Frame
from service.publication import Publication, Receipt
from service.redis_pool import Command, RedisPool, Unanswered
from service.redis_replies import (
    Clock,
    Tail,
    checked,
    frame_of,
    id_of,
    identity_of,
    published_ids,
    refusal,
)
from service.retention import RetentionRules
from service.sse import encode

CHANNELS_PER_READ = 1000
"""Channels that one round trip asks for, so that no reply is huge."""

SCRIPTS = {
    name: files("service").joinpath(f"{name}.lua").read_bytes()
    for name in ("publish", "init", "sync", "forget")
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
        self._retention = retention
        self._idempotency_seconds = idempotency_seconds
        self._pool = RedisPool(url, SCRIPTS, connections=connections, tls_verify=tls_verify)
        self._identity = ""

    # -- publish -------------------------------------------------------------------------------

    def publish(
        self, publications: Sequence[Publication], floor: EventId, born: EventId = FIRST_ID
    ) -> list[Receipt]:
        """Publish in order, in one round trip; the new ids are above `floor`.

        With `born` only the data set that was born then takes them. Raises RedisDown, RedisChanged,
        RedisRefused, OutcomeUnknown, IdempotencyConflict or ChannelEnded; the ids of those events
        that went out all the same stand in its `published`.
        """
        commands = [self._publish_command(one, floor, born) for one in publications]
        try:
            replies = self._pool.run_scripts(commands)
        except Unanswered as error:
            error.published = published_ids(error.replies)
            raise
        for reply, publication in zip(replies, publications, strict=True):
            if isinstance(reply, Exception):
                refused = refusal(reply, publication)
                refused.published = published_ids(replies)
                raise refused
        return [Receipt(id_of(reply[0]), bool(reply[1])) for reply in replies]

    def _publish_command(self, publication: Publication, floor: EventId, born: EventId) -> Command:
        names, event, channels = self._names, publication.event, publication.channels
        before, after = encode(event)
        key = publication.key and names.idempotency(
            publication.credential, channels, publication.key
        )
        keys: list[str] = [names.clock, key or ""]
        options: list[str | int] = []
        for channel in channels:
            kept = self._retention.of(channel)
            keys += (names.history(channel), names.tail(channel))
            options += (
                names.pubsub(channel),
                # A channel's end is always stored: those who come later must learn of it.
                max(kept.events, int(publication.ends)) if publication.stored else 0,
                kept.seconds,
                kept.tail_seconds,
            )
        return (
            *("EVALSHA", self._pool.sha["publish"], len(keys), *keys),
            *(str(floor), str(born) if born > FIRST_ID else ""),
            *(event.name or "", before, after, publication.ttl_seconds or ""),
            *(publication.fingerprint() if key else "", self._idempotency_seconds),
            int(publication.ends),
            ",".join(channels) if publication.private else "",
            *options,
        )

    # -- follow --------------------------------------------------------------------------------

    def open(self, floor: EventId) -> Clock:
        """What a client establishes when it connects: the clock, not below `floor` (init.lua)."""
        server, replication, config = self._pool.run(
            [("INFO", "server"), ("INFO", "replication"), ("CONFIG", "GET", "append*")]
        )
        identity, durable = identity_of(checked([server, replication]), config)
        arguments = (str(floor), identity, durable, self._identity)
        (reply,) = self._script("init", [self._names.clock], *arguments)
        self._identity = identity
        return Clock(*map(id_of, reply))

    def send_mark(self, channel: str, token: str) -> None:
        """Send a mark with `token` to whoever follows `channel` (sync.lua)."""
        self._script("sync", [self._names.clock], self._names.pubsub(channel), token)

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

    def forget(self, channel: str) -> bool:
        """Remove a channel's history and end (forget.lua); False if there was nothing."""
        names = self._names
        keys = [names.clock, names.history(channel), names.tail(channel)]
        (reply,) = self._script("forget", keys, names.pubsub(channel))
        return bool(reply)

    # -- tickets -------------------------------------------------------------------------------

    def keep_ticket(self, ticket: str, grant: str, seconds: int) -> None:
        """Remember what a ticket grants."""
        checked(self._pool.run([("SET", self._names.ticket(ticket), grant, "EX", seconds)]))

    def ticket(self, ticket: str) -> bytes | None:
        """What a ticket grants; None for one that is unknown or too old."""
        (grant,) = checked(self._pool.run([("GET", self._names.ticket(ticket))]))
        return grant if isinstance(grant, bytes) else None

    # -- connections ---------------------------------------------------------------------------

    def answers(self) -> bool:
        """Whether Redis answers a PING, or at least keeps all connections busy."""
        return self._pool.answers()

    def renew(self) -> None:
        """Use new connections from now on: those that are there may lead to an old master."""
        self._pool.renew()

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def _read(self, commands: Sequence[Command]) -> list[list[bytes]]:
        replies: list[list[bytes]] = []
        for start in range(0, len(commands), CHANNELS_PER_READ):
            replies += checked(self._pool.run(commands[start : start + CHANNELS_PER_READ]))
        return replies

    def _script(self, name: str, keys: Sequence[str], *arguments: str | int) -> list[list[bytes]]:
        command = ("EVALSHA", self._pool.sha[name], len(keys), *keys, *arguments)
        return checked(self._pool.run_scripts([command]))
