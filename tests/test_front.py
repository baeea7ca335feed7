"""The hot routes in front of Flask: told from others as Flask would, and answered as by it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder, run_wsgi_app
from werkzeug.wrappers import Request

from service.errors import BadParameter
from service.routes.headers import HEADERS
from service.routes.lazy_request import SHORT, Args, LazyRequest, once_per_query
from tests.applications import Application, making
from tests.valkey import Valkey


@pytest.fixture
def application(valkey: Valkey) -> Iterator[Application]:
    """An application in production mode, where anyone may publish."""
    with making(valkey.url) as make:
        yield make()


def ask(application: Application, method: str, path: str, **environ: Any) -> tuple[int, Any, bytes]:
    """Send a request whose path and method are exactly these; returns status, headers and body."""
    made = EnvironBuilder(method="GET", path="/").get_environ()
    made.update({"REQUEST_METHOD": method, "PATH_INFO": path, **environ})
    body, status, headers = run_wsgi_app(application.client.application, made, buffered=True)
    return int(status.split()[0]), headers, b"".join(body)


@pytest.mark.parametrize("method", ["POST", "post"])
@pytest.mark.parametrize("path", ["/channels/a", "channels/a", "//channels/a"])
def test_odd_ways_to_write_a_hot_route(application: Application, method: str, path: str) -> None:
    """Whatever Werkzeug takes for the route is the route: Flask has no function for it."""
    status, headers, body = ask(application, method, path)
    assert status == 200, body
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("method", ["HEAD", "head"])
@pytest.mark.parametrize("path", ["/stream", "stream", "//stream"])
def test_odd_ways_to_write_the_stream(application: Application, method: str, path: str) -> None:
    """The same for streams."""
    status, headers, _ = ask(application, method, path, QUERY_STRING="channel=a")
    assert status == 200
    assert headers["Content-Type"] == "text/event-stream"


def test_other_routes_are_flasks(application: Application) -> None:
    """What only looks like a hot route gets Flask's answer."""
    for method, path, expected in (
        ("POST", "/channels/", 404),
        ("POST", "/channels/a/b", 404),
        ("POST", "/stream", 405),
        ("POST", "/stream/", 404),
        ("GET", "/channels/a", 200),
        ("PATCH", "/channels/a", 405),
    ):
        status, headers, body = ask(application, method, path)
        assert status == expected, (method, path, body)
        if status == 405:
            hot = {"/stream": {"GET", "HEAD"}, "/channels/a": {"POST"}}[path]
            assert hot <= set(headers["Allow"].split(", "))


def test_failures_are_answered_and_counted(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody has thought of is a 500 that tells nothing, with the headers of every answer."""
    monkeypatch.setattr(application.service.publishing, "pass_on", lambda *_, **__: 1 / 0)
    status, headers, body = ask(application, "POST", "/channels/a")
    assert status == 500
    assert b"zero" not in body
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert application.service.counts.refused["internal"] == 1


def test_a_request_makes_what_is_asked_for() -> None:
    """The lazy request says what Werkzeug's own does, and lacks what that lacks."""
    environ = EnvironBuilder(
        method="POST", path="/a%20b", query_string="channel=a&channel=b&x=%C3%A9&y",
        headers=[("X-A", "1"), ("Cookie", "c=d")], environ_base={"REMOTE_ADDR": "192.0.2.1"},
    ).get_environ()  # fmt: skip
    lazy, whole = LazyRequest(dict(environ)), Request(environ)
    for name in ("args", "method", "path", "query_string", "remote_addr", "cookies", "host"):
        assert getattr(lazy, name) == getattr(whole, name), name
    assert lazy.headers["X-A"] == "1"
    assert LazyRequest(dict(environ)).args is lazy.args
    for query in ("a=" + "x" * SHORT, "channel=a&ticket=t", "channel=a&tick%65t=t"):
        many = {"QUERY_STRING": query}
        assert LazyRequest(many).args is not LazyRequest(many).args, "too large, or a secret"
    with pytest.raises(TypeError):
        lazy.args["channel"] = "c"  # nobody may change what others see
    with pytest.raises(AttributeError):
        lazy.nothing  # noqa: B018


def test_a_query_is_looked_at_once() -> None:
    """Not so one that is long or secret, nor one that is refused."""
    seen = []

    def read(args: Args) -> str:
        seen.append(args["channel"])
        if args["channel"] == "bad":
            raise BadParameter
        return args["channel"]

    asked = once_per_query(read)
    for query in ("channel=a", "channel=b", "channel=a"):
        assert asked(LazyRequest({"QUERY_STRING": query})) == query[-1]
    assert seen == ["a", "b"]
    for query in ("channel=c&a=" + "x" * SHORT, "channel=c&ticket=t"):
        seen.clear()
        for _ in range(2):
            assert asked(LazyRequest({"QUERY_STRING": query})) == "c"
        assert seen == ["c", "c"]
    seen.clear()
    for _ in range(2):
        with pytest.raises(BadParameter):
            asked(LazyRequest({"QUERY_STRING": "channel=bad"}))
    assert seen == ["bad", "bad"]
