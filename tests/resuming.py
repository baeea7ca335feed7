"""Clients that resume: a process of many streams that come back with their cursor, for ever.

Each client follows a few channels, notes the ids of its events, and reconnects like an EventSource:
after its retry time, with its Last-Event-ID, but to the next of several services. What must never
happen to one (an id twice, an id that goes back, a `$reset`, a broken frame) is noted at once.
Events carry `<channel> <number>` as data; `Resuming` is the Python face, `main` the process.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import json
import random
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
REPLY_SECONDS = 60.0
READ_BYTES = 262_144

SILENT_SECONDS = 8.0
"""A stream without even a heartbeat for so long is given up, as good clients do."""

CONNECTS_PER_TURN = 40
NOTED_FAULTS = 200
SEQUENCE_BITS = 20
KNOWN_FIELDS = frozenset({b"id", b"data", b"event", b"retry"})


def packed(text: str) -> int:
    """An event id as one number that orders like it."""
    milliseconds, _, sequence = text.partition("-")
    return int(milliseconds) << SEQUENCE_BITS | int(sequence)


def unpacked(number: int) -> str:
    """The id that `packed` has packed."""
    return f"{number >> SEQUENCE_BITS}-{number & (1 << SEQUENCE_BITS) - 1}"


# -- the process ---------------------------------------------------------------------------------


class _Broken(Exception):
    """A stream's bytes are not what they must be."""


@dataclass
class Connection:
    """One connection of a client, as it is told in a report."""

    port: int
    opened: float
    cursor: str
    local_port: int = 0
    status: int = 0
    events: int = 0
    ended: float = 0.0
    how: str = ""


@dataclass
class Client:
    """One client, over all of its connections."""

    number: int
    channels: tuple[str, ...]
    cursor: str = ""
    first: str = ""
    ids: array[int] = field(default_factory=lambda: array("Q"))
    connections: list[Connection] = field(default_factory=list)
    sock: socket.socket | None = None
    due: float = 0.0
    retry_seconds: float = 0.2
    heard: float = 0.0
    head_done: bool = False
    terminated: bool = False
    raw: bytes = b""
    text: bytes = b""

    def __post_init__(self) -> None:
        self.wanted = {channel.encode() for channel in self.channels}


class _Process:
    """All clients, and the commands of the test, in one loop."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.random = random.Random(options.seed)
        self.retry_cap = options.retry_cap_ms / 1000
        self.ports: list[int] = []
        names = [f"c{number}" for number in range(options.channels)]
        self.clients = [
            Client(number, tuple(self.random.sample(names, self.random.randint(1, 3))))
            for number in range(options.clients)
        ]
        self.noted: list[str] = []
        self.counts: Counter[str] = Counter()
        self.selector = selectors.DefaultSelector()
        self.commands = socket.socket(fileno=0)
        self.selector.register(self.commands, selectors.EVENT_READ)
        self.line = b""

    def run(self) -> None:
        """Serve until the test closes its end."""
        while True:
            for key, _ in self.selector.select(0.02):
                if key.data is not None:
                    self.serve(key.data)
                elif not self.take_commands():
                    return
            self.look_after(time.monotonic())

    def look_after(self, now: float) -> None:
        connects = 0
        for client in self.clients:
            if client.sock is not None:
                if now - client.heard > SILENT_SECONDS:
                    self.close(client, "silent")
            elif self.ports and now >= client.due and connects < CONNECTS_PER_TURN:
                connects += 1
                self.connect(client, now)

    def note(self, what: str, client: Client, text: str) -> None:
        self.counts[what] += 1
        if len(self.noted) < NOTED_FAULTS:
            last = client.connections[-1]
            self.noted.append(
                f"{time.time():.3f} {what}: client {client.number} {client.channels}"
                f" on port {last.port} (from {last.local_port}, connected at {last.opened:.3f}"
                f" with cursor {last.cursor!r}, {last.events} events): {text}"
            )

    # -- connections -----------------------------------------------------------------------------

    def connect(self, client: Client, now: float) -> None:
        port = self.random.choice(self.ports)
        client.connections.append(Connection(port, time.time(), client.cursor))
        client.sock = socket.socket()
        client.sock.setblocking(False)
        client.heard = now
        client.head_done = client.terminated = False
        client.raw = client.text = b""
        if client.sock.connect_ex(("127.0.0.1", port)) not in (0, 115):
            self.close(client, "refused")
            return
        self.selector.register(client.sock, selectors.EVENT_WRITE, client)

    def serve(self, client: Client) -> None:
        if client.sock is None:
            return  # aborted by a command of this same turn
        if self.selector.get_key(client.sock).events == selectors.EVENT_WRITE:
            self.ask(client, client.sock)
            return
        try:
            data = client.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(client, type(error).__name__)
            return
        client.heard = time.monotonic()
        try:
            if data:
                self.take(client, data)
            self.close_if_over(client, not data)
        except _Broken as error:
            self.note("broken", client, str(error))
            self.close(client, "broken")

    def ask(self, client: Client, sock: socket.socket) -> None:
        query = "&".join(f"channel={channel}" for channel in client.channels)
        cursor = f"Last-Event-ID: {client.cursor}\r\n" if client.cursor else ""
        request = (
            f"GET /stream?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Accept: text/event-stream\r\n{cursor}\r\n"
        )
        try:
            sock.send(request.encode())
            client.connections[-1].local_port = sock.getsockname()[1]
            self.selector.modify(sock, selectors.EVENT_READ, client)
        except OSError as error:
            self.close(client, type(error).__name__)

    def close_if_over(self, client: Client, ended: bool) -> None:
        if client.terminated:
            self.close(client, "terminated")
        elif ended:
            self.close(client, "fin")

    def close(self, client: Client, how: str, *, reset: bool = False) -> None:
        sock, client.sock = client.sock, None
        if sock is None:
            return
        if sock in self.selector.get_map():
            self.selector.unregister(sock)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        self.counts[f"ended {how}"] += 1
        last = client.connections[-1]
        last.ended, last.how = time.time(), how
        client.due = time.monotonic() + client.retry_seconds * self.random.uniform(0.5, 1.0)

    # -- HTTP and text/event-stream --------------------------------------------------------------

    def take(self, client: Client, data: bytes) -> None:
        client.raw += data
        if not client.head_done:
            head, separator, rest = client.raw.partition(b"\r\n\r\n")
            if not separator:
                return
            client.head_done, client.raw = True, rest
            self.take_head(client, head)
        body = self.dechunk(client)
        *blocks, client.text = (client.text + body).split(b"\n\n")
        for block in blocks:
            self.take_block(client, block)
        if client.terminated and client.text.strip(b":\n"):
            raise _Broken(f"the stream ended inside a block: {client.text[:80]!r}")

    def take_head(self, client: Client, head: bytes) -> None:
        status = int(head.split(b" ", 2)[1])
        client.connections[-1].status = status
        self.counts[f"status {status}"] += 1
        if status != 200 or b"text/event-stream" not in head:
            self.note("rejected", client, repr(head[:300] + client.raw[:300]))
            client.terminated = True
        elif b"ransfer-Encoding: chunked" not in head:
            # A soft refusal has a length; its few bytes come with its head.
            client.text, client.raw = client.raw, b""
            client.terminated = True
            self.counts["refused softly"] += 1

    def dechunk(self, client: Client) -> bytes:
        body = []
        at, raw = 0, client.raw
        while not client.terminated:
            line_end = raw.find(b"\r\n", at)
            if line_end < 0:
                break
            try:
                size = int(raw[at:line_end], 16)
            except ValueError:
                raise _Broken(f"not a chunk: {raw[at : at + 60]!r}") from None
            end = line_end + 2 + size
            if len(raw) < end + 2:
                break
            if raw[end : end + 2] != b"\r\n":
                raise _Broken(f"a chunk is too long: {raw[at : at + 60]!r}")
            body.append(raw[line_end + 2 : end])
            client.terminated = size == 0
            at = end + 2
        client.raw = raw[at:]
        return b"".join(body)

    def take_block(self, client: Client, block: bytes) -> None:
        fields = {}
        for line in block.split(b"\n"):
            key, _, value = line.partition(b": ")
            if line != b":" and key not in KNOWN_FIELDS:
                raise _Broken(f"an unknown line: {line[:60]!r}")
            fields[key] = value
        if b"retry" in fields:
            client.retry_seconds = min(self.retry_cap, int(fields[b"retry"]) / 1000)
        name, data = fields.get(b"event"), fields.get(b"data", b"")
        if name == b"$reset":
            self.note("reset", client, data.decode())
        if b"id" in fields:
            self.take_id(client, fields[b"id"].decode(), b"" if name else data)

    def take_id(self, client: Client, event_id: str, data: bytes) -> None:
        number = packed(event_id)
        before = packed(client.cursor) if client.cursor else 0
        client.first = client.first or event_id
        if data:
            if not self.wants(client, data):
                self.note("stray", client, f"{event_id} {data[:60]!r}")
            if number <= before:
                self.note_unordered(client, event_id, number, data)
                return
            client.ids.append(number)
            client.connections[-1].events += 1
        elif number < before:
            self.note("position inverted", client, f"{event_id} after {client.cursor}")
        client.cursor = max(client.cursor, event_id, key=packed) if client.cursor else event_id

    @staticmethod
    def wants(client: Client, data: bytes) -> bool:
        return not client.wanted.isdisjoint(data.split(b" ", 1)[0].split(b","))

    def note_unordered(self, client: Client, event_id: str, number: int, data: bytes) -> None:
        place = bisect.bisect_left(client.ids, number)
        known = place < len(client.ids) and client.ids[place] == number
        what = "duplicate" if known else "inversion"
        self.note(what, client, f"{event_id} {data[:60]!r} after {client.cursor}")

    # -- commands --------------------------------------------------------------------------------

    def take_commands(self) -> bool:
        data = self.commands.recv(READ_BYTES)
        *lines, self.line = (self.line + data).split(b"\n")
        for line in lines:
            answer = self.obey(json.loads(line))
            self.commands.setblocking(True)
            self.commands.sendall(json.dumps(answer).encode() + b"\n")
        return bool(data)

    def obey(self, command: dict[str, Any]) -> object:
        if "ports" in command:
            self.ports = command["ports"]
        if "abort" in command:
            open_ones = [client for client in self.clients if client.sock is not None]
            for client in self.random.sample(open_ones, min(command["abort"], len(open_ones))):
                self.close(client, "aborted", reset=True)
        if "ids" in command:
            if command["ids"]:
                with Path(command["ids"]).open("wb") as file:
                    for client in self.clients:
                        client.ids.tofile(file)
            return [(len(client.ids), client.first, client.channels) for client in self.clients]
        if "history" in command:
            return [vars(one) for one in self.clients[command["history"]].connections]
        return {
            "counts": self.counts,
            "noted": self.noted,
            "events": sum(len(client.ids) for client in self.clients),
            "connections": sum(len(client.connections) for client in self.clients),
            "begun": sum(bool(client.first) for client in self.clients),
            "open": sum(client.sock is not None and client.head_done for client in self.clients),
        }


def main() -> None:
    """Run the clients; standard input is the socket on which commands come."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("clients", "channels", "seed", "retry-cap-ms"):
        parser.add_argument(f"--{name}", type=int, required=True)
    process = _Process(parser.parse_args())
    with contextlib.suppress(KeyboardInterrupt):
        process.run()


# -- the Python face -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What the clients saw. `noted` describes the first of what must not happen."""

    counts: Mapping[str, int]
    noted: Sequence[str]
    events: int
    connections: int
    begun: int  # clients that know where they began
    open: int


@dataclass(frozen=True)
class Received:
    """All ids that one client got, in order; `first` is where it began."""

    number: int
    first: int
    channels: tuple[str, ...]
    ids: array[int]


class Resuming:
    """The running process of clients, as a context manager. They wait until `use` names services.

    Client n follows 1 to 3 of `channels` channels, named c0, c1 and so on.
    """

    def __init__(self, clients: int, *, channels: int, seed: int, retry_cap_ms: int = 500) -> None:
        options = {"clients": clients, "channels": channels, "seed": seed}
        command = [sys.executable, "-m", "tests.resuming", f"--retry-cap-ms={retry_cap_ms}"]
        command += [f"--{name}={value}" for name, value in options.items()]
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), cwd=ROOT)
        self._socket.settimeout(REPLY_SECONDS)
        self._file = self._socket.makefile("rb")
        self._turn = threading.Lock()

    def use(self, ports: Sequence[int]) -> None:
        """From now on connect to any of these services."""
        self._ask(ports=list(ports))

    def abort(self, count: int) -> None:
        """Let some clients reset their connections; they come back."""
        self._ask(abort=count)

    def report(self) -> Report:
        """All counters."""
        return Report(**self._ask())

    def history(self, number: int) -> list[dict[str, Any]]:
        """The connections of one client."""
        connections: list[dict[str, Any]] = self._ask(history=number)
        return connections

    def counts(self) -> list[tuple[int, Received]]:
        """How many ids every client got, and the client, without them."""
        return [
            (count, Received(number, packed(first) if first else 0, tuple(channels), array("Q")))
            for number, (count, first, channels) in enumerate(self._ask(ids=""))
        ]

    def received(self, scratch: Path) -> list[Received]:
        """What every client got; `scratch` is a file for the ids."""
        rows = self._ask(ids=str(scratch))
        found = []
        with scratch.open("rb") as file:
            for number, (count, first, channels) in enumerate(rows):
                ids = array("Q")
                ids.fromfile(file, count)
                found.append(Received(number, packed(first) if first else 0, tuple(channels), ids))
        return found

    def close(self) -> None:
        """End the process."""
        self._file.close()
        self._socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, **command: object) -> Any:
        with self._turn:
            self._socket.sendall(json.dumps(command).encode() + b"\n")
            return json.loads(self._file.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


if __name__ == "__main__":
    main()
