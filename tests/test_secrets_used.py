"""The search for secrets in logs finds them, in whatever form they are written."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.secrets_used import Secrets

SECRET = 'p@ss:w/rd%"-of the test'
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbmEifQ.c2lnbmF0dXJl"

CLEAN = """\
{"time": "2026-01-31T12:00:00.000Z", "level": "info", "message": "GET /stream 200", "bytes": 5}
{"message": "Error handling request /stream?...", "exception": "x == 5 and why? a=b & c=d"}
2026-01-31T12:00:00.000Z INFO    GET /stream 200 reason=expired stream=1f-2
"""


@pytest.mark.parametrize(
    "line",
    [
        SECRET,
        f"x{SECRET}x",
        quote(SECRET, safe=""),
        json.dumps({"a": [SECRET]}),
        base64.b64encode(SECRET.encode()).decode(),
        TOKEN,
        "GET /stream?channel=a HTTP/1.1",
        "/stream?...&channel=a",
        "?ticket=x",
    ],
)
def test_a_secret_is_found(line: str) -> None:
    """As it is, quoted for URLs, in JSON, in base64; and tokens and query strings always."""
    secrets = Secrets()
    assert secrets.add(SECRET) == SECRET
    assert secrets.leaks(CLEAN) == []
    (leak,) = secrets.leaks(CLEAN + line + "\n" + CLEAN)
    assert line[:20] in leak or json.dumps(line)[1:20] in leak or repr(line)[1:20] in leak


def test_what_is_noted(tmp_path: Path) -> None:
    """Settings and requests are known to hold secrets; names and schemes are none."""
    (tmp_path / "secret").write_text(" key-id:of-the-file-0123456789\n")
    secrets = Secrets()
    secrets.add_settings(
        {
            "PUBLISH_KEYS": "first-key-0123456,second-key-012345=orders.*|log",
            "JWT_SECRET_FILE": tmp_path / "secret",
            "REDIS_URL": "redis://user:redis-password@host:1/0",
            "AUTHORIZE_URL": "https://host/path?key=authorizer-key&other=x",
            "COOKIE_NAME": "pushline",
            "PORT": 12345678,
        }
    )
    secrets.add_request(
        "/stream?channel=some-channel&ticket=this-is-a-ticket",
        {"Authorization": "Bearer shown-in-header", "Cookie": "a=1; pushline=in-the-cookie"},
    )
    found = {
        "first-key-0123456", "second-key-012345", "of-the-file-0123456789", "redis-password",
        "authorizer-key", "this-is-a-ticket", "shown-in-header", "in-the-cookie",
    }  # fmt: skip
    for text in found:
        assert secrets.leaks(text), text
    for text in ("orders.*", "key-id", "Bearer", "pushline", "some-channel", "host", "12345678"):
        assert secrets.leaks(text) == [], text


def test_short_words_are_no_secrets() -> None:
    """A password of one letter would be found everywhere."""
    secrets = Secrets()
    secrets.add("info")
    assert secrets.leaks(CLEAN) == []


def test_all_logs_are_searched(tmp_path: Path) -> None:
    """Those that are there, with the secrets that became known later."""
    secrets = Secrets()
    for name, text in (("one", CLEAN), ("two", f"{CLEAN}{SECRET}\n\xff"), ("three", SECRET)):
        (tmp_path / name).write_text(text, encoding="latin-1")
        secrets.keep(tmp_path / name)
    (tmp_path / "three").unlink()
    assert secrets.leaks_in_logs() == []
    secrets.add(SECRET)
    assert len(secrets.leaks_in_logs()) == 1
