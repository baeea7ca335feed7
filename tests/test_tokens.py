"""Tokens: thousands of forged ones, of which none is taken, and what the good ones grant."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jwt
import pytest

import service.tokens
from service.errors import BadCredential, ConfigError, ExpiredCredential
from service.grants import Grant
from service.settings import Settings
from service.token_keys import KeyRing, TokenKey
from service.tokens import MAX_TOKEN_CHARACTERS, MAX_TRIES, REFUSED, TokenVerifier
from tests.forging import (
    ALGORITHMS,
    AUDIENCE,
    ISSUER,
    LEEWAY,
    NOW,
    Forger,
    Signer,
    claims,
    claims_but,
)

SEED = 20_260_731
NAMED = "named-secret-" * 6
FORGERIES = 2000


@functools.cache
def forger() -> Forger:
    """One victim for all tests: RSA keys take a while to make."""
    return Forger(Signer(b"victim's secret " * 4), NAMED.encode(), SEED)


@functools.cache
def forgeries() -> list[tuple[str, str, str]]:
    """Each forgery once: its group, the algorithm of the good token, and itself."""
    return list(dict.fromkeys(forger().all()))


def victims_keys() -> tuple[TokenKey, ...]:
    """All keys of the victim, of which one has a name."""
    signer = forger().victim
    public = [TokenKey.of_pem(pem) for pem in signer.pems()]
    secrets = [TokenKey.of_secret(signer.secret.decode()), TokenKey.of_secret(NAMED, "k1")]
    return (*secrets, *public)


def verifier(*algorithms: str, **changes: Any) -> TokenVerifier:
    """A verifier that takes `algorithms`, by default all."""
    allowed = frozenset(algorithms or ALGORITHMS)
    keys = tuple(key for key in victims_keys() if key.algorithms & allowed)
    values = {"issuer": ISSUER, "audience": AUDIENCE, "leeway_seconds": LEEWAY, **changes}
    return TokenVerifier(KeyRing(keys, allowed), clock=lambda: NOW, **values)


def is_taken(checked: TokenVerifier, token: str) -> bool:
    """Whether a token is accepted; anything but the two refusals is a failure of the test."""
    try:
        checked.verify(token)
    except (BadCredential, ExpiredCredential):
        return False
    return True


# --------------------------------------------------------------------------------- forged tokens


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_originals_are_taken(algorithm: str) -> None:
    """What the forgeries are made of is good where that algorithm is allowed, and only there."""
    token = forger().good()[algorithm]
    assert verifier().verify(token).user == "ana"
    assert verifier(algorithm).verify(token).may_publish("orders")
    for other in ALGORITHMS:
        if other != algorithm:
            assert not is_taken(verifier(other), token)


def test_no_forgery_is_taken() -> None:
    """At least 2000 forged and mutated tokens: each is refused where all algorithms are allowed,
    and where only its own is.
    """
    wide, narrow = verifier(), {name: verifier(name) for name in ALGORITHMS}
    counted: Counter[str] = Counter()
    taken = []
    for group, algorithm, token in forgeries():
        counted[group] += 1
        if is_taken(wide, token) or is_taken(narrow[algorithm], token):
            taken.append((group, algorithm, token[:200]))
    print(f"{counted.total()} forgeries: {dict(counted)}")
    assert taken == []
    assert counted.total() >= FORGERIES
    assert min(counted.values()) >= 20


def test_other_implementations_agree_on_the_originals() -> None:
    """PyJWT alone takes the good tokens too, so they were not refused for being badly made."""
    signer = forger().victim
    for algorithm, token in forger().good().items():
        keys: list[Any] = [signer.secret] if algorithm.startswith("HS") else signer.public_keys()
        options: Any = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
        found = []
        for key in keys:
            try:
                found.append(jwt.decode(token, key, [algorithm], options, audience=AUDIENCE))
            except (jwt.PyJWTError, TypeError):
                continue
        assert [one["sub"] for one in found] == ["ana"], algorithm


def no_pairs_hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Lets the last one win, as `json` does."""
    return dict(pairs)


@pytest.mark.parametrize(
    ("group", "name", "weaker"),
    [
        ("flipped", "_payload", None),
        ("cut", "_payload", None),
        ("psychic", "_payload", None),
        ("brought", "_payload", None),
        ("twice", "_unique", no_pairs_hook),
        ("time", "_moment", lambda said: float(said or 9e9)),
        ("addressed", "_check_addressed", lambda self, said: None),
        ("form", "_TOKEN", re.compile(r"([^.]+)\..*")),
        ("grant", "check_subject", lambda subject: None),
        ("huge", "MAX_TOKEN_CHARACTERS", 10_000_000),
        ("encoded", "_no_constant", lambda name: 0.0),
    ],
)
def test_without_its_check_a_forgery_is_taken(
    group: str, name: str, weaker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the test above: each check keeps something out that nothing else does."""

    def trusting(self: TokenVerifier, token: str, key: TokenKey) -> bytes:
        options: Any = {"verify_signature": False}
        payload: bytes = jwt.PyJWS().decode_complete(token, options=options)["payload"]
        return payload

    owner = TokenVerifier if name in vars(TokenVerifier) else service.tokens
    monkeypatch.setattr(owner, name, trusting if weaker is None else weaker)
    wide = verifier()
    tokens = [token for one, _, token in forgeries() if one == group]
    assert any(is_taken(wide, token) for token in tokens)


# ------------------------------------------------------------------------------------ good tokens


def signed(said: dict[str, Any], **header: Any) -> str:
    """A token of the victim's."""
    return forger().victim.token("HS256", said, header)


def test_what_a_token_grants() -> None:
    """Rights, user and end, with the leeway, come from the claims; the credential is named after
    the user.
    """
    said = {"publish": ["a.*"], "subscribe": ["b"], "admin": True}
    grant = verifier().verify(signed(claims(pushline=said)))
    assert grant == Grant(("a.*",), ("b",), True, "ana", "jwt:ana", NOW + 3600 + LEEWAY)


@pytest.mark.parametrize("said", [claims_but("sub"), claims(sub="")])
def test_a_token_of_nobody(said: dict[str, Any]) -> None:
    """Without a user the token itself is the credential, named by its hash."""
    token = signed(said)
    grant = verifier().verify(token)
    name = hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()[:12]
    assert (grant.user, grant.credential) == ("", f"jwt:{name}")


def test_mercures_claim_grants() -> None:
    """A token of a Mercure hub works."""
    said = claims_but("pushline") | {"mercure": {"subscribe": ["*"]}}
    grant = verifier().verify(signed(said))
    assert grant.may_subscribe("a")
    assert not grant.may_publish("a")


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": [AUDIENCE]},
        {"aud": ["other", AUDIENCE]},
        {"exp": NOW - LEEWAY + 0.01},
        {"exp": 253_402_300_799},
        {"exp": 2**63},
        {"nbf": NOW + LEEWAY},
        {"iat": NOW + LEEWAY, "nbf": 0},
        {"iat": -1},
        {"sub": "x" * 256},
        {"sub": "Ünïcode 用户 \U0001f600"},
        {"extra": {"nested": [1, 2, {"a": None}]}},
        {"jti": 7},
    ],
)
def test_what_is_unusual_and_good(changes: dict[str, Any]) -> None:
    """Within the leeway, for several audiences, for centuries: all of that counts."""
    grant = verifier().verify(signed(claims(**changes)))
    assert grant.expires_at == claims(**changes)["exp"] + LEEWAY


def test_no_issuer_and_audience_are_wanted_unless_configured() -> None:
    """Without JWT_ISSUER and JWT_AUDIENCE what a token says of them doesn't matter."""
    open_to_all = verifier(issuer=None, audience=None)
    for said in (claims(), claims(iss=1, aud=[1]), claims_but("aud"), claims_but("iss")):
        assert is_taken(open_to_all, signed(said))
    assert is_taken(verifier(issuer=None), signed(claims(iss="other")))
    assert not is_taken(verifier(issuer=None), signed(claims(aud="other")))


@pytest.mark.parametrize("leeway", [0.0, 30.0])
def test_leeway(leeway: float) -> None:
    """Clocks may differ by JWT_LEEWAY_SECONDS, to the moment, in both directions."""
    checked = verifier(leeway_seconds=leeway)
    assert is_taken(checked, signed(claims(exp=NOW - leeway + 0.001)))
    assert not is_taken(checked, signed(claims(exp=NOW - leeway)))
    assert is_taken(checked, signed(claims(nbf=NOW + leeway)))
    assert not is_taken(checked, signed(claims(nbf=NOW + leeway + 0.001)))


def test_the_header_chooses_among_the_keys() -> None:
    """`kid` selects the keys of its name; those without one are tried with any; without `kid`
    all are. What else the header says is ignored.
    """
    checked = verifier()
    named = Signer(NAMED.encode(), forger().victim.rsa, {}, forger().victim.ed)
    assert is_taken(checked, named.token("HS256", claims(), {"kid": "k1"}))
    assert is_taken(checked, named.token("HS256", claims()))
    assert not is_taken(checked, named.token("HS256", claims(), {"kid": "k2"}))
    assert is_taken(checked, signed(claims(), kid="of-the-issuer"))
    assert is_taken(checked, signed(claims(), jku="http://127.0.0.1:1/", x5c=["x"], typ="at+jwt"))
    assert is_taken(checked, signed(claims(), b64=True))


def test_only_so_many_keys_are_tried() -> None:
    """Who has no good token can't make the worker try keys without end."""
    tried = []

    class Counting(TokenVerifier):
        def _payload(self, token: str, key: TokenKey) -> bytes | None:
            tried.append(key)
            return super()._payload(token, key)

    keys = tuple(TokenKey.of_secret(f"{number:040}") for number in range(100))
    checked = Counting(KeyRing(keys, frozenset({"HS256"})), clock=lambda: NOW)
    assert not is_taken(checked, signed(claims()))
    assert len(tried) == MAX_TRIES


def test_the_largest_token() -> None:
    """8192 characters are taken, one more is not."""
    shortest = len(signed(claims(more="")))
    for padding in range((MAX_TOKEN_CHARACTERS - shortest) * 3 // 4 - 6, 10_000):
        token = signed(claims(more="x" * padding))
        assert is_taken(verifier(), token) == (len(token) <= MAX_TOKEN_CHARACTERS)
        if len(token) > MAX_TOKEN_CHARACTERS:
            return
    pytest.fail("no token was large enough")


# --------------------------------------------------------------------------------------- refusals


def test_an_expired_token_is_told_apart() -> None:
    """Who had a good token learns that it expired; of all else the reason is not told."""
    with pytest.raises(ExpiredCredential) as expired:
        verifier().verify(signed(claims(exp=NOW - 3600)))
    assert expired.value.code == "expired_credential"
    details = set()
    for bad in (
        signed(claims(exp=NOW - 3600, aud="other")),
        signed(claims(exp=NOW - 3600, nbf=NOW + 3600)),
        signed(claims(exp=NOW - 3600, sub=7)),
        forger().stranger.token("HS256", claims(exp=NOW - 3600)),
        forger().stranger.token("RS256", claims()),
        signed(claims(), kid=1),
        signed(claims_but("exp")),
        "no token",
        "",
    ):
        with pytest.raises(BadCredential) as raised:
            verifier().verify(bad)
        assert type(raised.value) is BadCredential
        assert raised.value.__suppress_context__, "the cause isn't shown either"
        details.add((str(raised.value), raised.value.detail, raised.value.fix))
    assert details == {(REFUSED, REFUSED, BadCredential.fix)}


def test_the_reason_is_logged_for_the_operator(caplog: pytest.LogCaptureFixture) -> None:
    """With LOG_LEVEL=debug the log tells why, without the token or a key."""
    caplog.set_level(logging.DEBUG, "pushline.tokens")
    token = signed(claims(aud="other"))
    assert not is_taken(verifier(), token)
    assert "aud is not JWT_AUDIENCE" in caplog.text
    for group, _, forged in forgeries()[::50]:
        is_taken(verifier(), forged)
        assert len(forged) < 20 or forged not in caplog.text, group
    for secret in (token, NAMED, forger().victim.secret.decode()):
        assert secret not in caplog.text
    assert max(len(line) for line in caplog.text.splitlines()) < 300


def test_refusing_is_quick() -> None:
    """No forgery keeps the worker busy for long; generous, as the machine may be."""
    checked = verifier()
    worst = 0.0
    for _, _, token in forgeries()[::7]:
        began = time.process_time()
        is_taken(checked, token)
        worst = max(worst, time.process_time() - began)
    print(f"slowest refusal {worst * 1000:.1f} ms")
    assert worst < 0.5


# --------------------------------------------------------------------------------------- settings


def test_a_verifier_of_the_settings() -> None:
    """JWT_ settings make a verifier; without them there is none."""
    assert TokenVerifier.of_settings(Settings.from_environ({})) is None
    environ = {
        "JWT_SECRET": "s" * 32,
        "JWT_ISSUER": "me",
        "JWT_AUDIENCE": "you",
        "JWT_LEEWAY_SECONDS": "0",
    }
    made = TokenVerifier.of_settings(Settings.from_environ(environ))
    assert made is not None
    said = {"exp": time.time() + 60, "iss": "me", "aud": "you", "sub": "ana"}
    assert made.verify(jwt.encode(said, "s" * 32)).user == "ana"
    for wrong in ({"iss": "x"}, {"aud": "x"}, {"exp": time.time() - 0.1}):
        assert not is_taken(made, jwt.encode(said | wrong, "s" * 32))
    with pytest.raises(ConfigError, match="JWT_ALGORITHMS"):
        TokenVerifier.of_settings(Settings.from_environ(environ | {"JWT_ALGORITHMS": "RS256"}))


def test_all_kinds_of_keys_at_once() -> None:
    """Several secrets and several public keys, all algorithms: each of them counts."""
    signer = forger().victim
    made = TokenVerifier.of_settings(
        Settings.from_environ(
            {
                "JWT_SECRET": f"k1:{NAMED},old:{'o' * 64}",
                "JWT_PUBLIC_KEY": "".join(signer.pems()).replace("\n", "\\n"),
                "JWT_ALGORITHMS": " ".join(ALGORITHMS),
            }
        )
    )
    assert made is not None
    named = Signer(NAMED.encode(), signer.rsa, signer.curves, signer.ed)
    said = json.loads(json.dumps(claims(exp=time.time() + 60, iat=0, nbf=0)))
    make: Callable[..., str] = named.token
    for algorithm in ALGORITHMS:
        assert made.verify(make(algorithm, said)).user == "ana"
        assert made.verify(make(algorithm, said, {"kid": "k1"})).user == "ana"
