"""Grants: what a token's claims allow, and what is no grant at all."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from service.grants import MAX_PATTERNS, Grant, selector, selects


def test_a_grant_covers_what_its_patterns_select() -> None:
    """Publishing and streaming are apart; a pattern selects whole names, case counts."""
    grant = Grant(publish=("orders.*",), subscribe=("news", "orders.*"))
    assert grant.may_publish("orders.1.paid")
    assert not grant.may_publish("news")
    assert grant.may_subscribe("news")
    assert not grant.may_subscribe("news2")
    assert not grant.may_subscribe("News")
    assert not grant.may_publish("x.orders.1")


def test_nobody_may_do_anything() -> None:
    """Without a word there is no right."""
    grant = Grant()
    assert not grant.may_publish("a")
    assert not grant.may_subscribe("a")
    assert not grant.admin
    assert (grant.user, grant.credential, grant.expires_at) == ("", "", None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        grant.admin = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("patterns", "channel", "selected"),
    [
        (["*"], "anything:at-all", True),
        (["a", "b.*"], "b.", True),
        (["b.*"], "b", False),
        (["*.end"], "a.b.end", True),
        (["a.b"], "axb", False),
        ([], "a", False),
    ],
)
def test_patterns(patterns: list[str], channel: str, selected: bool) -> None:
    """Any one pattern is enough; a dot is a dot."""
    assert selects(patterns, channel) is selected


@pytest.mark.parametrize("name", ["a", "a.b", "b.c", "ab", "x", "a.b.c", "$sys"])
def test_a_selector_selects_the_same(name: str) -> None:
    """Patterns that are made ready for many channels select what they select one by one."""
    for patterns in ([], ["a"], ["a.*", "x"], ["*.c", "ab"], ["*"], ["a", "b.*.c", "a*b"]):
        assert selector(patterns)(name) == selects(patterns, name)


def test_a_grant_is_read_from_claims() -> None:
    """All of a token that counts: rights, user, and the end of them."""
    said = {"publish": ["a.*"], "subscribe": ["b"], "admin": True, "future": 1}
    grant = Grant.of_claims({"pushline": said, "sub": "ana", "exp": 12, "iat": 1})
    assert grant == Grant(("a.*",), ("b",), True, "ana", "", 12.0)


def test_mercures_claim_is_taken_too() -> None:
    """`mercure` has the same shape, counts without `pushline` only, and its URLs grant nothing."""
    said = {"publish": ["a", "https://example.com/{id}"], "subscribe": ["*"]}
    assert Grant.of_claims({"mercure": said}) == Grant(("a",), ("*",))
    assert Grant.of_claims({"mercure": said, "pushline": {}}) == Grant()
    assert Grant.of_claims({}) == Grant()


@pytest.mark.parametrize(
    "claims",
    [
        {"pushline": []},
        {"pushline": None},
        {"pushline": "publish"},
        {"pushline": {"publish": "*"}},
        {"pushline": {"publish": {"*": True}}},
        {"pushline": {"subscribe": ["a", 1]}},
        {"pushline": {"subscribe": [["a"]]}},
        {"pushline": {"subscribe": None}},
        {"pushline": {"admin": 1}},
        {"pushline": {"admin": "true"}},
        {"pushline": {"publish": ["a"] * (MAX_PATTERNS + 1)}},
        {"sub": 7},
        {"sub": None},
        {"sub": ["ana"]},
        {"exp": "soon"},
        {"exp": [1]},
        {"exp": 10**400},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"mercure": 1, "sub": "x"},
    ],
)
def test_what_is_no_grant_is_refused(claims: dict[str, Any]) -> None:
    """A claim of another shape is an error, never half a grant."""
    with pytest.raises(ValueError, match=r"."):
        Grant.of_claims(claims)


def test_many_patterns_are_taken() -> None:
    """Up to the limit, all of them count."""
    grant = Grant.of_claims({"pushline": {"publish": [f"c{n}" for n in range(MAX_PATTERNS)]}})
    assert grant.may_publish(f"c{MAX_PATTERNS - 1}")
