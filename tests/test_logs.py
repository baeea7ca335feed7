"""Log lines: one line each, in text or JSON, and never a query string."""

from __future__ import annotations

import datetime
import json
import logging
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from service.logs import (
    ERROR_CODE,
    LOGGED,
    REQUEST_ID,
    LineFormatter,
    ServiceLogger,
    access,
    log_opened,
    log_request,
)


def record(message: str, *args: object, **fields: object) -> logging.LogRecord:
    """A record as our own code makes it."""
    made = logging.LogRecord("pushline.x", logging.WARNING, "f.py", 1, message, args, None)
    made.created, made.msecs = 1_700_000_000.25, 250.0
    if fields:
        made.__dict__["fields"] = fields
    return made


def test_text_lines() -> None:
    """A text line has the time in UTC, the level, the message and the fields."""
    line = LineFormatter(as_json=False).format(record("lost %s", "Redis", seconds=1.5, why="x"))
    assert line == "2023-11-14T22:13:20.250Z WARNING lost Redis seconds=1.5 why=x"


def test_json_lines() -> None:
    """A JSON line is one object with the same."""
    line = LineFormatter(as_json=True).format(record("lost %s", "Redis", seconds=1.5, why={1: 2}))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "pushline.x",
        "message": "lost Redis",
        "seconds": 1.5,
        "why": {"1": 2},
    }


def test_json_takes_any_field() -> None:
    """A field that JSON can't carry is written as text rather than losing the line."""
    line = LineFormatter(as_json=True).format(record("x", what=datetime.date(2023, 1, 2)))
    assert json.loads(line)["what"] == "2023-01-02"


@pytest.mark.parametrize("as_json", [True, False])
def test_nobody_can_write_lines_of_his_own(as_json: bool) -> None:
    """Line ends and terminal codes that come from clients are escaped."""
    formatter = LineFormatter(as_json=as_json)
    line = formatter.format(record("path %s", "/a\nb\r\x1b[31m\u2028\x85", agent="x\ny\x7f"))
    if not as_json:
        assert line.isprintable()
    assert len(re.split("[\n\r\x85\u2028\x1b]", line)) == 1


@pytest.mark.parametrize("as_json", [True, False])
def test_query_strings_are_left_out(as_json: bool) -> None:
    """What stands behind a `?` may be a secret: it is in no message and in no traceback."""
    formatter = LineFormatter(as_json=as_json)
    assert "secret" not in formatter.format(record("GET /stream?token=secret HTTP/1.1"))
    try:
        raise ValueError("/stream?token=secret")
    except ValueError:
        failed = record("it failed")
        failed.exc_info = sys.exc_info()
    text = formatter.format(failed)
    assert "secret" not in text
    assert "ValueError: /stream?..." in text
    assert len(text.splitlines()) == 1 or not as_json


def test_access_lines(caplog: pytest.LogCaptureFixture) -> None:
    """The line of a request has what an operator looks for, and what the caller adds."""
    caplog.set_level(logging.INFO, access.name)
    log_request(
        address="192.0.2.1", method="GET", path="/stream", status=200, sent_bytes=5,
        seconds=1.23456, reason="client_left",
    )  # fmt: skip
    (made,) = caplog.records
    assert made.getMessage() == "GET /stream 200"
    assert made.__dict__["fields"] == {
        "address": "192.0.2.1",
        "method": "GET",
        "path": "/stream",
        "status": 200,
        "bytes": 5,
        "seconds": 1.235,
        "reason": "client_left",
    }


def test_the_line_of_an_opened_stream(caplog: pytest.LogCaptureFixture) -> None:
    """It has what is known of a stream at its beginning; a higher level leaves it out."""
    caplog.set_level(logging.INFO, access.name)
    log_opened(stream="x-1", channels=2)
    (made,) = caplog.records
    assert made.getMessage() == "stream opened"
    assert made.__dict__["fields"] == {"stream": "x-1", "channels": 2}
    caplog.set_level(logging.WARNING, access.name)
    log_opened(stream="x-2")
    assert len(caplog.records) == 1


@pytest.fixture
def logger() -> Iterator[ServiceLogger]:
    """A logger as gunicorn makes it; afterwards all loggers are as they were."""
    names = ("pushline", "gunicorn.error", "gunicorn.access")
    before = {
        name: (one.handlers[:], one.level, one.propagate)
        for name in names
        for one in [logging.getLogger(name)]
    }
    cfg = Config()
    cfg.set("loglevel", "warning")
    # Whatever GUNICORN_CMD_ARGS says, as Heroku's buildpack sets it:
    cfg.set("access_log_format", "%(r)s %(q)s")
    yield ServiceLogger(cfg)
    for name, (handlers, level, propagate) in before.items():
        one = logging.getLogger(name)
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


def test_gunicorns_lines_are_ours(logger: ServiceLogger, capfd: pytest.CaptureFixture[str]) -> None:
    """gunicorn's own lines have our form and the level that was set."""
    for handler in logger.error_log.handlers:
        if type(handler) is logging.StreamHandler:  # pytest adds some of its own
            handler.stream = sys.stderr
    logger.info("not shown")
    logger.warning("Worker %s", 5)
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "Worker 5"
    assert logging.getLogger("pushline").level == logging.WARNING
    assert not logging.getLogger("pushline").propagate


@pytest.mark.parametrize("status", ["200 OK", 200])
def test_gunicorns_access_lines_are_ours(
    logger: ServiceLogger, monkeypatch: pytest.MonkeyPatch, status: object
) -> None:
    """The access line of a request is without its query string."""
    written: list[dict[str, Any]] = []
    monkeypatch.setattr("service.logs.log_request", lambda **fields: written.append(fields))
    environ = {
        "REMOTE_ADDR": "192.0.2.1",
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/x",
        "QUERY_STRING": "secret",
        REQUEST_ID: "id-1",
    }
    response = SimpleNamespace(status=status, sent=None)
    logger.access(response, None, environ, datetime.timedelta(seconds=2))
    refused = {**environ, ERROR_CODE: "too_many_streams"}
    logger.access(response, None, refused, datetime.timedelta(seconds=2))
    logger.access(response, None, {**environ, LOGGED: True}, datetime.timedelta(seconds=2))
    line = {
        "address": "192.0.2.1",
        "method": "GET",
        "path": "/x",
        "status": 200,
        "sent_bytes": 0,
        "seconds": 2.0,
        "request_id": "id-1",
    }
    told = [line, {**line, "code": "too_many_streams"}]
    assert written == told, "a stream that logs itself is not logged twice"
