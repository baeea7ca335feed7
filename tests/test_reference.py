"""GET /docs: all of openapi.json as a page without scripts, with anchors that lead somewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

from service.routes import openapi, reference_words
from service.routes.openapi_facts import Facts
from service.routes.openapi_schemas import Schema
from service.routes.reference_words import marked
from service.version import VERSION
from tests.applications import Application, making

ROOT = Path(__file__).resolve().parents[1]
NOWHERE = "redis://127.0.0.1:1"
FACTS = Facts(max_event_bytes=262_144, max_channels=64, cookie_name="pushline")
DOCUMENT: dict[str, Any] = json.loads(json.dumps(openapi.document(FACTS)))
EMPTY = {"meta", "link", "img", "wbr", "br", "hr", "input"}
"""Elements that have no end tag."""


class Reader(HTMLParser):
    """The elements and the text of a page; fails where tags don't nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        found = dict(attrs)
        self.elements.append((tag, found))
        self.ids += [str(found["id"])] if "id" in found else []
        self.links += [str(found[name]) for name in ("href", "src") if name in found]
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """It has to be that of the innermost open element."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.texts.append(data)


@pytest.fixture(scope="module")
def application() -> Iterator[Application]:
    """A service without Redis, which the page doesn't need."""
    with making(NOWHERE) as make:
        yield make(publish_open=False, public_channels=())


@pytest.fixture(scope="module")
def page(application: Application) -> Reader:
    """The page."""
    return Reader(application.client.get("/docs").text)


def operations() -> Iterator[tuple[str, Schema]]:
    """Each operation of the document with its path."""
    for path, methods in DOCUMENT["paths"].items():
        for operation in methods.values():
            yield path, operation


# ------------------------------------------------------------------------------------ whole


def test_every_operation_is_on_it(page: Reader) -> None:
    """Each has an anchor by its name and its path, HEAD too, and the contents lead there."""
    words = "".join(page.texts)
    for path, operation in operations():
        name = operation["operationId"]
        assert name in page.ids
        assert path in words
        assert name.endswith("Head") or f"#{name}" in page.links


def test_everything_they_say_is_on_it(page: Reader) -> None:
    """No parameter, header, status, media type, schema, member, credential or code is left out."""
    words = "".join(page.texts)
    for _, operation in operations():
        contents = [operation.get("requestBody", {}), *operation["responses"].values()]
        told = {one["name"] for one in operation["parameters"]} | operation["responses"].keys()
        told |= {
            name for one in contents for key in ("content", "headers") for name in one.get(key, {})
        }
        assert {name for name in told if name not in words} == set()
    assert {f"login-{name}" for name in DOCUMENT["components"]["securitySchemes"]} <= set(page.ids)
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert f"schema-{name}" in page.ids
        assert {one for one in schema.get("properties", {}) if one not in words} == set()
    codes = DOCUMENT["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]
    assert {f"error-{code}" for code in codes} <= set(page.ids)


def test_links_lead_somewhere(page: Reader, application: Application) -> None:
    """Each link is to an anchor that is there once, or to a route; none leaves the service."""
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids, link
        else:
            assert not re.match("[a-z]+:|/", link), "behind a proxy the service may have a prefix"
            with application.client.get("/" + link.removeprefix("./")) as answer:
                assert answer.status_code == 200


def test_nothing_in_it_runs(page: Reader) -> None:
    """It has no script, no inline style and no handler, and its headers allow none."""
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "style", "iframe", "form"})
    names = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on") or name == "style"}


def test_it_is_the_services_own(page: Reader) -> None:
    """It shows the service's limits, version, and which operations want a credential."""
    with making(NOWHERE) as make:
        other = Reader(
            make(max_channels_per_stream=7, cookie_name="biscuit").client.get("/docs").text
        )
    assert "list of 1 to 7 " in "".join(other.texts)
    assert "biscuit" in "".join(other.texts)
    assert VERSION in page.texts
    commands = [text for text in page.texts if text.startswith("curl") and "/channels/" in text]
    assert commands
    assert all("Bearer $TOKEN" in text for text in commands)
    open_commands = [text for text in other.texts if text.startswith("curl") and "-d hello" in text]
    assert open_commands
    assert all("Bearer" not in text for text in open_commands)


# ----------------------------------------------------------------------------------- served


def test_it_is_served(application: Application) -> None:
    """It is HTML with a policy of its own, that caches ask for anew and need not fetch again."""
    response = application.client.get("/docs")
    assert (response.status_code, response.mimetype) == (200, "text/html")
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "script-src" not in policy
    assert response.headers["Cache-Control"] == "no-cache"
    headers = {"If-None-Match": response.headers["ETag"]}
    again = application.client.get("/docs", headers=headers)
    assert (again.status_code, again.data) == (304, b"")
    assert again.headers["Content-Security-Policy"] == policy


def test_it_is_made_once(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second request makes nothing, so that asking for it again and again costs little."""
    first = application.client.get("/docs")
    monkeypatch.setattr("service.routes.reference.sections", lambda _: pytest.fail("made again"))
    assert application.client.get("/docs").data == first.data


# ------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "#/components/schemas/Item"}, "[Item](#schema-Item)"),
        ({"const": True}, "`true`"),
        ({"enum": ["a", "b"]}, "`a` or `b`"),
        ({"enum": list("abcde")}, "one of `a`, `b`, `c`, `d`, `e`"),
        ({"type": "integer", "minimum": 1, "maximum": 5}, "integer 1 to 5"),
        ({"type": "integer", "minimum": 0}, "integer from 0 on"),
        ({"type": ["integer", "null"], "minimum": 0, "maximum": 5}, "integer 0 to 5 or null"),
        ({"type": "string", "maxLength": 9}, "string of up to 9 letters"),
        ({"type": "string", "pattern": "^[a-z]$"}, "string like `^[a-z]$`"),
        ({"type": "string", "pattern": "^[^\x00-\x1f]$"}, "string"),
        ({"type": "array", "items": {"type": "string"}, "minItems": 1}, "list of string"),
        ({"anyOf": [{"type": "null"}, {"const": 1}]}, "null or `1`"),
        ({"oneOf": [{"type": "string"}, {"type": "object"}]}, "string or object"),
        ({"description": "anything"}, "any JSON"),
    ],
)
def test_kinds_are_told_in_words(schema: Schema, words: str) -> None:
    """What a schema asks for is told with its limits, and with patterns that help a reader."""
    assert reference_words.kind(schema) == words


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a < b", "a &lt; b"),
        ("`<b>`", "<code>&lt;b&gt;</code>"),
        ("a `b` c [D](#d).", 'a <code>b</code> c <a href="#d">D</a>.'),
        ("[x](javascript:1)", "[x](javascript:1)"),
        ('[x](#"onclick=")', '<a href="#&#34;onclick=&#34;">x</a>'),
    ],
)
def test_markup_is_code_and_links_and_nothing_else(text: str, html: str) -> None:
    """Whatever a description holds, nothing of it becomes HTML but code and links to anchors."""
    assert marked(text) == Markup(html)
