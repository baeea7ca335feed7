"""Whose streams were closed lately: what somebody was granted before then opens none any more."""

from __future__ import annotations

from service.grants import Grant

SKEW_SECONDS = 1.0
"""How far the clocks of two machines may differ: who is granted anew so soon after waits for it."""


class Revocations:
    """Remembers each user for `keep_seconds`: as long as an old ticket or answer may count."""

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._revoked_at: dict[str, float] = {}

    def note(self, user: str, now: float) -> None:
        """The streams of `user` are closed at `now`, in seconds since 1970."""
        oldest = now - self._keep_seconds
        self._revoked_at = {who: at for who, at in self._revoked_at.items() if at > oldest}
        self._revoked_at[user] = now

    def cover(self, grant: Grant) -> bool:
        """Whether `grant` is what its user was granted before; a token speaks for itself."""
        if grant.as_of is None or not grant.user:
            return False
        return self._revoked_at.get(grant.user, 0.0) > grant.as_of - SKEW_SECONDS
