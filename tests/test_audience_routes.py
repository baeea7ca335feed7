"""Counts and presence over HTTP: what is told, to whom, and from which credential a user is."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from service.errors import RedisError
from service.event import EventId
from service.grants import MAX_INFO_BYTES
from tests.applications import Application, Make, check_problem, making
from tests.credentials import KEY, SECRET, bearer, cookie, token
from tests.little_server import LittleServer
from tests.live_server import until
from tests.valkey import Valkey

ORIGIN = "https://page.example"
NOTHING = {"streams": 0, "last_id": None, "events": 0, "ended": False}
BAD_LIMITS = ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=", "limit=\u0661"]


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Make]:
    """Make applications on the shared Valkey."""
    with making(valkey.url) as one:
        yield one


@pytest.fixture
def app(make: Make) -> Application:
    """An application with tokens, a public channel and presence."""
    made = make(
        publish_open=False,
        publish_keys=((KEY, ("*",)),),
        jwt_secret=(("", SECRET),),
        public_channels=("public.*",),
        presence_channels=("room.*", "public.*"),
        presence_grace_seconds=0.5,
        cors_origins=(ORIGIN,),
    )
    # Without a jar of its own it sends the cookies that tests set.
    made.client = FlaskClient(made.client.application, made.client.response_wrapper, False)
    return made


def get(app: Application, path: str, credential: str = KEY) -> dict[str, Any]:
    """What a route answers to a credential."""
    app.service.audience.report()
    app.service.audience._totals.forget()
    app.service.attendance._readings.clear()
    response = app.client.get(path, headers=bearer(credential) if credential else {})
    assert response.status_code == 200, response.text
    assert response.headers["Cache-Control"] == "no-store"
    body = response.get_json()
    assert isinstance(body, dict)
    return body


# -------------------------------------------------------------------------------------- counts


def test_a_channel_tells_its_numbers(app: Application) -> None:
    """Streams, the last stored id, how many events are kept, and whether it is finished."""
    assert get(app, "/channels/room.1") == {"channel": "room.1", **NOTHING}
    credential = token(subscribe=["room.*"])
    with contextlib.closing(app.stream("channel=room.1&channel=room.2", **bearer(credential))):
        assert get(app, "/channels/room.1")["streams"] == 1
    assert get(app, "/channels/room.1")["streams"] == 0
    path = "/channels/room.1"
    for query in ("", "?history=0"):
        app.client.post(path + query, data="x", headers=bearer(KEY))
    said = get(app, path)
    assert (said["events"], said["ended"]) == (1, False)
    (event,) = get(app, f"{path}/events", credential)["events"]
    assert said["last_id"] == event["id"]
    end = app.client.post(f"{path}/end", headers=bearer(KEY)).get_json()["id"]
    assert get(app, path) == {**said, "last_id": end, "events": 2, "ended": True}


def test_a_worker_that_stops_takes_its_streams_back(app: Application, make: Make) -> None:
    """Those that were still open count no more at once, without waiting for an expiry."""
    other = make(publish_keys=((KEY, ("*",)),))
    with contextlib.closing(other.stream("channel=room.1")):
        until(lambda: get(app, "/channels/room.1")["streams"] == 1, 3, "it is counted")
        other.service.stop()
        assert get(app, "/channels/room.1")["streams"] == 0


def test_channels_are_listed_for_whom_they_are_meant(app: Application) -> None:
    """Each sees those that it may stream or publish to by itself; `admin` sees all."""
    everything = token(subscribe=["*"])
    streams = [
        app.stream(f"channel={name}", **bearer(everything))
        for name in ("room.2", "room.1", "room.1", "public.a", "other")
    ]
    names = {
        KEY: ["room.1", "other", "public.a", "room.2"],
        token(admin=True): ["room.1", "other", "public.a", "room.2"],
        token(subscribe=["room.*"]): ["room.1", "room.2"],
        token(publish=["other"]): ["other"],
        token(subscribe=["public.*"], publish=["other"]): ["other", "public.a"],
        token("ana"): [],
    }
    for credential, expected in names.items():
        body = get(app, "/channels", credential)
        assert [one["channel"] for one in body["channels"]] == expected
        assert body["total"] == len(expected)
        assert body["streams"] == len(expected) + ("room.1" in expected)
    body = get(app, "/channels?limit=1")
    assert body["channels"] == [{"channel": "room.1", **NOTHING, "streams": 2}]
    assert (body["total"], body["streams"]) == (4, 5)
    for stream in streams:
        stream.close()
    assert get(app, "/channels") == {"channels": [], "total": 0, "streams": 0}


@pytest.mark.parametrize("public", [(), ("public.*",), ("*",)])
@pytest.mark.parametrize("publish_open", [False, True])
def test_a_list_wants_a_credential(make: Make, public: tuple[str, ...], publish_open: bool) -> None:
    """Whatever is public: a name that can't be guessed must not be told to everybody."""
    keys = ((KEY, ("*",)),)
    app = make(publish_open=publish_open, publish_keys=keys, public_channels=public)
    check_problem(app.client.get("/channels"), 401, "no_credential")


def test_who_watches_is_not_listed(app: Application) -> None:
    """`$sys` is no channel that anybody else could name."""
    admin = token(admin=True)
    with contextlib.closing(app.stream("channel=$sys", **bearer(admin))):
        for credential in (admin, KEY):
            assert get(app, "/channels", credential) == {"channels": [], "total": 0, "streams": 0}


def test_a_failure_to_take_users_back_keeps_no_streams(app: Application, make: Make) -> None:
    """When a worker that stops can't tell of its users, its streams count no more all the same."""
    other = make(presence_channels=("room.*",))
    with contextlib.closing(other.stream("channel=room.1")):
        until(lambda: get(app, "/channels/room.1")["streams"] == 1, 3, "it is counted")

        def fail() -> None:
            raise RedisError

        other.service.presence.withdraw = fail  # type: ignore[method-assign]
        other.service.stop()
        assert get(app, "/channels/room.1")["streams"] == 0


def test_a_worker_reports_anew_when_redis_has_changed(app: Application) -> None:
    """The report goes with what the follower knows of Redis's data."""
    until(lambda: app.client.get("/readyz").status_code == 200, 10, "it is ready")
    get(app, "/channels")
    name = app.service.audience.worker
    app.service.broker._follower.born = EventId(2**41, 0)
    get(app, "/channels")
    assert app.service.audience.worker != name


@pytest.mark.parametrize("query", BAD_LIMITS)
@pytest.mark.parametrize("path", ["/channels", "/channels/public.a/presence"])
def test_bad_limits_are_named(app: Application, path: str, query: str) -> None:
    """A limit that can't be used is the client's mistake."""
    response = app.client.get(f"{path}?{query}", headers=bearer(KEY))
    assert check_problem(response, 400, "bad_parameter")["fix"]


def test_no_user_has_so_long_a_name(app: Application) -> None:
    """A place in a list that can't be one is the client's mistake."""
    for letters, status in ((256, 200), (257, 400)):
        response = app.client.get(f"/channels/public.a/presence?after={'x' * letters}")
        assert response.status_code == status


def test_a_lost_redis_is_said(make: Make, own_valkey: Valkey) -> None:
    """No number is made up."""
    app = make(own_valkey.url, presence_channels=("*",), publish_keys=((KEY, ("*",)),))
    own_valkey.kill()
    for path in ("/channels", "/channels/a", "/channels/a/presence"):
        check_problem(app.client.get(path, headers=bearer(KEY)), 503, "redis_down")


def test_listed_pages_may_read_counts(app: Application) -> None:
    """A page of a listed origin may ask with its cookie; another's is refused."""
    shown = cookie(token(subscribe=["room.*"]))
    for path in ("/channels", "/channels/room.1", "/channels/room.1/presence"):
        allowed = app.client.get(path, headers={**shown, "Origin": ORIGIN})
        assert allowed.status_code == 200
        assert allowed.headers["Access-Control-Allow-Origin"] == ORIGIN
        refused = app.client.get(path, headers={**shown, "Origin": "https://x.example"})
        check_problem(refused, 403, "foreign_origin")
        preflight = app.client.options(path, headers={"Origin": ORIGIN})
        assert "GET" in preflight.headers["Access-Control-Allow-Methods"]


# ------------------------------------------------------------------------------------ presence


def wait_users(app: Application, *users: tuple[str, Any, int]) -> dict[str, Any]:
    """The presence of room.1, once it has these users: name, info and streams."""
    expected = [dict(zip(("user", "info", "streams"), one, strict=True)) for one in users]

    def told() -> dict[str, Any] | None:
        body = get(app, "/channels/room.1/presence")
        return body if body["users"] == expected else None

    body = until(told, 3, f"there are {users}")
    assert isinstance(body, dict)
    return body


def test_users_are_those_of_tokens_and_tickets(app: Application) -> None:
    """Name and info are what the credential says, whichever kind; streams without one count."""
    ana = token("ana", subscribe=["room.1"], info={"name": "Ana"})
    headers = bearer(token("bob", subscribe=["room.1"], info=[1, "two"]))
    ticket = app.client.post("/tickets?channel=room.1", headers=headers).get_json()["ticket"]
    with (
        contextlib.closing(app.stream("channel=room.1", **bearer(ana))),
        contextlib.closing(app.stream("channel=room.1", **cookie(ana))),
        contextlib.closing(app.stream(f"channel=room.1&ticket={ticket}")),
        contextlib.closing(app.stream("channel=room.1", **bearer(token("", subscribe=["*"])))),
    ):
        body = wait_users(app, ("ana", {"name": "Ana"}, 2), ("bob", [1, "two"], 1))
        assert (body["total"], body["anonymous"], body["next"]) == (2, 1, None)
        body = get(app, "/channels/room.1/presence?limit=1")
        assert [user["user"] for user in body["users"]] == ["ana"]
        assert (body["total"], body["next"]) == (2, "ana")
        body = get(app, "/channels/room.1/presence?limit=1&after=ana")
        assert ([user["user"] for user in body["users"]], body["next"]) == (["bob"], None)


def test_users_are_those_of_the_authorizer(make: Make) -> None:
    """What AUTHORIZE_URL says of the user counts as what a token says."""
    said = json.dumps({"channels": ["room.*"], "user": "ana", "info": {"colour": "red"}})
    with LittleServer(answer=lambda _: (200, said.encode())) as asked:
        app = make(
            authorize_url=asked.url,
            public_channels=(),
            publish_keys=((KEY, ("*",)),),
            presence_channels=("room.*",),
        )
        with contextlib.closing(app.stream("channel=room.1", Cookie="session=1")):
            wait_users(app, ("ana", {"colour": "red"}, 1))


def test_the_list_goes_on_as_a_stream(app: Application) -> None:
    """A stream of the companion from `last_id` on is told of every change, and of none before."""
    ana, bob = (token(user, subscribe=["room.1*"]) for user in ("ana", "bob"))
    first = app.stream("channel=room.1", **bearer(ana))
    until(lambda: join_is_told(app), 3, "the join is told")
    body = get(app, "/channels/room.1/presence")
    query = f"channel=room.1:presence&last_event_id={body['last_id']}"
    with (
        contextlib.closing(app.stream(query, **bearer(bob))) as companion,
        contextlib.closing(app.stream("channel=room.1", **bearer(bob))),
    ):
        first.close()
        joined, left = companion.events(2)
        assert (joined.type, left.type) == ("$join", "$leave")
        said = {"channel": "room.1", "user": "bob", "info": None}
        assert json.loads(joined.data) == said
        assert json.loads(left.data) == {**said, "user": "ana"}
        wait_users(app, ("bob", None, 1))


def test_the_page_shows_what_is_told(app: Application) -> None:
    """docs/presence.md has the list and an event as they are."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "presence.md").read_text()
    shown_list, shown_event = map(json.loads, re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    credential = token("ana", subscribe=["room.*"], info={"name": "Ana"})
    with (
        contextlib.closing(app.stream("channel=room.1", **bearer(credential))),
        contextlib.closing(app.stream("channel=room.1", **bearer(credential))),
    ):
        body = wait_users(app, ("ana", {"name": "Ana"}, 2))
        assert body == {**shown_list, "last_id": body["last_id"]}
        until(lambda: join_is_told(app), 3, "the join is told")
        (event,) = get(app, "/channels/room.1:presence/events", credential)["events"]
        assert json.loads(event["data"]) == shown_event


def join_is_told(app: Application) -> bool:
    """Whether the companion has an event."""
    return bool(get(app, "/channels/room.1:presence")["events"])


def test_the_list_is_for_whom_the_companion_is(app: Application) -> None:
    """To stream the channel alone is not enough; to publish to the companion, or `admin`, is."""
    path = "/channels/room.1/presence"
    check_problem(app.client.get(path), 401, "no_credential")
    for refused in (token(subscribe=["room.1"]), token(publish=["room.1"])):
        check_problem(app.client.get(path, headers=bearer(refused)), 403, "not_granted")
    headers = bearer(token(subscribe=["room.1"]))
    ticket = app.client.post("/tickets?channel=room.1", headers=headers).get_json()["ticket"]
    check_problem(app.client.get(f"{path}?ticket={ticket}"), 403, "not_granted")
    companion = ["room.1:presence"]
    for let_in in (token(subscribe=companion), token(publish=["room.*"]), token(admin=True)):
        assert get(app, path, let_in)["users"] == []
    assert get(app, "/channels/public.a/presence", "")["users"] == []


def test_a_channel_without_presence_has_no_list(app: Application) -> None:
    """It isn't told to those who may not see the channel either."""
    path = "/channels/hall/presence"
    check_problem(app.client.get(path), 401, "no_credential")
    assert check_problem(app.client.get(path, headers=bearer(KEY)), 404, "not_found")["fix"]
    check_problem(app.client.get("/channels/a%20b/presence"), 400, "bad_channel")


@pytest.mark.parametrize(
    ("info", "status"),
    [("x" * (MAX_INFO_BYTES - 2), 200), ("x" * (MAX_INFO_BYTES - 1), 401),
     ("é" * (MAX_INFO_BYTES // 2), 401), (None, 200), (False, 200)],
)  # fmt: skip
def test_info_has_a_limit(app: Application, info: Any, status: int) -> None:
    """1024 bytes as JSON; a token that says more is no good."""
    headers = bearer(token(subscribe=["room.1"], info=info))
    assert app.client.head("/stream?channel=room.1", headers=headers).status_code == status


def test_nobody_else_says_who_is_there(app: Application) -> None:
    """No publisher can send the service's own events, or hide by a name of theirs."""
    headers = bearer(KEY)
    for name in ("$join", "$leave"):
        response = app.client.post(f"/channels/room.1:presence?event={name}", headers=headers)
        check_problem(response, 400, "bad_event")
