"""A little HTTP server of the tests: what an application answers to AUTHORIZE_URL, or an issuer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.valkey import free_port


@dataclass
class Question:
    """A request that has come."""

    query: dict[str, list[str]]
    headers: Message[str, str] = field(repr=False)


Say = Callable[[Question], tuple[int, bytes]]


class LittleServer:
    """Answers every GET on 127.0.0.1:`port` with `status` and `body` after `delay` seconds.

    With `answer` these two depend on the question.
    """

    def __init__(self, status: int = 200, body: bytes = b"", answer: Say | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.status, self.body, self.delay = status, body, 0.0
        self._answer = answer or (lambda question: (self.status, self.body))
        self.questions: list[Question] = []
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen; again after `stop`, on the same port."""
        little = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                question = Question(query, self.headers)
                little.questions.append(question)
                time.sleep(little.delay)
                status, body = little._answer(question)
                self.send_response(status)
                if status != 204:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Let nobody in any more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
