"""Every credential, route, kind of channel and mode together, against the model of access_model."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from flask.testing import FlaskClient
from werkzeug.datastructures import Headers
from werkzeug.test import TestResponse

from service.access import Credentials
from service.grants import CLAIMS, Grant
from service.routes.headers import HEADERS
from service.routes.stream import STREAM_HEADERS
from tests.access_model import (
    BOTH,
    CREDENTIALS,
    FOREIGN,
    GRANTED,
    KINDS,
    MODES,
    PUBLIC,
    REFUSALS,
    ROUTES,
    Route,
    counts,
    expected,
    refuses_embedding,
    refuses_foreign_pages,
    routes,
    sees_private,
    table,
    tells_pages,
)
from tests.applications import Application, Stream, making
from tests.credentials import KEY, LIMITED_KEY, METRICS_TOKEN, SECRET, bearer, cookie, token
from tests.little_server import LittleServer, Question
from tests.live_server import until
from tests.valkey import Valkey

PREFIXES = {PUBLIC: "open.", BOTH: "open.mine.", GRANTED: "mine.", FOREIGN: "theirs."}
MINE = ["mine.*", "open.mine.*"]
HISTORY = [("first", False), ("hidden", True), ("last", False)]
"""What is in each channel that is streamed: data, and whether it is private."""

STREAM = "GET /stream channel={c}&last_event_id=earliest"

PAGES = ("/", "/dashboard", "/docs", "/static/<path:name>")
"""Routes of the pages, which may load their own files."""

LISTED = "https://listed.example"
ORIGINS = {
    "none": {},
    "own": {"Origin": "http://localhost"},
    "listed": {"Origin": LISTED},
    "foreign": {"Origin": "https://x.example"},
    "null": {"Origin": "null"},
    "embedded": {"Sec-Fetch-Site": "cross-site"},
}
"""Where the page is from that sends a request."""

SESSIONS = {"all": 204, "mine": 200, "unknown": 401, "banned": 403, "trouble": 500}
"""What the application answers to these sessions; it knows no others."""


def answer(question: Question) -> tuple[int, bytes]:
    """What the application says of a session: what AUTHORIZE_URL is for."""
    name = question.headers.get("Cookie", "").removeprefix("session=")
    status = SESSIONS.get(name, 401)
    return status, json.dumps({"channels": MINE}).encode() if status == 200 else b""


Request = tuple[dict[str, str], str]
"""Headers, and what is added to the query."""


def requests(application: Application, valkey: Valkey) -> dict[str, Request]:
    """How each kind of credential of the model is shown."""
    both: dict[str, Any] = {"publish": MINE, "subscribe": MINE}
    tickets = application.service.access.tickets
    scope = [f"{one}{more}" for one in ("mine.a", "open.mine.a") for more in ("", ":presence")]
    ticket, old = (tickets.issue(Grant(admin=True, publish=("*",)), scope) for _ in range(2))
    valkey.cli("DEL", f"pushline:ticket:{old}")
    basic = base64.b64encode(f"ana:{KEY}".encode()).decode()
    forged = token(signed_with=SECRET[::-1], **both, admin=True)
    expired = token(seconds=-60, **both, admin=True)
    return {
        "none": ({}, ""),
        "publish key": (bearer(KEY), ""),
        "publish key with patterns": (bearer(LIMITED_KEY), ""),
        "METRICS_TOKEN": (bearer(METRICS_TOKEN), ""),
        "unknown key": (bearer(KEY + "x"), ""),
        "token to publish": (bearer(token(publish=MINE)), ""),
        "token to stream": (bearer(token(subscribe=MINE)), ""),
        "token to publish and stream": (bearer(token(**both)), ""),
        "token to administrate": (bearer(token(admin=True)), ""),
        "token with Mercure's claim": (bearer(token(claim="mercure", **both)), ""),
        "expired token": (bearer(expired), ""),
        "forged token": (bearer(forged), ""),
        "user and password (Basic)": ({"Authorization": f"Basic {basic}"}, ""),
        "token in the cookie": (cookie(token(**both, admin=True)), ""),
        "expired token in the cookie": (cookie(expired), ""),
        "forged token in the cookie": (cookie(forged), ""),
        "ticket": ({}, f"ticket={ticket}"),
        "ticket that is over": ({}, f"ticket={old}"),
        "unknown ticket": ({}, f"ticket={'x' * 43}"),
        "session that `AUTHORIZE_URL` lets in": ({"Cookie": "session=all"}, ""),
        "session with rights of `AUTHORIZE_URL`": ({"Cookie": "session=mine"}, ""),
        "session that it doesn't know": ({"Cookie": "session=unknown"}, ""),
        "session that it refuses": ({"Cookie": "session=banned"}, ""),
        "session of which it can't tell": ({"Cookie": "session=trouble"}, ""),
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "production": {"publish_open": False},
    "AUTHORIZE_URL": {"publish_open": False},
    "PUBLISH_OPEN": {},
    "PUBLISH_OPEN alone": {"publish_keys": (), "jwt_secret": ()},
    "local": {
        "publish_open": False,
        "publish_keys": (),
        "jwt_secret": (),
        "embedded": True,
        "public_channels": (),
    },
    "local with credentials": {"publish_open": False, "embedded": True, "public_channels": ()},
}


@contextlib.contextmanager
def running(valkey: Valkey, mode: str) -> Iterator[Application]:
    """An application in this mode, that is ready."""
    with making(valkey.url) as make, LittleServer(answer=answer) as asked:
        values: dict[str, Any] = {
            "authorize_url": f"{asked.url}/may" if MODES[mode].asks else None,
            "publish_keys": ((KEY, ("*",)), (LIMITED_KEY, tuple(MINE))),
            "jwt_secret": (("", SECRET),),
            "public_channels": ("open.*",),
            "cors_origins": (LISTED,),
            "metrics_token": METRICS_TOKEN,
            "presence_channels": ("*",),
            **SETTINGS[mode],
        }
        made = make(**values)
        made.client = FlaskClient(made.client.application, made.client.response_wrapper, False)
        until(lambda: made.client.get("/readyz").status_code == 200, 10, "it is ready")
        yield made


def fill(valkey: Valkey) -> None:
    """Give the channels that are streamed a history."""
    with making(valkey.url) as make:
        publisher = make()
        for prefix in PREFIXES.values():
            for data, private in HISTORY:
                publisher.publish(f"{prefix}a", data, "?private=1" if private else "")


def channel_of(route: Route, kind: str) -> str:
    """The channel that a request is about: what is streamed is neither published to nor ended."""
    if route.method == "DELETE" or route.rule.endswith("/end"):
        return PREFIXES[kind] + "end"
    return PREFIXES[kind] + ("b" if route.right == "publish" else "a")


def asked(route: Route, channel: str, request: Request) -> dict[str, Any]:
    """The arguments of the test client for a request."""
    headers, more = request
    path = route.rule.replace("<channel>", channel).replace("<path:name>", "pushline.js")
    query = "&".join(filter(None, (route.query.replace("{c}", channel), more)))
    kind = {"Content-Type": route.kind} if route.kind else {}
    return {
        "path": path,
        "query_string": query,
        "method": route.method,
        "headers": {**headers, **kind},
        "data": route.body.replace("{c}", channel) or None,
    }


def outcome(response: TestResponse, route: Route) -> tuple[int, str]:
    """The status, and the code of a refusal; the answer to a HEAD has no body to say it."""
    code = ""
    if response.status_code >= 400 and route.method != "HEAD":
        assert response.content_type == "application/problem+json"
        code = response.get_json()["code"]
    return response.status_code, code


def seen(response: TestResponse, route: Route) -> list[str]:
    """The data of the events in an answer; of a stream those up to the last of its history."""
    if route.rule != "/stream":
        return [one["data"] for one in response.get_json()["events"]]
    stream = Stream(response)
    data: list[str] = []
    while "last" not in data:
        data += [event.data for event in stream.read()]
    return data


def check(application: Application, mode: str, name: str, route: Route, kind: str,
          request: Request) -> None:  # fmt: skip
    """Ask one request, and compare all of its answer with the model."""
    shown = CREDENTIALS[name]
    arguments = asked(route, channel_of(route, kind) if kind else "", request)
    status, code = expected(MODES[mode], shown, route, kind)
    with contextlib.closing(application.client.open(**arguments, buffered=False)) as response:
        said = "" if route.method == "HEAD" else code
        assert outcome(response, route) == (status, said)
        check_headers(response.headers, route, status, code)
        if status == 200 and (route.method, route.right) == ("GET", "stream"):
            all_of_it = sees_private(MODES[mode], shown, route, kind)
            assert seen(response, route) == visible(all_of_it)
        elif status == 200 and route.right == "ticket":
            all_of_it = counts(MODES[mode], shown, route) and kind in shown.subscribe
            ticket = response.get_json()["ticket"]
            stream = f"/stream?{arguments['query_string']}&last=3&ticket={ticket}"
            with contextlib.closing(application.client.get(stream, buffered=False)) as opened:
                assert seen(opened, ROUTES[STREAM]) == visible(all_of_it), "it grants no more"


def visible(all_of_it: bool) -> list[str]:
    """What is to be seen of a history."""
    return [data for data, private in HISTORY if all_of_it or not private]


def check_headers(headers: Headers, route: Route, status: int, code: str) -> None:
    """What every answer has: against sniffing, framing and leaks, and what a 401 wants."""
    table = STREAM_HEADERS if headers.get("Content-Type") == "text/event-stream" else HEADERS
    for header, value in table.items():
        if header != "Content-Security-Policy" or route.rule not in PAGES:
            assert headers[header] == value
    challenge = None
    if status == 401:
        challenge = 'Bearer realm="pushline"'
        if code != "no_credential":
            challenge += ', error="invalid_token"'
    assert headers.get("WWW-Authenticate") == challenge
    assert "Set-Cookie" not in headers


def cells() -> Iterator[tuple[str, Route, str]]:
    """All of a mode: credential, route, kind of channel; none where the route has no channel."""
    for name in CREDENTIALS:
        for route in ROUTES.values():
            for kind in KINDS if route.of_channel else ("",):
                yield name, route, kind


@pytest.mark.parametrize("mode", MODES)
def test_the_matrix(mode: str, valkey: Valkey) -> None:
    """Each credential gets from each route, for each kind of channel, exactly what the model says:
    status, code, headers, and of the events those that it may see.
    """
    fill(valkey)
    with running(valkey, mode) as application:
        shown = requests(application, valkey)
        for name, route, kind in cells():
            try:
                check(application, mode, name, route, kind, shown[name])
            except AssertionError as error:
                raise AssertionError(f"{name}: {route.name} of {kind or 'none'}: {error}") from None
        gevent.sleep(0.01)
        assert application.service.limits._total == 0
    for kind in KINDS:
        allowed = [
            route.body.count("{c}") or 1
            for name, route, of in cells()
            if of == kind and route.right == "publish" and channel_of(route, kind).endswith("b")
            if expected(MODES[mode], CREDENTIALS[name], route, kind)[0] == 200
        ]
        kept = valkey.cli("XLEN", f"pushline:s:{PREFIXES[kind]}b")
        assert kept == sum(allowed), "what is refused is not published"


def test_the_matrix_is_complete(valkey: Valkey) -> None:
    """Every route and method that the service has is in the matrix, every place for a credential
    with good, old and bad ones, every claim, and each right alone.
    """
    with running(valkey, "production") as application:
        rules = application.client.application.url_map.iter_rules()
        served = {(method, rule.rule) for rule in rules for method in rule.methods or ()}
        assert {(route.method, route.rule) for route in ROUTES.values()} == served
        assert requests(application, valkey).keys() == CREDENTIALS.keys()
    places = {spec.name for spec in dataclasses.fields(Credentials)} - {"headers"}
    sessions = [one for one in CREDENTIALS.values() if one.place == "session"]
    assert len(sessions) == len(SESSIONS)
    assert {one.fault for one in sessions} == {"", "no_credential", *REFUSALS}
    shown = [one for one in CREDENTIALS.values() if one not in sessions]
    assert {one.place for one in shown} == {*places, "nowhere"}
    assert {one.place for one in shown if one.subscribe} == places
    assert {one.place for one in shown if one.fault == "bad_credential"} == places
    assert {one.place for one in shown if one.fault == "expired_credential"} == places - {"ticket"}
    assert CLAIMS == ("pushline", "mercure")
    in_header = [one for one in shown if one.place == "authorization" and not one.fault]
    assert {(bool(one.publish), bool(one.subscribe), one.admin) for one in in_header} == {
        (True, False, False), (False, True, False), (True, True, False), (False, False, True),
    }  # fmt: skip
    assert len(ROUTES) == len(list(routes()))
    assert len(list(cells())) * len(MODES) > 14_000


def test_the_table_of_the_documentation() -> None:
    """docs/security.md has the model's table; `python -m tests.access_model` prints it."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "security.md").read_text()
    assert "\n".join(table()) in page


# --------------------------------------------------------------------------------------- origins


@pytest.mark.parametrize("mode", ["production", "AUTHORIZE_URL", "local"])
def test_the_matrix_of_origins(mode: str, valkey: Valkey) -> None:
    """Pages of foreign origins change nothing, and a cookie opens nothing to them, whatever the
    mode; the own page and listed ones get what their credential gets, and listed ones may read it.
    """
    fill(valkey)
    with running(valkey, mode) as application:
        shown = requests(application, valkey)
        names = ("none", "token to publish and stream", "token in the cookie", "ticket",
                 "session with rights of `AUTHORIZE_URL`")  # fmt: skip
        for origin, name, route in itertools.product(ORIGINS, names, ROUTES.values()):
            check_origin(application, mode, origin, name, route, shown[name])


def check_origin(application: Application, mode: str, origin: str, name: str, route: Route,
                 request: Request) -> None:  # fmt: skip
    """Ask one request from a page, and compare the answer with the model."""
    arguments = asked(route, channel_of(route, GRANTED), request)
    arguments["headers"].update(ORIGINS[origin])
    wanted = expected(MODES[mode], CREDENTIALS[name], route, GRANTED)
    refuses = {"foreign": refuses_foreign_pages, "null": refuses_foreign_pages,
               "embedded": refuses_embedding}  # fmt: skip
    if origin in refuses and refuses[origin](MODES[mode], CREDENTIALS[name], route):
        wanted = 403, "foreign_origin"
    if route.method == "HEAD":
        wanted = wanted[0], ""
    with contextlib.closing(application.client.open(**arguments, buffered=False)) as response:
        assert outcome(response, route) == wanted, (origin, name, route.name)
        told = origin == "listed" and tells_pages(route)
        allowed = (LISTED, "true") if told else (None, None)
        got = [
            response.headers.get(f"Access-Control-Allow-{one}") for one in ("Origin", "Credentials")
        ]
        assert tuple(got) == allowed, (origin, name, route.name)
        if tells_pages(route):
            assert "Origin" in response.vary
