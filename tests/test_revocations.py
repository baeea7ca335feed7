"""Whose streams were closed lately, and what that takes back."""

from __future__ import annotations

import dataclasses

from service.grants import Grant
from service.revocations import SKEW_SECONDS, Revocations

ANA = Grant(subscribe=("a",), user="ana", as_of=1000.0)


def test_what_was_granted_before_is_covered() -> None:
    """A ticket or answer from before is taken back, one from later isn't, nor anybody else's."""
    revocations = Revocations(60)
    assert not revocations.cover(ANA)
    revocations.note("ana", 1005.0)
    assert revocations.cover(ANA)
    assert not revocations.cover(dataclasses.replace(ANA, as_of=1005.0 + SKEW_SECONDS))
    assert not revocations.cover(dataclasses.replace(ANA, user="bob"))


def test_tokens_speak_for_themselves() -> None:
    """What isn't of a certain time, or nobody's, is never covered."""
    revocations = Revocations(60)
    revocations.note("ana", 1005.0)
    revocations.note("", 1005.0)
    assert not revocations.cover(dataclasses.replace(ANA, as_of=None))
    assert not revocations.cover(dataclasses.replace(ANA, user=""))


def test_memory_is_given_back() -> None:
    """Users are forgotten after their time."""
    revocations = Revocations(60)
    for second in range(1000):
        revocations.note(f"user-{second}", float(second))
    assert len(revocations._revoked_at) <= 61
