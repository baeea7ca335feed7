"""Makes tokens as forgers do, part by part, so that nothing refuses to make a bad one.

Shares no code with the service nor with PyJWT: signatures come straight from `cryptography`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

NOW = 1_800_000_000.0
"""The time at which all these tokens are looked at."""

LEEWAY = 10.0
ISSUER, AUDIENCE = "https://issuer.example/", "pushline"
HASHES = {"256": SHA256(), "384": SHA384(), "512": SHA512()}
ALGORITHMS = (
    *("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
CURVES: dict[str, ec.EllipticCurve] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
}

Json = dict[str, Any]


def b64(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def as_json(value: Any) -> bytes:
    """JSON, in which NaN and infinities are written as Python has them."""
    return json.dumps(value).encode()


@dataclass
class Signer:
    """Somebody's keys, one for each way of signing."""

    secret: bytes
    rsa: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    curves: dict[str, ec.EllipticCurvePrivateKey] = field(
        default_factory=lambda: {n: ec.generate_private_key(c) for n, c in CURVES.items()}
    )
    ed: ed25519.Ed25519PrivateKey = field(default_factory=ed25519.Ed25519PrivateKey.generate)

    def sign(self, algorithm: str, message: bytes) -> bytes:
        """A signature."""
        if algorithm == "EdDSA":
            return self.ed.sign(message)
        kind = HASHES[algorithm[2:]]
        match algorithm[:2]:
            case "HS":
                return hmac.digest(self.secret, message, f"sha{algorithm[2:]}")
            case "RS":
                return self.rsa.sign(message, padding.PKCS1v15(), kind)
            case "PS":
                salted = padding.PSS(padding.MGF1(kind), kind.digest_size)
                return self.rsa.sign(message, salted, kind)
        key = self.curves[algorithm]
        size = (key.key_size + 7) // 8
        numbers = decode_dss_signature(key.sign(message, ec.ECDSA(kind)))
        return b"".join(number.to_bytes(size, "big") for number in numbers)

    def token(
        self, algorithm: str, claims: Json | bytes, header: Json | bytes | None = None
    ) -> str:
        """A token signed by `algorithm`, whatever the header says."""
        if not isinstance(header, bytes):
            header = as_json({"alg": algorithm, "typ": "JWT", **(header or {})})
        body = claims if isinstance(claims, bytes) else as_json(claims)
        start = f"{b64(header)}.{b64(body)}"
        return f"{start}.{b64(self.sign(algorithm, start.encode()))}"

    def public_keys(self) -> list[Any]:
        """The public keys, of each kind one."""
        curves = [key.public_key() for key in self.curves.values()]
        return [self.rsa.public_key(), *curves, self.ed.public_key()]

    def pems(self) -> list[str]:
        """The public keys in PEM."""
        form = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return [key.public_bytes(*form).decode() for key in self.public_keys()]


def claims(**changes: Any) -> Json:
    """Claims that are good for an hour, with changes."""
    said: Json = {
        "sub": "ana",
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": NOW - 60,
        "nbf": NOW - 60,
        "exp": NOW + 3600,
        "pushline": {"publish": ["*"], "subscribe": ["*"], "admin": True},
    }
    said.update(changes)
    return said


def claims_but(name: str) -> Json:
    """Good claims without one of them."""
    return {key: value for key, value in claims().items() if key != name}


def claims_with(name: str, raw: str) -> bytes:
    """Good claims with one whose value is written as it is."""
    before = json.dumps(claims_but(name))
    return f'{before[:-1]}, "{name}": {raw}}}'.encode()


Forgery = tuple[str, str, str]
"""The group it belongs to, the algorithm of the good token that it comes from, and the token."""


class Forger:
    """Forgeries of what `victim` would sign; `stranger` has keys that nobody trusts."""

    def __init__(self, victim: Signer, named_secret: bytes, seed: int) -> None:
        self.victim = victim
        self.stranger = Signer(b"stranger" * 16)
        self.named = Signer(named_secret, victim.rsa, victim.curves, victim.ed)
        self.random = random.Random(seed)

    def good(self) -> dict[str, str]:
        """A good token for each algorithm."""
        return {name: self.victim.token(name, claims()) for name in ALGORITHMS}

    def all(self) -> Iterator[Forgery]:
        """Every forgery."""
        makers: dict[str, Callable[[str, str], Iterator[str]]] = {
            "flipped": self.flipped,
            "cut": self.cut,
            "mixed": self.mixed,
            "none": self.without_algorithm,
            "confused": self.confused,
            "kid": self.named_keys,
            "brought": self.brought_keys,
            "psychic": self.psychic,
            "time": self.times,
            "addressed": self.addressed,
            "twice": self.said_twice,
            "crit": self.critical,
            "form": self.forms,
            "encoded": self.encodings,
            "huge": self.huge,
            "grant": self.grants,
        }
        for algorithm, good in self.good().items():
            for group, make in makers.items():
                for token in make(algorithm, good):
                    assert token != good, group
                    yield group, algorithm, token

    # -- without a key -------------------------------------------------------------------------

    def flipped(self, algorithm: str, good: str) -> Iterator[str]:
        """One bit of one character is another, 30 times in each part."""
        ends = [-1, good.index("."), good.rindex("."), len(good)]
        for start, end in itertools.pairwise(ends):
            for _ in range(30):
                where = self.random.randrange(start + 1, end)
                flipped = chr(ord(good[where]) ^ (1 << self.random.randrange(7)))
                yield good[:where] + flipped + good[where + 1 :]

    def cut(self, algorithm: str, good: str) -> Iterator[str]:
        """The signature is shorter, longer, empty, or another's."""
        start, signature = good.rsplit(".", 1)
        raw = base64.urlsafe_b64decode(signature + "==")
        for left in (0, 1, 2, len(signature) // 2, len(signature) - 4, len(signature) - 1):
            yield f"{start}.{signature[:left]}"
        for more in ("A", "AA", "AAAA", signature, ".", "." + signature):
            yield f"{start}.{signature}{more}"
        for other in (
            raw[1:],
            raw + b"\0",
            b"\0" + raw,
            raw[::-1],
            bytes(len(raw)),
            b"\xff" * len(raw),
        ):
            yield f"{start}.{b64(other)}"
        yield start
        yield f"{start}.{b64(self.random.randbytes(len(raw)))}"

    def mixed(self, algorithm: str, good: str) -> Iterator[str]:
        """The header names one algorithm, the signature is of another, with the right keys."""
        for other in ALGORITHMS:
            if other != algorithm:
                yield self.victim.token(other, claims(), {"alg": algorithm})

    def without_algorithm(self, algorithm: str, good: str) -> Iterator[str]:
        """Names of no algorithm, or of none that is allowed."""
        names: list[Any] = [
            "none",
            "None",
            "NONE",
            "nOnE",
            "none ",
            "\u006eone\0",
            "",
            None,
            True,
            0,
        ]
        names += [[algorithm], {"alg": algorithm}, algorithm.lower() + " ", f" {algorithm}", "HS1"]
        names += ["RS1", "ES256K", "ES521", "HS256K", "dir", "A128KW", "\uff28\uff33256"]
        for name in names:
            start = f"{b64(as_json({'alg': name}))}.{b64(as_json(claims()))}"
            yield f"{start}."
            yield f"{start}.{good.rsplit('.', 1)[1]}"
            yield f"{start}.{b64(hmac.digest(b'', start.encode(), 'sha256'))}"
        yield self.victim.token(algorithm, claims(), as_json({"typ": "JWT"}))
        yield self.victim.token(algorithm, claims(), as_json({"ALG": algorithm, "typ": "JWT"}))

    def confused(self, algorithm: str, good: str) -> Iterator[str]:
        """HMAC with a public key for a secret, in each way that it can be written."""
        if algorithm[:2] == "HS":
            return
        which = {"RS": 0, "PS": 0, "ES256": 1, "ES384": 2, "ES512": 3, "EdDSA": 4}
        at = which.get(algorithm, which.get(algorithm[:2], 0))
        key, pem = self.victim.public_keys()[at], self.victim.pems()[at]
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        secrets = [pem.encode(), pem.strip().encode(), pem.replace("\n", "").encode(), der]
        secrets += [base64.b64encode(der), pem.replace("\n", "\\n").encode(), b""]
        secrets += [hashlib.sha256(der).digest(), "".join(pem.split("\n")[1:-2]).encode()]
        if at == 0:
            secrets += [
                key.public_bytes(one, PublicFormat.PKCS1) for one in (Encoding.PEM, Encoding.DER)
            ]
        for secret in secrets:
            for name in ("HS256", "HS384", "HS512"):
                yield Signer(secret, self.stranger.rsa, {}, self.stranger.ed).token(name, claims())

    def psychic(self, algorithm: str, good: str) -> Iterator[str]:
        """Signatures of zeros, ones and the order of the curve, which bad verifiers take."""
        start, signature = good.rsplit(".", 1)
        raw = base64.urlsafe_b64decode(signature + "==")
        size = len(raw) // 2
        numbers = [0, 1, 2, (1 << 8 * size) - 1]
        if algorithm == "ES256":
            order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
            numbers += [order, order - 1, order + 1]
        for first in numbers:
            for second in numbers:
                yield f"{start}.{b64(first.to_bytes(size, 'big') + second.to_bytes(size, 'big'))}"
        if algorithm[:2] == "ES":
            kind = HASHES[algorithm[2:]]
            der = self.victim.curves[algorithm].sign(start.encode(), ec.ECDSA(kind))
            yield f"{start}.{b64(der)}"
            yield f"{start}.{b64(raw[size:] + raw[:size])}"

    # -- with keys of the forger's own ---------------------------------------------------------

    def named_keys(self, algorithm: str, good: str) -> Iterator[str]:
        """A `kid` that leads elsewhere, or to nothing; a good secret under another's name."""
        kids: list[Any] = ["k1", "", "unknown", "../../../dev/null", "/etc/hostname", "k1'--", "*"]
        for kid in kids:
            yield self.stranger.token(algorithm, claims(), {"kid": kid})
        for wrong in (None, 1, True, ["k1"], {"kid": "k1"}):
            yield self.victim.token(algorithm, claims(), {"kid": wrong})
        if algorithm[:2] == "HS":
            for kid in ("k2", "K1", "k1 ", "k"):
                yield self.named.token(algorithm, claims(), {"kid": kid})

    def brought_keys(self, algorithm: str, good: str) -> Iterator[str]:
        """The token brings the key that it wants to be verified with."""
        yield self.stranger.token(algorithm, claims())
        number = self.stranger.rsa.public_key().public_numbers()
        jwk = {"kty": "RSA", "e": "AQAB", "n": b64(number.n.to_bytes(256, "big")), "kid": "own"}
        oct_key = {"kty": "oct", "k": b64(self.stranger.secret)}
        for header in (
            {"jwk": jwk},
            {"jwk": jwk, "kid": "own"},
            {"jwk": oct_key},
            {"jku": "http://127.0.0.1:1/keys", "kid": "own"},
            {"jku": "file:///dev/stdin"},
            {"x5u": "http://127.0.0.1:1/certificate"},
            {"x5c": [base64.b64encode(self.stranger.pems()[0].encode()).decode()]},
            {"x5t": "AAAA", "x5t#S256": "AAAA"},
        ):
            yield self.stranger.token(algorithm, claims(), header)

    # -- signed by the right key, but not to be taken ------------------------------------------

    def times(self, algorithm: str, good: str) -> Iterator[str]:
        """Too late, too early, or no time at all."""
        sign = self.victim.token
        yield sign(algorithm, claims_but("exp"))
        late = (NOW - LEEWAY, NOW - LEEWAY - 1, NOW - 1e6, 1, 0, -0.0, -1, -1e300, 1e-300)
        for exp in late:
            yield sign(algorithm, claims(exp=exp))
        for name in ("nbf", "iat"):
            for begin in (NOW + LEEWAY + 0.01, NOW + LEEWAY + 1, NOW + 1e6, 1e300):
                yield sign(algorithm, claims(**{name: begin}))
        no_time = ["null", "true", "false", '""', '"1900000000"', '"soon"', "[]", "[1900000000]"]
        no_time += ['{"seconds": 1900000000}', "NaN", "Infinity", "-Infinity", "1e400", "-1e400"]
        no_time += ["1" + "0" * 400, "9" * 5000, "0x7fffffff", "1_900_000_000", "01900000000"]
        for raw in no_time:
            for name in ("exp", "nbf", "iat"):
                yield sign(algorithm, claims_with(name, raw))

    def addressed(self, algorithm: str, good: str) -> Iterator[str]:
        """For somebody else, or by somebody else."""
        sign = self.victim.token
        audiences: list[Any] = ["other", "Pushline", "pushline ", "push", "", None, 0, True, []]
        audiences += [["other"], [[AUDIENCE]], [AUDIENCE, 1], [AUDIENCE, [AUDIENCE]], {AUDIENCE: 1}]
        for audience in audiences:
            yield sign(algorithm, claims(aud=audience))
        issuers: list[Any] = [ISSUER[:-1], ISSUER + "x", ISSUER.upper(), "", None, [ISSUER], 1]
        for issuer in issuers:
            yield sign(algorithm, claims(iss=issuer))
        yield sign(algorithm, claims_but("aud"))
        yield sign(algorithm, claims_but("iss"))

    def said_twice(self, algorithm: str, good: str) -> Iterator[str]:
        """A member that comes twice means one thing here and another thing elsewhere."""
        sign, body = self.victim.token, json.dumps(claims())
        for name in ("exp", "nbf", "iss", "aud", "sub", "pushline"):
            yield sign(algorithm, f'{body[:-1]}, "{name}": {json.dumps(claims()[name])}}}'.encode())
        twice = '{"publish": [], "publish": ["*"]}'
        yield sign(algorithm, claims_with("pushline", twice))
        yield sign(algorithm, claims_with("other", '[{"a": 1, "\\u0061": 1}]'))
        for more in (f'"alg": "{algorithm}"', '"alg": "none"', '"typ": "JWT"', '"\\u0061lg": "x"'):
            first = f'{{"typ": "JWT", {more}, "alg": "{algorithm}"}}'
            yield sign(algorithm, claims(), first.encode())

    def critical(self, algorithm: str, good: str) -> Iterator[str]:
        """What has to be understood, and isn't."""
        crits: list[Any] = [["exp"], ["b64"], ["unknown"], [], "b64", None, {}, 0, [[]], ["a", "a"]]
        for crit in crits:
            yield self.victim.token(algorithm, claims(), {"crit": crit, "unknown": 1, "b64": True})
        encoded: list[Any] = [False, 0, None, "false", [], "true"]
        for said in encoded:
            yield self.victim.token(algorithm, claims(), {"b64": said})
        header = b64(as_json({"alg": algorithm, "b64": False, "crit": ["b64"]}))
        start = header.encode() + b"." + as_json(claims())
        signature = b64(self.victim.sign(algorithm, start))
        yield f"{header}..{signature}"
        yield f"{start.decode()}.{signature}"

    def forms(self, algorithm: str, good: str) -> Iterator[str]:
        """The good token, written in another way."""
        first, second, third = good.split(".")
        for space in (" ", "\n", "\t", "\r\n", "\0", "\u00a0", "\u200b", "\ufeff", "\u3000"):
            yield from (space + good, good + space, f"{first}{space}.{second}.{third}")
            yield f"{first}.{second}.{third[:4]}{space}{third[4:]}"
        for part in (0, 1, 2):
            for more in ("=", "==", "===", "%3D", ".", "!"):
                parts = [first, second, third]
                parts[part] += more
                yield ".".join(parts)
        yield from (
            "",
            ".",
            "..",
            "...",
            first,
            f"{first}.",
            f"{first}.{second}",
            f"{first}..{third}",
        )
        yield from (f".{second}.{third}", f"{good}.", f".{good}", f"{good}.{third}.{third}")
        yield from (
            f"Bearer {good}",
            f'"{good}"',
            f"'{good}'",
            f"{good},{good}",
            good.replace(".", "%2E"),
        )
        yield from (
            good.replace(".", "\uff0e"),
            good.replace(".", "\u3002"),
            good[::-1],
            good.upper(),
        )
        yield from (good.replace("e", "\u0435", 1), good.replace("J", "\uff2a", 1), f"{good}\ud800")
        yield json.dumps({"protected": first, "payload": second, "signature": third})
        yield b64(good.encode())

    def encodings(self, algorithm: str, good: str) -> Iterator[str]:
        """Parts that aren't UTF-8, aren't JSON, or no object; all signed."""
        sign, body, head = self.victim.token, as_json(claims()), as_json({"alg": algorithm})
        bodies = [
            b"",
            b"null",
            b"1",
            b'"x"',
            b"[]",
            b"[" + body + b"]",
            body[:-1],
            body + b"x",
            b"{}",
        ]
        bodies += [
            b"\xef\xbb\xbf" + body,
            body.decode().encode("utf-16"),
            body.decode().encode("utf-32"),
        ]
        bodies += [body.replace(b"ana", b"\xff"), body.replace(b"ana", b"\xc0\x80"), b"{'exp': 1}"]
        bodies += [body.replace(b"ana", b"\n"), body + b"\0", b"[" * 4000, b'{"a":' * 800, body * 2]
        for one in bodies:
            yield sign(algorithm, one)
        heads = [b"", b"null", b"[]", head[:-1], head + b"x", b"\xef\xbb\xbf" + head]
        heads += [head.decode().encode("utf-16"), head.decode().encode("utf-32-le"), b"[" * 4000]
        heads += [head.replace(b'"', b"'"), head[:-1] + b', "x": NaN}', b"[" + head + b"]"]
        for one in heads:
            yield sign(algorithm, claims(), one)

    def huge(self, algorithm: str, good: str) -> Iterator[str]:
        """Signed, and larger than a header may be."""
        yield self.victim.token(algorithm, claims(more="x" * 8000))
        yield self.victim.token(algorithm, claims(), {"more": "x" * 8000})
        yield self.victim.token(algorithm, claims(more="x" * 1_000_000))
        yield good + "A" * 9000

    def grants(self, algorithm: str, good: str) -> Iterator[str]:
        """Signed, but no grant, or of nobody who could be named."""
        sign = self.victim.token
        subjects: list[Any] = ["x" * 257, "a\nb", "a\0", "\x7f", "\x85", "\u2028", "\ud800"]
        for subject in [*subjects, 7, None, True, ["ana"], {"sub": "ana"}]:
            yield sign(algorithm, claims(sub=subject))
        grants: list[Any] = [
            [],
            None,
            "*",
            1,
            {"publish": "*"},
            {"subscribe": [["*"]]},
            {"admin": 1},
        ]
        for said in grants:
            yield sign(algorithm, claims(pushline=said))
        yield sign(algorithm, claims(pushline={"publish": {"*": 1}}))
        yield sign(algorithm, claims(pushline={"publish": ["a"] * 1001}))
