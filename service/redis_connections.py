"""redis-py's connections and their pool, with less work around each use."""

from __future__ import annotations

import functools
import queue
import select
import sys
from collections.abc import Callable
from typing import Any

import redis
from redis.connection import AbstractConnection


class LeanPool(redis.BlockingConnectionPool):
    """redis-py's pool without its own metrics: 22 calls of functions a command, not 70."""

    def get_connection(self, *_: object, **__: object) -> Any:
        """A connection that is ready; raises redis.ConnectionError, by queue.Empty for none."""
        self._checkpid()
        try:
            connection = self.pool.get(timeout=self.timeout)
        except queue.Empty:
            raise redis.ConnectionError("no connection is free") from None
        if connection is None:
            connection = self.make_connection()  # type: ignore[no-untyped-call]  # no types
        try:
            self._make_ready(connection)
        except BaseException:
            self.release(connection)
            raise
        return connection

    @staticmethod
    def _make_ready(connection: Any) -> None:
        if connection.is_connected:
            try:
                if not connection.can_read():
                    return
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                pass
            connection.disconnect()  # Redis has closed it, or says what nobody has asked for
        connection.connect()

    def release(self, connection: Any) -> None:
        """Take a connection back, in a process that was forked from its own only to drop it."""
        self._checkpid()
        if self.owns_connection(connection):
            self.pool.put_nowait(connection)
        else:
            connection.disconnect()


class Watched(AbstractConnection):
    """A connection that is looked at, before each use, without a turn of gevent's loop.

    redis-py polls it through gevent: other greenlets would run before the command is sent.
    """

    def can_read(self, timeout: float = 0) -> bool:
        """Whether something has come unasked; raises redis.ConnectionError at the end."""
        connected = self._get_socket()
        if connected is not None:
            poller = _blocking_poll()()
            poller.register(connected, select.POLLIN)
            if not poller.poll(0):
                return False
        return super().can_read(timeout)


@functools.cache
def _blocking_poll() -> Callable[[], Any]:
    """select.poll as it was before gevent, which not every program has, has patched it."""
    gevent = sys.modules.get("gevent.monkey")
    return gevent.get_original("select", "poll") if gevent else select.poll


class TcpConnection(Watched, redis.Connection):
    """A connection over TCP."""


class UnixConnection(Watched, redis.UnixDomainSocketConnection):
    """A connection over a unix socket."""


class SecureConnection(Watched, redis.SSLConnection):
    """A connection over TLS."""


class MasterConnection(TcpConnection):
    """A connection to whatever `locate` names as the master at the time of connecting."""

    def __init__(self, *, locate: Callable[[], tuple[str, int]], **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]  # redis-py's has no types
        self._locate = locate

    def _connect(self) -> Any:
        self.host, self.port = self._locate()
        return super()._connect()  # type: ignore[no-untyped-call]  # redis-py's has no types


class SecureMasterConnection(MasterConnection, redis.SSLConnection):
    """The same over TLS."""
