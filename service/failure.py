"""The base of all errors: what the answer to one tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self


class PushlineError(Exception):
    """Base of all; `detail` says what happened, `fix` how to mend it."""

    status = 500
    code = "internal"
    title = "The service failed"
    fix = ""
    retry_after_seconds: int | None = None
    challenge: str | None = None
    """What WWW-Authenticate says, which every 401 has (RFC 9110, section 11.6.1)."""
    published: Sequence[str | None] = ()
    """Of a publish: the id of each event that went out all the same, None for each other one."""

    def __init__(self, detail: str = "", *, fix: str | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.members: dict[str, object] = {}
        """More members of the problem document (RFC 9457, section 3.2)."""
        if fix is not None:
            self.fix = fix

    def again(self) -> Self:
        """The same error for somebody else, who may add to it."""
        other = self.__class__.__new__(self.__class__, *self.args)
        other.__dict__.update(self.__dict__, members=dict(self.members))
        return other
