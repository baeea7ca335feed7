"""Tokens that the command line makes: what they say, and that the service takes them."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from service.errors import ConfigError
from service.grants import Grant
from service.minting import Order, mint
from service.settings import Settings
from service.tokens import TokenVerifier
from tests.forging import Signer

SIGNER = Signer(b"-")
SECRET = "a-secret" * 8


def settings(**environ: str) -> Settings:
    """Settings with a secret, unless it is said otherwise."""
    return Settings.from_environ({"JWT_SECRET": SECRET, **environ})


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims, unverified."""
    header, claims, _ = (urlsafe_b64decode(part + "==") for part in token.split("."))
    return json.loads(header), json.loads(claims)


def verified(token: str, taking: Settings) -> Grant:
    """What the service makes of a token."""
    verifier = TokenVerifier.of_settings(taking)
    assert verifier is not None
    return verifier.verify(token)


def key_file(path: Path, key: Any, password: bytes | None = None) -> Path:
    """A private key in PEM."""
    how = BestAvailableEncryption(password) if password else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    return path


def test_the_service_takes_what_is_made() -> None:
    """Rights, user and time are those of the order."""
    order = Order(lifetime="15m", publish=["a.*"], subscribe=["b", "*"], admin=True, user="ana")
    grant = verified(mint(order, settings()), settings())
    assert grant.expires_at is not None
    assert abs(grant.expires_at - time.time() - 900) < 30
    assert (grant.publish, grant.subscribe) == (("a.*",), ("b", "*"))
    assert (grant.admin, grant.user) == (True, "ana")


def test_a_token_says_no_more_than_it_must() -> None:
    """What isn't asked for isn't in it."""
    header, claims = parts(mint(Order(lifetime="1h", subscribe=["a"]), settings()))
    assert header == {"alg": "HS256", "typ": "JWT"}
    assert claims.keys() == {"iat", "exp", "pushline"}
    assert claims["pushline"] == {"subscribe": ["a"]}


@pytest.mark.parametrize(
    ("lifetime", "seconds"), [("30s", 30), ("15m", 900), ("1h", 3600), ("7d", 604_800)]
)
def test_lifetimes(lifetime: str, seconds: int) -> None:
    """Seconds, minutes, hours and days."""
    _, claims = parts(mint(Order(lifetime=lifetime, admin=True), settings()))
    assert claims["exp"] - claims["iat"] == seconds


@pytest.mark.parametrize(
    "lifetime", ["", "1", "0s", "-1h", "1.5h", "1 h", "1w", "h", "\u0661h", "9999999999d"]
)
def test_bad_lifetimes(lifetime: str) -> None:
    """Anything else is named, with what is taken."""
    with pytest.raises(ConfigError, match=r"--expires='.*' can't be used: it takes 30s, 15m"):
        mint(Order(lifetime=lifetime, admin=True), settings())


def test_issuer_and_audience_are_those_of_the_service() -> None:
    """Whoever has the service's settings makes tokens that it takes; others can be named."""
    taking = settings(JWT_ISSUER="us", JWT_AUDIENCE="push")
    order = Order(lifetime="1h", subscribe=["a"])
    assert verified(mint(order, taking), taking).may_subscribe("a")
    other = Order(lifetime="1h", subscribe=["a"], issuer="them", audience="x")
    assert {"iss": "them", "aud": "x"}.items() <= parts(mint(other, taking))[1].items()


def test_the_first_secret_signs() -> None:
    """Others are about to go; the name of the first is in the header."""
    taking = settings(JWT_SECRET=f"new:{SECRET} {'old' * 20}")
    token = mint(Order(lifetime="1h", admin=True), taking)
    assert parts(token)[0]["kid"] == "new"
    assert verified(token, settings()).admin


def test_the_configured_algorithm_is_used() -> None:
    """JWT_ALGORITHMS says how the service wants it, --algorithm is for other services."""
    taking = settings(JWT_ALGORITHMS="HS512 HS384")
    assert parts(mint(Order(lifetime="1h", admin=True), taking))[0]["alg"] == "HS512"
    order = Order(lifetime="1h", admin=True, algorithm="HS384")
    assert verified(mint(order, taking), taking).admin
    for wrong in ("none", "RS256", "hs256", ""):
        order = Order(lifetime="1h", admin=True, algorithm=wrong or "x")
        with pytest.raises(ConfigError, match="this key takes HS256 HS384 HS512"):
            mint(order, taking)


@pytest.mark.parametrize(
    ("key", "usual", "configured"),
    [
        (SIGNER.rsa, "RS256", "PS384"),
        (SIGNER.curves["ES256"], "ES256", "ES256"),
        (SIGNER.curves["ES512"], "ES512", "ES512"),
        (SIGNER.ed, "EdDSA", "EdDSA"),
        (ed448.Ed448PrivateKey.generate(), "EdDSA", "EdDSA"),
    ],
)
def test_private_keys(key: Any, usual: str, configured: str, tmp_path: Path) -> None:
    """A private key signs in the usual way of its kind, or as JWT_ALGORITHMS has it; who has the
    public key takes the token, and no JWT_SECRET is needed.
    """
    order = Order(lifetime="1h", admin=True, private_key=key_file(tmp_path / "key.pem", key))
    assert parts(mint(order, Settings()))[0]["alg"] == usual
    public = Signer(b"", SIGNER.rsa, {}, key).pems()[-1]
    taking = Settings.from_environ({"JWT_PUBLIC_KEY": public, "JWT_ALGORITHMS": configured})
    token = mint(order, taking)
    assert parts(token)[0]["alg"] == configured
    assert verified(token, taking).admin


def test_private_keys_that_can_t_sign(tmp_path: Path) -> None:
    """A file that is none, another kind of key, a password: one line that shows no content."""
    (tmp_path / "text").write_text("hunter2")
    public = tmp_path / "public"
    public.write_text(SIGNER.pems()[0])
    for path, why in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "text", "it wants a private key in PEM"),
        (public, "it wants a private key in PEM"),
        (key_file(tmp_path / "locked", SIGNER.ed, b"pw"), "without a password"),
        (key_file(tmp_path / "x", x25519.X25519PrivateKey.generate()), "signs no tokens"),
        (key_file(tmp_path / "k1", ec.generate_private_key(ec.SECP256K1())), "private key"),
    ):
        with pytest.raises(ConfigError) as raised:
            mint(Order(lifetime="1h", admin=True, private_key=path), settings())
        message = str(raised.value)
        assert message.startswith(f"--private-key={str(path)!r} can't be used: ")
        assert why in message
        assert "hunter2" not in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"admin": False}, "would allow nothing"),
        ({"publish": ["a b"]}, "'a b' can't be granted"),
        ({"subscribe": ["https://example.com/"]}, "can't be granted"),
        ({"publish": [""]}, "'' can't be granted"),
        ({"user": "x" * 257}, "--user can't be used"),
        ({"user": "a\nb"}, "--user can't be used"),
        ({"subscribe": [f"{n:0100}" for n in range(100)]}, "over 8192 characters"),
    ],
)
def test_orders_that_nobody_would_take(changes: dict[str, Any], said: str) -> None:
    """What the service would refuse isn't made."""
    with pytest.raises(ConfigError) as raised:
        mint(Order(**{"lifetime": "1h", "admin": True, **changes}), settings())
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_a_secret() -> None:
    """One line tells how to make one."""
    with pytest.raises(ConfigError, match="make one with `python -m service keys --jwt`"):
        mint(Order(lifetime="1h", admin=True), Settings())
