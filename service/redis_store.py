"""The scripts, on a small pool of command connections."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionInterface
from redis.exceptions import (
    BusyLoadingError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
)
from redis.retry import Retry

from service.channels import RedisNames
from service.errors import OutcomeUnknown, RedisDown, RedisError, RedisPoolBusy
from service.event import EventId
from service.publication import Publication, Receipt
from service.redis_address import RedisAddress
from service.redis_replies import (
    Clock,
    Entry,
    Tail,
    checked,
    entry_of,
    id_of,
    identity_of,
    published_ids,
    refusal,
)
from service.retention import RetentionRules
from service.sse import encode

CONNECT_SECONDS = 1.0
"""How long connecting may take; with the two below, a publish fails within 3 s."""

REPLY_SECONDS = 1.5
"""How long a reply may take."""

POOL_SECONDS = 0.5
"""How long a command waits for a free connection."""

TAILS_PER_READ = 1000
"""Channels whose tails are read in one round trip, so that no reply is huge."""

SCRIPTS = {
    name: files("service").joinpath(f"{name}.lua").read_bytes()
    for name in ("publish", "init", "sync", "forget")
}
SHA = {name: sha1(text, usedforsecurity=False).hexdigest() for name, text in SCRIPTS.items()}


class RedisStore:
    """Runs publish.lua. Commands are never retried: a second run would publish twice."""

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
        self._address = RedisAddress.parse(url)
        self._pool = _pool(url, connections, tls_verify)

    def publish(self, publications: Sequence[Publication], floor: EventId) -> list[Receipt]:
        """Publish in order, in one round trip; the new ids are above `floor`.

        Raises RedisDown, RedisRefused, OutcomeUnknown, IdempotencyConflict or ChannelEnded; the
        ids of those events that went out all the same stand in its `published`.
        """
        commands = [self._publish_command(one, floor) for one in publications]
        replies = self._run_scripts(commands)
        for reply, publication in zip(replies, publications, strict=True):
            if isinstance(reply, Exception):
                error = refusal(reply, publication)
                error.published = published_ids(replies)
                raise error
        return [Receipt(id_of(reply[0]), bool(reply[1])) for reply in replies]

    def open(self, floor: EventId) -> Clock:
        """What a client establishes when it connects: the clock, not below `floor` (init.lua)."""
        server, replication, config = self._run(
            [("INFO", "server"), ("INFO", "replication"), ("CONFIG", "GET", "append*")]
        )
        identity = identity_of(checked([server, replication]), config)
        command = ("EVALSHA", SHA["init"], 1, self._names.clock, str(floor), *identity)
        (reply,) = checked(self._run_scripts([command]))
        return Clock(*map(id_of, reply))

    def tails(self, channels: Sequence[str]) -> list[Tail]:
        """The tail of each channel, TAILS_PER_READ of them in one round trip."""
        tails: list[Tail] = []
        for start in range(0, len(channels), TAILS_PER_READ):
            some = channels[start : start + TAILS_PER_READ]
            replies = self._run([("HMGET", self._names.tail(one), *Tail._fields) for one in some])
            tails += (Tail(*(one and id_of(one) for one in reply)) for reply in checked(replies))
        return tails

    def entries(self, reads: Sequence[tuple[str, EventId]], count: int) -> list[list[Entry]]:
        """For each (channel, id), up to `count` stored events after that id, in one round trip."""
        replies = self._run(
            [
                ("XRANGE", self._names.history(channel), f"({after}", "+", "COUNT", count)
                for channel, after in reads
            ]
        )
        return [[entry_of(*one) for one in reply] for reply in checked(replies)]

    def last_entries(self, channels: Sequence[str], count: int) -> list[list[Entry]]:
        """For each channel its last `count` stored events, oldest first, in one round trip."""
        replies = self._run(
            [
                ("XREVRANGE", self._names.history(channel), "+", "-", "COUNT", count)
                for channel in channels
            ]
        )
        return [[entry_of(*one) for one in reversed(reply)] for reply in checked(replies)]

    def send_mark(self, channel: str, token: str) -> None:
        """Send a mark with `token` to whoever follows `channel` (sync.lua)."""
        command = ("EVALSHA", SHA["sync"], 1, self._names.clock, self._names.pubsub(channel), token)
        checked(self._run_scripts([command]))

    def forget(self, channel: str) -> bool:
        """Remove a channel's history and end (forget.lua); False if there was nothing."""
        names = self._names
        keys = names.clock, names.history(channel), names.tail(channel)
        command = ("EVALSHA", SHA["forget"], len(keys), *keys, names.pubsub(channel))
        (reply,) = checked(self._run_scripts([command]))
        return bool(reply)

    def answers(self) -> bool:
        """Whether Redis answers a PING, or at least keeps all connections busy."""
        try:
            return self._run([("PING",)]) == [b"PONG"]
        except RedisPoolBusy:
            return True
        except RedisError:
            return False

    def close(self) -> None:
        """Close all connections."""
        self._pool.disconnect()

    def _publish_command(self, publication: Publication, floor: EventId) -> tuple[Any, ...]:
        names, event, channels = self._names, publication.event, publication.channels
        before, after = encode(event)
        key = publication.key and names.idempotency(channels, publication.key)
        keys: list[str] = [names.clock, key or ""]
        options: list[Any] = []
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
            *("EVALSHA", SHA["publish"], len(keys), *keys),
            *(str(floor), event.name or "", before, after, publication.ttl_seconds or ""),
            *(publication.fingerprint() if key else "", self._idempotency_seconds),
            int(publication.ends),
            *options,
        )

    def _run_scripts(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        replies = self._run(commands)
        missing = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:
            # Somebody flushed the scripts; none of these ran, so running them now is no repeat.
            loads = [("SCRIPT", "LOAD", text) for text in SCRIPTS.values()]
            again = self._run([*loads, *(commands[n] for n in missing)])
            for n, reply in zip(missing, again[len(loads) :], strict=True):
                replies[n] = reply
        return replies

    def _connection(self) -> redis.Connection:
        try:
            connection: redis.Connection = self._pool.get_connection()
        except (redis.RedisError, OSError) as error:
            if isinstance(error, (ResponseError, BusyLoadingError)):
                raise refusal(error) from error
            if isinstance(error.__context__, queue.Empty):
                raise RedisPoolBusy from error
            raise RedisDown(
                f"{self._address} can't be reached, so nothing was published"
            ) from error
        return connection

    def _run(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send `commands` together; returns their replies, refusals among them as exceptions."""
        connection = self._connection()
        replies: list[Any] = []
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            for _ in commands:
                replies.append(_reply(connection))
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            connection.disconnect()
            unknown = OutcomeUnknown()
            unknown.published = published_ids(replies)
            raise unknown from error
        except BaseException:
            connection.disconnect()
            raise
        else:
            if any(isinstance(reply, ReadOnlyError) for reply in replies):
                connection.disconnect()  # a failover: the name may lead to the new master now
            return replies
        finally:
            self._pool.release(connection)


class _MasterConnection(redis.Connection):
    """A connection to whatever `locate` names as the master at the time of connecting."""

    def __init__(self, *, locate: Callable[[], tuple[str, int]], **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]  # redis-py's has no types
        self._locate = locate

    def _connect(self) -> Any:
        self.host, self.port = self._locate()
        return super()._connect()  # type: ignore[no-untyped-call]  # redis-py's has no types


class _SecureMasterConnection(_MasterConnection, redis.SSLConnection):
    """The same over TLS."""


def _pool(url: str, connections: int, tls_verify: bool) -> redis.BlockingConnectionPool:
    options: dict[str, Any] = {
        "max_connections": connections,
        "timeout": POOL_SECONDS,
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": REPLY_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,
        "redis_connect_func": _load_scripts,
    }
    address = RedisAddress.parse(url)
    if address.tls and not tls_verify:
        options["ssl_cert_reqs"] = "none"
    if address.master is None:
        return redis.BlockingConnectionPool.from_url(url, **options)
    return redis.BlockingConnectionPool(
        connection_class=_SecureMasterConnection if address.tls else _MasterConnection,
        locate=address.locate,
        db=address.database,
        username=address.username,
        password=address.password,
        **options,
    )


def _load_scripts(connection: ConnectionInterface) -> None:
    connection.on_connect()
    for script in SCRIPTS.values():
        connection.send_command("SCRIPT", "LOAD", script)
        connection.read_response()


def _reply(connection: ConnectionInterface) -> Any:
    try:
        return connection.read_response()
    except (ResponseError, BusyLoadingError) as error:
        return error
