"""A small pool of command connections to Redis, and pipelines of commands over them."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha1
from itertools import zip_longest
from typing import Any

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionInterface
from redis.exceptions import BusyLoadingError, NoScriptError, ReadOnlyError, ResponseError
from redis.retry import Retry

from service.errors import OutcomeUnknown, RedisDown, RedisError, RedisPoolBusy
from service.redis_address import RedisAddress
from service.redis_connections import (
    LeanPool,
    MasterConnection,
    SecureConnection,
    SecureMasterConnection,
    TcpConnection,
    UnixConnection,
)
from service.redis_replies import refusal

CONNECT_SECONDS = 1.0
"""How long connecting may take; with the two below, a call fails within 3 s."""

REPLY_SECONDS = 1.5
"""How long a reply may take."""

POOL_SECONDS = 0.5
"""How long a command waits for a free connection."""

SEND_BYTES = 8_192
"""Commands are sent as soon as they are this much."""

Command = tuple[Any, ...]


class Unanswered(OutcomeUnknown):
    """A connection was lost; `replies` is what came before, None for each command without one."""

    def __init__(self, replies: Sequence[Any]) -> None:
        super().__init__()
        self.replies = replies


class RedisPool:
    """Runs commands, never twice: nobody knows what an unanswered one has done.

    `scripts` are loaded on every new connection; they are called by the SHA1 of their text.
    """

    def __init__(
        self, url: str, scripts: Mapping[str, bytes], *, connections: int, tls_verify: bool
    ) -> None:
        self.sha = {name: _sha1(text) for name, text in scripts.items()}
        self._loads: list[Command] = [("SCRIPT", "LOAD", text) for text in scripts.values()]
        self._address = RedisAddress.parse(url)
        self._pool = self._make_pool(url, connections, tls_verify)
        self._renewals = 0

    def run(self, commands: Iterable[Command]) -> list[Any]:
        """Send `commands` together; returns their replies, refusals among them as exceptions.

        Raises RedisDown, RedisPoolBusy, RedisRefused, and Unanswered.
        """
        connection = self._connection()
        renewals = self._renewals
        replies: list[Any] = []
        sent = 0
        try:
            for data, count in _packed(commands):
                sent += count
                connection.send_packed_command([data], check_health=False)
            for _ in range(sent):
                replies.append(_reply(connection))
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            connection.disconnect()
            raise Unanswered([*replies, *[None] * (sent - len(replies))]) from error
        except BaseException:
            connection.disconnect()
            raise
        else:
            if renewals != self._renewals or any(isinstance(one, ReadOnlyError) for one in replies):
                connection.disconnect()  # a failover: the name may lead to the new master now
            return replies
        finally:
            self._pool.release(connection)

    def run_scripts(self, calls: Iterable[Command]) -> list[Any]:
        """As `run`, for calls of the scripts, which are loaded again if they are gone."""
        commands: list[Command] = []
        replies = self.run(_kept(calls, commands))
        missing = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:
            # Somebody flushed the scripts; none of these ran, so running them now is no repeat.
            try:
                again = self.run([*self._loads, *(commands[n] for n in missing)])
            except Unanswered as error:
                error.replies = self._filled(replies, missing, error.replies)
                raise
            replies = self._filled(replies, missing, again)
        return replies

    def _filled(
        self, replies: Sequence[Any], missing: Sequence[int], again: Sequence[Any]
    ) -> list[Any]:
        filled = list(replies)
        for n, reply in zip_longest(missing, again[len(self._loads) :]):
            filled[n] = reply
        return filled

    def renew(self) -> None:
        """Use no connection that is there now for another command: it may lead to an old master."""
        self._renewals += 1
        self._pool.disconnect(inuse_connections=False)

    def answers(self) -> bool:
        """Whether Redis answers a PING, or at least keeps all connections busy."""
        try:
            return self.run([("PING",)]) == [b"PONG"]
        except RedisPoolBusy:
            return True
        except RedisError:
            return False

    def close(self) -> None:
        """Close all connections."""
        self._pool.disconnect()

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

    def _make_pool(
        self, url: str, connections: int, tls_verify: bool
    ) -> redis.BlockingConnectionPool:
        address = self._address
        options: dict[str, Any] = {
            "max_connections": connections,
            "timeout": POOL_SECONDS,
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": REPLY_SECONDS,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "driver_info": None,
            "redis_connect_func": self._prepare,
        }
        if address.tls and not tls_verify:
            options["ssl_cert_reqs"] = "none"
        if address.master is None:
            plain = UnixConnection if address.path else TcpConnection
            kind = SecureConnection if address.tls else plain
            return LeanPool.from_url(url, connection_class=kind, **options)
        return LeanPool(  # type: ignore[no-untyped-call]  # redis-py's has no types
            connection_class=SecureMasterConnection if address.tls else MasterConnection,
            locate=address.locate,
            db=address.database,
            username=address.username,
            password=address.password,
            **options,
        )

    def _prepare(self, connection: ConnectionInterface) -> None:
        connection.on_connect()
        for data, _ in _packed(self._loads):
            connection.send_packed_command([data], check_health=False)
        for _ in self._loads:
            connection.read_response()


def _packed(commands: Iterable[Command]) -> Iterator[tuple[bytes, int]]:
    """What to send, and how many commands it is: Redis works on the first while others are made."""
    pieces: list[bytes] = []
    size = 0
    for command in commands:
        pieces.append(hiredis.pack_command(command))
        size += len(pieces[-1])
        if size >= SEND_BYTES:
            yield b"".join(pieces), len(pieces)
            pieces, size = [], 0
    if pieces:
        yield b"".join(pieces), len(pieces)


def _kept(calls: Iterable[Command], kept: list[Command]) -> Iterator[Command]:
    for call in calls:
        kept.append(call)
        yield call


def _sha1(text: bytes) -> str:
    return sha1(text, usedforsecurity=False).hexdigest()


def _reply(connection: ConnectionInterface) -> Any:
    try:
        return connection.read_response()
    except (ResponseError, BusyLoadingError) as error:
        return error
