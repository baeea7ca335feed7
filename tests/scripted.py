"""A server whose every answer is a function of the test: what no real server says on demand."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from service.remote import Remote

Script = Callable[[socket.socket, bytes], object]


class Scripted:
    """A server on a free port that answers each connection as `script` does with its request."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client, contextlib.suppress(OSError):
                request = client.recv(65536)
                if request.startswith(b"STOP"):
                    return
                self._script(client, request)

    def close(self) -> None:
        """End it."""
        with socket.create_connection(self._listener.getsockname()) as last:
            last.sendall(b"STOP")
        self._thread.join()
        self._listener.close()


@contextlib.contextmanager
def scripted(script: Script, seconds: float = 3.0) -> Iterator[Remote]:
    """Such a server, for whose answers one waits so long."""
    server = Scripted(script)
    try:
        yield Remote(server.url, seconds=seconds)
    finally:
        server.close()
