"""HTTP by hand: one plain connection on which a test sends bytes and reads whole answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.live_server import LiveService
from tests.processes import GONE, descriptors
from tests.secrets_used import USED
from tests.sse_client import RECEIVE_BYTES, ResponseHead, open_socket


@dataclass(frozen=True)
class Answer:
    """A response that is complete; `seconds` is how long it took from the call to read it."""

    head: ResponseHead
    body: bytes
    seconds: float

    @property
    def status(self) -> int:
        """The status code."""
        return self.head.status

    def header(self, name: str) -> str | None:
        """Return the value of a header, which may occur once."""
        return self.head.get(name)

    def json(self) -> Any:
        """The body read as JSON."""
        return json.loads(self.body)

    def problem(self, status: int, code: str) -> dict[str, Any]:
        """The problem document, which must be complete, with this status and code."""
        assert self.status == status, (self.status, self.body)
        assert self.header("Content-Type") == "application/problem+json"
        assert self.header("Cache-Control") == "no-store"
        document: dict[str, Any] = self.json()
        assert document["status"] == status
        assert document["code"] == code, document
        assert document["title"]
        assert document["detail"]
        return document


class RawConnection:
    """A connection to 127.0.0.1:`port`."""

    def __init__(self, port: int, *, timeout: float = 10.0, source: str | None = None) -> None:
        self.timeout = timeout
        self.sock = open_socket(("127.0.0.1", port), timeout, source=source)

    def send(self, data: bytes) -> Self:
        """Send bytes as they are."""
        self.sock.sendall(data)
        return self

    def answer(self, method: str = "GET") -> Answer:
        """Read one answer to its end; the connection may stay open."""
        started = time.monotonic()
        received = b""
        while b"\r\n\r\n" not in received:
            data = self.sock.recv(RECEIVE_BYTES)
            assert data, f"closed before the end of the head: {received!r}"
            received += data
        raw_head, _, rest = received.partition(b"\r\n\r\n")
        head = ResponseHead.parse(raw_head)
        framing = head.body(method)
        body = framing.feed(rest)
        while framing.finished is None and (data := self.sock.recv(RECEIVE_BYTES)):
            body += framing.feed(data)
        return Answer(head, body, time.monotonic() - started)

    def ask(self, request: bytes, method: str = "") -> Answer:
        """Send a request and read its answer."""
        return self.send(request).answer(method or request.partition(b" ")[0].decode("latin-1"))

    def close(self) -> None:
        """Leave."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def request_bytes(method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
    """An HTTP/1.1 request with a Content-Length. Header names are written with _ for -."""
    USED.add_request(path, headers)
    fields = {"Host": "127.0.0.1", **{k.replace("_", "-"): v for k, v in headers.items()}}
    if body is not None:
        fields.setdefault("Content-Length", str(len(body)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + (body or b"")


def chunked(*pieces: bytes) -> bytes:
    """`pieces` as the chunks of a whole body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def ask(
    service: LiveService, method: str, path: str, body: bytes | None = None, **headers: str
) -> Answer:
    """One request on a connection of its own."""
    with RawConnection(service.port) as connection:
        request = request_bytes(method, path, body, Connection="close", **headers)
        return connection.ask(request, method)


@contextmanager
def only_worker(service: LiveService, pid: int) -> Iterator[None]:
    """While this lasts, all new connections are accepted by this worker: the others stand still."""
    others = [other for other in service.worker_pids() if other != pid]
    try:
        for other in others:
            os.kill(other, signal.SIGSTOP)
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


def worker_of(service: LiveService, client: socket.socket) -> int:
    """The process id of the worker that holds the other end of `client`."""
    ends = (service.port, client.getsockname()[1])
    inode = ""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if tuple(int(end.partition(":")[2], 16) for end in fields[1:3]) == ends:
            inode = fields[9]
    for pid in service.worker_pids():
        for descriptor in descriptors(pid):
            try:
                if str(descriptor.readlink()) == f"socket:[{inode}]":
                    return pid
            except GONE:
                continue  # closed meanwhile
    raise AssertionError("no worker holds this connection")
