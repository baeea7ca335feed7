"""A proxy that writes down the head of each request, and can break the connections."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.sse_client import RECEIVE_BYTES

LAST_CHUNK = b"0\r\n\r\n"


class Tap(socketserver.ThreadingTCPServer):
    """Passes everything on to `port` of 127.0.0.1 and back.

    `heads` are those of the requests, which must have no bodies, in the order in which they came;
    `answered` is all that the service has said.
    """

    daemon_threads = True
    block_on_close = False  # a stream may outlive its test

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passage)
        self.target = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.heads: list[str] = []
        self.answered = bytearray()
        self.open: set[tuple[socket.socket, socket.socket]] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))

    def streams(self) -> list[dict[str, str]]:
        """The headers of each request for a stream; names in lower case."""
        return [_headers(head) for head in self.heads if head.startswith("GET /stream?")]

    def cut(self) -> None:
        """Break all connections, in the middle of whatever they carry."""
        for ends in tuple(self.open):
            for end in ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """End all chunked answers as a server does that has no more to say."""
        for client, _ in tuple(self.open):
            with suppress(OSError):
                client.sendall(LAST_CHUNK)
        self.cut()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.cut()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients leave in the middle: nothing to say about it."""


class _Passage(socketserver.BaseRequestHandler):
    server: Tap

    def handle(self) -> None:
        client: socket.socket = self.request
        with socket.create_connection(self.server.target) as upstream:
            ends = (client, upstream)
            self.server.open.add(ends)
            take = self.server.answered.extend
            back = threading.Thread(target=_pump, args=(upstream, client, take), daemon=True)
            back.start()
            try:
                _pump(client, upstream, self._take_down())
            finally:
                self.server.open.discard(ends)
                back.join()

    def _take_down(self) -> Callable[[bytes], None]:
        received = b""

        def take(data: bytes) -> None:
            nonlocal received
            *heads, received = (received + data).split(b"\r\n\r\n")
            self.server.heads += [head.decode("latin-1") for head in heads]

        return take


def _pump(source: socket.socket, sink: socket.socket, take: Callable[[bytes], None]) -> None:
    """Pass bytes on until an end closes; then close the other one too."""
    with suppress(OSError):
        while data := source.recv(RECEIVE_BYTES):
            take(data)
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _headers(head: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in head.split("\r\n")[1:])
    return {name.lower(): value.strip() for name, _, value in pairs}
