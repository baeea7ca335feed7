"""Who gets in and for how long, with real workers: private events, expiry, revocation, tickets."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from tests.credentials import KEY, SECRET, bearer, cookie, token
from tests.guarded import (
    EXPIRED,
    GUARDED,
    PAGE,
    REVOKED,
    TICKET_SECONDS,
    close_streams,
    ended,
    get_ticket,
    last_words,
    opened,
    publish,
    stream,
)
from tests.live_server import GUNICORN, ROOT, LiveService, until
from tests.raw_http import RawConnection, ask, only_worker, request_bytes
from tests.secrets_used import secret
from tests.sse_client import SseClient, event_data
from tests.valkey import Valkey, free_port

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def guarded(shared_valkey: Valkey) -> Iterator[LiveService]:
    """Two workers that want credentials; `open.*` is public. It logs all that it can."""
    with LiveService(shared_valkey.url, WEB_CONCURRENCY=2, **GUARDED) as service:
        yield service.wait_workers()


@pytest.fixture
def name() -> str:
    """The end of a channel's name that nobody else uses."""
    return str(uuid.uuid4())


# ------------------------------------------------------------------------------- private events


def test_private_events_live(guarded: LiveService, name: str) -> None:
    """On a public channel only streams with a grant get private events, on either worker, however
    they are published; all get the others.
    """
    channel = f"open.{name}"
    grant = bearer(token(subscribe=["open.*"]))
    elsewhere = bearer(token(subscribe=["mine.*"]))
    with contextlib.ExitStack() as stack:
        clients: list[tuple[SseClient, bool]] = []
        for pid in guarded.worker_pids():
            with only_worker(guarded, pid):
                for shown in (grant, elsewhere, {}):
                    client = stack.enter_context(stream(guarded, channel, shown))
                    clients.append((opened(client), shown is grant))
        publish(guarded, channel, "first")
        publish(guarded, channel, "secret 1", "?private=1")
        publish(guarded, channel, "secret 2", "?private=1&history=0")
        item = {"channels": [channel, f"other.{name}"], "data": "secret 3", "private": True}
        lines = json.dumps({**item, "data": "secret 4"}).encode()
        for method, body in (("POST", json.dumps(item).encode()), ("PUT", lines)):
            assert ask(guarded, method, "/publish", body, **bearer(KEY)).status == 200
        path = f"/channels/{channel}?private=1"
        assert ask(guarded, "PUT", path, b"secret 5\nsecret 6", **bearer(KEY)).status == 200
        publish(guarded, channel, "last", "?private=0")
        secrets = [f"secret {n}" for n in range(1, 7)]
        for client, granted in clients:
            wanted = ["first", *(secrets if granted else []), "last"]
            assert event_data(client.events(len(wanted), 10)) == wanted


def test_private_events_in_a_replay(guarded: LiveService, shared_valkey: Valkey, name: str) -> None:
    """What comes again is for the same streams only, be it from Redis or from memory, and also
    when streams with and without a grant come back at the same time and share the reading.
    """
    channel = f"open.{name}"
    pid = guarded.worker_pids()[0]
    history = [publish(guarded, channel, "0")]
    for n in range(1, 60):
        history.append(publish(guarded, channel, str(n), "?private=1" if n % 3 else ""))
    publish(guarded, channel, "60")
    visible = {
        True: [str(n) for n in range(1, 61)],
        False: [str(n) for n in range(1, 61) if n % 3 == 0],
    }

    def read_again() -> None:
        cursor = {"Last-Event-ID": history[0]}
        with contextlib.ExitStack() as stack, only_worker(guarded, pid):
            clients = [
                (granted, stack.enter_context(stream(guarded, channel, {**shown, **cursor})))
                for _ in range(3)
                for granted, shown in ((True, bearer(token(subscribe=["open.*"]))), (False, {}))
            ]
            for granted, client in clients:
                wanted = visible[granted]
                assert event_data(client.events(len(wanted), 10)) == wanted

    read_again()
    with only_worker(guarded, pid):
        held = stream(guarded, channel)
    with held:  # from now on this worker has what is published in its memory
        opened(held)
        for n in range(61, 100):
            event_id = publish(guarded, channel, str(n), "?private=1" if n % 3 else "")
            history += [event_id] if n == 61 else []
        held.events(13, 10)
        history[0] = history[-1]
        visible[True] = [str(n) for n in range(62, 100)]
        visible[False] = [str(n) for n in range(62, 100) if n % 3 == 0]
        calls = reads(shared_valkey)
        read_again()
        assert reads(shared_valkey) == calls, "it came from memory"


def reads(valkey: Valkey) -> int:
    """How often a history was read in Redis."""
    stats = valkey.cli("INFO", "commandstats").decode()
    return sum(
        int(line.partition("calls=")[2].partition(",")[0])
        for line in stats.splitlines()
        if line.startswith(("cmdstat_xrange:", "cmdstat_xrevrange:"))
    )


# ---------------------------------------------------------------------------------------- expiry


def test_a_stream_ends_when_its_token_expires(guarded: LiveService, name: str) -> None:
    """Not before, and at most moments later: with `$end`, reason expired, without an id, `retry:`,
    and the end of the response. A ticket's stream ends with the token that it stands for.
    """
    channel = f"mine.{name}"
    ends = time.time() + 4
    short = token(seconds=ends - time.time(), subscribe=["mine.*"])
    ends = jwt.decode(short, options={"verify_signature": False})["exp"]
    ticket = get_ticket(guarded, channel, bearer(short))
    lasting = bearer(token(subscribe=["mine.*"]))
    with contextlib.ExitStack() as stack:
        clients = [
            opened(stack.enter_context(stream(guarded, channel, shown, **options)))
            for shown, options in (
                (bearer(short), {}),
                (bearer(short), {"http10": True}),
                (cookie(short), {}),
                ({}, {"query": f"&ticket={ticket}"}),
                (lasting, {}),
            )
        ]
        event_id = publish(guarded, channel, "before")
        for client in clients:
            assert client.next_event(5).data == "before"
        *ending, last = clients
        assert ending[0].events_within(ends - time.time() - 0.2) == []
        assert {client.ended for client in clients} == {None}
        for client in ending:
            assert last_words(client) == EXPIRED
            assert time.time() >= ends
            assert b'event: $end\ndata: {"reason": "expired"}\n\nretry: ' in client.body
            assert client.parser.last_event_id == event_id, "its cursor is still good"
            assert 1000 <= (client.parser.retry or 0) <= 3000
        assert time.time() < ends + 5
        assert [ended(guarded, client) for client in ending] == ["expired"] * len(ending)
        assert last.events_within(0.5) == [], "others stay"


def test_who_comes_back_with_an_expired_token(guarded: LiveService, name: str) -> None:
    """It is refused, also to an EventSource, which gives up then; with a new token the stream goes
    on after the cursor, and nothing is lost.
    """
    channel = f"mine.{name}"
    cursor = {"Last-Event-ID": publish(guarded, channel, "before")}
    publish(guarded, channel, "meanwhile")
    publish(guarded, channel, "private", "?private=1")
    old = token(seconds=-1, subscribe=["mine.*"])
    for shown in (bearer(old), cookie(old)):
        for accept in ("text/event-stream", "*/*"):
            path = f"/stream?channel={channel}"
            answer = ask(guarded, "GET", path, None, **shown, **cursor, Accept=accept)
            answer.problem(401, "expired_credential")
            challenge = 'Bearer realm="pushline", error="invalid_token"'
            assert answer.header("WWW-Authenticate") == challenge
    renewed = {**bearer(token(subscribe=["mine.*"])), **cursor}
    with stream(guarded, channel, renewed) as again:
        assert event_data(again.events(2, 5)) == ["meanwhile", "private"]


def test_an_upload_ends_when_its_token_expires(guarded: LiveService, name: str) -> None:
    """An upload may be endless, a right isn't: the first line after the expiry is refused, and the
    answer says where to go on with a new token.
    """
    path, ends = f"/channels/mine.{name}", time.time() + 3
    shown = bearer(token(seconds=3, publish=["mine.*"]))
    with RawConnection(guarded.port) as upload:
        upload.send(request_bytes("PUT", path, None, Transfer_Encoding="chunked", **shown))
        upload.send(b"4\r\none\n\r\n")
        time.sleep(max(0.0, ends + 0.2 - time.time()))
        problem = upload.send(b"4\r\ntwo\n\r\n").answer("PUT").problem(401, "expired_credential")
        assert (problem["line"], problem["events"]) == (2, 1)
    with RawConnection(guarded.port) as upload:
        answer = upload.ask(request_bytes("PUT", path, b"x", **shown))
        problem = answer.problem(401, "expired_credential")
        assert (problem["line"], problem["events"]) == (1, 0)


# ------------------------------------------------------------------------------------ revocation


def test_a_users_streams_are_closed_everywhere(guarded: LiveService, name: str) -> None:
    """`DELETE /streams?user=` ends the user's streams on all workers, by whatever credential they
    were opened, with `$end`, reason revoked; those of others stay.
    """
    channel, user = f"mine.{name}", f"ana-{name}"
    mine = token(user, subscribe=["mine.*"])
    others = [bearer(token(f"{user}2", subscribe=["mine.*"])), bearer(token("", subscribe=["*"]))]
    with contextlib.ExitStack() as stack:
        ending, staying = [], []
        for pid in guarded.worker_pids():
            with only_worker(guarded, pid):
                ticket = get_ticket(guarded, channel, bearer(mine))
                for options in ({"shown": bearer(mine)}, {"shown": cookie(mine)},
                                {"query": f"&ticket={ticket}"}):  # fmt: skip
                    client = stack.enter_context(stream(guarded, channel, **options))
                    ending.append(opened(client))
                for shown in others:
                    client = stack.enter_context(stream(guarded, channel, shown))
                    staying.append(opened(client))
        assert close_streams(guarded, f"user={user}3").status == 202, "nobody's"
        publish(guarded, channel, "to all")
        for client in ending + staying:
            assert client.next_event(5).data == "to all"
        answer = close_streams(guarded, f"user={user}")
        assert (answer.status, answer.body) == (202, b"")
        for client in ending:
            assert last_words(client) == REVOKED
        assert [ended(guarded, client) for client in ending] == ["revoked"] * len(ending)
        publish(guarded, channel, "to the others")
        for client in staying:
            assert client.next_event(5).data == "to the others"


def test_closing_takes_tickets_back(guarded: LiveService, name: str) -> None:
    """Tickets that the user has got before open no stream on any worker, be they still young; a
    token can't be taken back, and gets new ones, which are good at once.
    """
    channel, user = f"mine.{name}", f"eve-{name}"
    mine = bearer(token(user, subscribe=["mine.*"]))

    def attempt() -> bool:
        issued, ticket = time.monotonic(), get_ticket(guarded, channel, mine)
        with contextlib.ExitStack() as stack:
            clients = []  # one on each worker, so that it is seen when each of them knows
            for pid in guarded.worker_pids():
                with only_worker(guarded, pid):
                    client = stream(guarded, channel, query=f"&ticket={ticket}")
                    if stack.enter_context(client).status == 401:
                        return False  # too old by now
                    clients.append(opened(client))
            assert close_streams(guarded, f"user={user}").status == 202
            new_ticket = get_ticket(guarded, channel, mine)
            assert [last_words(client) for client in clients] == [REVOKED] * len(clients)
        path, answers, opening = f"/stream?channel={channel}", [], []
        for pid in guarded.worker_pids():
            with only_worker(guarded, pid):
                answers.append(ask(guarded, "GET", f"{path}&ticket={ticket}"))
                for options in ({"shown": mine}, {"query": f"&ticket={new_ticket}"}):
                    with stream(guarded, channel, **options) as again:
                        opening.append(again.status)
        if time.monotonic() > issued + TICKET_SECONDS - 0.1:
            return False  # too late to mean anything
        for answer in answers:
            answer.problem(401, "expired_credential")
        assert opening == [200] * len(opening)
        return True

    until(attempt, 20, "an attempt is fast enough")


def test_only_administrators_close_streams(guarded: LiveService, name: str) -> None:
    """Not the user himself, nor who publishes; and not by a cookie, which browsers send unasked."""
    channel, user = f"mine.{name}", f"dan-{name}"
    mine = bearer(token(user, subscribe=["*"], publish=["*"]))
    with stream(guarded, channel, mine) as client:
        opened(client)
        for shown in (mine, bearer(KEY)):
            close_streams(guarded, f"user={user}", **shown).problem(403, "not_granted")
        admin = cookie(token(admin=True))
        close_streams(guarded, f"user={user}", **admin).problem(401, "no_credential")
        assert client.events_within(0.5) == []
        assert client.ended is None


def test_one_stream_is_closed_by_its_name(guarded: LiveService, name: str) -> None:
    """`DELETE /streams?stream=` ends the one stream that was told this name, wherever it is."""
    with contextlib.ExitStack() as stack:
        clients = []
        for pid in guarded.worker_pids() * 2:
            with only_worker(guarded, pid):
                clients.append(opened(stack.enter_context(stream(guarded, f"open.{name}"))))
        names = [str(client.header("Pushline-Stream")) for client in clients]
        assert len(set(names)) == len(names)
        for chosen in (1, 2):
            assert close_streams(guarded, f"stream={names[chosen]}").status == 202
            assert last_words(clients[chosen]) == REVOKED
        publish(guarded, f"open.{name}", "still here")
        for client in (clients[0], clients[3]):
            assert client.next_event(5).data == "still here"


def test_a_stream_is_closed_in_its_replay(guarded: LiveService, name: str) -> None:
    """A stream that still gets its past, and does not even read it, is closed as well."""
    channel, user = f"mine.{name}", f"bob-{name}"
    items = [{"channel": channel, "data": "x" * 50_000}] * 60
    body = json.dumps(items).encode()
    assert ask(guarded, "POST", "/publish", body, **bearer(KEY)).status == 200
    shown = bearer(token(user, subscribe=["mine.*"]))
    options = {"query": "&last_event_id=earliest", "receive_buffer": 4096}
    with stream(guarded, channel, shown, **options) as client:
        client.wait_body(b"data: ", 5)
        assert close_streams(guarded, f"user={user}").status == 202
        time.sleep(0.3)
        publish(guarded, channel, "too late")
        *events, end = client.read_until_end(10)
        assert (end.type, end.data) == REVOKED
        assert len(events) < len(items)
        assert {len(event.data) for event in events} == {50_000}
        assert ended(guarded, client) == "revoked"


# --------------------------------------------------------------------------------------- tickets


def test_tickets(guarded: LiveService, name: str) -> None:
    """Any worker takes a ticket, as often as it is shown, for its channels alone and as long as it
    counts; the streams that it has opened stay. It publishes nothing and gets no other ticket.
    """
    channel = f"mine.{name}"
    shown = bearer(token(subscribe=["mine.*"], publish=["mine.*"], admin=True))
    first, second = guarded.worker_pids()
    with contextlib.ExitStack() as stack:
        with only_worker(guarded, first):
            asked = time.monotonic()
            ticket = get_ticket(guarded, channel, shown)
            issued = time.monotonic()
            one = opened(stack.enter_context(stream(guarded, channel, query=f"&ticket={ticket}")))
        with only_worker(guarded, second):
            other = opened(stack.enter_context(stream(guarded, channel, query=f"&ticket={ticket}")))
        assert time.monotonic() < issued + TICKET_SECONDS, "this machine is too slow for the test"
        young = get_ticket(guarded, channel, shown)
        path = f"/stream?channel=mine.other&ticket={young}"
        ask(guarded, "GET", path).problem(403, "not_granted")
        path = f"/channels/{channel}?ticket={ticket}"
        ask(guarded, "POST", path, b"x").problem(401, "no_credential")
        ask(guarded, "POST", path, b"x", **bearer(ticket)).problem(401, "bad_credential")
        path = f"/tickets?channel={channel}&ticket={ticket}"
        ask(guarded, "POST", path, b"").problem(400, "bad_parameter")
        path = f"/stream?channel={channel}&ticket={ticket}"

        def is_over() -> bool:
            return ask(guarded, "HEAD", path).status == 401

        until(is_over, TICKET_SECONDS + 5, "the ticket is over")
        assert time.monotonic() > asked + TICKET_SECONDS - 0.1
        ask(guarded, "GET", path).problem(401, "bad_credential")
        publish(guarded, channel, "still open")
        for client in (one, other):
            assert client.next_event(5).data == "still open"


# --------------------------------------------------------------------------------------- cookies


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/channels/{}"),
        ("PUT", "/channels/{}"),
        ("POST", "/publish"),
        ("PUT", "/publish"),
        ("POST", "/channels/{}/end"),
        ("DELETE", "/channels/{}"),
        ("DELETE", "/streams?user=ana"),
    ],
)
def test_a_cookie_changes_nothing(guarded: LiveService, name: str, method: str, path: str) -> None:
    """A browser sends a cookie from any page, so it never counts where anything is changed."""
    channel = f"open.{name}"
    shown = cookie(token("ana", publish=["*"], subscribe=["*"], admin=True))
    body = json.dumps({"channel": channel, "data": "x"}).encode()
    with stream(guarded, channel, shown) as client:
        opened(client)
        answer = ask(guarded, method, path.format(channel), body, **shown)
        answer.problem(401, "no_credential")
        assert answer.header("WWW-Authenticate") == 'Bearer realm="pushline"'
        assert client.events_within(0.2) == []


def test_a_cookie_is_of_use_to_own_and_listed_pages(guarded: LiveService, name: str) -> None:
    """A page of any other origin is refused what a cookie would open; without one nothing is."""
    path, own = f"/stream?channel=mine.{name}", guarded.url
    shown = cookie(token(subscribe=["mine.*"]))
    host = {"Host": own.removeprefix("http://")}
    for origin in ("https://evil.example", "null", f"{PAGE}.evil.example", "http://app.example"):
        for url in (path, f"/stream?channel=open.{name}", f"/channels/mine.{name}/events"):
            answer = ask(guarded, "GET", url, None, Origin=origin, **shown, **host)
            answer.problem(403, "foreign_origin")
            assert answer.header("Access-Control-Allow-Origin") is None
        url = f"/tickets?channel=mine.{name}"
        ask(guarded, "POST", url, b"", Origin=origin, **shown).problem(403, "foreign_origin")
    embedded = {"Sec-Fetch-Site": "cross-site"}  # a picture, say, whose request tells no origin
    ask(guarded, "GET", path, None, **embedded, **shown).problem(403, "foreign_origin")
    for origins in ({}, {"Origin": own}, {"Origin": PAGE}):
        answer = ask(guarded, "HEAD", path, None, **origins, **shown, **host)
        assert answer.status == 200
        listed = origins == {"Origin": PAGE}
        assert answer.header("Access-Control-Allow-Credentials") == ("true" if listed else None)
    with stream(guarded, f"mine.{name}", {**shown, "Origin": PAGE}) as client:
        opened(client)
        exposed = client.header("Access-Control-Expose-Headers") or ""
        assert "pushline-stream" in exposed.split(", ")


# ----------------------------------------------------------------------------------- configuration


def test_secrets_come_from_files(tmp_path: Path, name: str) -> None:
    """Each secret can be in a file, as orchestrators mount them."""
    with Valkey(password=secret("password-of-the-redis")) as valkey:
        files = {"REDIS_URL": valkey.url, "JWT_SECRET": SECRET, "PUBLISH_KEYS": KEY}
        for variable, text in files.items():
            (tmp_path / variable).write_text(f"{text}\n")
        settings: dict[str, object] = {f"{one}_FILE": tmp_path / one for one in files}
        empty = dict.fromkeys(files, "")
        with LiveService("", **{**GUARDED, **empty, **settings}) as service:
            shown = bearer(token(subscribe=["mine.*"]))
            with stream(service, f"mine.{name}", shown) as client:
                opened(client)
                publish(service, f"mine.{name}", "x")
                assert client.next_event(5).data == "x"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "nobody could publish: set PUBLISH_KEYS"),
        ({"PUBLISH_OPEN": "0", "PUBLIC_CHANNELS": "*"}, "nobody could publish"),
        ({"JWT_SECRET": "too-short-to-be-good"}, "JWT_SECRET can't be used"),
        ({"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "HS512"}, "JWT_SECRET"),
    ],
)
def test_production_refuses_to_start(
    shared_valkey: Valkey, settings: dict[str, str], told: str
) -> None:
    """Without a credential to publish with, or with one that is no good; one line says why."""
    environ = {"REDIS_URL": shared_valkey.url, "PORT": str(free_port()), **settings}
    done = subprocess.run(
        [sys.executable, *GUNICORN, "service.app:create_app()"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode != 0
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    for value in (SECRET, "too-short"):
        assert value not in done.stderr + done.stdout
