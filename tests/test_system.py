"""`$sys`: what workers tell there, when they do, and who may stream it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

import service.snapshot
import service.system
from service.channels import SYS, check_channel
from service.counts import Counts
from service.errors import BadChannel
from service.following import Followed
from service.snapshot import BUSIEST, Snapshots
from tests.applications import Application, Make, Stream, check_problem, making
from tests.credentials import KEY, SECRET, bearer, cookie, token
from tests.little_server import LittleServer
from tests.live_server import until
from tests.valkey import Valkey

LOCAL: dict[str, Any] = {"publish_open": False, "public_channels": (), "embedded": True}
ADMIN: dict[str, Any] = {"publish_open": False, "jwt_secret": (("", SECRET),)}


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Make]:
    """Make applications on the shared Valkey."""
    with making(valkey.url) as one:
        yield one


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers tell of themselves five times a second, not once."""
    monkeypatch.setattr(service.system, "TELL_SECONDS", 0.2)


def ready(app: Application) -> Application:
    """The application, once it follows Redis."""
    until(lambda: app.client.get("/readyz").status_code == 200, 10, "it is ready")
    return app


def send_cookies_as_told(app: Application) -> None:
    """Let the client keep no cookies of its own, which would take the place of a header."""
    app.client = app.client.application.test_client(use_cookies=False)


def snapshots(stream: Stream, count: int = 1) -> list[dict[str, Any]]:
    """The next snapshots; each is an event without a name and an id of its own."""
    events = stream.events(count)
    assert {event.type for event in events} == {"message"}
    return [json.loads(event.data) for event in events]


def test_what_calls_redis_ends_when_it_is_told_to(make: Make) -> None:
    """By itself, between two calls: a kill while it connects would lose its socket."""
    one = ready(make()).service
    for part in one._callers:
        part.stop()
    gevent.joinall(one._greenlets[:4], timeout=5)
    assert [greenlet.ready() for greenlet in one._greenlets[:4]] == [True] * 4
    assert not any(greenlet.ready() for greenlet in one._greenlets[4:])


# --------------------------------------------------------------------------------- what is told


@pytest.mark.usefixtures("quick")
def test_a_worker_tells_of_itself(make: Make) -> None:
    """Its streams, channels and counters, without those of the dashboard itself."""
    app = ready(make(**LOCAL))
    watching = app.stream(f"channel={SYS}")
    (idle,) = snapshots(watching)
    assert (idle["streams"], idle["watchers"], idle["channels"], idle["top"]) == (0, 1, 0, [])
    streams = [app.stream(f"channel={name}") for name in ("a", "b", "b")]
    for stream in streams:
        stream.read()
    app.publish("b", "one")
    check_problem(app.client.post("/channels/no%20name", data="x"), 400, "bad_channel")
    found: dict[str, Any] = {}
    while found.get("counters", {}).get("delivered") != 2:
        (found,) = snapshots(watching)
    counters = found["counters"]
    assert (counters["published"], counters["received"], counters["failed"]) == (1, 1, 0)
    assert (found["streams"], found["channels"]) == (3, 2)
    assert found["top"] == [["b", 2], ["a", 1]]
    assert found["refused"] == {"bad_channel": 1}
    assert sum(found["delivery"]) == sum(found["publish"]) == 1
    assert len(found["delivery"]) == len(found["bounds"]) + 1
    assert found["redis"] is True
    assert found["draining"] is False
    assert (found["worker"], found["limit"]) == (idle["worker"], 1000)
    assert found["at"] > idle["at"]
    streams[0].close()
    while not found["closed"]["client_left"]:
        (found,) = snapshots(watching)
    assert found["streams"] == 2


@pytest.mark.usefixtures("quick")
def test_all_workers_are_heard(make: Make) -> None:
    """One stream gets the snapshots of each worker; every one has a name of its own."""
    apps = [ready(make(**LOCAL)) for _ in range(3)]
    told = snapshots(apps[0].stream(f"channel={SYS}"), 9)
    assert {one["worker"] for one in told} == {app.service.streams.worker for app in apps}


@pytest.mark.usefixtures("quick")
def test_nothing_is_kept(make: Make, valkey: Valkey) -> None:
    """Snapshots are live only: there is no history of them, no id is used up, none counts as
    published or as an event of anybody.
    """
    app = ready(make(**LOCAL))
    last = app.publish("a", "x")
    snapshots(app.stream(f"channel={SYS}"), 4)
    assert valkey.cli("EXISTS", f"pushline:s:{SYS}", f"pushline:t:{SYS}") == 0
    assert valkey.cli("HGET", "pushline:clock", "id") == last.encode()
    counts = app.service.counts
    assert counts.publishes["http", "published"] == 1
    assert counts.sys_events == counts.events >= 4
    assert counts.sys_received == counts.received >= 4


@pytest.mark.usefixtures("quick")
def test_nobody_watches(make: Make, monkeypatch: pytest.MonkeyPatch, valkey: Valkey) -> None:
    """Then no snapshot is made, and Redis is asked one small question a time; other streams don't
    change that. It begins with the first who watches, and ends with the last.
    """
    monkeypatch.setattr("service.following.LINGER_SECONDS", 0.1)
    app = ready(make(**LOCAL))
    taken: list[int] = []
    take = app.service.snapshots.take

    def count(*arguments: Any, **more: Any) -> dict[str, Any]:
        taken.append(1)
        return take(*arguments, **more)

    monkeypatch.setattr(app.service.snapshots, "take", count)
    app.stream("channel=a").read()
    gevent.sleep(0.5)
    assert not taken
    watching = app.stream(f"channel={SYS}")
    snapshots(watching, 2)
    assert taken
    watching.close()
    until(lambda: valkey.cli("PUBSUB", "NUMSUB", f"pushline:{SYS}")[1] == 0, 5, "nobody follows")
    gevent.sleep(0.25)
    before = len(taken)
    gevent.sleep(0.5)
    assert len(taken) == before


@pytest.mark.usefixtures("quick")
def test_without_redis(own_valkey: Valkey) -> None:
    """A worker that has lost Redis still tells its own streams, and that it has."""
    with making(own_valkey.url) as make:
        app = ready(make(**LOCAL))
        watching = app.stream(f"channel={SYS}")
        assert snapshots(watching)[0]["redis"] is True
        own_valkey.kill()
        with gevent.Timeout(10):
            while snapshots(watching)[0]["redis"]:
                pass


@pytest.mark.usefixtures("quick")
def test_a_drain_is_told(make: Make) -> None:
    """The snapshots of a worker that drains say so, to streams of other workers."""
    first, second = ready(make(**LOCAL)), ready(make(**LOCAL))
    watching = first.stream(f"channel={SYS}")
    snapshots(watching)
    second.service.drain(0)
    with gevent.Timeout(5):
        while not any(one["draining"] for one in snapshots(watching)):
            pass


def test_the_busiest_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with most streams are named, however many there are; the service's own never."""
    monkeypatch.setattr(service.snapshot, "CHANNELS_AT_ONCE", 7)
    followed = [(f"c{number}", Followed()) for number in range(100)]
    for place, (_, one) in enumerate(followed):
        one.streams = place * 37 % 100  # 0 of c0, which only lingers
    followed.append((SYS, Followed()))
    followed[-1][1].streams = 1000
    gauges = {f"pushline_{name}": 0.0 for name in ("redis_up", "views", "slow_connections")}
    gauges |= {"pushline_connections": 1001.0, "pushline_send_buffer_bytes": 0.0}
    ways: list[int] = []
    monkeypatch.setattr("service.snapshot.give_way", lambda: ways.append(1))
    found = Snapshots("w", Counts(), 0).take(gauges, followed, draining=False)
    assert len(ways) == 14, "others run also whose socket is ready"
    assert found["channels"] == 99
    assert found["streams"] == 1
    assert [streams for _, streams in found["top"]] == [*range(99, 99 - BUSIEST, -1)]
    assert dict(followed)[found["top"][0][0]].streams == 99


# ------------------------------------------------------------------------------------ who may


def test_nobody_can_name_it() -> None:
    """It is no name of a channel: nothing is published to it, ended, forgotten or read back."""
    with pytest.raises(BadChannel):
        check_channel(SYS)


@pytest.mark.parametrize(
    "request_line",
    [
        f"POST /channels/{SYS}",
        f"PUT /channels/{SYS}",
        f"POST /channels/{SYS}/end",
        f"DELETE /channels/{SYS}",
        f"GET /channels/{SYS}/events",
        f"GET /stream?channel={SYS}&channel=a",
        f"POST /tickets?channel={SYS}&channel=a",
        "GET /stream?channel=$control",
        "POST /tickets?channel=$control",
    ],
)
def test_all_else_is_refused(make: Make, request_line: str) -> None:
    """Also to who may administrate: it is only streamed, and alone."""
    app = make(**LOCAL)
    method, _, path = request_line.partition(" ")
    check_problem(app.client.open(path, method=method, data="x"), 400, "bad_channel")


def test_no_item_goes_there(make: Make) -> None:
    """The same for a channel that a JSON body names."""
    response = make(**LOCAL).client.post("/publish", json={"channel": SYS, "data": "x"})
    check_problem(response, 400, "bad_channel")


ALL_CHANNELS: dict[str, Any] = {"publish": ["*"], "subscribe": ["*"]}


@pytest.mark.parametrize(
    ("shown", "status", "code"),
    [
        ({}, 401, "no_credential"),
        (bearer(KEY), 403, "not_granted"),
        (bearer(token(**ALL_CHANNELS)), 403, "not_granted"),
        (bearer(token(subscribe=[SYS])), 403, "not_granted"),
        (cookie(token(**ALL_CHANNELS)), 403, "not_granted"),
        (bearer(token(seconds=-60, admin=True)), 401, "expired_credential"),
        (bearer(token(signed_with=SECRET[::-1], admin=True)), 401, "bad_credential"),
    ],
)
@pytest.mark.parametrize("asks", [False, True])
def test_who_may_not_watch(
    make: Make, shown: dict[str, str], status: int, code: str, asks: bool
) -> None:
    """Everybody without the right to administrate, though all channels are public, and whatever an
    application that is asked for streams would say: it isn't asked.
    """
    with LittleServer(status=204) as application:
        url = application.url if asks else None
        app = make(
            **ADMIN, publish_keys=((KEY, ("*",)),), public_channels=("*",), authorize_url=url
        )
        send_cookies_as_told(app)
        if asks and code == "bad_credential":
            code = "no_credential"  # it may be one that the application knows
        for method, path in (("GET", "/stream"), ("POST", "/tickets")):
            response = app.client.open(f"{path}?channel={SYS}", method=method, headers=shown)
            check_problem(response, status, code)
        assert application.questions == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("show", [bearer, cookie])
def test_an_administrator_may(make: Make, show: Any) -> None:
    """With the token itself, and with a ticket got by it, which opens nothing else."""
    app = ready(make(**ADMIN, public_channels=()))
    send_cookies_as_told(app)
    shown = show(token(admin=True))
    first = app.stream(f"channel={SYS}", **shown)
    assert snapshots(first)[0]["watchers"] == 1
    answer = app.client.post(f"/tickets?channel={SYS}", headers=shown)
    ticket = answer.get_json()["ticket"]
    second = app.stream(f"channel={SYS}&ticket={ticket}")
    assert snapshots(second)[0]["watchers"] == 2
    for method, path in (("GET", "/stream?channel=a"), ("GET", "/channels/a/events?")):
        response = app.client.open(f"{path}&ticket={ticket}", method=method)
        check_problem(response, 403, "not_granted")
    check_problem(app.client.delete(f"/streams?user=a&ticket={ticket}"), 401, "no_credential")


@pytest.mark.usefixtures("quick")
def test_a_ticket_for_all_channels_is_none_for_it(make: Make) -> None:
    """Not even for one who may administrate: a ticket is for what it was asked for."""
    app = ready(make(**ADMIN, public_channels=()))
    shown = bearer(token(admin=True, subscribe=["*"]))
    ticket = app.client.post("/tickets?channel=a", headers=shown).get_json()["ticket"]
    check_problem(app.client.get(f"/stream?channel={SYS}&ticket={ticket}"), 403, "not_granted")


@pytest.mark.usefixtures("quick")
def test_local_mode_is_open(make: Make) -> None:
    """There the page needs no token, with a ticket or without."""
    app = ready(make(**LOCAL))
    ticket = app.client.post(f"/tickets?channel={SYS}").get_json()["ticket"]
    assert snapshots(app.stream(f"channel={SYS}&ticket={ticket}"))
    assert snapshots(app.stream(f"channel={SYS}"))
