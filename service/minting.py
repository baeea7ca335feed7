"""Makes tokens for the command line: signed with JWT_SECRET, or with a private key."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from service.access_settings import AccessSettings
from service.durations import seconds_of
from service.errors import ConfigError
from service.grants import MAX_INFO_BYTES, Grant, check_subject
from service.setting_rules import ALGORITHMS, channel_pattern
from service.token_keys import TokenKey
from service.tokens import MAX_TOKEN_CHARACTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a token is to say. `lifetime` is a number and s, m, h or d, `info` JSON.

    `audience` and `issuer` are those of the settings unless given; `algorithm` fits the key.
    """

    lifetime: str
    publish: Sequence[str] = ()
    subscribe: Sequence[str] = ()
    admin: bool = False
    user: str = ""
    info: str | None = None
    audience: str | None = None
    issuer: str | None = None
    private_key: Path | None = None
    algorithm: str | None = None


def mint(order: Order, settings: AccessSettings) -> str:
    """A signed token; raises ConfigError when that can't be, or nobody would take it."""
    claims = _claims(order, settings)
    material, key = _private_key(order.private_key) if order.private_key else _secret(settings)
    algorithm = order.algorithm or _usual(key, settings.token_algorithms)
    if algorithm not in key.algorithms:
        fitting = " ".join(name for name in ALGORITHMS if name in key.algorithms)
        raise ConfigError(f"--algorithm={algorithm!r} can't be used: this key takes {fitting}")
    headers = {"kid": key.kid} if key.kid else None
    token = jwt.encode(claims, material, algorithm, headers)
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise ConfigError(f"the token has over {MAX_TOKEN_CHARACTERS} characters: name less in it")
    return token


def _claims(order: Order, settings: AccessSettings) -> dict[str, Any]:
    grant: dict[str, Any] = {"publish": order.publish, "subscribe": order.subscribe}
    grant = {name: [*map(_checked_pattern, said)] for name, said in grant.items() if said}
    if order.admin:
        grant["admin"] = True
    if order.info is not None:
        grant["info"] = _checked_info(order.info)
    if not grant.keys() - {"info"}:
        raise ConfigError("the token would allow nothing: add --publish, --subscribe or --admin")
    try:
        check_subject(order.user)
    except ValueError as error:
        raise ConfigError(f"--user can't be used: {error}") from None
    now = int(time.time())
    claims = {"iat": now, "exp": now + _seconds(order.lifetime), "pushline": grant}
    said = {
        "sub": order.user,
        "aud": order.audience or settings.jwt_audience,
        "iss": order.issuer or settings.jwt_issuer,
    }
    return {**{name: value for name, value in said.items() if value}, **claims}


def _checked_pattern(text: str) -> str:
    try:
        return channel_pattern(text)
    except ValueError:
        raise ConfigError(
            f"{text!r} can't be granted: a channel is 1 to 128 of A-Z a-z 0-9 _ . : - and *"
        ) from None


def _checked_info(text: str) -> Any:
    try:
        info = json.loads(text)
        Grant.of_claims({"pushline": {"info": info}})
    except (ValueError, RecursionError):
        raise ConfigError(
            f"--info can't be used: it takes JSON of at most {MAX_INFO_BYTES} bytes"
        ) from None
    return info


def _seconds(lifetime: str) -> int:
    try:
        seconds = seconds_of(lifetime)
    except ValueError:
        seconds = 0
    if not seconds:
        raise ConfigError(f"--expires={lifetime!r} can't be used: it takes 30s, 15m, 1h or 7d")
    return seconds


def _secret(settings: AccessSettings) -> tuple[bytes, TokenKey]:
    if not settings.jwt_secret:
        raise ConfigError(
            "JWT_SECRET is not set: make one with `python -m service keys --jwt`, and set it here"
            " and for the service; or name a --private-key"
        )
    kid, secret = settings.jwt_secret[0]
    return secret.encode(), TokenKey.of_secret(secret, kid)


SigningKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey


def _private_key(path: Path) -> tuple[SigningKey, TokenKey]:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
        if isinstance(key, SigningKey):
            return key, TokenKey.of_public(key.public_key())
        why = "it is of a kind that signs no tokens"
    except OSError as error:
        why = error.strerror or "it can't be read"
    except (ValueError, TypeError, UnsupportedAlgorithm):
        why = "it wants a private key in PEM, without a password"
    raise ConfigError(f"--private-key={str(path)!r} can't be used: {why}")


def _usual(key: TokenKey, configured: Sequence[str]) -> str:
    """The algorithm that the service is set to, else the usual one of such a key."""
    return next(name for name in (*configured, *ALGORITHMS) if name in key.algorithms)
