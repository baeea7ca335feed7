"""Whose streams were closed lately: what somebody was granted before then opens none any more."""

from __future__ import annotations

from service.event import FIRST_ID, EventId
from service.grants import Grant


class Revocations:
    """Remembers each user for `keep_seconds`: as long as an old ticket or answer may count.

    What came first is told by ids of Redis's one clock, so no clocks of machines are compared.
    """

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._revoked: dict[str, tuple[EventId, float]] = {}

    def note(self, user: str, command: EventId, now: float) -> None:
        """The streams of `user` are closed by `command`; `now` is in seconds, of any one clock."""
        oldest = now - self._keep_seconds
        self._revoked = {who: one for who, one in self._revoked.items() if one[1] > oldest}
        self._revoked[user] = max(command, self._last(user)), now

    def cover(self, grant: Grant) -> bool:
        """Whether `grant` is what its user was granted before; a token speaks for itself."""
        if grant.as_of is None or not grant.user:
            return False
        return self._last(grant.user) > grant.as_of

    def _last(self, user: str) -> EventId:
        return self._revoked.get(user, (FIRST_ID, 0.0))[0]
