"""Keys that verify tokens: from a secret, a PEM or a JSON Web Key, and the algorithms that fit."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

from service.access_settings import AccessSettings
from service.errors import ConfigError

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
"""How long a secret must be at least: as long as what the algorithm makes (RFC 7518, 3.2)."""

RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
CURVES = {"P-256": SECP256R1(), "P-384": SECP384R1(), "P-521": SECP521R1()}
CURVE_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
ASYMMETRIC = RSA_ALGORITHMS | frozenset(CURVE_ALGORITHMS.values()) | {"EdDSA"}

MIN_RSA_BITS = 2048

_NOT_PUBLIC = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
"""Members of a JSON Web Key that nobody may publish; a key that has them is no longer a secret."""


@dataclass(frozen=True, slots=True)
class TokenKey:
    """What verifies tokens, and by which algorithms; `kid` is its name, empty without one."""

    material: bytes | PublicKey = field(repr=False)
    algorithms: frozenset[str]
    kid: str = ""

    @classmethod
    def of_secret(cls, secret: str, kid: str = "") -> TokenKey:
        """A shared secret, for the HMAC algorithms that it is long enough for."""
        material = secret.encode()
        fitting = (name for name, least in SECRET_BYTES.items() if len(material) >= least)
        return cls(material, frozenset(fitting), kid)

    @classmethod
    def of_public(cls, key: object) -> TokenKey:
        """A public key; raises ValueError for a kind or size that no algorithm takes."""
        match key:
            case RSAPublicKey() if key.key_size >= MIN_RSA_BITS:
                return cls(key, RSA_ALGORITHMS)
            case EllipticCurvePublicKey() if key.curve.name in CURVE_ALGORITHMS:
                return cls(key, frozenset({CURVE_ALGORITHMS[key.curve.name]}))
            case Ed25519PublicKey() | Ed448PublicKey():
                return cls(key, frozenset({"EdDSA"}))
        raise ValueError("it takes RSA of 2048 bits or more, P-256, P-384, P-521, Ed25519, Ed448")

    @classmethod
    def of_pem(cls, pem: str) -> TokenKey:
        """A public key in PEM; raises ValueError."""
        try:
            return cls.of_public(load_pem_public_key(pem.encode()))
        except UnsupportedAlgorithm as error:
            raise ValueError("it is of an unknown kind") from error

    @classmethod
    def of_jwk(cls, jwk: Any) -> TokenKey:
        """A public JSON Web Key for signatures; raises ValueError for anything else."""
        if not isinstance(jwk, dict) or not _NOT_PUBLIC.isdisjoint(jwk):
            raise ValueError("not a public key")
        uses, kid = jwk.get("key_ops", ["verify"]), jwk.get("kid", "")
        if jwk.get("use", "sig") != "sig" or not isinstance(uses, list) or "verify" not in uses:
            raise ValueError("not a key that verifies")
        if not isinstance(kid, str):
            raise ValueError("not a key id")
        try:
            key = replace(cls.of_public(_public_key(jwk)), kid=kid)
        except (KeyError, TypeError, UnsupportedAlgorithm) as error:
            raise ValueError("not a key of a known kind") from error
        algorithms = {name for name in key.algorithms if jwk.get("alg", name) == name}
        if not algorithms:
            raise ValueError("not a key of a known algorithm")
        return replace(key, algorithms=frozenset(algorithms))


def _public_key(jwk: Mapping[str, Any]) -> object:
    """Raises KeyError, TypeError, ValueError or UnsupportedAlgorithm."""
    match jwk.get("kty"), jwk.get("crv"):
        case "RSA", _:
            return RSAPublicNumbers(_number(jwk["e"]), _number(jwk["n"])).public_key()
        case "EC", str(curve):
            x, y = _number(jwk["x"]), _number(jwk["y"])
            return EllipticCurvePublicNumbers(x, y, CURVES[curve]).public_key()
        case "OKP", "Ed25519":
            return Ed25519PublicKey.from_public_bytes(_bytes(jwk["x"]))
        case "OKP", "Ed448":
            return Ed448PublicKey.from_public_bytes(_bytes(jwk["x"]))
    raise ValueError("not a kind that signs")


def _bytes(text: Any) -> bytes:
    if not isinstance(text, str) or not re.fullmatch("[A-Za-z0-9_-]+=*", text):
        raise ValueError("not base64url")
    return base64.urlsafe_b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4))


def _number(text: Any) -> int:
    return int.from_bytes(_bytes(text), "big")


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The configured keys, and how tokens may be signed at all; both empty without tokens."""

    keys: tuple[TokenKey, ...]
    algorithms: frozenset[str]

    @classmethod
    def of_settings(cls, settings: AccessSettings) -> KeyRing:
        """Read the keys; raises ConfigError unless keys and algorithms are of use to each other.

        The service must not start with a key that nobody can use: something else was meant.
        """
        allowed = frozenset(settings.token_algorithms)
        secrets = tuple(TokenKey.of_secret(secret, kid) for kid, secret in settings.jwt_secret)
        _check_secret_is_secret(settings)
        public = tuple(_configured(pem) for pem in settings.jwt_public_key)
        remote = ASYMMETRIC if settings.jwt_jwks_url else frozenset()
        if not allowed and (public or remote):
            raise ConfigError("JWT_ALGORITHMS is not set: name how tokens are signed, as in RS256")
        _check_used("JWT_SECRET", (key.algorithms for key in secrets), allowed)
        _check_used("JWT_PUBLIC_KEY", (key.algorithms for key in public), allowed)
        _check_used("JWT_JWKS_URL", [remote] if remote else [], allowed)
        _check_usable(allowed, remote.union(*(key.algorithms for key in secrets + public)))
        return cls(secrets + public, allowed)


def _configured(pem: str) -> TokenKey:
    try:
        return TokenKey.of_pem(pem)
    except ValueError:
        raise ConfigError(
            "JWT_PUBLIC_KEY has a key that can't be used: it takes RSA of at least 2048 bits,"
            " P-256, P-384, P-521, Ed25519 and Ed448"
        ) from None


def _check_secret_is_secret(settings: AccessSettings) -> None:
    """Refuse the lines of a public key in PEM as JWT_SECRET: everybody could sign with it."""
    text = "".join(secret for _, secret in settings.jwt_secret)
    try:
        load_der_public_key(base64.b64decode(text, validate=True))
    except (ValueError, UnsupportedAlgorithm):
        return
    raise ConfigError("JWT_SECRET is a public key, which is no secret: set JWT_PUBLIC_KEY")


def _check_used(env: str, keys: Iterable[frozenset[str]], allowed: frozenset[str]) -> None:
    for fitting in keys:
        if not fitting & allowed:
            raise ConfigError(
                f"{env} has a key that no algorithm of JWT_ALGORITHMS can use:"
                f" it fits {' '.join(sorted(fitting))}"
            )


def _check_usable(allowed: frozenset[str], fitting: frozenset[str]) -> None:
    for name in sorted(allowed - fitting):
        least = SECRET_BYTES.get(name)
        wanted = f"a JWT_SECRET of {least} bytes" if least else "a fitting key in JWT_PUBLIC_KEY"
        raise ConfigError(f"JWT_ALGORITHMS has {name}, and no key for it: it wants {wanted}")
