"""The issuer's keys, from a real server: rotation, outages, slow and hostile answers."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gevent
import jwt
import pytest

import service.jwks
from service.errors import BadCredential, CannotAuthorize
from service.jwks import (
    EARLY_SECONDS,
    FIRST_PAUSE_SECONDS,
    FRESH_SECONDS,
    MAX_BYTES,
    PAUSE_SECONDS,
    Jwks,
)
from service.token_keys import KeyRing, TokenKey
from service.tokens import TokenVerifier
from tests.forging import NOW, Signer, claims
from tests.live_server import until

FIRST, SECOND = Signer(b"-"), Signer(b"-")


def jwk(signer: Signer, **more: Any) -> dict[str, Any]:
    """A signer's RSA key as the issuer publishes it."""
    made: dict[str, Any] = jwt.get_algorithm_by_name("RS256").to_jwk(
        signer.rsa.public_key(), as_dict=True
    )
    return {**made, "use": "sig", "alg": "RS256", **more}


def key_set(*keys: dict[str, Any]) -> bytes:
    """The body of a key set."""
    return json.dumps({"keys": keys}).encode()


class Issuer:
    """A server whose answer the test sets: status, headers, body, and seconds before it comes."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: bytes = key_set(jwk(FIRST, kid="first"))
        self.seconds = 0.0
        self.asked: list[str] = []
        self.write: Callable[[Any], None] = lambda file: file.write(self.body)
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                time.sleep(issuer.seconds)
                self.send_response(issuer.status)
                for name, value in issuer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    issuer.write(self.wfile)
                except OSError:
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys?secret=s3cret"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self) -> None:
        """Stop: connections are refused."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """A running issuer."""
    made = Issuer()
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    """The clock of the keys."""
    return Clock()


def kids(keys: tuple[TokenKey, ...]) -> list[str]:
    """The names of keys."""
    return [key.kid for key in keys]


def is_down(keys: Jwks) -> bool:
    """Whether there are no keys to be had."""
    try:
        keys.keys()
    except CannotAuthorize:
        return True
    return False


def settle(keys: Jwks) -> None:
    """Wait until no fetch is under way."""
    until(lambda: keys._fetch is None, 20, "the fetch is over")


# ------------------------------------------------------------------------------------- fetching


def test_keys_are_fetched_once_and_kept(issuer: Issuer, clock: Clock) -> None:
    """The first use fetches, the next ones don't ask again while the keys are fresh."""
    keys = Jwks(issuer.url, clock)
    assert issuer.asked == [], "nothing is fetched before it is needed"
    assert kids(keys.keys()) == ["first"]
    clock.now += FRESH_SECONDS - EARLY_SECONDS - 1
    for _ in range(100):
        keys.keys()
    assert issuer.asked == ["/keys?secret=s3cret"]


def test_only_usable_keys_count(issuer: Issuer, clock: Clock) -> None:
    """Private, symmetric, encrypting, weak and broken keys, and what is no key, are passed over."""
    private = {**jwk(FIRST, kid="private"), "d": "AQAB"}
    secret = {"kty": "oct", "k": "c2VjcmV0" * 8, "alg": "HS256", "kid": "secret"}
    encrypting = jwk(FIRST, kid="encrypting", use="enc")
    others: list[Any] = [private, secret, encrypting, {}, None, 7, [], {"kty": "XYZ"}]
    issuer.body = json.dumps({"keys": [*others, jwk(SECOND, kid="good")], "more": 1}).encode()
    assert kids(Jwks(issuer.url, clock).keys()) == ["good"]


def test_a_file_is_read_the_same_way(tmp_path: Path, clock: Clock) -> None:
    """file:// is read again like any URL; no file is an outage."""
    path = tmp_path / "keys.json"
    keys = Jwks(path.as_uri(), clock)
    assert is_down(keys)
    path.write_bytes(key_set(jwk(FIRST, kid="first")))
    clock.now += PAUSE_SECONDS
    assert kids(keys.keys()) == ["first"]
    path.write_bytes(key_set(jwk(SECOND, kid="second")))
    clock.now += PAUSE_SECONDS
    assert kids(keys.renewed()) == ["second"]


def test_old_keys_are_renewed_in_the_background(issuer: Issuer, clock: Clock) -> None:
    """Before keys are too old somebody's use fetches new ones, and even that one doesn't wait."""
    keys = Jwks(issuer.url, clock)
    keys.keys()
    issuer.body, issuer.seconds = key_set(jwk(SECOND, kid="second")), 2.0
    clock.now += FRESH_SECONDS - EARLY_SECONDS
    began = time.monotonic()
    assert kids(keys.keys()) == ["first"]
    assert time.monotonic() - began < 1.5
    settle(keys)
    assert kids(keys.keys()) == ["second"]
    assert len(issuer.asked) == 2


def test_too_old_keys_are_waited_for(issuer: Issuer, clock: Clock) -> None:
    """After a quiet hour a withdrawn key doesn't count once more."""
    keys = Jwks(issuer.url, clock)
    keys.keys()
    issuer.body, issuer.seconds = key_set(jwk(SECOND, kid="second")), 0.2
    clock.now += 3600
    assert kids(keys.keys()) == ["second"]


# ------------------------------------------------------------------------------------- rotation


def verifier(keys: Jwks) -> TokenVerifier:
    """A verifier that has these keys alone."""
    return TokenVerifier(KeyRing((), frozenset({"RS256", "ES256"})), keys, clock=lambda: NOW)


def takes(checked: TokenVerifier, token: str) -> bool:
    """Whether a token is accepted."""
    try:
        checked.verify(token)
    except BadCredential:
        return False
    return True


def test_a_new_key_counts_at_once(issuer: Issuer, clock: Clock) -> None:
    """A token with an unknown `kid` makes the keys be fetched, and the old ones go with it."""
    checked = verifier(Jwks(issuer.url, clock))
    old, new = (
        signer.token("RS256", claims(), {"kid": kid})
        for signer, kid in ((FIRST, "first"), (SECOND, "second"))
    )
    assert takes(checked, old)
    clock.now += PAUSE_SECONDS
    issuer.body = key_set(jwk(SECOND, kid="second"))
    assert takes(checked, new)
    assert not takes(checked, old)
    assert len(issuer.asked) == 2, "within the pause nobody is asked again"


def test_unknown_names_ask_at_most_every_ten_seconds(issuer: Issuer, clock: Clock) -> None:
    """Forgers who invent names can't make the service hammer the issuer."""
    checked = verifier(Jwks(issuer.url, clock))
    for number in range(200):
        token = SECOND.token("RS256", claims(), {"kid": f"invented-{number}"})
        assert not takes(checked, token)
        clock.now += 0.1
    print(f"{len(issuer.asked)} fetches in 20 s")
    assert 2 <= len(issuer.asked) <= 3


def test_what_needs_no_fetch_makes_none(issuer: Issuer, clock: Clock) -> None:
    """Tokens of other algorithms, malformed ones, and those of configured keys don't wait for the
    issuer; a bad signature under a known name isn't a reason to ask again.
    """
    ring = KeyRing(
        (TokenKey.of_pem(SECOND.pems()[1]), TokenKey.of_secret("s" * 32)),
        frozenset({"RS256", "ES256", "HS256"}),
    )
    issuer_keys = Jwks(issuer.url, clock)
    checked = TokenVerifier(ring, issuer_keys, clock=lambda: NOW)
    assert takes(checked, SECOND.token("ES256", claims(), {"kid": "unknown"}))
    for token in (
        FIRST.token("HS256", claims(), {"kid": "unknown"}),
        FIRST.token("ES384", claims(), {"kid": "unknown"}),
        "a.b.c",
        "",
    ):
        assert not takes(checked, token)
    assert issuer.asked == []
    assert takes(checked, FIRST.token("RS256", claims(), {"kid": "first"}))
    clock.now += PAUSE_SECONDS
    assert not takes(checked, SECOND.token("RS256", claims(), {"kid": "first"}))
    assert not takes(checked, SECOND.token("RS256", claims()))
    assert len(issuer.asked) == 1


def test_a_key_without_a_name_fits_any(issuer: Issuer, clock: Clock) -> None:
    """Some issuers name no keys; each is tried."""
    issuer.body = key_set(jwk(FIRST), jwk(SECOND))
    checked = verifier(Jwks(issuer.url, clock))
    for signer in (FIRST, SECOND):
        assert takes(checked, signer.token("RS256", claims()))
        assert takes(checked, signer.token("RS256", claims(), {"kid": "any"}))


# -------------------------------------------------------------------------------------- outages


def test_the_last_good_keys_outlive_an_outage(
    issuer: Issuer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """However long the issuer is away, its keys stay; one warning, without the URL's secret, and
    one line when it is back.
    """
    caplog.set_level(logging.INFO, "pushline.tokens")
    keys = Jwks(issuer.url, clock)
    keys.keys()
    issuer.status = 500
    for _ in range(5):
        clock.now += 100_000
        assert kids(keys.keys()) == ["first"]
        settle(keys)
    assert len(issuer.asked) == 6
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "(status 500); the known ones stay" in warning.getMessage()
    assert "s3cret" not in caplog.text
    issuer.status, issuer.body = 200, key_set(jwk(SECOND, kid="second"))
    clock.now += PAUSE_SECONDS
    keys.keys()
    settle(keys)
    assert kids(keys.keys()) == ["second"]
    assert "answers again" in caplog.records[-1].getMessage()
    issuer.status = 404
    clock.now += FRESH_SECONDS
    keys.keys()
    assert len(caplog.records) == 3, "the next outage is told again"


def test_nobody_waits_in_an_outage(issuer: Issuer, clock: Clock) -> None:
    """Once the issuer is known to be away, its silence costs no request any time."""
    keys = Jwks(issuer.url, clock)
    keys.keys()
    issuer.status = 503
    clock.now += FRESH_SECONDS
    keys.keys()
    issuer.seconds = 3.0
    clock.now += PAUSE_SECONDS
    began = time.monotonic()
    for _ in range(10):
        assert kids(keys.keys()) == ["first"]
    assert time.monotonic() - began < 2
    settle(keys)


def test_without_any_keys_nothing_can_be_verified(issuer: Issuer, clock: Clock) -> None:
    """An issuer that is away from the start is 503, asked at most once a second, until it comes."""
    issuer.status = 500
    keys = Jwks(issuer.url, clock)
    checked = verifier(keys)
    token = FIRST.token("RS256", claims(), {"kid": "first"})
    for _ in range(5):
        with pytest.raises(CannotAuthorize) as raised:
            checked.verify(token)
        assert "s3cret" not in str(raised.value)
    assert len(issuer.asked) == 1
    issuer.status = 200
    assert is_down(keys)
    clock.now += FIRST_PAUSE_SECONDS
    assert takes(checked, token)


def test_an_unknown_name_in_an_outage(issuer: Issuer, clock: Clock) -> None:
    """When new keys can't be fetched the token is bad, not the service."""
    checked = verifier(Jwks(issuer.url, clock))
    assert takes(checked, FIRST.token("RS256", claims(), {"kid": "first"}))
    issuer.status = 500
    clock.now += PAUSE_SECONDS
    assert not takes(checked, SECOND.token("RS256", claims(), {"kid": "second"}))
    assert takes(checked, FIRST.token("RS256", claims(), {"kid": "first"}))


def test_nobody_is_there(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """A refused connection is an outage."""
    issuer = Issuer()
    issuer.close()
    assert is_down(Jwks(issuer.url, clock))
    assert "refused" in caplog.text
    assert "s3cret" not in caplog.text


def endless(file: Any) -> None:
    """A body without end."""
    while True:
        file.write(b" " * 65_536)


def dripping(file: Any) -> None:
    """A body that comes byte by byte."""
    for _ in range(200):
        file.write(b" ")
        file.flush()
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"body": b" " * MAX_BYTES + key_set(jwk(FIRST))}, "over 1 MiB"),
        ({"write": endless}, "over 1 MiB"),
        ({"write": dripping}, "too long|timed out"),
        ({"seconds": 3.0}, "timed out"),
        ({"body": b""}, "Expecting value"),
        ({"body": b"<html>"}, "Expecting value"),
        ({"body": b"\xff{}"}, "invalid start byte"),
        ({"body": b"[" * 100_000}, "recursion"),
        ({"body": b"null"}, "no key that verifies"),
        ({"body": b"[]"}, "no key that verifies"),
        ({"body": key_set()}, "no key that verifies"),
        ({"body": b'{"keys": {"a": 1}}'}, "no key that verifies"),
        ({"body": key_set({**jwk(FIRST), "use": "enc"})}, "no key that verifies"),
        ({"status": 204}, "Expecting value"),
        ({"status": 401}, "status 401"),
        ({"status": 304}, "status 304"),
        ({"status": 302, "headers": {"Location": "/keys"}}, "status 302"),
        ({"status": 302, "headers": {"Location": "file:///etc/hostname"}}, "status 302"),
        ({"status": 302, "headers": {"Location": "https://127.0.0.1:1/"}}, "another scheme"),
        ({"status": 302, "headers": {"Location": "ftp://127.0.0.1:1/"}}, "another scheme"),
        ({"status": 302}, "status 302"),
        ({"headers": {"Content-Length": "10"}, "body": b"{"}, "Expecting property"),
        ({"headers": {"Content-Length": "999999", "Connection": "close"}}, None),
        ({"headers": {f"X-{n}": "x" for n in range(200)}}, "HTTPException"),
        ({"headers": {"Location": "x" * 70_000}}, "LineTooLong"),
    ],
)
def test_what_a_bad_server_answers(
    changes: dict[str, Any],
    reason: str | None,
    issuer: Issuer,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Huge, slow, broken, empty and leading elsewhere: an outage, whose reason is logged; the known
    keys stay, and the service is held up no longer than a fetch may take.
    """
    keys = Jwks(issuer.url, clock)
    keys.keys()
    if reason and "timed out" in reason:
        monkeypatch.setattr(service.jwks, "FETCH_SECONDS", 1.0)
    for name, value in changes.items():
        setattr(issuer, name, value)
    clock.now += FRESH_SECONDS
    assert kids(keys.keys()) == ["first"]
    settle(keys)
    if reason is None:
        assert not caplog.records
    else:
        assert re.search(reason, caplog.text)
        assert len(caplog.text) < 500
        assert "s3cret" not in caplog.text


def test_a_redirect_on_the_same_scheme_is_followed(issuer: Issuer, clock: Clock) -> None:
    """Keys may move to another address."""
    other = Issuer()
    other.body = key_set(jwk(SECOND, kid="moved"))
    issuer.status, issuer.headers = 302, {"Location": other.url}
    assert kids(Jwks(issuer.url, clock).keys()) == ["moved"]
    other.close()


# ------------------------------------------------------------------------------------- together


def together(count: int, call: Callable[[], Any]) -> list[Any]:
    """What `count` threads get that call at once."""
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(call())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_callers_share_a_fetch(issuer: Issuer, clock: Clock) -> None:
    """However many requests want the keys at once, the issuer is asked once."""
    issuer.seconds = 0.3
    keys = Jwks(issuer.url, clock)
    assert together(100, lambda: kids(keys.keys())) == [["first"]] * 100
    assert len(issuer.asked) == 1
    clock.now += PAUSE_SECONDS
    assert together(100, lambda: kids(keys.renewed())) == [["first"]] * 100
    assert len(issuer.asked) == 2
    clock.now += 3600
    assert together(100, lambda: kids(keys.keys())) == [["first"]] * 100
    assert len(issuer.asked) == 3


def test_callers_share_a_failure(issuer: Issuer, clock: Clock) -> None:
    """An outage at the start is one question too, and everybody is told."""
    issuer.seconds, issuer.status = 0.3, 500
    keys = Jwks(issuer.url, clock)
    assert together(50, lambda: is_down(keys)) == [True] * 50
    assert len(issuer.asked) == 1


def test_killed_callers_hold_nothing_up(issuer: Issuer, clock: Clock) -> None:
    """A request that ends while it waits takes neither the fetch nor a lock with it: also not the
    one that began the fetch.
    """
    issuer.seconds = 0.5
    keys = Jwks(issuer.url, clock)
    waiting = [gevent.spawn(keys.keys) for _ in range(10)]
    gevent.sleep(0.1)
    gevent.killall(waiting[:9])
    assert kids(waiting[9].get(timeout=20)) == ["first"]
    assert not keys._lock.locked()
    for moment in range(50):
        clock.now += FRESH_SECONDS
        issuer.seconds = 0.01
        one = gevent.spawn(keys.keys)
        gevent.sleep(moment / 2000)
        one.kill()
        settle(keys)
    clock.now += FRESH_SECONDS
    assert kids(keys.keys()) == ["first"]
    assert len(issuer.asked) >= 2


def test_a_fetch_that_never_ends_is_abandoned(
    issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends its head byte by byte delays the next fetch, and no request beyond the
    limit; what comes of it later doesn't replace newer keys.
    """
    late = threading.Event()
    real = service.jwks._download

    def download(url: str) -> bytes:
        if not issuer.asked:
            issuer.asked.append("stuck")
            late.wait(20)
            return key_set(jwk(SECOND, kid="late"))
        return real(url)

    monkeypatch.setattr(service.jwks, "_download", download)
    monkeypatch.setattr(service.jwks, "WAIT_SECONDS", 0.2)
    keys = Jwks(issuer.url, clock)
    assert is_down(keys)
    clock.now += PAUSE_SECONDS
    assert is_down(keys), "the same fetch is still under way"
    monkeypatch.setattr(service.jwks, "WAIT_SECONDS", 20.0)
    clock.now += service.jwks.ABANDON_SECONDS
    assert kids(keys.keys()) == ["first"]
    late.set()
    time.sleep(0.2)
    assert kids(keys.keys()) == ["first"]
