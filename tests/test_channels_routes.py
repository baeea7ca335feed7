"""A channel as a whole over HTTP: history in pages, the end, and forgetting it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from service.event import EventId
from tests.applications import Application, Make, check_problem, making
from tests.valkey import Valkey

ORIGIN = "https://page.example"
EVENT_SOURCE = {"Accept": "text/event-stream"}


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Make]:
    """Make applications on the shared Valkey."""
    with making(valkey.url) as one:
        yield one


@pytest.fixture
def app(make: Make) -> Application:
    """An application with the default settings."""
    return make(cors_origins=(ORIGIN,))


def history(app: Application, channel: str, query: str = "") -> dict[str, Any]:
    """A page of a channel's history."""
    response = app.client.get(f"/channels/{channel}/events{query}")
    assert response.status_code == 200, response.text
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    body = response.get_json()
    assert isinstance(body, dict)
    assert body["channel"] == channel
    return body


# -------------------------------------------------------------------------------------- history


def test_a_history_is_told_as_json(app: Application) -> None:
    """Each event has its id, its name, `message` without one, and its data as it was sent."""
    first = app.publish("a", "x\r\ny")
    second = app.publish("a", "z", "?event=tick&retry=2000")
    app.publish("a", "live only", "?history=0")
    assert history(app, "a") == {
        "channel": "a",
        "events": [
            {"id": first, "event": "message", "data": "x\ny"},
            {"id": second, "event": "tick", "data": "z"},
        ],
        "next": None,
    }
    assert history(app, "b")["events"] == []


def test_a_history_is_read_in_pages(app: Application) -> None:
    """`limit` and `after` page through everything, each event once; `next` is where to go on."""
    items = [{"channel": "a", "data": str(number)} for number in range(250)]
    ids = [receipt["id"] for receipt in app.client.post("/publish", json=items).get_json()]
    page = history(app, "a")
    assert [event["id"] for event in page["events"]] == ids[:100]
    assert page["next"] == ids[99]
    got, after = [], ""
    while True:
        page = history(app, "a", f"?limit=60{after}")
        got += [event["id"] for event in page["events"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert got == ids
    assert len(history(app, "a", "?limit=1000")["events"]) == 250
    assert history(app, "a", f"?after={ids[-1]}")["events"] == []
    between = EventId.parse(ids[3])
    page = history(app, "a", f"?after={between.milliseconds}-{between.sequence}&limit=1")
    assert page["events"][0]["id"] == ids[4]


def test_expired_events_are_not_told(app: Application) -> None:
    """What has outlived its `ttl` is left out, and paging goes on over it."""
    app.publish("a", "short", "?ttl=1")
    last = app.publish("a", "long")
    assert len(history(app, "a")["events"]) == 2
    gevent.sleep(1.1)
    assert [event["id"] for event in history(app, "a")["events"]] == [last]
    page = history(app, "a", "?limit=1")
    assert page["events"] == []
    assert history(app, "a", f"?limit=1&after={page['next']}")["events"][0]["id"] == last


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=", "limit=0000000011000",
     "limit=\u0661", "after=x", "after=", "after=earliest"],
)  # fmt: skip
def test_bad_pages_are_named(app: Application, query: str) -> None:
    """A limit or a place that can't be used is the client's mistake."""
    response = app.client.get(f"/channels/a/events?{query}")
    assert check_problem(response, 400, "bad_parameter")["fix"]


def test_histories_may_be_read_by_listed_pages(app: Application) -> None:
    """A listed page may read a history; another page's browser keeps the answer from it."""
    app.publish("a", "x")
    response = app.client.get("/channels/a/events", headers={"Origin": ORIGIN})
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    response = app.client.get("/channels/a/events", headers={"Origin": "https://x.y"})
    assert "Access-Control-Allow-Origin" not in response.headers


# ------------------------------------------------------------------------------------ the end


def test_a_stream_gets_the_end_and_closes(app: Application) -> None:
    """`$end` comes with an id, the channel and the reason, and the stream ends cleanly."""
    stream = app.stream("channel=a&event=only-this")
    stream.read()
    response = app.client.post("/channels/a/end?reason=answer%20complete")
    assert response.status_code == 200
    (event,) = stream.events(1)
    stream.read_to_end()
    assert event.type == "$end"
    assert json.loads(event.data) == {"channel": "a", "reason": "answer complete"}
    assert response.get_json() == {"id": event.last_event_id, "channel": "a", "replayed": False}
    assert app.service.hub.streams == 0


def test_a_stream_with_a_live_channel_goes_on(app: Application) -> None:
    """Only when all its channels are finished does a stream close."""
    stream = app.stream("channel=a&channel=b")
    stream.read()
    app.client.post("/channels/a/end")
    assert stream.events(1)[0].type == "$end"
    app.publish("b", "still here")
    assert stream.events(1)[0].data == "still here"
    app.client.post("/channels/b/end")
    assert stream.events(1)[0].type == "$end"
    stream.read_to_end()


def test_an_end_is_told_once_and_again_to_whoever_asks(app: Application) -> None:
    """Ending a finished channel changes nothing and names the end that there is."""
    first = app.client.post("/channels/a/end").get_json()
    again = app.client.post("/channels/a/end?reason=other").get_json()
    assert again == {**first, "replayed": True}
    assert len(history(app, "a")["events"]) == 1


@pytest.mark.parametrize("reason", ["x" * 128, "👩\u200d💻 done", "\U000e0001\u2028"])
def test_any_letters_can_be_a_reason(app: Application, reason: str) -> None:
    """Also those that need joiners, and new ones that this Python doesn't know."""
    app.client.post("/channels/a/end", query_string={"reason": reason})
    (event,) = history(app, "a")["events"]
    assert json.loads(event["data"])["reason"] == reason


@pytest.mark.parametrize("reason", ["a%0Ab", "x" * 129, "%00", "%7F", "%C2%85"])
def test_bad_reasons_are_refused(app: Application, reason: str) -> None:
    """A reason is a short line of text."""
    check_problem(app.client.post(f"/channels/a/end?reason={reason}"), 400, "bad_parameter")
    assert history(app, "a")["events"] == []


def test_a_finished_channel_refuses_events(app: Application) -> None:
    """409 until it is forgotten, which is 204 whether it was there or not."""
    app.publish("a", "x")
    app.client.post("/channels/a/end")
    body = check_problem(app.client.post("/channels/a", data="y"), 409, "channel_ended")
    assert "a is finished" in body["detail"]
    several = {"channels": ["a", "b"], "data": "y"}
    check_problem(app.client.post("/publish", json=several), 409, "channel_ended")
    assert history(app, "b")["events"] == []
    for _ in range(2):
        response = app.client.delete("/channels/a")
        assert (response.status_code, response.data) == (204, b"")
    assert history(app, "a")["events"] == []
    app.publish("a", "z")
    assert len(history(app, "a")["events"]) == 1


def test_a_late_client_gets_everything_then_the_end_then_nothing(app: Application) -> None:
    """On a finished channel a fresh client gets the whole history and `$end`; coming back with
    that cursor it gets 204, which stops an EventSource for good, until the channel is forgotten.
    """
    app.publish("a", "1")
    app.publish("a", "2")
    app.client.post("/channels/a/end")
    stream = app.stream("channel=a")
    events = stream.events(3)
    stream.read_to_end()
    assert [event.data for event in events[:2]] == ["1", "2"]
    assert events[2].type == "$end"
    last = events[2].last_event_id
    headers = {**EVENT_SOURCE, "Last-Event-ID": last}
    response = app.client.get("/stream?channel=a", headers=headers)
    assert (response.status_code, response.data) == (204, b"")
    assert app.service.limits._total == 0
    missed = app.stream("channel=a", **{"Last-Event-ID": events[0].last_event_id})
    assert [event.data for event in missed.events(2)][:1] == ["2"]
    missed.read_to_end()
    app.client.delete("/channels/a")
    again = app.stream("channel=a", **{"Last-Event-ID": last})
    again.read()
    app.publish("a", "new")
    assert again.events(1)[0].data == "new"
    again.close()


def test_only_when_all_channels_are_finished_is_there_nothing_to_come(app: Application) -> None:
    """204 takes the end of every channel, and a cursor at or past all of them."""
    first = app.client.post("/channels/a/end").get_json()["id"]
    stream = app.stream("channel=a&channel=b", **{"Last-Event-ID": first})
    stream.read()
    stream.close()
    last = app.client.post("/channels/b/end").get_json()["id"]
    stream = app.stream("channel=a&channel=b", **{"Last-Event-ID": first})
    assert [event.last_event_id for event in stream.events(1)] == [last]
    stream.read_to_end()
    response = app.client.get("/stream?channel=a&channel=b", headers={"Last-Event-ID": last})
    assert response.status_code == 204
    for query in ("last=5", "last_event_id=earliest", "last_event_id=nonsense"):
        stream = app.stream(f"channel=a&channel=b&{query}")
        assert stream.response.status_code == 200
        stream.read_to_end()


def test_an_end_of_a_channel_that_keeps_nothing(make: Make) -> None:
    """Also where no history is kept the stream gets `$end` and closes."""
    app = make(history_events=0)
    stream = app.stream("channel=a")
    stream.read()
    app.publish("a", "x")
    app.client.post("/channels/a/end")
    assert [event.type for event in stream.events(2)] == ["message", "$end"]
    stream.read_to_end()


# ------------------------------------------------------------------------------- who and what


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/channels/a/end"), ("DELETE", "/channels/a")]
)
def test_foreign_pages_end_and_delete_nothing(app: Application, method: str, path: str) -> None:
    """A page of another origin may neither finish nor forget a channel; a listed one may."""
    app.publish("a", "x")
    response = app.client.open(path, method=method, headers={"Origin": "https://x.y"})
    check_problem(response, 403, "foreign_origin")
    assert len(history(app, "a")["events"]) == 1
    response = app.client.open(path, method=method, headers={"Origin": ORIGIN})
    assert response.status_code in (200, 204)
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/channels/a b/events"), ("POST", "/channels/$sys/end"), ("DELETE", "/channels/é")],
)
def test_bad_channels_are_named(app: Application, method: str, path: str) -> None:
    """A name that no channel has is the client's mistake."""
    check_problem(app.client.open(path, method=method), 400, "bad_channel")


def test_keys_of_publishes(app: Application) -> None:
    """The header of a body and the field of a JSON item are the same key: a repeat has the same
    receipt but for `replayed`, another event under it is 409.
    """
    headers = {"Idempotency-Key": "k1"}
    first = app.client.post("/channels/a", data="x", headers=headers).get_json()
    again = app.client.post("/channels/a", data="x", headers=headers).get_json()
    assert (first["replayed"], again["replayed"]) == (False, True)
    assert again["id"] == first["id"]
    item = {"channel": "a", "data": "x", "idempotency_key": "k1"}
    assert app.client.post("/publish", json=item).get_json() == again
    response = app.client.post("/channels/a", data="y", headers=headers)
    check_problem(response, 409, "idempotency_conflict")
    bad = app.client.post("/channels/a", data="y", headers={"Idempotency-Key": "a b"})
    check_problem(bad, 400, "bad_event")
    assert len(history(app, "a")["events"]) == 1
