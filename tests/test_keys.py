"""Publish keys: which are known, what they allow, and that comparing them tells nothing."""

from __future__ import annotations

import hashlib
import hmac
import re

import pytest

from service.grants import Grant
from service.keys import PublishKeys, new_key, new_secret
from service.settings import Settings

FIRST, SECOND, THIRD = "first-key-00000000", "second-key-0000000", "third_key_00000000"


def keys() -> PublishKeys:
    """Three keys: one for everything, one for two patterns, one for nothing else than `log`."""
    text = f"{FIRST}, {SECOND}=orders.*|log\n{THIRD}=log"
    return PublishKeys(Settings.from_environ({"PUBLISH_KEYS": text}).publish_keys)


def test_a_key_grants_publishing_alone() -> None:
    """A key may publish to its channels, and nothing more; it is named without being shown."""
    grant = keys().grant_of(SECOND)
    name = hashlib.sha256(SECOND.encode()).hexdigest()[:12]
    assert grant == Grant(publish=("orders.*", "log"), credential=f"key:{name}")
    assert SECOND not in repr(grant)
    everything = keys().grant_of(FIRST)
    assert everything is not None
    assert everything.publish == ("*",)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "x",
        FIRST[:-1],
        FIRST + "0",
        FIRST.upper(),
        f"{FIRST} ",
        f"{SECOND}=log",
        "first-key-0000000\ufeff",
        "clé",
        "\ud800",
        "0" * 100_000,
    ],
)
def test_unknown_keys_grant_nothing(key: str) -> None:
    """Only the whole key counts, whatever else is sent."""
    assert keys().grant_of(key) is None


def test_a_key_that_comes_twice_has_both_grants() -> None:
    """Two entries of one key add up."""
    grant = PublishKeys([(FIRST, ("a",)), (FIRST, ("b",))]).grant_of(FIRST)
    assert grant is not None
    assert grant.publish == ("a", "b")


def test_no_keys() -> None:
    """Without keys there is nothing to compare with."""
    assert not PublishKeys([])
    assert PublishKeys([]).grant_of(FIRST) is None
    assert keys()


@pytest.mark.parametrize("key", [FIRST, SECOND, THIRD, "unknown"])
def test_every_key_is_compared(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of comparisons, each in constant time, is the same for every key: time tells
    neither which key nearly fits nor how many there are before it.
    """
    compared = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append((len(known), len(given)))
        return known == given

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys().grant_of(key)
    assert compared == [(32, 32)] * 3


def test_new_keys_are_random_and_can_be_used() -> None:
    """A new key or secret is one that the settings take, and no two are the same."""
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    for key in made:
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", key)
        assert Settings.from_environ({"PUBLISH_KEYS": key}).publish_keys == ((key, ("*",)),)
    secret = new_secret()
    assert secret != new_secret()
    assert len(secret.encode()) >= 64
    assert Settings.from_environ({"JWT_SECRET": secret}).jwt_secret == (("", secret),)
