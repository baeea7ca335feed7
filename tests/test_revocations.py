"""Whose streams were closed lately, and what that takes back."""

from __future__ import annotations

import dataclasses

from service.event import EventId
from service.grants import Grant
from service.revocations import Revocations

COMMAND = EventId(1_700_000_000_000, 5)
ANA = Grant(subscribe=("a",), user="ana", as_of=EventId(1_700_000_000_000, 4))


def test_what_was_granted_before_is_covered() -> None:
    """A ticket or answer from before is taken back, one from the command on isn't, in whatever
    millisecond; nor is anybody else's.
    """
    revocations = Revocations(60)
    assert not revocations.cover(ANA)
    revocations.note("ana", COMMAND, 0.0)
    assert revocations.cover(ANA)
    assert not revocations.cover(dataclasses.replace(ANA, as_of=COMMAND))
    assert not revocations.cover(dataclasses.replace(ANA, user="bob"))


def test_commands_count_whatever_their_order() -> None:
    """An older command that comes later takes nothing of a newer one back."""
    revocations = Revocations(60)
    revocations.note("ana", COMMAND, 0.0)
    revocations.note("ana", EventId(1, 0), 1.0)
    assert revocations.cover(ANA)


def test_tokens_speak_for_themselves() -> None:
    """What isn't of a certain time, or nobody's, is never covered."""
    revocations = Revocations(60)
    revocations.note("ana", COMMAND, 0.0)
    revocations.note("", COMMAND, 0.0)
    assert not revocations.cover(dataclasses.replace(ANA, as_of=None))
    assert not revocations.cover(dataclasses.replace(ANA, user=""))


def test_memory_is_given_back() -> None:
    """Users are forgotten after their time."""
    revocations = Revocations(60)
    for second in range(1000):
        revocations.note(f"user-{second}", COMMAND, float(second))
    assert len(revocations._revoked) <= 61
