"""A TCP proxy that misbehaves on demand, before Redis or before the service.

It runs in a thread of this process (a greenlet under gevent's monkey patching) with one event loop,
so that a cut connection is cut at once, whatever its peers do. With a certificate it speaks TLS to
its clients, which puts a plain Redis behind a `rediss://` address.
"""

from __future__ import annotations

import heapq
import itertools
import random
import selectors
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

Target = tuple[str, int] | str
"""Host and port, or the path of a unix socket."""

Closing = Literal["fin", "rst"]

READ_BYTES = 65536
QUEUE_BYTES = 262_144
"""What one direction holds at most before its sender feels the back-pressure."""

COMMAND_SECONDS = 10.0
CONNECT_NOW = (0, 11, 115)  # done, or EAGAIN (unix), or EINPROGRESS


class _Pipe:
    """One direction of a connection: what was read and is not written yet, and when it is due."""

    def __init__(self, source: socket.socket, sink: socket.socket, *, replies: bool) -> None:
        self.source = source
        self.sink = sink
        self.replies = replies
        self.queue: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.last_due = 0.0
        self.ended = False
        self.passed_end = False
        self.mute = False

    def put(self, data: bytes, due: float) -> None:
        """Append what is to be written at `due`, but never before what is queued already."""
        self.last_due = max(self.last_due, due)
        self.queue.append((self.last_due, data))
        self.size += len(data)

    def due(self, now: float) -> bool:
        """Whether something can be written now."""
        return bool(self.queue) and self.queue[0][0] <= now


class _Connection:
    """A client, its connection to the target, and the two directions between them."""

    def __init__(self, client: socket.socket, server: socket.socket, frozen: bool) -> None:
        self.client = client
        self.server = server
        self.pipes = (
            _Pipe(client, server, replies=False),
            _Pipe(server, client, replies=True),
        )
        self.frozen = frozen
        self.connected = False
        self.closed = False

    def interest(self, sock: socket.socket, now: float) -> int:
        """Return the selector events that this socket waits for."""
        if self.frozen:
            return 0
        if not self.connected:
            return selectors.EVENT_WRITE if sock is self.server else 0
        mask = 0
        for pipe in self.pipes:
            if pipe.source is sock and not pipe.ended and pipe.size < QUEUE_BYTES:
                mask |= selectors.EVENT_READ
            if pipe.sink is sock and pipe.due(now):
                mask |= selectors.EVENT_WRITE
        return mask


class FaultProxy:
    """Listens on `port` of 127.0.0.1 and passes everything to `target`, until told otherwise.

    `connections` counts all accepted so far, `swallowed` the replies dropped, `passed` the bytes
    passed on to the target and to the clients.
    """

    def __init__(
        self, target: Target, *, tls: tuple[Path, Path] | None = None, seed: int = 0
    ) -> None:
        self.connections = 0
        self.swallowed = 0
        self.passed = [0, 0]
        self._target = target
        self._tls = _server_context(*tls) if tls else None
        self._random = random.Random(seed)
        self._live: set[_Connection] = set()
        self._timers: list[tuple[float, int, _Connection]] = []
        self._ticket = itertools.count()
        self._commands: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._on_wake)
        self._listener: socket.socket | None = None
        self._swallow_then: Literal["hang", "fin", "rst"] = "hang"
        self._reset_faults()
        self.port = 0
        self._listen()
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------- commands

    @property
    def open_connections(self) -> int:
        """How many connections there are now."""
        return len(self._live)

    def heal(self) -> None:
        """Undo every fault: thaw, accept, and pass everything at once."""
        self._call(self._reset_faults)
        self.accept()
        self.thaw()

    def cut(self, how: Closing = "rst") -> int:
        """Close all connections, on both sides, and return how many there were."""
        cut: list[_Connection] = []

        def close_all() -> None:
            cut.extend(self._live)
            for connection in cut:
                self._close(connection, how)

        self._call(close_all)
        return len(cut)

    def freeze(self, *, new_too: bool = True) -> None:
        """Pass nothing any more, not even an end; new connections are accepted and get nothing.

        With `new_too` off, connections made from now on work.
        """
        self._call(lambda: self._set_frozen(True, new_too))

    def thaw(self) -> None:
        """Let frozen connections go on where they were."""
        self._call(lambda: self._set_frozen(False, False))

    def refuse(self) -> None:
        """Refuse new connections; the present ones go on."""
        self._call(self._stop_listening)

    def accept(self) -> None:
        """Accept new connections again, on the same port."""
        self._call(self._listen)

    def lead_to(self, target: Target) -> None:
        """Let connections made from now on lead to another target; the present ones go on."""

        def change() -> None:
            self._target = target

        self._call(change)

    def swallow_replies(
        self, probability: float, then: Literal["hang", "fin", "rst"] = "hang"
    ) -> None:
        """Lose what the target sends, with this probability each time something comes from it.

        As TCP has no holes, the connection is mute from then on ("hang") or is closed instead.
        """

        def change() -> None:
            self._swallow, self._swallow_then = probability, then

        self._call(change)

    def dribble(self, size: int, pause_seconds: float = 0.001) -> None:
        """Pass `size` bytes at a time, with a pause between; 0: everything at once."""

        def change() -> None:
            self._dribble, self._pause = size, pause_seconds

        self._call(change)

    def delay(self, seconds: float) -> None:
        """Pass everything this much later, in both directions."""

        def change() -> None:
            self._delay = seconds

        self._call(change)

    def close(self) -> None:
        """End the proxy and all its connections."""

        def stop() -> None:
            self._stopping = True

        if self._thread.is_alive():
            self._call(stop)
        self._thread.join(COMMAND_SECONDS)

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, command: Callable[[], None]) -> None:
        """Run a command in the loop's thread and wait until it is done."""
        done = threading.Event()
        errors: list[Exception] = []

        def attempt() -> None:
            try:
                command()
            except Exception as error:
                errors.append(error)
            done.set()

        self._commands.append(attempt)
        self._wake.send(b"x")
        if not done.wait(COMMAND_SECONDS):
            raise RuntimeError("the fault proxy does not answer")
        if errors:
            raise errors[0]

    # ------------------------------------------------------------- in the loop's thread

    def _reset_faults(self) -> None:
        self._delay = 0.0
        self._dribble, self._pause = 0, 0.0
        self._swallow = 0.0
        self._swallow_then = "hang"
        self._freeze_new = False

    def _set_frozen(self, frozen: bool, new_too: bool) -> None:
        self._freeze_new = new_too
        for connection in self._live:
            connection.frozen = frozen
            self._watch(connection)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            self._selector.register(self._listener, selectors.EVENT_READ, self._on_connect)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _run(self) -> None:
        while not self._stopping:
            for key, events in self._selector.select(self._until_next_timer()):
                key.data(key.fileobj, events)
            self._expire_timers()
        for connection in list(self._live):
            self._close(connection, "rst")
        self._stop_listening()
        self._selector.close()
        self._wake.close()
        self._woken.close()

    def _until_next_timer(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _expire_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            self._watch(heapq.heappop(self._timers)[2])

    def _on_wake(self, sock: socket.socket, events: int) -> None:
        sock.recv(READ_BYTES)
        while self._commands:
            self._commands.popleft()()

    def _on_connect(self, listener: socket.socket, events: int) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        self.connections += 1
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            client = self._tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        unix = isinstance(self._target, str)
        server = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM)
        server.setblocking(False)
        connection = _Connection(client, server, self._freeze_new)
        self._live.add(connection)
        if server.connect_ex(self._target) not in CONNECT_NOW:
            self._close(connection, "rst")
            return
        self._watch(connection)

    def _watch(self, connection: _Connection) -> None:
        """Tell the selector what both sockets wait for now."""
        if connection.closed:
            return
        now = time.monotonic()
        for sock in (connection.client, connection.server):
            mask = connection.interest(sock, now)
            known = self._selector.get_map().get(sock)
            if known is not None and known.events != mask:
                self._selector.unregister(sock)
                known = None
            if known is None and mask:
                handler = self._handler(connection)
                self._selector.register(sock, mask, handler)

    def _handler(self, connection: _Connection) -> Callable[[socket.socket, int], None]:
        return lambda sock, events: self._on_event(connection, sock, events)

    def _on_event(self, connection: _Connection, sock: socket.socket, events: int) -> None:
        if connection.closed:
            return
        if not connection.connected:
            self._finish_connecting(connection)
            return
        try:
            for pipe in connection.pipes:
                if pipe.source is sock and events & selectors.EVENT_READ:
                    self._read(connection, pipe)
                if pipe.sink is sock and events & selectors.EVENT_WRITE:
                    self._write(pipe)
            self._pass_ends(connection)
        except OSError:
            self._close(connection, "rst")
        self._watch(connection)

    def _finish_connecting(self, connection: _Connection) -> None:
        if connection.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._close(connection, "rst")
            return
        connection.connected = True
        self._watch(connection)

    def _read(self, connection: _Connection, pipe: _Pipe) -> None:
        """Read what there is; a TLS socket must be emptied, what it holds wakes no selector."""
        more = True
        while more and not connection.closed:
            try:
                data = pipe.source.recv(READ_BYTES)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                return
            if not data:
                pipe.ended = True
                return
            self._take(connection, pipe, data)
            more = isinstance(pipe.source, ssl.SSLSocket)

    def _take(self, connection: _Connection, pipe: _Pipe, data: bytes) -> None:
        if pipe.replies and not pipe.mute and self._random.random() < self._swallow:
            self.swallowed += 1
            pipe.mute = True
            if self._swallow_then != "hang":
                self._close(connection, self._swallow_then)
        if pipe.mute:
            return
        due = time.monotonic() + self._delay
        size = self._dribble or len(data)
        for start in range(0, len(data), size):
            pipe.put(data[start : start + size], due)
            due = pipe.last_due + self._pause
            if pipe.last_due > time.monotonic():
                heapq.heappush(self._timers, (pipe.last_due, next(self._ticket), connection))

    def _write(self, pipe: _Pipe) -> None:
        while pipe.due(time.monotonic()):
            due, data = pipe.queue[0]
            try:
                sent = pipe.sink.send(data)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                return
            pipe.size -= sent
            self.passed[pipe.replies] += sent
            if sent < len(data):
                pipe.queue[0] = (due, data[sent:])
                return
            pipe.queue.popleft()

    def _pass_ends(self, connection: _Connection) -> None:
        """Pass an end on once all before it is written; TLS knows no half-closed connection."""
        for pipe in connection.pipes:
            if connection.closed or not pipe.ended or pipe.queue or pipe.passed_end:
                continue
            pipe.passed_end = True
            if self._tls is not None or all(each.passed_end for each in connection.pipes):
                self._close(connection, "fin")
            else:
                pipe.sink.shutdown(socket.SHUT_WR)

    def _close(self, connection: _Connection, how: Closing) -> None:
        if connection.closed:
            return
        connection.closed = True
        self._live.discard(connection)
        for sock in (connection.client, connection.server):
            if self._selector.get_map().get(sock) is not None:
                self._selector.unregister(sock)
            if how == "rst":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


def _server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
