"""Security headers and challenges of all answers, errors and gunicorn's own ones too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Response
from werkzeug.test import TestResponse

from service.errors import CHALLENGE, RedisDown
from service.routes.headers import HEADERS, harden
from service.routes.page import PAGE_HEADERS
from service.worker import STATUS_OF, unreadable
from tests.applications import Application, Make, check_problem, making
from tests.sse_client import ResponseHead
from tests.valkey import Valkey

CLOSED = {"publish_open": False, "publish_keys": (("publish-key-of-the-test", ("*",)),)}


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Make]:
    """Make applications on the shared Valkey."""
    with making(valkey.url) as one:
        yield one


def hardened(response: TestResponse) -> bool:
    """Whether an answer has the whole table."""
    return all(response.headers[name] == value for name, value in HEADERS.items())


def test_the_table() -> None:
    """Nothing is sniffed, framed, run or told to others."""
    assert HEADERS == {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    }


def test_an_answer_may_say_otherwise() -> None:
    """What an answer has already stays, and streams have a table of their own."""
    own = harden(Response(headers={"Referrer-Policy": "origin"}))
    assert own.headers["Referrer-Policy"] == "origin"
    assert own.headers["X-Content-Type-Options"] == "nosniff"
    stream = harden(Response(content_type="text/event-stream"))
    assert HEADERS.keys().isdisjoint(stream.headers.keys())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/livez", 405),
        ("GET", "/stream", 400),
        ("POST", "/channels/a", 401),
        ("GET", "/channels/a/events", 200),
        ("GET", "/livez", 200),
        ("OPTIONS", "/livez", 200),
        ("OPTIONS", "/publish", 204),
        ("GET", "/openapi.json", 200),
        ("PUT", "/publish", 401),
    ],
)
def test_every_answer_has_them(make: Make, method: str, path: str, status: int) -> None:
    """Good ones and refusals."""
    response = make(**CLOSED).client.open(path, method=method)
    assert response.status_code == status
    assert hardened(response)


def test_faults_have_them(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the service, Redis that is down, and a soft refusal."""
    app = make()
    for error, status in ((ValueError("x"), 500), (RedisDown(), 503)):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(app.service.publishing, "_publish", fail)
        response = app.client.post("/channels/a", data="x")
        assert response.status_code == status
        assert hardened(response)
    app.service.hub.draining = True
    response = app.client.get("/stream?channel=a", headers={"Accept": "text/event-stream"})
    assert (response.status_code, response.mimetype) == (200, "text/event-stream")
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_may_run_its_own_files(make: Make) -> None:
    """The demo page has a policy of its own, which lets nothing inline run, and no frame."""
    for path in ("/", "/static/pushline.js", "/static/missing.js"):
        response = make().client.get(path)
        response.close()
        policy = response.headers["Content-Security-Policy"]
        assert policy == PAGE_HEADERS["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("status", [400, *STATUS_OF.values()])
def test_what_gunicorn_cannot_read(status: int) -> None:
    """The answer that is written without Flask has the same headers."""
    head = ResponseHead.parse(unreadable(status).partition(b"\r\n\r\n")[0])
    assert head.status == status
    for name, value in {**HEADERS, "Cache-Control": "no-store"}.items():
        assert head.get(name) == value


@pytest.mark.parametrize(
    ("headers", "code", "challenge"),
    [
        ({}, "no_credential", CHALLENGE),
        ({"Cookie": "pushline=x"}, "no_credential", CHALLENGE),
        ({"Authorization": "Bearer x"}, "bad_credential", f'{CHALLENGE}, error="invalid_token"'),
        ({"Authorization": "Basic eDp5"}, "bad_credential", f'{CHALLENGE}, error="invalid_token"'),
    ],
)
def test_what_a_401_wants(make: Make, headers: dict[str, str], code: str, challenge: str) -> None:
    """It names the scheme, and says if what was shown is no good (RFC 6750, section 3)."""
    response = make(**CLOSED).client.post("/channels/a", data="x", headers=headers)
    check_problem(response, 401, code)
    assert response.headers.getlist("WWW-Authenticate") == [challenge]
    assert challenge.startswith('Bearer realm="pushline"')


# ----------------------------------------------------------------- what tickets and closing take


@pytest.fixture
def app(make: Make) -> Application:
    """A service in local mode, in which all have all rights."""
    return make(publish_open=False, embedded=True, max_channels_per_stream=2)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "bad_channel"),
        ("channel=", "bad_channel"),
        ("channel=a&channel=b*", "bad_channel"),
        ("channel=%24control", "bad_channel"),
        ("channel=a&channel=b&channel=c", "bad_parameter"),
        ("channel=a&ticket=", "bad_parameter"),
    ],
)
def test_what_no_ticket_is_for(app: Application, query: str, code: str) -> None:
    """A ticket is for channels, by name, as many as a stream may have; and for no other ticket."""
    assert check_problem(app.client.post(f"/tickets?{query}"), 400, code)["fix"]
    assert len(app.client.post("/tickets?channel=a&channel=b").get_json()["ticket"]) == 43


@pytest.mark.parametrize(
    "query",
    [
        "",
        "user=",
        "stream=",
        "user=a&stream=b",
        "user=a&user=b",
        "user=a&channel=b",
        "name=a",
        "user=" + "x" * 257,
    ],
)
def test_what_closes_no_stream(app: Application, query: str) -> None:
    """One user or one stream has to be named, and nothing else: a slip must not close others."""
    assert check_problem(app.client.delete(f"/streams?{query}"), 400, "bad_parameter")["fix"]
    assert app.client.delete("/streams?user=" + "x" * 256).status_code == 202
