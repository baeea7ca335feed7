"""Whatever fails, and however much is logged: no secret is."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.credentials import KEY, SECRET, bearer, cookie, token
from tests.guarded import GUARDED, get_ticket, opened, stream
from tests.live_server import LiveService, until
from tests.raw_http import RawConnection, ask
from tests.secrets_used import USED, secret
from tests.valkey import Valkey, free_port

pytestmark = pytest.mark.live

CHANNEL = f"mine.{uuid.uuid4()}"
SEEN = ("a request failed", "a greenlet failed", "Error handling request", "no HTTP request",
        "a token was refused", "can't be reached", "token keys: ", "Redis is lost")  # fmt: skip
"""What the log has of all that is done to the service here."""


def issued_elsewhere() -> str:
    """A token whose key only the issuer has."""
    claims = {"sub": "ana", "exp": time.time() + 600, "pushline": {"subscribe": ["*"]}}
    return secret(jwt.encode(claims, Ed25519PrivateKey.generate(), "EdDSA", {"kid": "unknown"}))


@pytest.fixture
def redis() -> Iterator[Valkey]:
    """A Redis with a password, to be killed."""
    with Valkey(password=secret("password/of@redis")) as valkey:
        yield valkey


@pytest.fixture
def service(redis: Valkey) -> Iterator[LiveService]:
    """A service that can reach nobody whom it has to ask, fails on demand, and logs all it can."""
    closed = f"http://127.0.0.1:{free_port()}"
    settings = {
        **GUARDED,
        "AUTHORIZE_URL": f"{closed}/may?key={secret('of-the-application')}",
        "JWT_JWKS_URL": f"{closed}/keys?key={secret('of-the-issuer')}",
        "JWT_ALGORITHMS": "HS256 EdDSA",
    }
    made = LiveService(f"redis://:password%2Fof%40redis@127.0.0.1:{redis.port}/0", **settings)
    made.application = "tests.live.failing_app:create_app()"
    with made:
        yield made


def test_no_secret_is_logged(service: LiveService, redis: Valkey) -> None:
    """No token, key, ticket, cookie or query string: not by a fault in a request, around the
    application or in a greenlet, not by bad credentials, what is no HTTP, or an outage.
    """
    good = token("ana", subscribe=["mine.*"], publish=["mine.*"], admin=True)
    query = f"channel={CHANNEL}&ticket={get_ticket(service, CHANNEL, bearer(good))}&user=ana"
    let_it_fail(service, good, query)
    show_bad_credentials(service, good, query)
    send_no_http(service, good, query)
    with stream(service, CHANNEL, bearer(good)) as client:
        opened(client)
        redis.kill()
        for path in (f"/stream?{query}", f"/readyz?{query}"):
            ask(service, "GET", path)
        path = f"/channels/{CHANNEL}?private=1"
        ask(service, "POST", path, b"x", **bearer(good)).problem(503, "redis_down")
        until(lambda: "Redis is lost" in service.log(), 10, "the loss is logged")
    assert [text for text in SEEN if text not in service.log()] == []
    assert USED.leaks(service.log()) == []


def let_it_fail(service: LiveService, good: str, query: str) -> None:
    """Provoke faults of the service itself."""
    for place, shown in itertools.product(
        ("inside", "outside", "greenlet"), (bearer(good), cookie(good))
    ):
        for method, path in (("GET", "/livez"), ("DELETE", "/streams"), ("GET", "/nowhere")):
            answer = ask(service, method, f"{path}?{query}", None, Fail=place, **shown)
            assert (answer.status == 500) == (place != "greenlet")
            assert good.encode() not in answer.body
            assert query.encode() not in answer.body


def show_bad_credentials(service: LiveService, good: str, query: str) -> None:
    """Show what is no credential, or one that does not do, to all routes."""
    forged = token(signed_with=SECRET[::-1])
    shown_by = [*map(bearer, (good, f"{good}x", secret(KEY[::-1]), forged, issued_elsewhere())),
                *map(cookie, (f"{good}x", token(seconds=-5)))]  # fmt: skip
    for shown in shown_by:
        for method, path in (
            ("GET", "/stream?channel=theirs.x"),
            ("GET", f"/channels/{CHANNEL}/events?limit=5"),
            ("POST", f"/channels/{CHANNEL}?event=x"),
            ("PUT", f"/channels/{CHANNEL}?retry=1"),
            ("POST", f"/tickets?channel={CHANNEL}"),
            ("DELETE", "/streams?user=ana"),
            ("GET", f"/nowhere?{query}"),
        ):
            ask(service, method, path, b"x" if method[0] == "P" else None, **shown)


def send_no_http(service: LiveService, good: str, query: str) -> None:
    """Send what gunicorn can't read, with secrets all over."""
    head = "HTTP/1.1\r\nHost: x\r\n"
    for request in (
        f"GET /stream?{query} HTTP/9.9\r\n\r\n",
        f"GET /stream?{query}\x00 {head}Authorization: Bearer {good}\r\n\r\n",
        f"GET /stream {head}Authorization : Bearer {good}\r\n\r\n",
        f"GET /stream {head}Authorization: Bearer {good}\x00\r\n\r\n",
        f"GET /stream {head}Cookie: pushline={good * 40}\r\n\r\n",
        f"BEARER{good} /stream?{query} {head}\r\n",
        f"GET /stream?{query}&{'x' * 9000} {head}\r\n",
        f"PUT /publish?{query} {head}Content-Length: {good}\r\n\r\n",
        f"PUT /publish?{query} {head}Transfer-Encoding: {good}\r\n\r\n",
    ):
        with RawConnection(service.port) as connection:
            assert connection.ask(request.encode(), "GET").status >= 400
