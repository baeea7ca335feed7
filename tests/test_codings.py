"""Who gets gzip, and what the answers say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Request
from werkzeug.test import EnvironBuilder

from service.routes.codings import accepts_gzip
from tests.applications import Application, Make, Stream, making
from tests.encodings import gunzip
from tests.valkey import Valkey

GZIP = {"Accept-Encoding": "gzip"}
TEXT = "much the same, " * 40


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Make]:
    """Make applications on the shared Valkey."""
    with making(valkey.url) as one:
        yield one


@pytest.fixture
def app(make: Make) -> Application:
    """An application with default settings."""
    return make()


@pytest.mark.parametrize(
    ("accepted", "gzip"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("gzip, deflate, br, zstd", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("br;q=1, gzip;q=0.1", True),
        ("*", False),
        ("*;q=0.1", False),
        ("identity, gzip", True),
        ("gzip;q=0.5, identity;q=0.5", True),
        ("gzip;q=1.0, deflate;q=0.6, identity;q=0.3", True),
        ("gzip;q=1.0,deflate;q=0.6,identity;q=0.3", False),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("gzip;q=0.000, *;q=1", False),
        ("*;q=0", False),
        ("identity", False),
        ("identity;q=1, gzip;q=0.5", False),
        ("identity, *;q=0.5", False),
        ("deflate, br, zstd", False),
        ("x-gzip, gzipped", False),
        ("gzip;q=nonsense", False),
        (";;,=,", False),
        ("\xff", False),
    ],
)
def test_what_is_accepted(accepted: str | None, gzip: bool) -> None:
    """By RFC 9110, section 12.5.3: qualities, and identity where it is preferred. `*` doesn't name
    gzip, and one value is Ruby's, whatever the agent is called.
    """
    assert accepts(accepted, "Mozilla/5.0") is gzip


@pytest.mark.parametrize(
    ("agent", "gzip"),
    [
        ("Go-http-client/1.1", False),
        ("Go-http-client/2.0", False),
        ("okhttp/4.12.0", False),
        ("Ruby", False),
        ("Apache-HttpClient/5.4 (Java/21)", False),
        ("Deno/2.4.0", False),
        ("Bun/1.2.0", False),
        ("got (https://github.com/sindresorhus/got)", False),
        ("", True),
        ("curl/7.88.1", True),
        ("node", True),
    ],
)
def test_strict_clients_get_text(agent: str, gzip: bool) -> None:
    """They would take the end of each stream for an error, and didn't ask for gzip themselves."""
    assert accepts("gzip", agent) is gzip


@pytest.mark.parametrize("name", ["Via", "X-Forwarded-For", "Forwarded"])
def test_what_a_proxy_asks_for_itself(name: str) -> None:
    """Go's reverse proxies ask for gzip where their client did not, under the client's name."""
    browser = "gzip, deflate, br, zstd"
    assert not accepts("gzip", "curl/7.88.1", (name, "192.0.2.1"))
    assert accepts(browser, "Mozilla/5.0", (name, "192.0.2.1"))


def accepts(accepted: str | None, agent: str, *more: tuple[str, str]) -> bool:
    """Whether a request with these headers gets gzip."""
    headers = [("User-Agent", agent), *more]
    if accepted is not None:
        headers.append(("Accept-Encoding", accepted))
    return accepts_gzip(Request(EnvironBuilder(headers=headers).get_environ()))


def test_a_compressed_stream(app: Application) -> None:
    """What an iterator sends is one gzip stream; the log's counts are those of the text."""
    zipped, plain = app.stream("channel=a", **GZIP), app.stream("channel=a")
    assert zipped.response.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.response.headers
    for stream in (zipped, plain):
        assert stream.response.headers["Vary"] == "Accept-Encoding"
        assert stream.response.headers["Cache-Control"] == "no-store, no-transform"
    first = app.publish("a", TEXT)
    app.publish("a", "second")
    texts = [read_all(stream, b"data: second\n\n") for stream in (zipped, plain)]
    assert all(text.count(f"data: {TEXT}\n\n".encode()) == 1 for text in texts)
    assert len(zipped.data) < len(TEXT)
    (view,) = app.service.hub.views.values()
    assert len({subscriber.sent_bytes for subscriber in view.subscribers}) == 1
    resumed = app.stream("channel=a", **GZIP, **{"Last-Event-ID": first})
    assert b"data: second" in read_all(resumed, b"data: second\n\n")
    for stream in (zipped, plain, resumed):
        stream.close()


def read_all(stream: Stream, last: bytes) -> bytes:
    """Read until the text ends with `last`."""
    gzip = stream.response.headers.get("Content-Encoding") == "gzip"
    while True:
        stream.read()
        text = gunzip(stream.data) if gzip else stream.data
        if text.endswith(last):
            return text


def test_head_says_the_same(app: Application) -> None:
    """HEAD has the headers of the stream that GET would open."""
    for headers, coding in (({}, None), (GZIP, "gzip")):
        answer = app.client.head("/stream?channel=a", headers=headers)
        assert answer.headers.get("Content-Encoding") == coding
        assert answer.headers["Vary"] == "Accept-Encoding"


def test_pages_and_codings_are_kept_apart(make: Make) -> None:
    """With CORS an answer depends on both."""
    app = make(cors_origins=("https://a.example",))
    assert app.client.head("/stream?channel=a").headers["Vary"] == "Accept-Encoding, Origin"
    stream = app.stream("channel=a", **GZIP)
    assert stream.response.headers.get_all("Vary") == ["Accept-Encoding, Origin"]
    stream.close()
    assert app.client.get("/stream").headers["Vary"] == "Origin"


def test_off(make: Make) -> None:
    """COMPRESS_MIN_BYTES=0 leaves all streams as text, and says nothing of codings."""
    app = make(compress_min_bytes=0)
    stream = app.stream("channel=a", **GZIP)
    stream.read()
    assert stream.data.startswith(b"retry: ")
    for answer in (stream.response, app.client.head("/stream?channel=a", headers=GZIP)):
        assert {"Vary", "Content-Encoding"}.isdisjoint(answer.headers.keys())
    stream.close()


def test_refusals_are_text(make: Make) -> None:
    """Soft or not, and 204: too small to gain anything."""
    app = make(max_connections=1)
    stream = app.stream("channel=a", **GZIP)
    soft = app.client.get("/stream?channel=a", headers={**GZIP, "Accept": "text/event-stream"})
    assert soft.data.startswith(b"retry: ")
    hard = app.client.get("/stream?channel=a", headers=GZIP)
    assert hard.get_json()["code"] == "too_many_streams"
    for answer in (soft, hard):
        assert "Content-Encoding" not in answer.headers
    stream.close()
