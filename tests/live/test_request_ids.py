"""Each request has an id, which its answer has and every line that the log has of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live_server import LiveService, until
from tests.raw_http import ask
from tests.sse_client import SseClient
from tests.valkey import Valkey

pytestmark = pytest.mark.live

HEADER = "X-Request-Id"


@pytest.fixture(scope="module")
def trusting(shared_valkey: Valkey) -> Iterator[LiveService]:
    """A service that believes a proxy on this machine, with two streams at most."""
    with LiveService(
        shared_valkey.url, WEB_CONCURRENCY=1, TRUSTED_PROXIES="127.0.0.0/8", MAX_CONNECTIONS=2
    ) as service:
        yield service


def new_id() -> str:
    """An id as a proxy makes it."""
    return str(uuid.uuid4())


def lines_of(service: LiveService, request_id: str, count: int) -> list[dict[str, Any]]:
    """The lines of the log about one request, as soon as there are so many."""
    lines = until(
        lambda: len(found := service.log_lines(request_id=request_id)) >= count and found,
        5,
        f"{count} lines of {request_id}",
    )
    return list(lines)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/channels/a", 200),
        ("POST", "/channels/a%20b", 400),
        ("GET", "/livez", 200),
        ("HEAD", "/stream?channel=a", 200),
        ("GET", "/stream?channel=a%20b", 400),
        ("OPTIONS", "/channels/a", 204),
        ("GET", "/nowhere", 404),
        ("PATCH", "/publish", 405),
    ],
)
def test_every_answer_has_it(trusting: LiveService, method: str, path: str, status: int) -> None:
    """Whoever answers: the routes in front, Flask, or an error."""
    request_id = new_id()
    answer = ask(trusting, method, path, b"x" if method == "POST" else None,
                 X_Request_Id=request_id)  # fmt: skip
    assert answer.status == status
    assert answer.head.all(HEADER) == [request_id]
    (line,) = lines_of(trusting, request_id, 1)
    assert (line["method"], line["status"]) == (method, status)
    assert ("code" in line) == (status >= 400)


def test_the_lines_of_a_stream(trusting: LiveService) -> None:
    """One line when it opens, and one when it ends, with the same names."""
    channel, request_id = f"test-{uuid.uuid4()}", new_id()
    url = f"{trusting.url}/stream?channel={channel}&channel=other"
    with SseClient.connect(url, headers={HEADER: request_id}) as client:
        assert client.header(HEADER) == request_id
        (opened,) = lines_of(trusting, request_id, 1)
        trusting.publish(channel, "hello")
        client.wait_body(b"hello", 5)
    assert opened["message"] == "stream opened"
    assert (opened["address"], opened["user"], opened["channels"]) == ("127.0.0.1", "", 2)
    assert "path" not in opened
    _, ended = lines_of(trusting, request_id, 2)
    assert ended["message"] == "GET /stream 200"
    assert ended["stream"] == opened["stream"] == client.header("Pushline-Stream")
    assert (ended["reason"], ended["events"]) == ("client_left", 1)
    assert ended["seconds"] > 0


def test_a_soft_refusal_tells_its_code(trusting: LiveService) -> None:
    """Its status is 200, so the line of the log says why."""
    url = f"{trusting.url}/stream?channel=full"
    request_id = new_id()
    headers = {"Accept": "text/event-stream"}
    with SseClient.connect(url) as one, SseClient.connect(url) as two:
        assert one.header("Pushline-Stream")
        assert two.header("Pushline-Stream")
        with SseClient.connect(url, headers={**headers, HEADER: request_id}) as third:
            assert third.status == 200
            assert third.header(HEADER) == request_id
    (line,) = lines_of(trusting, request_id, 1)
    assert (line["status"], line["code"]) == (200, "too_many_streams")


def test_nobody_else_is_believed(live: LiveService) -> None:
    """Without trusted proxies the service makes the ids, each once."""
    request_id = new_id()
    answers = [ask(live, "GET", "/livez", X_Request_Id=request_id) for _ in range(2)]
    made = {answer.head.get(HEADER) or "" for answer in answers}
    assert len(made) == 2
    assert request_id not in made
    for one in made:
        (line,) = lines_of(live, one, 1)
        assert line["path"] == "/livez"


def test_the_states_of_redis(own_valkey: Valkey) -> None:
    """One line for each change: connected, lost and why, and how long it took to be back."""

    def told() -> list[dict[str, Any]]:
        lines = service.log_lines(logger="pushline.redis")
        return [one for one in lines if one["message"].startswith("Redis is ")]

    with LiveService(own_valkey.url, WEB_CONCURRENCY=1) as service:
        own_valkey.kill()
        until(lambda: len(told()) == 2, 10, "the loss is told")
        own_valkey.start()
        until(lambda: len(told()) == 3, 20, "it is told that it is back")
        own_valkey.kill()
        until(lambda: len(told()) == 4, 10, "the next loss is told")
    first, lost, back, again = told()
    assert (first["level"], first["outage_seconds"]) == ("info", 0.0)
    assert (lost["level"], lost["reason"]) == ("warning", "eof")
    assert (back["level"], back["channels"]) == ("info", 0)
    assert back["outage_seconds"] > 0
    assert again["reason"] == "eof"
