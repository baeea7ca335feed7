"""Keys for tokens: which are good, for which algorithms, and what the settings refuse."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.errors import ConfigError
from service.settings import Settings
from service.token_keys import ASYMMETRIC, RSA_ALGORITHMS, KeyRing, TokenKey
from tests.forging import ALGORITHMS, Signer, b64

SIGNER = Signer(b"-" * 64)
RSA_PEM, P256_PEM, P384_PEM, P521_PEM, ED_PEM = SIGNER.pems()
SECRET = "not-a-secret-" * 3


def pem(key: Any) -> str:
    """A public key in PEM."""
    text: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


def jwks() -> list[dict[str, Any]]:
    """The public keys as JSON Web Keys, made by PyJWT: RSA, P-256, P-384, P-521, Ed25519."""
    made: list[dict[str, Any]] = []
    for key in SIGNER.public_keys():
        name = {RSA_PEM: "RS256", ED_PEM: "EdDSA"}.get(pem(key), "ES256")
        made.append(jwt.get_algorithm_by_name(name).to_jwk(key, as_dict=True))
    return made


@pytest.mark.parametrize(
    ("length", "algorithms"),
    [
        (31, set()),
        (32, {"HS256"}),
        (47, {"HS256"}),
        (48, {"HS256", "HS384"}),
        (64, {"HS256", "HS384", "HS512"}),
    ],
)
def test_a_secret_is_as_long_as_its_algorithm_makes(length: int, algorithms: set[str]) -> None:
    """Shorter secrets than the hash would be the weakest part; bytes count, not characters."""
    assert TokenKey.of_secret("x" * length).algorithms == algorithms
    assert TokenKey.of_secret("é" * 16).algorithms == {"HS256"}


@pytest.mark.parametrize(
    ("text", "algorithms"),
    [
        (RSA_PEM, RSA_ALGORITHMS),
        (P256_PEM, {"ES256"}),
        (P384_PEM, {"ES384"}),
        (P521_PEM, {"ES512"}),
        (ED_PEM, {"EdDSA"}),
        (pem(ed448.Ed448PrivateKey.generate().public_key()), {"EdDSA"}),
        (
            SIGNER.rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1).decode(),
            RSA_ALGORITHMS,
        ),
    ],
)
def test_each_kind_of_public_key_has_its_algorithms(text: str, algorithms: set[str]) -> None:
    """A key is used for what it is made for, and nothing shows it."""
    key = TokenKey.of_pem(text)
    assert key.algorithms == algorithms
    assert "material" not in repr(key)


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 1024).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        ec.generate_private_key(ec.SECP224R1()).public_key(),
        ec.generate_private_key(ec.BrainpoolP256R1()).public_key(),
        x25519.X25519PrivateKey.generate().public_key(),
        dsa.generate_private_key(2048).public_key(),
    ],
)
def test_weak_and_foreign_kinds_are_refused(key: Any) -> None:
    """Small RSA keys, other curves, and kinds that sign no tokens are no keys here."""
    with pytest.raises(ValueError, match="it takes RSA of 2048 bits"):
        TokenKey.of_pem(pem(key))
    with pytest.raises(ConfigError, match="JWT_PUBLIC_KEY has a key that can't be used"):
        KeyRing.of_settings(Settings(jwt_public_key=(RSA_PEM, pem(key)), jwt_algorithms=("RS256",)))


def test_json_web_keys_are_those_of_the_pem() -> None:
    """Each kind is read, with its name, and verifies what the PEM of it does."""
    for jwk, text in zip(jwks(), SIGNER.pems(), strict=True):
        key = TokenKey.of_jwk({**jwk, "kid": "k1", "use": "sig", "x5c": ["ignored"]})
        assert key.kid == "k1"
        assert key.algorithms == TokenKey.of_pem(text).algorithms
        assert key.material == TokenKey.of_pem(text).material
    public = ed448.Ed448PrivateKey.generate().public_key()
    jwk = {"kty": "OKP", "crv": "Ed448", "x": b64(public.public_bytes_raw())}
    assert TokenKey.of_jwk(jwk).algorithms == {"EdDSA"}


def test_a_json_web_key_may_be_for_one_algorithm() -> None:
    """`alg` narrows what an RSA key is used for."""
    assert TokenKey.of_jwk({**jwks()[0], "alg": "PS384"}).algorithms == {"PS384"}
    assert TokenKey.of_jwk({**jwks()[1], "alg": "ES256"}).algorithms == {"ES256"}


@pytest.mark.parametrize(
    "change",
    [
        {"use": "enc"},
        {"use": None},
        {"key_ops": ["sign"]},
        {"key_ops": ["encrypt", "wrapKey"]},
        {"key_ops": "verify"},
        {"alg": "RSA-OAEP"},
        {"alg": "HS256"},
        {"alg": "none"},
        {"alg": "ES256"},
        {"alg": ["RS256"]},
        {"alg": None},
        {"kid": 7},
        {"kid": None},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "oct"},
        {"kty": None},
        {"kty": ["RSA"]},
        {"kty": "EC"},
        {"kty": "EC", "crv": ["P-256"], "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": "A" * 43},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
        {"kty": "OKP", "crv": "Ed25519", "x": 7},
        {"d": "AQAB"},
        {"p": "AQAB"},
        {"k": "AQAB"},
        {"n": b64(b"\xff" * 128)},
        {"n": "!"},
        {"n": None},
        {"n": ""},
        {"n": "A"},
        {"e": "AA"},
        {"e": b64(b"\x02")},
    ],
)
def test_other_json_web_keys_are_no_keys(change: dict[str, Any]) -> None:
    """Private, symmetric, weak, broken, or for something else: not used."""
    with pytest.raises(ValueError, match=r"."):
        TokenKey.of_jwk({**jwks()[0], **change})


@pytest.mark.parametrize("jwk", [None, 1, "RSA", [], {}, [jwks()[0]]])
def test_what_is_no_json_web_key(jwk: Any) -> None:
    """A key set may hold anything."""
    with pytest.raises(ValueError, match=r"."):
        TokenKey.of_jwk(jwk)


# ------------------------------------------------------------------------------------ of settings


def ring(**environ: str) -> KeyRing:
    """The keys of an environment."""
    return KeyRing.of_settings(Settings.from_environ(environ))


def test_no_keys() -> None:
    """Without settings there are no tokens."""
    assert ring() == KeyRing((), frozenset())


def test_hs256_is_the_default_of_secrets() -> None:
    """Only where nothing else is configured there is nothing to be said."""
    assert ring(JWT_SECRET=SECRET).algorithms == {"HS256"}
    assert ring(JWT_SECRET=SECRET * 2, JWT_ALGORITHMS="HS512,HS384").algorithms == {
        "HS384",
        "HS512",
    }
    for more in ({"JWT_PUBLIC_KEY": RSA_PEM}, {"JWT_JWKS_URL": "https://issuer.example/keys"}):
        with pytest.raises(ConfigError, match="JWT_ALGORITHMS is not set"):
            ring(JWT_SECRET=SECRET, **more)
        with pytest.raises(ConfigError, match="JWT_ALGORITHMS is not set"):
            ring(**more)


def test_several_keys() -> None:
    """Secrets with and without names, and the keys of one PEM, in their order."""
    named = "k:" + "n" * 48
    keys = ring(
        JWT_SECRET=f"{SECRET} {named}",
        JWT_PUBLIC_KEY=RSA_PEM + P256_PEM,
        JWT_ALGORITHMS="HS256 HS384 RS256 ES256",
    ).keys
    assert [key.kid for key in keys] == ["", "k", "", ""]
    assert [len(key.algorithms) for key in keys] == [1, 2, 6, 1]
    assert (keys[0].material, keys[1].material) == (SECRET.encode(), b"n" * 48)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"JWT_ALGORITHMS": "HS256"}, "JWT_ALGORITHMS has HS256, and no key for it"),
        ({"JWT_ALGORITHMS": "RS256"}, "a fitting key in JWT_PUBLIC_KEY"),
        ({"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "HS256 HS512"}, "a JWT_SECRET of 64 bytes"),
        ({"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "HS384"}, "JWT_SECRET has a key that no"),
        ({"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "RS256"}, "it fits HS256"),
        (
            {"JWT_SECRET": SECRET, "JWT_PUBLIC_KEY": RSA_PEM, "JWT_ALGORITHMS": "HS256"},
            "JWT_PUBLIC_KEY has a key that no algorithm",
        ),
        (
            {"JWT_PUBLIC_KEY": RSA_PEM + P256_PEM, "JWT_ALGORITHMS": "RS256"},
            "it fits ES256",
        ),
        ({"JWT_PUBLIC_KEY": P384_PEM, "JWT_ALGORITHMS": "ES384 ES256"}, "has ES256, and no key"),
        (
            {"JWT_JWKS_URL": "https://x/", "JWT_SECRET": SECRET, "JWT_ALGORITHMS": "HS256"},
            "JWT_JWKS_URL has a key that no algorithm",
        ),
        (
            {"JWT_JWKS_URL": "https://x/", "JWT_ALGORITHMS": "RS256 HS256"},
            "JWT_ALGORITHMS has HS256",
        ),
        ({"JWT_PUBLIC_KEY": RSA_PEM.replace("MII", "MIJ"), "JWT_ALGORITHMS": "RS256"}, "a key"),
    ],
)
def test_what_is_of_no_use_is_refused(environ: dict[str, str], said: str) -> None:
    """A key without an algorithm or an algorithm without a key is a mistake, told in one line
    that has no key in it.
    """
    with pytest.raises(ConfigError) as raised:
        ring(**environ)
    message = str(raised.value)
    assert said in message
    assert "\n" not in message
    assert SECRET not in message
    assert "MII" not in message


def test_the_issuers_keys_may_be_of_any_kind() -> None:
    """What is at JWT_JWKS_URL isn't known at start, so every algorithm of public keys is fine."""
    made = ring(JWT_JWKS_URL="https://x/", JWT_ALGORITHMS=" ".join(sorted(ASYMMETRIC)))
    assert made == KeyRing((), ASYMMETRIC)
    assert frozenset(name for name in ALGORITHMS if name[:2] != "HS") == ASYMMETRIC


@pytest.mark.parametrize("text", [RSA_PEM, P256_PEM, ED_PEM])
def test_a_public_key_is_no_secret(text: str) -> None:
    """The base64 of a public key as JWT_SECRET would let everybody sign: refused, in one line or
    in the lines of its PEM.
    """
    lines = text.split("\n")[1:-2]
    joined = "".join(lines)
    if all(len(line) >= 32 for line in lines):
        with pytest.raises(ConfigError, match="is a public key"):
            ring(JWT_SECRET=" ".join(lines))
    with pytest.raises(ConfigError, match="is a public key"):
        ring(JWT_SECRET=joined)
    assert base64.b64decode(joined)
    with pytest.raises(ConfigError, match="JWT_SECRET can't be used"):
        ring(JWT_SECRET=text)
    with pytest.raises(ConfigError, match="JWT_SECRET can't be used"):
        ring(JWT_SECRET=json.dumps(jwks()[0]))
