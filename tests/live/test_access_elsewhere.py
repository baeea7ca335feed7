"""Rights that others decide: an application that is asked, an issuer whose keys change."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from tests.credentials import bearer, token
from tests.guarded import (
    EXPIRED,
    GUARDED,
    REVOKED,
    close_streams,
    last_words,
    opened,
    publish,
    stream,
)
from tests.little_server import LittleServer
from tests.live_server import LiveService, until
from tests.raw_http import ask
from tests.secrets_used import secret
from tests.sse_client import event_data
from tests.valkey import Valkey

pytestmark = pytest.mark.live


@pytest.fixture
def name() -> str:
    """The end of a channel's name that nobody else uses."""
    return str(uuid.uuid4())


# --------------------------------------------------------------------------- somebody else is asked


@pytest.fixture(scope="module")
def application() -> Iterator[LittleServer]:
    """The application that is asked; each test says what it answers."""
    with LittleServer() as server:
        yield server


@pytest.fixture(scope="module")
def asking(shared_valkey: Valkey, application: LittleServer) -> Iterator[LiveService]:
    """A service that asks, and remembers no answer."""
    settings = {
        **GUARDED,
        "AUTHORIZE_URL": f"{application.url}/may?key={secret('of-the-application')}",
        "AUTHORIZE_CACHE_SECONDS": 0,
        "AUTHORIZE_TIMEOUT_SECONDS": 3,
    }
    with LiveService(shared_valkey.url, **settings) as service:
        yield service


SESSION = {"Cookie": f"session={secret('the-session-of-a-user')}"}


def answers(application: LittleServer, status: int, **body: Any) -> None:
    """Let it answer so from now on."""
    application.status, application.delay = status, 0
    application.body = json.dumps(body).encode() if body else b""
    del application.questions[:]


def test_the_application_lets_in(asking: LiveService, application: LittleServer, name: str) -> None:
    """It sees the page's cookies, all channels and the client's address, and what it allows counts,
    private events too.
    """
    channel = f"theirs.{name}"
    answers(application, 200, channels=["theirs.*"], user="session-user")
    with stream(asking, channel, SESSION, query=f"&channel=open.{name}") as client:
        opened(client)
        (question,) = application.questions
        assert question.query == {
            "key": ["of-the-application"],
            "channel": [f"open.{name}", channel],
        }
        assert question.headers["Cookie"] == SESSION["Cookie"]
        assert question.headers["X-Forwarded-For"] == "127.0.0.1"
        publish(asking, channel, "private", "?private=1")
        assert client.next_event(5).data == "private"
        publish(asking, f"open.{name}", "private", "?private=1")
        assert client.events_within(0.3) == [], "it did not grant that one"
        assert close_streams(asking, "user=session-user").status == 202
        assert last_words(client) == REVOKED


def test_public_channels_need_no_application(
    asking: LiveService, application: LittleServer, name: str
) -> None:
    """It is asked for them only if it may know the client, whom it can grant private events; if it
    does not, the client has what everybody has.
    """
    channel = f"open.{name}"
    with contextlib.ExitStack() as stack:
        answers(application, 200, channels=["open.*"])
        plain = opened(stack.enter_context(stream(asking, channel)))
        assert application.questions == []
        known = opened(stack.enter_context(stream(asking, channel, SESSION)))
        assert len(application.questions) == 1
        others = []
        for status in (401, 403):
            answers(application, status)
            others.append(opened(stack.enter_context(stream(asking, channel, SESSION))))
        publish(asking, channel, "private", "?private=1")
        publish(asking, channel, "public")
        assert event_data(known.events(2, 5)) == ["private", "public"]
        for client in (plain, *others):
            assert client.next_event(5).data == "public"


def test_the_application_changes_its_mind(
    asking: LiveService, application: LittleServer, name: str
) -> None:
    """Each stream is asked for anew, one that comes back too; a stream lasts as long as the answer
    says.
    """
    channel = f"theirs.{name}"
    answers(application, 200, channels=[channel], expires_in=1)
    with stream(asking, channel, SESSION) as client:
        opened(client)
        started = time.monotonic()
        assert last_words(client) == EXPIRED
        assert time.monotonic() - started < 6
    path, cursor = f"/stream?channel={channel}", {"Last-Event-ID": "1-0"}
    sse = {"Accept": "text/event-stream", **SESSION, **cursor}
    for status, code in ((403, "not_granted"), (401, "no_credential")):
        answers(application, status)
        answer = ask(asking, "GET", path, None, **sse)
        answer.problem(status, code)
        assert len(application.questions) == 1
    answers(application, 200, channels=["theirs.other"])
    ask(asking, "GET", path, None, **sse).problem(403, "not_granted")
    answers(application, 204)
    with stream(asking, channel, SESSION) as client:
        opened(client)


@pytest.mark.parametrize("fault", ["down", "slow", "wrong", "status"])
def test_the_application_fails(
    asking: LiveService, application: LittleServer, name: str, fault: str
) -> None:
    """An EventSource is told to come back later, others get 503; nobody is let in or turned away
    for good. Whom it needn't know goes on.
    """
    answers(application, 500 if fault == "status" else 200, channels="wrong")
    if fault == "down":
        application.stop()
    application.delay = 8 if fault == "slow" else 0
    try:
        with stream(asking, f"theirs.{name}", SESSION) as client:
            assert client.status == 200
            assert client.header("Content-Type") == "text/event-stream"
            assert client.read_until_end(8) == []
            assert 5_000 <= (client.parser.retry or 0) <= 30_000
            assert client.header("Pushline-Stream") is None
        answer = ask(asking, "GET", f"/stream?channel=theirs.{name}", None, **SESSION)
        answer.problem(503, "cannot_authorize")
        assert answer.header("Retry-After") == "5"
        for channel, shown in (
            ("open.x", {}),
            ("mine.x", bearer(token(subscribe=["mine.*"]))),
        ):
            with stream(asking, channel, shown) as client:
                opened(client)
    finally:
        application.delay = 0
        if fault == "down":
            application.start()


# ------------------------------------------------------------------------------------ the issuer


class Issuer:
    """An issuer of tokens with one key at a time, which it publishes."""

    def __init__(self) -> None:
        self.server = LittleServer()
        self.rotate()

    def rotate(self) -> Callable[[], str]:
        """Use a new key from now on; return what signs with it, also later."""
        key, kid = Ed25519PrivateKey.generate(), str(uuid.uuid4())
        jwk = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
        self.server.body = json.dumps({"keys": [{**jwk, "kid": kid, "use": "sig"}]}).encode()

        def sign() -> str:
            rights = {"subscribe": ["mine.*"], "publish": ["mine.*"]}
            claims = {"sub": "ana", "exp": time.time() + 600, "pushline": rights}
            return secret(jwt.encode(claims, key, "EdDSA", {"kid": kid}))

        self.sign = sign
        return sign


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """An issuer whose keys can be fetched."""
    issuer = Issuer()
    with issuer.server:
        yield issuer


def test_keys_of_the_issuer_change(shared_valkey: Valkey, issuer: Issuer, name: str) -> None:
    """A token of a new key is taken as soon as keys may be fetched again, one of a withdrawn key
    not any more; while the issuer is down the known keys stay. Streams go on all the while.
    """
    settings = {
        **GUARDED,
        "JWT_SECRET": "",
        "JWT_JWKS_URL": f"{issuer.server.url}/keys?key={secret('of-the-issuer')}",
        "JWT_ALGORITHMS": "EdDSA",
    }
    path, channel = f"/stream?channel=mine.{name}", f"mine.{name}"
    with LiveService(shared_valkey.url, **settings) as service:

        def status(shown: str) -> int:
            return ask(service, "HEAD", path, None, **bearer(shown)).status

        issuer.server.stop()
        ask(service, "GET", path, None, **bearer(issuer.sign())).problem(503, "cannot_authorize")
        ask(service, "GET", path, None, **bearer(token())).problem(401, "bad_credential")
        issuer.server.start()
        old = issuer.sign
        until(lambda: status(old()) == 200, 10, "the keys are fetched")
        fetched = time.monotonic()
        with stream(service, channel, bearer(old())) as client:
            opened(client)
            new = issuer.rotate()
            for _ in range(3):
                assert status(old()) == 200
                status(new())
            until(lambda: status(new()) == 200, 20, "the new key is known")
            assert time.monotonic() - fetched < 20
            assert status(old()) == 401
            issuer.server.stop()
            assert status(new()) == 200
            ask(service, "POST", f"/channels/{channel}", b"x", **bearer(new())).json()["id"]
            assert client.next_event(5).data == "x"
            issuer.server.start()
        assert len(issuer.server.questions) <= 4
