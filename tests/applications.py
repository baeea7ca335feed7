"""Whole applications in the process of the tests, and the streams of Flask's test client."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from service.app import create_app
from service.service import Service
from service.settings import Settings
from tests.sse_client import EventStreamParser, ParsedEvent


class Application:
    """An application in production mode, its client and its parts."""

    def __init__(self, redis_url: str, **changes: Any) -> None:
        values: dict[str, Any] = {
            "publish_open": True,
            "public_channels": ("*",),
            "max_connections": 1000,
            "max_connects_per_second_per_ip": 0,
            **changes,
        }
        app = create_app(Settings(redis_url=redis_url, **values))
        self.service: Service = app.extensions["pushline"]
        self.client: FlaskClient = app.test_client()

    def stream(self, query: str, **headers: str) -> Stream:
        """Open a stream."""
        return Stream(self.client.get(f"/stream?{query}", headers=headers, buffered=False))

    def publish(self, channel: str, data: str | bytes, query: str = "") -> str:
        """Publish a body and return its id."""
        response = self.client.post(f"/channels/{channel}{query}", data=data)
        assert response.status_code == 200, response.text
        return str(response.get_json()["id"])


class Stream:
    """An open stream of the test client, read piece by piece."""

    def __init__(self, response: TestResponse) -> None:
        self.response = response
        self.parser = EventStreamParser()
        self.data = b""
        self._pieces = response.iter_encoded()

    def read(self, seconds: float = 10.0) -> list[ParsedEvent]:
        """The events of the next piece."""
        with gevent.Timeout(seconds):
            piece = next(self._pieces)
        self.data += piece
        return self.parser.feed(piece)

    def events(self, count: int) -> list[ParsedEvent]:
        """The next events."""
        events: list[ParsedEvent] = []
        while len(events) < count:
            events += self.read()
        return events

    def read_to_end(self) -> None:
        """Read until the stream ends by itself."""
        with contextlib.suppress(StopIteration):
            while True:
                self.read()

    def close(self) -> None:
        """Leave."""
        self.response.close()


Make = Callable[..., Application]


@contextlib.contextmanager
def making(url: str) -> Iterator[Make]:
    """Make applications, by default on the Redis of `url`; each is stopped at the end."""
    made: list[Application] = []

    def one(redis_url: str = url, **changes: Any) -> Application:
        made.append(Application(redis_url, **changes))
        return made[-1]

    yield one
    for application in made:
        application.service.stop()


def check_problem(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    """The response is a problem document of RFC 9457 with this status and code."""
    assert response.status_code == status, response.text
    assert response.content_type == "application/problem+json"
    assert response.headers["Cache-Control"] in ("no-store", "no-cache")
    body = response.get_json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["title"]
    assert body["detail"]
    assert isinstance(body, dict)
    return body
