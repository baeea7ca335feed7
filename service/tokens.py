"""JSON Web Tokens: who signed them, whether they count now and here, and what they grant."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Self

import jwt

from service.access_settings import AccessSettings
from service.errors import BadCredential, ExpiredCredential
from service.grants import Grant, check_subject
from service.jwks import Jwks
from service.token_keys import ASYMMETRIC, KeyRing, TokenKey

log = logging.getLogger("pushline.tokens")

MAX_TOKEN_CHARACTERS = 8192
"""More doesn't fit into the headers that proxies take."""

MAX_TRIES = 16
"""Keys that are tried for one token; each costs 0.1 to 0.9 ms, also for who has no good one."""

REFUSED = "the token can't be verified"
"""All that is said of a refusal: a forger learns nothing from it. The reason is logged (debug)."""

# The parts aren't padded, as RFC 7515 has it; PyJWT alone would take `=`.
_TOKEN = re.compile(r"([\w-]+)\.[\w-]+\.[\w-]+", re.ASCII)


class TokenVerifier:
    """Verifies tokens with the configured keys, and those of `jwks` if any.

    Algorithms and keys come from the configuration alone: of a token's header `alg` and `kid`
    only choose among them. `leeway_seconds` is how far the issuer's clock may differ.
    """

    def __init__(
        self,
        ring: KeyRing,
        jwks: Jwks | None = None,
        *,
        issuer: str | None = None,
        audience: str | None = None,
        leeway_seconds: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ring = ring
        self._jwks = jwks
        self._issuer = issuer
        self._audience = audience
        self._leeway_seconds = leeway_seconds
        self._clock = clock
        self._jws = jwt.PyJWS(
            algorithms=sorted(ring.algorithms), options={"enforce_minimum_key_length": True}
        )

    @classmethod
    def of_settings(cls, settings: AccessSettings) -> Self | None:
        """The verifier that the JWT_ settings describe, or None; raises ConfigError."""
        ring = KeyRing.of_settings(settings)
        if not ring.algorithms:
            return None
        return cls(
            ring,
            Jwks(settings.jwt_jwks_url) if settings.jwt_jwks_url else None,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            leeway_seconds=settings.jwt_leeway_seconds,
        )

    def verify(self, token: str) -> Grant:
        """What `token` grants, until `exp` and the leeway are over; may wait for the issuer's keys.

        Raises BadCredential, ExpiredCredential for one that was good, and CannotAuthorize when
        the issuer's keys could never be had.
        """
        try:
            claims = self._claims(token)
            self._check_addressed(claims)
            expires_at = self._check_begun(claims) + self._leeway_seconds
            grant = dataclasses.replace(_grant(claims, token), expires_at=expires_at)
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            log.debug("a token was refused: %s", error)
            raise BadCredential(REFUSED) from None
        if expires_at <= self._clock():
            raise ExpiredCredential
        return grant

    def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a token with a good signature; raises ValueError and PyJWTError."""
        match = _TOKEN.fullmatch(token) if len(token) <= MAX_TOKEN_CHARACTERS else None
        if match is None:
            raise ValueError("it has not the form of a token")
        header = _members(base64.urlsafe_b64decode(match[1] + "=" * (-len(match[1]) % 4)))
        algorithm, kid = header.get("alg"), header.get("kid", "")
        if not isinstance(algorithm, str) or algorithm not in self._ring.algorithms:
            raise ValueError("its algorithm is not in JWT_ALGORITHMS")
        if not isinstance(kid, str):
            raise ValueError("its kid is no text")
        if "crit" in header or header.get("b64", True) is not True:
            raise ValueError("it wants what is not understood here")
        for key in islice(self._keys_for(algorithm, kid), MAX_TRIES):
            payload = self._payload(token, key)
            if payload is not None:
                return _members(payload)
        raise ValueError("no key fits its signature")

    def _keys_for(self, algorithm: str, kid: str) -> Iterator[TokenKey]:
        """The keys that may have signed a token, the configured ones first."""
        yield from _fitting(self._ring.keys, algorithm, kid)
        if self._jwks is None or algorithm not in ASYMMETRIC:
            return
        keys = self._jwks.keys()
        yield from _fitting(keys, algorithm, kid)
        if kid and all(key.kid != kid for key in (*self._ring.keys, *keys)):
            yield from (key for key in self._jwks.renewed() if key.kid == kid)

    def _payload(self, token: str, key: TokenKey) -> bytes | None:
        allowed = key.algorithms & self._ring.algorithms
        try:
            decoded = self._jws.decode_complete(token, key.material, algorithms=sorted(allowed))
        except jwt.InvalidSignatureError:
            return None
        payload: bytes = decoded["payload"]
        return payload

    def _check_addressed(self, claims: dict[str, Any]) -> None:
        """Raise ValueError unless the token is of our issuer, and for us."""
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise ValueError("its iss is not JWT_ISSUER")
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        named = all(isinstance(one, str) for one in audiences) and self._audience in audiences
        if self._audience is not None and not named:
            raise ValueError("its aud is not JWT_AUDIENCE")

    def _check_begun(self, claims: dict[str, Any]) -> float:
        """When the token expires; raises ValueError unless it says so, and has begun."""
        latest = self._clock() + self._leeway_seconds
        for name in ("iat", "nbf"):
            if name in claims and _moment(claims[name]) > latest:
                raise ValueError(f"its {name} is still to come")
        return _moment(claims.get("exp"))


def _fitting(keys: Iterable[TokenKey], algorithm: str, kid: str) -> Iterator[TokenKey]:
    """Keys without a name fit any `kid`: a PEM has none, and issuers send one all the same."""
    for key in keys:
        if algorithm in key.algorithms and (not kid or key.kid in ("", kid)):
            yield key


def _moment(said: Any) -> float:
    """Seconds since 1970; raises ValueError for what is no finite number."""
    if type(said) not in (int, float) or not abs(said) <= sys.float_info.max:
        raise ValueError("a time of it is no number")
    return float(said)


def _grant(claims: dict[str, Any], token: str) -> Grant:
    grant = Grant.of_claims(claims)
    check_subject(grant.user)
    # Without the signature, of which there may be several for one token.
    signed = token.rpartition(".")[0].encode()
    whose = grant.user or hashlib.sha256(signed).hexdigest()[:12]
    return dataclasses.replace(grant, credential=f"jwt:{whose}")


def _members(text: bytes) -> dict[str, Any]:
    """A JSON object; raises ValueError if it is none, or says anything twice."""
    found = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    if not isinstance(found, dict):
        raise ValueError("a part of it is no object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member of it comes twice")
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
