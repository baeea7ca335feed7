"""Publishes without WSGI: what gunicorn would have made of the same request and answer."""

from __future__ import annotations

import io
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser
from gunicorn.http.wsgi import Response, create

from service.hand_over import send_at_once
from service.lean_http import Answer, environ_of, hot_channel, send

ADDRESS = ("192.0.2.7", 4711)
PLAIN = b"POST /channels/a?event=x HTTP/1.1\r\nHost: example\r\nContent-Length: 2\r\n"

MADE_BY_GUNICORN_ONLY = {
    "gunicorn.socket",
    "wsgi.early_hints",
    "wsgi.errors",
    "wsgi.file_wrapper",
    "wsgi.multiprocess",
    "wsgi.multithread",
    "wsgi.run_once",
    "wsgi.version",
    "RAW_URI",
    "REMOTE_PORT",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_SOFTWARE",
}
"""What a publish has no use for."""


def parse(head: bytes, body: bytes = b"hi") -> Any:
    """The request as gunicorn reads it."""
    request: Any = next(RequestParser(Config(), iter([head + b"\r\n" + body]), ADDRESS))
    request.proxy_protocol_info = {}
    return request


@pytest.mark.parametrize(
    "more",
    [
        b"",
        b"Content-Type: text/plain; charset=utf-8\r\nUser-Agent: curl/8\r\n",
        b"Authorization: Bearer abc\r\nidempotency-key: k-1\r\nOrigin: https://a.example\r\n",
        b"X-Forwarded-For: 198.51.100.1, 192.0.2.1\r\nConnection: close\r\n",
        "X-Text: \u00e9\r\n".encode("latin-1"),
    ],
)
def test_the_environ_is_gunicorns(more: bytes) -> None:
    """Each key has the value that gunicorn would have given it, and none is missing."""
    request = parse(PLAIN + more)
    mine = environ_of(request, ADDRESS)
    client: Any = Recorder()
    theirs = create(request, client, ADDRESS, ("127.0.0.1", 80), Config())[1]
    assert mine is not None
    assert theirs.keys() - mine.keys() <= MADE_BY_GUNICORN_ONLY
    assert {key: theirs[key] for key in mine} == mine


@pytest.mark.parametrize(
    "head",
    [
        PLAIN.replace(b"1.1", b"1.0"),
        PLAIN.replace(b"/a", b"/%61"),
        PLAIN.replace(b"Host: example\r\n", b""),
        PLAIN + b"Expect: 100-continue\r\n",
        PLAIN + b"X-A: 1\r\nX-A: 2\r\n",
    ],
)
def test_what_is_left_to_gunicorn(head: bytes) -> None:
    """Requests with which gunicorn does more than put them into an environ."""
    assert environ_of(parse(head), ADDRESS) is None


def test_proxies_are_left_to_gunicorn() -> None:
    """The PROXY protocol, and headers that only a trusted proxy may send."""
    request = parse(PLAIN)
    request.proxy_protocol_info = {"proxy_protocol": "TCP4"}
    assert environ_of(request, ADDRESS) is None
    request = parse(PLAIN)
    request.headers.append(("SCRIPT_NAME", "/app"))
    assert environ_of(request, ADDRESS) is None


def test_a_unix_socket() -> None:
    """It has no address; one with a name in bytes is left to gunicorn."""
    environ = environ_of(parse(PLAIN), "")
    assert environ is not None
    assert environ["REMOTE_ADDR"] == ""
    assert environ_of(parse(PLAIN), b"\0name") is None


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_the_answer_is_gunicorns(closes: bool, size: int) -> None:
    """The same bytes, also when the socket's buffer can't take them at once."""
    headers = [("Content-Length", str(size)), ("Content-Type", "application/json")]
    answer = Answer("200 OK", headers, b"x" * size)
    mine: Any = Recorder()
    theirs: Any = Recorder()
    response = Response(parse(PLAIN), theirs, Config())
    response.must_close = closes
    response.start_response(answer.status, headers)
    send_at_once(response, answer.body)
    send(mine, answer, closes=closes)
    dated = [b"".join(line for line in one.lines() if b"Date:" not in line)
             for one in (mine, theirs)]  # fmt: skip
    assert dated[0] == dated[1]
    assert sum(b"Date:" in line for line in mine.lines()) == 1


class Recorder:
    """A socket that takes 1000 bytes with a `send`, and all with `sendall`."""

    def __init__(self) -> None:
        self.taken = b""

    def send(self, data: bytes) -> int:
        """Take the beginning."""
        self.taken += data[:1000]
        return len(data[:1000])

    def sendall(self, data: bytes) -> None:
        """Take it all."""
        self.taken += data

    def lines(self) -> list[bytes]:
        """What was taken, by lines."""
        return list(io.BytesIO(self.taken))


@pytest.mark.parametrize(
    ("method", "path", "channel"),
    [
        ("POST", "/channels/a", "a"),
        ("POST", "/channels/", None),
        ("POST", "/channels/a/end", None),
        ("PUT", "/channels/a", None),
        ("POST", "/publish", None),
    ],
)
def test_hot_channels(method: str, path: str, channel: str | None) -> None:
    """Only a text that is published to a channel is hot."""
    assert hot_channel(method, path) == channel
