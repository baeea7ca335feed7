"""The one pub/sub connection to Redis: connect, follow channels, notice that it is gone.

Standard-library sockets: cooperative under gevent's patches, blocking in plain programs, so that
this is written once. It isn't redis-py's PubSub, which reconnects silently and never notices a
frozen server.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterable
from typing import Any

import hiredis

from service.channels import RedisNames
from service.frame import Frame, unpack
from service.redis_address import LinkLost, RedisAddress

TICK_SECONDS = 1.0
"""A read waits this long. Silence is counted in ticks, so that a stall of this process is one."""

PING_AFTER_TICKS = 3
"""Silence after which the server is asked for a sign of life."""

DEAD_AFTER_TICKS = 7
"""Silence after which the connection is given up: within 10 s with all that rounds up."""

READ_BYTES = 65_536
"""Most that one read takes; 450 small events take some 4 ms from here to their views."""

MARKS_PREFIX = "$marks-"
"""How the channels of marks begin, one for each follower."""

MARK = "$mark"
"""The name of frames on such channels; their data is the message as it is."""

SUBSCRIBE_BATCH = 512
"""Channels in one SUBSCRIBE, so that no single command is huge."""

BACKOFF_SECONDS = (0.05, 5.0)
"""First and longest pause between attempts to reconnect."""


class Backoff:
    """Growing, jittered pauses between attempts; for ever, but never longer than the longest."""

    def __init__(self) -> None:
        self._seconds = BACKOFF_SECONDS[0]

    def reset(self) -> None:
        """Start over after a success."""
        self._seconds = BACKOFF_SECONDS[0]

    def next(self) -> float:
        """The next pause in seconds."""
        pause = self._seconds * random.uniform(0.5, 1.0)
        self._seconds = min(2 * self._seconds, BACKOFF_SECONDS[1])
        return pause


class RedisLink:
    """One connection that is subscribed to channels. It lives once: after a loss, make another.

    One greenlet or thread calls `read`; any may call `subscribe` and `unsubscribe`.
    """

    def __init__(
        self, address: RedisAddress, names: RedisNames, *, tls_verify: bool = True
    ) -> None:
        """Connect and log in; raises OSError, LinkLost among it, when that fails."""
        self._names = names
        self._reader = hiredis.Reader(protocolError=LinkLost, replyError=LinkLost)
        self._buffer = bytearray(READ_BYTES)
        self._writing = threading.Lock()
        self._unsent: list[bytes] = []
        self._silent_ticks = 0
        self._socket = address.connect(tls_verify)
        try:
            self._log_in(address)
        except BaseException:
            self._socket.close()
            raise
        self._socket.settimeout(TICK_SECONDS)

    def _log_in(self, address: RedisAddress) -> None:
        """Authenticate, and hear from the server once: a frozen one still accepts connections."""
        if address.password is not None:
            self._ask("AUTH", *filter(None, [address.username]), address.password)
        self._ask("PING")

    def _ask(self, *command: str) -> None:
        self._send(command)
        while (reply := self._reader.gets()) is False:
            self._feed()
        if isinstance(reply, LinkLost):
            raise LinkLost(f"Redis refused {command[0]}: {reply}")

    def close(self) -> None:
        """Close the connection; a `read` that waits raises LinkLost."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def subscribe(self, channels: Iterable[str]) -> None:
        """Ask for `channels`; `read` reports each one when Redis has confirmed it."""
        self._command_each("SUBSCRIBE", channels)

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Ask for `channels` no more."""
        self._command_each("UNSUBSCRIBE", channels)

    def _command_each(self, command: str, channels: Iterable[str]) -> None:
        wanted = [self._names.pubsub(channel) for channel in channels]
        for start in range(0, len(wanted), SUBSCRIBE_BATCH):
            part: tuple[Any, ...] = (command, *wanted[start : start + SUBSCRIBE_BATCH])
            self._unsent.append(hiredis.pack_command(part))
        self._flush()

    def _send(self, command: tuple[Any, ...]) -> None:
        self._unsent.append(hiredis.pack_command(command))
        self._flush()

    def _flush(self) -> None:
        # Queued before the lock is waited for: commands leave in the order they were given in.
        with self._writing:
            data, self._unsent = b"".join(self._unsent), []
            try:
                if data:
                    self._socket.sendall(data)
            except OSError:
                self.close()  # half a command may be out: nothing sensible can follow it
                raise

    def read(self) -> tuple[list[tuple[str, Frame]], list[str]]:
        """Wait up to a tick; return (channel, frame) pairs, and the channels that were confirmed.

        Raises LinkLost when the connection is closed or the server silent for too long.
        """
        if self._feed_within_tick():
            self._silent_ticks = 0
        else:
            self._count_silence()
        frames: list[tuple[str, Frame]] = []
        confirmed: list[str] = []
        while (reply := self._reader.gets()) is not False:
            self._take(reply, frames, confirmed)
        return frames, confirmed

    def _feed_within_tick(self) -> bool:
        try:
            self._feed()
        except TimeoutError:
            return False
        return True

    def _feed(self) -> None:
        # Into one buffer: a new one of this size for each read costs 20 µs.
        size = self._socket.recv_into(self._buffer)
        if not size:
            raise LinkLost("Redis closed the connection", reason="eof")
        self._reader.feed(memoryview(self._buffer)[:size])  # type: ignore[arg-type]  # it takes any

    def _count_silence(self) -> None:
        self._silent_ticks += 1
        if self._silent_ticks >= DEAD_AFTER_TICKS:
            silence = f"Redis is silent for {DEAD_AFTER_TICKS * TICK_SECONDS:.0f} s"
            raise LinkLost(silence, reason="timeout")
        if self._silent_ticks == PING_AFTER_TICKS:
            self._send(("PING",))

    def _take(self, reply: Any, frames: list[tuple[str, Frame]], confirmed: list[str]) -> None:
        if isinstance(reply, LinkLost):
            raise reply
        if not isinstance(reply, list) or len(reply) != 3:
            return  # the answer to a PING
        kind, pubsub, payload = reply
        channel = self._names.channel(pubsub.decode("utf-8", "replace"))
        if kind == b"message":
            mark = channel.startswith(MARKS_PREFIX)
            frames.append((channel, Frame(None, MARK, payload) if mark else unpack(payload)))
        elif kind == b"subscribe":
            confirmed.append(channel)
