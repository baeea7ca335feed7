"""Uploads through Flask's client, with a real Valkey: what is published, how far an error is."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import gevent
import pytest
from werkzeug.test import TestResponse

import service.routes.uploads
from service.errors import BadBody, OutcomeUnknown, PushlineError, RedisDown, RedisPoolBusy
from service.event import Event, EventId
from service.grants import Grant
from service.publication import Publication, Receipt
from service.publishing import Publishing
from service.rates import RateLimit
from service.routes.items import MAX_BATCH_DELIVERIES
from service.routes.uploads import BATCH_EVENTS, Upload, Uploads
from tests.applications import Application, Make, check_problem, making
from tests.live_server import until
from tests.test_lines import Script
from tests.valkey import Valkey

ORIGIN = "https://page.example"
NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Make]:
    """Make applications on the shared Valkey."""
    with making(valkey.url) as one:
        yield one


@pytest.fixture
def app(make: Make) -> Application:
    """An application with the default settings."""
    return make(cors_origins=(ORIGIN,))


def ndjson(*items: Any) -> bytes:
    """One JSON value per line."""
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def item(data: Any, channel: str = "a", **more: Any) -> dict[str, Any]:
    """An item of an upload."""
    return {"channel": channel, "data": data, **more}


def put(app: Application, path: str, body: Any, **headers: str) -> TestResponse:
    """Upload a body that comes as a whole, or as a Script says."""
    if isinstance(body, bytes):
        return app.client.put(path, data=body, headers=headers)
    environ = {"wsgi.input": body, "wsgi.input_terminated": True}
    return app.client.put(path, environ_overrides=environ, headers=headers)


def told(response: TestResponse) -> dict[str, Any]:
    """What a finished upload is told."""
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.get_json()
    assert body.keys() == {"events", "replayed", "last_id"}
    return body


def kept(app: Application, channel: str = "a") -> list[str]:
    """The data of a channel's history."""
    response = app.client.get(f"/channels/{channel}/events?limit=1000")
    return [event["data"] for event in response.get_json()["events"]]


def position(problem: dict[str, Any]) -> tuple[int, int]:
    """How far an upload with an error is."""
    assert "published" not in problem
    return problem["line"], problem["events"]


# ---------------------------------------------------------------------------------------- text


def test_each_line_is_an_event(app: Application) -> None:
    """In order, byte for byte, blank lines too; the query holds for all of them."""
    stream = app.stream("channel=a")
    stream.read()
    body = 'first\r\n\n{"a": 1}\n  ü \u2028\x85\0:\ndata: x\nlast'.encode()
    answer = told(put(app, "/channels/a?event=log&ttl=100", body))
    events = stream.events(6)
    assert [event.data for event in events] == [
        "first", "", '{"a": 1}', "  ü \u2028\x85\0:", "data: x", "last",
    ]  # fmt: skip
    assert {event.type for event in events} == {"log"}
    assert answer == {"events": 6, "replayed": 0, "last_id": events[-1].last_event_id}
    stream.close()


def test_an_empty_upload(app: Application) -> None:
    """Nothing is published, and that is no error."""
    nothing = {"events": 0, "replayed": 0, "last_id": None}
    assert told(put(app, "/channels/a", b"")) == nothing
    assert told(put(app, "/publish", b"")) == nothing
    assert told(put(app, "/publish", b"\n \r\n\t")) == nothing
    assert kept(app) == []


def test_live_only_lines(app: Application) -> None:
    """`history=0` holds for an upload as for a body."""
    assert told(put(app, "/channels/a?history=0", b"x\ny\n"))["events"] == 2
    assert kept(app) == []


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/channels/a%20b", {}, 400, "bad_channel"),
        ("/channels/a?event=$end", {}, 400, "bad_event"),
        ("/channels/a?retry=5", {}, 400, "bad_event"),
        ("/channels/a?ttl=0", {}, 400, "bad_event"),
        ("/channels/a?history=no", {}, 400, "bad_parameter"),
        ("/channels/a?colour=red", {}, 400, "bad_parameter"),
        ("/channels/a", {"Idempotency-Key": "k"}, 400, "bad_parameter"),
        ("/publish", {"Idempotency-Key": "k"}, 400, "bad_parameter"),
        ("/channels/a", {"Content-Type": "multipart/form-data"}, 415, "unsupported_body"),
        ("/publish", {"Content-Type": "application/octet-stream"}, 415, "unsupported_body"),
        ("/channels/a", {"Content-Type": "text/plain; charset=latin-1"}, 415, "unsupported_body"),
        ("/publish", {"Content-Encoding": "gzip"}, 415, "unsupported_body"),
        ("/channels/a", {"Origin": "https://evil.example"}, 403, "foreign_origin"),
        ("/publish", {"Origin": "null"}, 403, "foreign_origin"),
    ],
)
def test_what_is_refused_before_anything_is_read(
    app: Application, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    """A bad address, parameter, type or page; an upload as a whole has no Idempotency-Key."""
    for body in (b"", b'{"channel": "a", "data": ""}\n'):
        problem = check_problem(put(app, path, body, **headers), status, code)
        if status != 403:
            assert position(problem) == (1, 0)
        if "Idempotency-Key" in headers:
            assert "idempotency_key" in problem["fix"]
    assert kept(app) == []


def test_a_listed_page_may_upload(app: Application) -> None:
    """With the CORS headers of any publish; the preflight lists PUT."""
    for path in ("/channels/a", "/publish"):
        response = put(app, path, b"", Origin=ORIGIN)
        assert response.status_code == 200
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
        preflight = app.client.options(path, headers={"Origin": ORIGIN})
        assert "PUT" in preflight.headers["Access-Control-Allow-Methods"].split(", ")


# ---------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("PUT", {}),
        ("PUT", {"Content-Type": "text/plain"}),
        ("POST", NDJSON),
        ("POST", {"Content-Type": "application/ndjson; charset=utf-8"}),
    ],
)
def test_each_line_is_an_item(app: Application, method: str, headers: dict[str, str]) -> None:
    """The same fields as in POST /publish, blank lines skipped, each event to its channels."""
    stream = app.stream("channel=a&channel=b")
    stream.read()
    lines = [item("x", event="tick"), item({"n": [1]}), {"channels": ["b", "a"], "data": "both"}]
    body = ndjson(lines[0]) + b"\n \r\n" + ndjson(*lines[1:]).rstrip(b"\n")
    answer = told(app.client.open("/publish", method=method, data=body, headers=headers))
    events = stream.events(3)
    assert [event.data for event in events] == ["x", '{"n":[1]}', "both"]
    assert events[0].type == "tick"
    assert answer == {"events": 3, "replayed": 0, "last_id": events[-1].last_event_id}
    stream.close()


def test_items_with_keys(app: Application) -> None:
    """What an earlier upload has published under its key is counted as replayed."""
    body = ndjson(*(item(n, idempotency_key=f"k{n}") for n in range(5)))
    first = told(put(app, "/publish", body))
    again = told(put(app, "/publish", body + ndjson(item(5))))
    assert (first["events"], first["replayed"]) == (5, 0)
    assert (again["events"], again["replayed"]) == (6, 5)
    assert kept(app) == list("012345")


def test_json_that_is_posted_as_json_is_no_upload(app: Application) -> None:
    """POST /publish without the type of NDJSON is read whole, and refused whole."""
    check_problem(app.client.post("/publish", data=ndjson(item(1), item(2))), 400, "bad_body")
    assert kept(app) == []


# -------------------------------------------------------------------------------- bad lines


@pytest.mark.parametrize(
    ("bad", "status", "code"),
    [
        (b"nonsense", 400, "bad_body"),
        (b"5", 400, "bad_body"),
        (b'{"channel": "a"}', 400, "bad_body"),
        (b'{"channel": "a b", "data": ""}', 400, "bad_channel"),
        (b'{"channel": "a", "data": "", "event": "$end"}', 400, "bad_event"),
        (b'{"channel": "a", "data": "\xff"}', 400, "bad_body"),
        (b'{"channel": "a", "data": "%s"}' % (b"x" * 101), 413, "event_too_large"),
        (b" " * 1601, 413, "event_too_large"),
        (b'{"channel": "a", "data": "other", "idempotency_key": "k"}', 409, "idempotency_conflict"),
        (b'{"channel": "ended", "data": ""}', 409, "channel_ended"),
    ],
)
def test_a_bad_line_ends_an_upload(make: Make, bad: bytes, status: int, code: str) -> None:
    """Those before it are published, and the answer tells which line it is, blank ones counted."""
    app = make(max_event_bytes=100)
    app.client.post("/channels/ended/end")
    body = ndjson(item("1", idempotency_key="k"), item("2")) + b"\n" + bad + b"\n"
    problem = check_problem(put(app, "/publish", body), status, code)
    assert position(problem) == (4, 2)
    assert kept(app) == ["1", "2"]
    if code.startswith("bad_"):
        assert "line 4 of the upload" in problem["detail"]


def test_a_line_of_text_that_is_too_long(make: Make) -> None:
    """At the limit it goes out, over it it ends the upload, before it has ended itself."""
    app = make(max_event_bytes=10)
    script = Script(b"x" * 10 + b"\r\n", b"y" * 11)
    problem = check_problem(put(app, "/channels/a", script), 413, "event_too_large")
    assert position(problem) == (2, 1)
    assert kept(app) == ["x" * 10]
    problem = check_problem(put(app, "/channels/a", b"a\n" + b"y" * 11), 413, "event_too_large")
    assert position(problem) == (2, 1)


def test_text_that_is_no_utf8(app: Application) -> None:
    """The line and the byte are told."""
    problem = check_problem(put(app, "/channels/a", b"a\nb\nc\xff\nd\n"), 400, "bad_body")
    assert position(problem) == (3, 2)
    assert "byte 1 is not UTF-8" in problem["detail"]
    assert kept(app) == ["a", "b"]


@pytest.mark.parametrize("error", [ConnectionResetError(), ValueError("a bad chunk")])
def test_an_upload_that_breaks_off(app: Application, error: Exception) -> None:
    """Whole lines go out, the one that broke off doesn't: who knows how it would have gone on."""
    problem = check_problem(put(app, "/channels/a", Script(b"a\nb\nc", error)), 400, "bad_body")
    assert position(problem) == (3, 2)
    assert kept(app) == ["a", "b"]


def test_nothing_is_left_of_an_upload(app: Application) -> None:
    """However it ends, the drain has nothing to do with it any more."""
    for body in (b"x", b"\xff", Script(b"x\n", ConnectionResetError())):
        put(app, "/channels/a", body)
    assert app.service.uploads._running == set()


def test_errors_close_the_connection(app: Application) -> None:
    """The client may be sending still; an upload that went well leaves the connection alone."""
    assert put(app, "/channels/a", b"\xff").headers["Connection"] == "close"
    assert "Connection" not in put(app, "/channels/a", b"x").headers


def test_after_an_error_the_client_is_read_out(app: Application) -> None:
    """What it still sends is read and dropped, or it would not get the answer."""
    script = Script(b"\xff\n")
    response = put(app, "/channels/a", script)
    gevent.spawn_later(0.1, script.queue.put, b"more\n")
    gevent.spawn_later(0.2, script.queue.put, b"")
    started = time.monotonic()
    response.close()
    assert 0.15 < time.monotonic() - started < service.routes.uploads.DISCARD_SECONDS
    assert kept(app) == []


def test_an_upload_without_redis(make: Make) -> None:
    """503 with Retry-After, and the line to go on from."""
    app = make("redis://127.0.0.1:1")
    response = put(app, "/channels/a", b"x\ny\n")
    assert position(check_problem(response, 503, "redis_down")) == (1, 0)
    assert int(response.headers["Retry-After"]) > 0


def test_a_refused_upload_is_never_a_soft_200(app: Application) -> None:
    """Only a stream is refused softly, whatever a publisher says that it accepts."""
    app.service.uploads.drain()
    response = put(app, "/channels/a", b"x\n", Accept="text/event-stream")
    check_problem(response, 503, "draining")


# ------------------------------------------------------------------------------------- draining


def test_a_drain_ends_uploads(app: Application) -> None:
    """What has arrived is published, but for a line without an end; then 503 and where to go on.
    New ones are refused before anything is read.
    """
    script = Script(b"a\n", b"b\nunfini")
    upload = gevent.spawn(put, app, "/channels/a", script)
    until(lambda: kept(app) == ["a", "b"], 5, "both are published")
    app.service.drain(0)
    response = upload.get(timeout=3)
    problem = check_problem(response, 503, "draining")
    assert position(problem) == (3, 2)
    assert int(response.headers["Retry-After"]) > 0
    assert kept(app) == ["a", "b"]
    untouched = Script(b"x\n", b"")
    refused = check_problem(put(app, "/publish", untouched), 503, "draining")
    assert position(refused) == (1, 0)
    assert kept(app) == ["a", "b"]


def test_a_drain_publishes_what_has_arrived(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that came while others were being published are no loss, and no repeat."""
    publish = app.service.publishing._publish
    script = Script(b"early\n")

    def draining(publications: Sequence[Publication]) -> list[Receipt]:
        if publications[0].event.data == "early":
            script.queue.put(b"late\nunfini")
            gevent.sleep(0.05)
            app.service.uploads.drain()
        return publish(publications)

    monkeypatch.setattr(app.service.publishing, "_publish", draining)
    problem = check_problem(put(app, "/channels/a", script), 503, "draining")
    assert position(problem) == (3, 2)
    assert kept(app) == ["early", "late"]


def test_a_drained_upload_takes_no_longer_than_it_may(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload with much left to publish is cut, and told where."""
    monkeypatch.setattr(service.routes.uploads, "FINISH_SECONDS", 0.0)
    publish = app.service.publishing._publish

    def draining(publications: Sequence[Publication]) -> list[Receipt]:
        app.service.uploads.drain()
        gevent.sleep(0.01)
        return publish(publications)

    monkeypatch.setattr(app.service.publishing, "_publish", draining)
    body = b"x\n" * (BATCH_EVENTS + 1)
    problem = check_problem(put(app, "/channels/a", Script(body)), 503, "draining")
    assert position(problem) == (BATCH_EVENTS + 1, BATCH_EVENTS)


# ----------------------------------------------------------------------------------- progress


class Publisher:
    """Stands in for the broker: notes the calls, and fails as the test says."""

    def __init__(self) -> None:
        self.calls: list[list[Publication]] = []
        self.failure: PushlineError | None = None
        self._ids = itertools.count(1)

    def __call__(self, publications: list[Publication]) -> list[Receipt]:
        """Publish."""
        if self.failure is not None:
            raise self.failure
        self.calls.append(publications)
        return [Receipt(EventId(next(self._ids), 0)) for _ in publications]


def text_line(line: bytes) -> Publication | None:
    """A line as an event; none for a blank one, a mistake for `bad`, 64 channels for `wide`."""
    if line == b"bad":
        raise BadBody("it is bad")
    channels = tuple(f"c{n}" for n in range(64)) if line == b"wide" else ("a",)
    return Publication(Event(line.decode()), channels) if line else None


def test_lines_go_out_in_batches() -> None:
    """Of so many events, and so many channels in all."""
    publisher = Publisher()
    upload = Upload(publisher)
    upload.publish([b"x"] * (2 * BATCH_EVENTS + 1), text_line)
    assert list(map(len, publisher.calls)) == [BATCH_EVENTS, BATCH_EVENTS, 1]
    publisher.calls.clear()
    upload.publish([b"wide"] * 99, text_line)
    assert [sum(len(one.channels) for one in call) for call in publisher.calls] == [
        MAX_BATCH_DELIVERIES // 64 * 64,
        (99 - MAX_BATCH_DELIVERIES // 64) * 64,
    ]
    assert (upload.line, upload.events) == (2 * BATCH_EVENTS + 101, 2 * BATCH_EVENTS + 100)
    assert upload.last_id == EventId(2 * BATCH_EVENTS + 100, 0)


def test_lines_are_read_while_others_go_out() -> None:
    """While Redis works on a batch, the lines of the next are made events; order is kept."""
    seen: list[str] = []
    ids = itertools.count(1)

    def publish(events: list[Publication]) -> list[Receipt]:
        seen.append(f"begin {events[0].event.data}")
        gevent.sleep(0.01)
        seen.append(f"end {events[0].event.data}")
        return [Receipt(EventId(next(ids), 0)) for _ in events]

    def read(line: bytes) -> Publication | None:
        if int(line) % BATCH_EVENTS == 0:
            seen.append(f"read {int(line)}")
        return text_line(line)

    upload = Upload(publish)
    upload.publish([b"%d" % n for n in range(3 * BATCH_EVENTS)], read)
    a, b, c = 0, BATCH_EVENTS, 2 * BATCH_EVENTS
    assert seen.index(f"read {b}") < seen.index(f"begin {a}")
    assert seen.index(f"begin {a}") < seen.index(f"read {c}") < seen.index(f"begin {b}")
    calls = [one for one in seen if not one.startswith("read")]
    assert calls == [f"{what} {n}" for n in (a, b, c) for what in ("begin", "end")]
    assert upload.events == 3 * BATCH_EVENTS


def test_nothing_is_no_call() -> None:
    """Blank lines alone are counted, and nothing is asked of Redis."""
    publisher = Publisher()
    upload = Upload(publisher)
    upload.publish([b"", b""], text_line)
    assert (upload.line, upload.events, upload.last_id, publisher.calls) == (3, 0, None, [])


@pytest.mark.parametrize(
    ("published", "line", "events"),
    [
        ((), 2, 1),
        (("1-0", None, None), 4, 2),
        ((None, "1-0", "2-0"), 2, 3),
        (("1-0", None, "2-0"), 4, 3),
        (("1-0",), 4, 2),
        (("1-0", "2-0"), 5, 3),
    ],
)
def test_how_far_a_failed_call_was(
    published: tuple[str | None, ...], line: int, events: int
) -> None:
    """The line is that of the first event that isn't known to be out; those behind it count."""
    publisher = Publisher()
    upload = Upload(publisher)
    upload.publish([b"x"], text_line)
    publisher.failure = OutcomeUnknown()
    publisher.failure.published = published
    with pytest.raises(OutcomeUnknown):
        upload.publish([b"2", b"", b"4", b"5"], text_line)
    assert (upload.line, upload.events) == (line, events)


def test_a_failed_call_before_a_bad_line() -> None:
    """The failure is told, as it is the first line that isn't out."""
    publisher = Publisher()
    publisher.failure = RedisDown()
    upload = Upload(publisher)
    with pytest.raises(RedisDown):
        upload.publish([b"x", b"bad"], text_line)
    assert (upload.line, upload.events) == (1, 0)


# -------------------------------------------------------------------------------------- turns


def test_uploads_take_turns() -> None:
    """However many there are, only so many call Redis at a time, and each has its turn."""
    running = 0
    most = 0
    order: list[str] = []

    def publish(publications: Sequence[Publication]) -> list[Receipt]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(publications[0].channels[0])
        gevent.sleep(0.001)
        running -= 1
        return [Receipt(EventId(1, 0)) for _ in publications]

    uploads = Uploads(Publishing(publish, RateLimit(0)), 100, at_once=2)
    lines = [b"x"] * (5 * BATCH_EVENTS)

    def run(channel: str) -> None:
        upload = Upload(partial(uploads._publish_in_turn, Grant()))
        upload.publish(lines, lambda line: Publication(Event("x"), (channel,)))

    gevent.joinall([gevent.spawn(run, f"c{n}") for n in range(6)], raise_error=True)
    assert most == 2
    assert len(order) == 30
    for start in range(0, 24, 6):
        assert len(set(order[start : start + 6])) >= 5, "nobody goes twice while others wait"


def test_an_upload_that_never_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused after a while; nothing of it was published."""
    monkeypatch.setattr(service.routes.uploads, "TURN_SECONDS", 0.05)

    def publish(publications: Sequence[Publication]) -> list[Receipt]:
        gevent.sleep(0.5)
        return [Receipt(EventId(1, 0))]

    uploads = Uploads(Publishing(publish, RateLimit(0)), 100, at_once=1)
    one = [Publication(Event("x"), ("a",))]
    first = gevent.spawn(uploads._publish_in_turn, Grant(), one)
    gevent.sleep(0.01)
    with pytest.raises(RedisPoolBusy):
        uploads._publish_in_turn(Grant(), one)
    assert first.get() == [Receipt(EventId(1, 0))]
