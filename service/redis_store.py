"""The scripts, on a small pool of command connections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionInterface
from redis.exceptions import (
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.retry import Retry

from service.channels import RedisNames
from service.errors import OutcomeUnknown, RedisDown, RedisError, RedisRefused
from service.event import FIRST_ID, Event, EventId
from service.sse import encode

CONNECT_SECONDS = 1.0
"""How long connecting may take; with the two below, a publish fails within 3 s."""

REPLY_SECONDS = 1.5
"""How long a reply may take."""

POOL_SECONDS = 0.5
"""How long a command waits for a free connection."""

PUBLISH = files("service").joinpath("publish.lua").read_bytes()
PUBLISH_SHA = sha1(PUBLISH, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Publication:
    """One event and the channels that it goes to, under one id."""

    event: Event
    channels: tuple[str, ...]


class RedisStore:
    """Runs publish.lua. Commands are never retried: a second run would publish twice."""

    def __init__(
        self, url: str, names: RedisNames, *, connections: int, tls_verify: bool = True
    ) -> None:
        self._names = names
        tls = {} if tls_verify or not url.startswith("rediss") else {"ssl_cert_reqs": "none"}
        self._pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=POOL_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=REPLY_SECONDS,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
            redis_connect_func=_load_scripts,
            **tls,
        )

    def publish(self, publications: Sequence[Publication], floor: EventId) -> list[EventId]:
        """Publish in order, in one round trip; returns the ids, all above `floor`.

        Raises RedisDown, RedisRefused or OutcomeUnknown; ids that came before stand in `published`.
        """
        commands = [self._publish_command(one, floor) for one in publications]
        replies = self._run(commands)
        missing = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:
            # Somebody flushed the scripts; none of these ran, so running them now is no repeat.
            again = self._run([("SCRIPT", "LOAD", PUBLISH), *(commands[n] for n in missing)])
            for n, reply in zip(missing, again[1:], strict=True):
                replies[n] = reply
        return _ids(replies)

    def clock(self) -> EventId:
        """The last id given out; raises as `publish` does."""
        (reply,) = self._run([("HGET", self._names.clock, "id")])
        return FIRST_ID if reply is None else _ids([reply])[0]

    def answers(self) -> bool:
        """Whether Redis answers a PING."""
        try:
            return self._run([("PING",)]) == [b"PONG"]
        except RedisError:
            return False

    def close(self) -> None:
        """Close all connections."""
        self._pool.disconnect()

    def _publish_command(self, publication: Publication, floor: EventId) -> tuple[Any, ...]:
        before, after = encode(publication.event)
        channels = map(self._names.pubsub, publication.channels)
        name = publication.event.name or ""
        return (
            "EVALSHA",
            PUBLISH_SHA,
            1,
            self._names.clock,
            str(floor),
            name,
            before,
            after,
            *channels,
        )

    def _run(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send `commands` together; returns their replies, refusals among them as exceptions."""
        try:
            connection = self._pool.get_connection()
        except (redis.RedisError, OSError) as error:
            if isinstance(error, (ResponseError, BusyLoadingError)):
                raise _refusal(error) from error
            raise RedisDown from error
        replies: list[Any] = []
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            for _ in commands:
                replies.append(_reply(connection))
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            connection.disconnect()
            raise _with_published(OutcomeUnknown(), replies) from error
        except BaseException:
            connection.disconnect()
            raise
        else:
            if any(isinstance(reply, ReadOnlyError) for reply in replies):
                connection.disconnect()  # a failover: the name may lead to the new master now
            return replies
        finally:
            self._pool.release(connection)


def _load_scripts(connection: ConnectionInterface) -> None:
    connection.on_connect()
    connection.send_command("SCRIPT", "LOAD", PUBLISH)
    connection.read_response()


def _reply(connection: ConnectionInterface) -> Any:
    try:
        return connection.read_response()
    except (ResponseError, BusyLoadingError) as error:
        return error


def _ids(replies: list[Any]) -> list[EventId]:
    for n, reply in enumerate(replies):
        if isinstance(reply, Exception):
            raise _with_published(_refusal(reply), replies[:n])
    return [EventId.parse(reply.decode()) for reply in replies]


def _with_published(error: RedisError, replies: list[Any]) -> RedisError:
    error.published = [reply.decode() for reply in replies if isinstance(reply, bytes)]
    return error


_REFUSALS = (
    (ReadOnlyError, "redis_readonly"),
    (BusyLoadingError, "redis_loading"),
    (OutOfMemoryError, "redis_out_of_memory"),
)


def _refusal(error: Exception) -> RedisError:
    """The answer to an error reply: Redis took nothing."""
    for kind, code in _REFUSALS:
        if isinstance(error, kind):
            return RedisRefused(code, f"Redis refuses to write: {error}")
    if str(error).startswith("BUSY "):
        return RedisRefused("redis_busy", "Redis is busy running another script")
    return RedisRefused("redis_error", f"Redis refuses: {error}")
