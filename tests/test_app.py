"""The whole application in one process: every route through Flask's client, with a real Valkey."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

import gevent
import pytest
from flask import Response
from gevent import monkey
from werkzeug.exceptions import NotFound, RequestHeaderFieldsTooLarge, abort
from werkzeug.test import TestResponse

import service.broker
import service.routes.bodies
from service.app import create_app
from service.control import CONTROL
from service.errors import ConfigError
from service.routes.items import MAX_BATCH_EVENTS
from service.routes.page import STATIC
from service.settings import Settings
from service.version import VERSION
from tests.applications import Application, Make, check_problem, making
from tests.credentials import SECRET, bearer, token
from tests.live_server import until
from tests.sse_client import ParsedEvent
from tests.valkey import Valkey, free_port

ORIGIN = "https://page.example"
EVENT_SOURCE = {"Accept": "text/event-stream"}


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Make]:
    """Make applications, by default on the shared Valkey; each is stopped at the end."""
    with making(valkey.url) as one:
        yield one


@pytest.fixture
def app(make: Make) -> Application:
    """An application with the default settings."""
    return make(cors_origins=(ORIGIN,))


# ------------------------------------------------------------------------------- starting


def test_it_refuses_to_run_unpatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gevent's patches one blocking read would stop every stream: that isn't started."""
    monkeypatch.setattr(monkey, "is_module_patched", lambda _: False)
    with pytest.raises(ConfigError, match="gevent must patch first"):
        create_app(Settings(redis_url="redis://127.0.0.1"))


def test_it_refuses_to_run_without_redis() -> None:
    """The application itself never starts a Redis: without an address it says so."""
    with pytest.raises(ConfigError, match="REDIS_URL is not set"):
        create_app(Settings())


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without settings they are read from the environment, as under gunicorn."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("DRAIN_SECONDS", "3")
    assert create_app().extensions["pushline"].drain_seconds == 3


# ------------------------------------------------------------------------------ publishing


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ("hello", None),
        ("hello", "application/x-www-form-urlencoded"),
        ("a=1&b=2", "application/x-www-form-urlencoded"),
        ('{"a": 1}', "application/json"),
        ("", "text/plain"),
        ("two\r\nlines\n", "text/plain; charset=UTF-8"),
        ("naïve ✓ \u2028 \0", "text/html"),
        ("x", "text/plain; charset=us-ascii"),
    ],
)
def test_a_body_is_published_as_it_is(app: Application, data: str, kind: str | None) -> None:
    """Any text body is one event, byte for byte whatever its type says, so plain `curl -d` works;
    line ends are LF to the reader.
    """
    stream = app.stream("channel=news")
    stream.read()
    response = app.client.post("/channels/news", data=data.encode(), content_type=kind)
    assert response.status_code == 200
    receipt = response.get_json()
    assert receipt.keys() == {"id", "channel", "replayed"}
    assert (receipt["channel"], receipt["replayed"]) == ("news", False)
    assert response.headers["Cache-Control"] == "no-store"
    (event,) = stream.events(1)
    assert event == ParsedEvent("message", data.replace("\r\n", "\n"), receipt["id"])
    stream.close()


def test_event_and_retry_are_parameters(app: Application) -> None:
    """`?event=` names the event and `?retry=` sets the reconnection time."""
    stream = app.stream("channel=a")
    stream.read()
    app.publish("a", "x", "?event=tick&retry=1500")
    (event,) = stream.events(1)
    assert (event.type, stream.parser.retry) == ("tick", 1500)
    stream.close()


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/channels/with%20space", 400, "bad_channel"),
        ("/channels/caf%C3%A9", 400, "bad_channel"),
        ("/channels/" + "x" * 129, 400, "bad_channel"),
        ("/channels/$sys", 400, "bad_channel"),
        ("/channels/*", 400, "bad_channel"),
        ("/channels/a%0A", 400, "bad_channel"),
        ("/channels/a?event=", 400, "bad_event"),
        ("/channels/a?event=$reset", 400, "bad_event"),
        ("/channels/a?event=open", 400, "bad_event"),
        ("/channels/a?event=error", 400, "bad_event"),
        ("/channels/a?event=a%0Ab", 400, "bad_event"),
        ("/channels/a?event=" + "x" * 129, 400, "bad_event"),
        ("/channels/a?retry=5", 400, "bad_event"),
        ("/channels/a?retry=x", 400, "bad_parameter"),
        ("/channels/a?retry=-1", 400, "bad_parameter"),
        ("/channels/a?retry=9999999999", 400, "bad_parameter"),
        ("/channels/a?colour=red", 400, "bad_parameter"),
        ("/channels/", 404, "not_found"),
        ("/channels/a/b/c", 404, "not_found"),
    ],
)
def test_bad_addresses_are_named(app: Application, path: str, status: int, code: str) -> None:
    """What can't be published to is refused with a code and how to mend it."""
    assert "fix" in check_problem(app.client.post(path, data="x"), status, code) or code in (
        "bad_event",
    )


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "multipart/form-data; boundary=x"}, "unsupported_body"),
        ({"Content-Type": "application/octet-stream"}, "unsupported_body"),
        ({"Content-Type": "text/plain; charset=latin-1"}, "unsupported_body"),
        ({"Content-Encoding": "gzip"}, "unsupported_body"),
    ],
)
def test_bodies_that_are_no_text_are_refused(
    app: Application, headers: dict[str, str], code: str
) -> None:
    """A file upload, bytes, another charset and a compressed body are 415."""
    for path in ("/channels/a", "/publish"):
        response = app.client.post(path, data=b"x", headers=headers)
        assert "fix" in check_problem(response, 415, code)


def test_a_body_that_is_not_utf8(app: Application) -> None:
    """Bytes that aren't UTF-8 are refused, and the place is told."""
    body = check_problem(app.client.post("/channels/a", data=b"ab\xff"), 400, "bad_body")
    assert "byte 2" in body["detail"]


def test_the_size_of_an_event_is_limited(make: Make) -> None:
    """A body just at the limit is published, one byte more is 413, with or without a length."""
    app = make(max_event_bytes=100)
    assert app.client.post("/channels/a", data=b"x" * 100).status_code == 200
    check_problem(app.client.post("/channels/a", data=b"x" * 101), 413, "event_too_large")
    check_problem(post_parts(app, [b"x" * 60, b"x" * 41]), 413, "event_too_large")


def post_parts(app: Application, parts: Iterable[bytes | Exception], **more: Any) -> TestResponse:
    """Post a body that comes in parts, by default without a length."""
    environ = {"wsgi.input": Chunks(iter(parts)), "wsgi.input_terminated": True, **more}
    return app.client.post("/channels/a", environ_overrides=environ)


class Chunks:
    """A body whose parts come as the test says; an exception among them is raised."""

    def __init__(self, parts: Iterator[bytes | Exception]) -> None:
        self._parts = parts

    def read(self, size: int = -1) -> bytes:
        """The next part."""
        part = next(self._parts, b"")
        if isinstance(part, Exception):
            raise part
        return part


def test_a_slow_body_is_cut(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that dribbles in doesn't hold a connection for ever: 408."""
    monkeypatch.setattr(service.routes.bodies, "BODY_SECONDS", 0.1)

    def dribble() -> Iterator[bytes]:
        while True:
            gevent.sleep(0.01)
            yield b"x"

    check_problem(post_parts(app, dribble()), 408, "body_too_slow")


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), ValueError("bad chunk")])
def test_a_broken_body_is_the_clients_fault(app: Application, error: Exception) -> None:
    """A body that breaks off, or is badly chunked, is 400 and publishes nothing."""
    check_problem(post_parts(app, [b"half", error]), 400, "bad_body")


def test_a_body_shorter_than_it_said(app: Application) -> None:
    """Half an event is not an event."""
    check_problem(post_parts(app, [b"half"], CONTENT_LENGTH="100"), 400, "bad_body")


# ------------------------------------------------------------------------------------ JSON


def test_json_events(app: Application) -> None:
    """One object is one event, its receipt an object; an array is several in order, its receipt
    an array; data that isn't a string is published as JSON.
    """
    stream = app.stream("channel=a&channel=b")
    stream.read()
    one = app.client.post("/publish", json={"channel": "a", "data": "x", "event": "tick"})
    several = app.client.post(
        "/publish",
        json=[
            {"channel": "a", "data": {"n": [1, None, "é"]}},
            {"channels": ["b", "a", "b"], "data": "y", "retry": 700},
            {"channel": "c", "channels": ["b"], "data": 5},
            {"channel": "a", "data": None, "event": None},
        ],
    )
    assert (one.status_code, several.status_code) == (200, 200)
    receipts = [one.get_json(), *several.get_json()]
    assert [receipt.get("channel") or receipt["channels"] for receipt in receipts] == [
        "a", "a", ["a", "b"], ["b", "c"], "a",
    ]  # fmt: skip
    events = stream.events(5)
    assert [event.data for event in events] == ["x", '{"n":[1,null,"é"]}', "y", "5", "null"]
    assert [event.last_event_id for event in events] == [receipt["id"] for receipt in receipts]
    assert (events[0].type, stream.parser.retry) == ("tick", 700)
    stream.close()


def test_json_by_plain_curl(app: Application) -> None:
    """`curl -d '{...}' .../publish` works although curl says that it sends a form."""
    response = app.client.post(
        "/publish",
        data='{"channel": "a", "data": "x"}',
        content_type="application/x-www-form-urlencoded",
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", "bad_body"),
        ("hello", "bad_body"),
        ("5", "bad_body"),
        ("[]", "bad_body"),
        ("[5]", "bad_body"),
        ("[" * 100_000, "bad_body"),
        ('{"channel": "a"}', "bad_body"),
        ('{"data": "x"}', "bad_channel"),
        ('{"channel": "a", "data": "x", "colour": 1}', "bad_body"),
        ('{"channel": "a b", "data": "x"}', "bad_channel"),
        ('{"channel": 5, "data": "x"}', "bad_body"),
        ('{"channels": "ab", "data": "x"}', "bad_body"),
        ('{"channels": ["a", 5], "data": "x"}', "bad_body"),
        ('{"channels": [], "data": "x"}', "bad_channel"),
        ('{"channel": "a", "data": "x", "event": 5}', "bad_body"),
        ('{"channel": "a", "data": "x", "event": "$end"}', "bad_event"),
        ('{"channel": "a", "data": "x", "retry": "5"}', "bad_body"),
        ('{"channel": "a", "data": "x", "retry": true}', "bad_body"),
        ('{"channel": "a", "data": "x", "retry": 1}', "bad_event"),
        ('{"channel": "a", "data": "\\ud800"}', "bad_event"),
        ('{"channel": "a", "data": ["\\ud800"]}', "bad_event"),
        ('{"channel": "a\\ud800", "data": "x"}', "bad_channel"),
        ('{"channel": "a", "data": NaN}', "bad_body"),
        ('{"channel": "a", "data": ' + "9" * 5000 + "}", "bad_body"),
        ('{"\\ud800": 1}', "bad_body"),
    ],
)
def test_bad_json_is_named(app: Application, body: str, code: str) -> None:
    """JSON that can't be published is refused with what is wrong with it."""
    check_problem(app.client.post("/publish", data=body), 400, code)


def test_nothing_of_a_bad_array_is_published(app: Application) -> None:
    """An array is checked whole before anything goes out, and the bad item is named."""
    items = [{"channel": "a", "data": "x"}, {"channel": "a", "data": "x"}, {"channel": "a"}]
    body = check_problem(app.client.post("/publish", json=items), 400, "bad_body")
    assert "item 2" in body["detail"]
    assert app.client.get("/channels/a/events").get_json()["events"] == []


def test_arrays_and_channels_are_limited(app: Application) -> None:
    """An array holds a thousand events at most, an event goes to 64 channels at most."""
    items = [{"channel": "a", "data": "x"}] * MAX_BATCH_EVENTS
    assert app.client.post("/publish", json=items).status_code == 200
    response = app.client.post("/publish", json=[*items, items[0]])
    check_problem(response, 400, "bad_body")
    many = {"channels": [f"c{n}" for n in range(65)], "data": "x"}
    check_problem(app.client.post("/publish", json=many), 400, "bad_parameter")


def test_the_size_of_json_events_is_limited(make: Make) -> None:
    """The limit is that of the data, not of its escaped form; a huge body isn't even read."""
    app = make(max_event_bytes=100)
    fine = {"channel": "a", "data": "é" * 50}
    assert app.client.post("/publish", data=json.dumps(fine)).status_code == 200
    check_problem(
        app.client.post("/publish", json={"channel": "a", "data": "é" * 51}),
        413,
        "event_too_large",
    )
    check_problem(app.client.post("/publish", data="[" + " " * 1600), 413, "event_too_large")


# ---------------------------------------------------------------------------------- origins


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        (ORIGIN, 200),
        (ORIGIN.upper(), 200),
        ("http://localhost", 200),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
def test_only_known_pages_publish(app: Application, origin: str | None, status: int) -> None:
    """A page publishes only from the service's own origin or a listed one."""
    headers = {} if origin is None else {"Origin": origin}
    for path, body in (("/channels/a", "x"), ("/publish", '{"channel": "a", "data": "x"}')):
        response = app.client.post(path, data=body, headers=headers)
        assert response.status_code == status
        if status == 403:
            assert "CORS_ORIGINS" in check_problem(response, 403, "foreign_origin")["fix"]


def test_any_origin_may_stream_but_not_publish(make: Make) -> None:
    """`*` lets every page stream, without credentials; publishing takes a listed origin."""
    app = make(cors_origins=("*",))
    headers = {"Origin": "https://anyone.example"}
    stream = app.stream("channel=a", **headers)
    assert stream.response.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in stream.response.headers
    stream.close()
    response = app.client.post("/channels/a", data="x", headers=headers)
    check_problem(response, 403, "foreign_origin")


def test_a_name_that_leads_to_this_machine_is_foreign(make: Make) -> None:
    """In local mode a page of another name can't publish, also when its name leads to 127.0.0.1
    and it therefore has the same Host.
    """
    app = make(embedded=True, publish_open=False)
    for host, status in (("127.0.0.1:8000", 200), ("rebound.example:8000", 403)):
        response = app.client.post(
            "/channels/a", data="x", headers={"Origin": f"http://{host}", "Host": host}
        )
        assert response.status_code == status


def test_cors_headers(app: Application) -> None:
    """A listed page may read streams and answers, also errors; others get no such header, and
    caches keep them apart.
    """
    for method, path in (("GET", "/stream"), ("POST", "/channels/a"), ("POST", "/channels/$")):
        response = app.client.open(path, method=method, data="x", headers={"Origin": ORIGIN})
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert response.headers["Access-Control-Allow-Credentials"] == "true"
        assert response.headers["Vary"] == "Origin"
        other = app.client.open(path, method=method, data="x", headers={"Origin": "https://x.y"})
        assert "Access-Control-Allow-Origin" not in other.headers
        assert other.headers["Vary"] == "Origin"


def test_cors_headers_of_an_open_stream(app: Application) -> None:
    """The stream itself carries them too."""
    stream = app.stream("channel=a", Origin=ORIGIN)
    assert stream.response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert stream.response.headers.get_all("Access-Control-Allow-Origin") == [ORIGIN]
    stream.close()


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/stream", {"GET", "HEAD", "OPTIONS"}),
        ("/publish", {"POST", "PUT", "OPTIONS"}),
        ("/channels/a", {"DELETE", "GET", "HEAD", "POST", "PUT", "OPTIONS"}),
        ("/channels/a/end", {"POST", "OPTIONS"}),
        ("/channels/a/events", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_preflights(app: Application, path: str, methods: set[str]) -> None:
    """OPTIONS is answered without opening or publishing anything; a listed page is granted."""
    response = app.client.options(path, headers={"Origin": ORIGIN})
    assert response.status_code in (204, 403)
    assert response.status_code == 204
    assert set(response.headers["Allow"].split(", ")) == methods
    assert set(response.headers["Access-Control-Allow-Methods"].split(", ")) == methods
    assert "last-event-id" in response.headers["Access-Control-Allow-Headers"]
    assert app.service.hub.streams == 0


def test_preflights_of_others(app: Application) -> None:
    """OPTIONS without a page's origin just lists the methods; an unlisted page is granted
    nothing.
    """
    response = app.client.options("/stream")
    assert response.status_code == 204
    assert "Access-Control-Allow-Methods" not in response.headers
    response = app.client.options("/stream", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in response.headers
    response = app.client.options("/publish", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in response.headers


# ---------------------------------------------------------------------------------- streams


def test_a_stream_begins_at_once(app: Application) -> None:
    """Head and first block come before any event: status, exact headers, `retry:` and `id:`."""
    last = app.publish("a", "before")
    stream = app.stream("channel=a")
    response = stream.response
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store, no-transform"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "Content-Length" not in response.headers
    assert stream.read() == []
    match = re.fullmatch(rb"retry: (\d+)\nid: (\d+-\d+)\n\n", stream.data)
    assert match is not None
    assert 1000 <= int(match[1]) <= 3000
    assert match[2].decode() == last
    stream.close()


def test_a_stream_selects(app: Application) -> None:
    """Channels and event names select; `event=message` stands for events without a name."""
    ticks = app.stream("channel=a&channel=b&event=tick&event=message")
    everything = app.stream("channel=a&channel=a")
    for stream in (ticks, everything):
        stream.read()
    for channel, event in (("a", "tick"), ("a", "tock"), ("b", ""), ("c", "tick"), ("a", "")):
        app.publish(channel, f"{channel}{event}", f"?event={event}" if event else "")
    assert [event.data for event in ticks.events(3)] == ["atick", "b", "a"]
    assert [event.data for event in everything.events(3)] == ["atick", "atock", "a"]
    ticks.close()
    everything.close()


def test_a_foreign_publish_is_streamed(app: Application, valkey: Valkey) -> None:
    """What redis-cli or flask-sse publishes arrives, live, without an id of its own."""
    stream = app.stream("channel=a")
    stream.read()
    valkey.cli("PUBLISH", "pushline:a", '{"data": "hi", "type": "greeting", "id": "5"}')
    (event,) = stream.events(1)
    assert (event.type, event.data) == ("greeting", "hi")
    stream.close()


def test_an_empty_prefix_shares_channels_with_flask_sse(make: Make, valkey: Valkey) -> None:
    """With CHANNEL_PREFIX= the Redis channels are bare, and the keys keep their prefix."""
    app = make(channel_prefix="")
    stream = app.stream("channel=sse")
    stream.read()
    valkey.cli("PUBLISH", "sse", '{"data": "hi"}')
    app.publish("sse", "own")
    assert [event.data for event in stream.events(2)] == ["hi", "own"]
    report = f"pushline:n:{app.service.audience.worker}".encode()
    keys = {b"pushline:clock", b"pushline:s:sse", b"pushline:t:sse", b"pushline:workers", report}
    assert set(valkey.cli("KEYS", "*")) == keys
    stream.close()


def test_pings_can_be_events(make: Make) -> None:
    """With `ping=event` heartbeats can be seen by a page; a `$` name in the filter is accepted."""
    app = make(heartbeat_seconds=0.5)
    stream = app.stream("channel=a&ping=event&event=$ping&event=x")
    quiet = app.stream("channel=a&ping=comment")
    stream.read()
    (ping,) = stream.events(1)
    assert (ping.type, ping.last_event_id) == ("$ping", stream.parser.last_event_id)
    quiet.read()
    quiet.read()
    assert quiet.data.endswith(b"\n\n:\n") or b":\nid: " in quiet.data
    stream.close()
    quiet.close()


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "bad_channel"),
        ("channel=", "bad_channel"),
        ("channel=a%20b", "bad_channel"),
        ("channel=a&channel=*", "bad_channel"),
        ("channel=$control", "bad_channel"),
        ("channel=%ff", "bad_channel"),
        ("&".join(f"channel=c{n}" for n in range(65)), "bad_parameter"),
        ("channel=a&event=", "bad_event"),
        ("channel=a&event=a%00", "bad_event"),
        ("channel=a&" + "&".join(f"event=e{n}" for n in range(65)), "bad_parameter"),
        ("channel=a&ping=loud", "bad_parameter"),
    ],
)
@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
def test_bad_streams_are_refused_for_good(
    app: Application, query: str, code: str, accept: str
) -> None:
    """A stream that can never work is 400, also for an EventSource, which then gives up."""
    response = app.client.get(f"/stream?{query}", headers={"Accept": accept})
    check_problem(response, 400, code)


def test_head_opens_no_stream(app: Application) -> None:
    """HEAD has the status and the headers of the stream, and ends."""
    response = app.client.head("/stream?channel=a")
    assert (response.status_code, response.data) == (200, b"")
    assert response.headers["Content-Type"] == "text/event-stream"
    assert "Content-Length" not in response.headers
    assert app.client.head("/stream").status_code == 400
    assert app.service.hub.streams == 0


def test_a_stream_that_is_left_gives_everything_back(
    app: Application, caplog: pytest.LogCaptureFixture
) -> None:
    """When a client leaves, the hub, the broker and the limits know nothing of it any more, and
    one access line tells what it got, why it ended, and no query string.
    """
    caplog.set_level(logging.INFO, "pushline.access")
    stream = app.stream("channel=a&event=secret-name")
    stream.read()
    app.publish("a", "hello", "?event=secret-name")
    stream.events(1)
    stream.close()
    assert app.service.hub.streams == 0
    assert app.service.hub.views == {}
    assert app.service.limits._total == 0
    followed = {name: one.streams for name, one in app.service.broker._following.items()}
    assert followed == {CONTROL: 1, "a": 0}
    (record,) = [r for r in caplog.records if "/stream" in r.getMessage()]
    fields = record.__dict__["fields"]
    assert (fields["reason"], fields["events"], fields["status"]) == ("client_left", 1, 200)
    assert fields["path"] == "/stream"
    assert fields["bytes"] > 5
    assert "secret" not in record.getMessage()


def test_a_stream_that_nobody_reads_is_given_back(app: Application) -> None:
    """A response that is closed before its first byte was read ends its stream as well."""
    response = app.client.get("/stream?channel=a", buffered=False)
    response.close()
    assert app.service.hub.streams == 0
    assert app.service.limits._total == 0


# --------------------------------------------------------------------------------- overload


def check_soft(response: TestResponse) -> int:
    """The response tells an EventSource to come back; returns in how many milliseconds."""
    assert response.status_code == 200
    assert response.content_type == "text/event-stream"
    match = re.fullmatch(rb"retry: (\d+)\n\n", response.data)
    assert match is not None
    return int(match[1])


def test_a_full_worker(make: Make) -> None:
    """Over MAX_CONNECTIONS an EventSource is told to come back, at a random time; others get 503
    with Retry-After. One stream less makes room.
    """
    app = make(max_connections=2)
    first, second = app.stream("channel=a"), app.stream("channel=a")
    times = {
        check_soft(app.client.get("/stream?channel=a", headers=EVENT_SOURCE)) for _ in range(20)
    }
    assert min(times) >= 5_000
    assert max(times) <= 30_000
    assert len(times) > 10
    refused = app.client.get("/stream?channel=a")
    check_problem(refused, 503, "too_many_streams")
    assert int(refused.headers["Retry-After"]) > 0
    first.close()
    third = app.stream("channel=a")
    assert third.response.status_code == 200
    second.close()
    third.close()


def test_an_address_with_too_many_streams(make: Make) -> None:
    """Over MAX_CONNECTIONS_PER_IP an address gets 429, others are served; a trusted proxy's word
    about the address counts, anybody else's doesn't.
    """
    app = make(max_connections_per_ip=1)
    first = app.stream("channel=a")
    check_soft(app.client.get("/stream?channel=a", headers=EVENT_SOURCE))
    response = app.client.get("/stream?channel=a", headers={"X-Forwarded-For": "192.0.2.7"})
    check_problem(response, 429, "too_many_streams_from_address")
    other = {"REMOTE_ADDR": "192.0.2.1"}
    second = app.client.get("/stream?channel=a", environ_overrides=other, buffered=False)
    assert second.status_code == 200
    second.close()
    first.close()
    assert app.client.head("/stream?channel=a").status_code == 200


def test_a_draining_worker(app: Application) -> None:
    """A worker that shuts down opens no more streams, ends those it has, and says so."""
    stream = app.stream("channel=a")
    stream.read()
    drain = gevent.spawn(app.service.drain, 0)
    stream.read_to_end()
    drain.get(timeout=3)
    assert stream.parser.retry is not None
    assert stream.data.count(b"retry:") == 2
    refused = app.client.get("/stream?channel=a", headers=EVENT_SOURCE)
    assert 1_000 <= check_soft(refused) <= 3_000, "another worker is there soon"
    check_problem(app.client.get("/stream?channel=a"), 503, "draining")
    response = app.client.get("/readyz")
    assert response.status_code == 503
    assert response.get_json() == {"ready": False, "reasons": ["draining"]}
    assert app.client.get("/livez").status_code == 200


def test_a_drain_that_begins_while_a_stream_opens(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that was waiting for Redis when the drain began isn't opened after it."""
    follow = app.service.broker.follow

    def slowly(channels: Any) -> Any:
        position = follow(channels)
        app.service.drain(0)
        return position

    monkeypatch.setattr(app.service.broker, "follow", slowly)
    check_problem(app.client.get("/stream?channel=a"), 503, "draining")
    assert app.service.limits._total == 0
    followed = {name: one.streams for name, one in app.service.broker._following.items()}
    assert followed == {CONTROL: 1, "a": 0}


# ----------------------------------------------------------------------------- without Redis


def test_without_redis(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis a publish is 503 with Retry-After at once, a stream is refused, softly for an
    EventSource, the worker lives but isn't ready.
    """
    monkeypatch.setattr(service.broker, "FOLLOW_SECONDS", 0.2)
    app = make(f"redis://127.0.0.1:{free_port()}")
    started = time.monotonic()
    response = app.client.post("/channels/a", data="x")
    assert time.monotonic() - started < 3
    check_problem(response, 503, "redis_down")
    assert int(response.headers["Retry-After"]) > 0
    check_soft(app.client.get("/stream?channel=a", headers=EVENT_SOURCE))
    check_problem(app.client.get("/stream?channel=a"), 503, "not_following")
    assert app.service.limits._total == 0
    assert app.client.get("/livez").get_json() == {"live": True, "version": VERSION}
    response = app.client.get("/readyz")
    assert response.status_code == 503
    assert response.get_json()["reasons"] == ["redis_not_followed", "redis_not_answering"]


def test_what_went_out_is_told(make: Make, own_valkey: Valkey) -> None:
    """When an array fails half-way, the answer names the ids that went out."""
    acl = ("on", ">pw", "~*", "+@all", "resetchannels", "&pushline:ok")
    own_valkey.cli("ACL", "SETUSER", "some", *acl)
    app = make(f"redis://some:pw@127.0.0.1:{own_valkey.port}")
    items = [{"channel": "ok", "data": "x"}, {"channel": "not", "data": "x"}]
    body = check_problem(app.client.post("/publish", json=items), 503, "redis_error")
    assert body["published"][0]
    assert body["published"][1:] == [None]


# ------------------------------------------------------------------------------- everything else


def test_readiness(app: Application) -> None:
    """A worker that follows Redis and gets answers is ready."""
    until(lambda: app.client.get("/readyz").status_code == 200, 3, "ready")
    response = app.client.get("/readyz")
    assert response.get_json() == {"ready": True, "reasons": []}
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/stream", {"GET", "HEAD", "OPTIONS"}),
        ("GET", "/publish", {"POST", "PUT", "OPTIONS"}),
        ("PATCH", "/channels/a", {"DELETE", "GET", "HEAD", "POST", "PUT", "OPTIONS"}),
        ("GET", "/channels/a/end", {"POST", "OPTIONS"}),
        ("DELETE", "/stream", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/livez", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_wrong_methods(app: Application, method: str, path: str, allowed: set[str]) -> None:
    """A known path with another method is 405 and lists those it takes."""
    response = app.client.open(path, method=method)
    check_problem(response, 405, "method_not_allowed")
    assert set(response.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/nothing", "/stream/", "/static/../service/app.py", "/static/x"])
def test_unknown_paths(app: Application, path: str) -> None:
    """What isn't there is 404, and says what is."""
    assert "/stream?channel=" in check_problem(app.client.get(path), 404, "not_found")["fix"]


def test_the_demo_page(app: Application) -> None:
    """The page and its files come with a policy under which nothing inline or foreign runs."""
    files = [f"/static/{path.name}" for path in STATIC.iterdir() if path.is_file()]
    for path in ["/", *files]:
        response = app.client.get(path)
        assert response.status_code == 200
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        response.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_absurd_date(app: Application) -> None:
    """A year that no calendar has is the client's mistake. (Werkzeug leaves its file to the
    garbage collector, which warns.)
    """
    page = app.client.get("/", headers={"If-Modified-Since": f"1 Jan {10**20} 00:00 GMT"})
    check_problem(page, 400, "bad_request")


def test_other_http_errors_are_problems_too(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Flask itself refuses is told in the same form."""
    monkeypatch.setattr(app.service.broker, "answers", lambda: abort(431))
    response = app.client.get("/readyz")
    check_problem(response, RequestHeaderFieldsTooLarge.code or 0, "bad_request")


def test_an_answer_that_comes_with_an_error_is_kept(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An HTTP error that brings its own response isn't answered anew."""

    def fail() -> bool:
        raise NotFound(response=Response("its own", 404))

    monkeypatch.setattr(app.service.broker, "answers", fail)
    response = app.client.get("/readyz")
    assert (response.status_code, response.text) == (404, "its own")


def test_a_failure_tells_nothing(
    app: Application, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake of ours is 500 without its details, which stand in the log."""

    def fail() -> bool:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(app.service.broker, "answers", fail)
    response = app.client.get("/readyz")
    check_problem(response, 500, "internal")
    assert "secret" not in response.text
    assert "a secret" in caplog.text


def test_starting_twice_and_stopping_twice(app: Application) -> None:
    """The service starts once, with its worker or its first request, and can be stopped again."""
    app.service.start()
    greenlets = app.service._greenlets
    app.service.start()
    assert app.service._greenlets is greenlets
    app.service.stop()
    app.service.stop()
    assert all(greenlet.dead for greenlet in greenlets)


def test_a_part_that_fails_is_told(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one of the worker's own loops dies, the worker hears of it: it is no use any more."""
    failed: list[bool] = []
    monkeypatch.setattr(app.service.hub, "beat", lambda _: 1 / 0)
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)
    app.service.start(failed=lambda: failed.append(True))
    until(lambda: failed, 2, "the failure is told")


def test_without_epoll_every_stream_is_iterated(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a system without epoll the service works, through the iterator alone."""
    monkeypatch.setattr("service.sockets.SUPPORTED", False)
    app = make()
    assert app.service.sockets is None
    stream = app.stream("channel=a")
    stream.read()
    app.publish("a", "x")
    assert [event.data for event in stream.events(1)] == ["x"]
    stream.close()


def test_json_numbers_that_json_has_not(app: Application) -> None:
    """A number too large for JSON is refused, not published as Infinity."""
    response = app.client.post("/publish", data='{"channel": "a", "data": [1e999]}')
    check_problem(response, 400, "bad_body")


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/channels/a"), ("POST", "/publish"), ("PUT", "/channels/a")]
)
def test_a_body_that_a_drain_cuts_off_is_no_fault_of_the_client(
    make: Make, method: str, path: str
) -> None:
    """A worker that stops reads no more from its connections: whose body had not come is told to
    publish elsewhere, and only who broke off itself that its body was bad.
    """
    app = make()
    for draining, status, code in ((False, 400, "bad_body"), (True, 503, "draining")):
        app.service.hub.draining = draining
        body = io.BytesIO(b"some")
        cut = {"CONTENT_LENGTH": "10"}
        response = app.client.open(path, method=method, data=body, environ_overrides=cut)
        problem = check_problem(response, status, code)
        assert ("Retry-After" in response.headers) == draining
        assert method == "POST" or (problem["line"], problem["events"]) == (1, 0)


def test_an_old_ticket_is_void_on_a_new_worker(make: Make) -> None:
    """Who closes a user's streams takes the tickets back on workers too that start only then."""
    settings: dict[str, Any] = {"jwt_secret": (("", SECRET),), "public_channels": ()}
    old = make(**settings)
    shown, path = bearer(token("ann", subscribe=["mine.*"])), "channel=mine.a"
    ticket = old.client.post(f"/tickets?{path}", headers=shown).get_json()["ticket"]
    closed = old.client.delete("/streams?user=ann", headers=bearer(token(admin=True)))
    assert closed.status_code == 202
    new = make(**settings).client
    assert new.head(f"/stream?{path}&ticket={ticket}").status_code == 401
    ticket = old.client.post(f"/tickets?{path}", headers=shown).get_json()["ticket"]
    assert new.head(f"/stream?{path}&ticket={ticket}").status_code == 200
