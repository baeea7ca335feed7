"""What a credential allows: channels to publish to and to stream, and for how long."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.channels import SYS, ChannelPattern
from service.event import EventId

CLAIMS = ("pushline", "mercure")
"""Claims of a token that hold its grant; the first one counts. Mercure's has the same shape."""

MAX_PATTERNS = 1000
"""Patterns that one list of a grant may have."""

MAX_USER_LETTERS = 256
"""Longest user."""

MAX_INFO_BYTES = 1024
"""Longest `info` about a user, as JSON in UTF-8: every list of users has it."""

_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line separators and halves of surrogate pairs: no user has them."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Patterns of channels that may be published to and streamed, until a time if any.

    `user` is whose streams count together. `credential` names the credential itself, without giving
    it away; both are empty where nobody has said who it is. `payer` is whose publishes count
    together. `expires_at` is in seconds since 1970. `as_of` is an id that Redis's clock had already
    reached when this was granted, where closing the user's streams is to end it too. `info` is JSON
    for those who may see who is on a channel, or empty.
    """

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    admin: bool = False
    user: str = ""
    credential: str = ""
    expires_at: float | None = None
    payer: str = field(default="", compare=False)
    as_of: EventId | None = field(default=None, compare=False)
    info: str = field(default="", compare=False)

    def may_publish(self, channel: str) -> bool:
        """Whether `channel` may be published to."""
        return selects(self.publish, channel)

    def may_subscribe(self, channel: str) -> bool:
        """Whether `channel` may be streamed, with its private events.

        No pattern selects `$sys`, but a ticket may be for it, and for nothing else then.
        """
        of_ticket = self.subscribe == (SYS,)
        if channel == SYS:
            return self.admin or of_ticket
        return not of_ticket and selects(self.subscribe, channel)

    @classmethod
    def of_claims(cls, claims: Mapping[str, Any]) -> Grant:
        """The grant in a token's claims; raises ValueError when it has not the shape of one.

        A pattern that no channel name can match, such as Mercure's topic URLs, grants nothing.
        """
        said: Any = next((claims[name] for name in CLAIMS if name in claims), {})
        if not isinstance(said, dict):
            raise ValueError("the grant is not an object")
        admin, subject, expires_at = (
            said.get("admin", False),
            claims.get("sub", ""),
            claims.get("exp"),
        )
        if type(admin) is not bool or not isinstance(subject, str):
            raise ValueError("admin is not a truth value, or sub not a string")
        return cls(
            publish=_patterns(said.get("publish", [])),
            subscribe=_patterns(said.get("subscribe", [])),
            admin=admin,
            user=subject,
            expires_at=_moment(expires_at),
            info=_info(said.get("info")),
        )


def selects(patterns: Iterable[str], channel: str) -> bool:
    """Whether any of `patterns` selects `channel`."""
    return any(_compiled(pattern).matches(channel) for pattern in patterns)


def selector(patterns: Sequence[str]) -> Callable[[str], bool]:
    """The same, made ready for many channels: only patterns with a star are tried one by one."""
    names = {pattern for pattern in patterns if "*" not in pattern}
    matches = [_compiled(pattern).matches for pattern in patterns if "*" in pattern]
    return lambda channel: channel in names or any(matching(channel) for matching in matches)


def check_subject(user: str) -> None:
    """Raise ValueError for a user that is too long, or unfit for logs."""
    if len(user) > MAX_USER_LETTERS or _UNFIT.search(user):
        raise ValueError("its sub is too long, or has control characters")


def _info(said: Any) -> str:
    if said is None:
        return ""
    text = json.dumps(said, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if len(text.encode()) > MAX_INFO_BYTES:
        raise ValueError(f"info has over {MAX_INFO_BYTES} bytes")
    return text


def _moment(said: Any) -> float | None:
    if said is None:
        return None
    try:
        moment = float(said)
    except (TypeError, OverflowError) as error:
        raise ValueError("exp is no number of seconds") from error
    if not math.isfinite(moment):
        raise ValueError("exp is no time that comes")
    return moment


def _patterns(said: Any) -> tuple[str, ...]:
    if not isinstance(said, list) or not all(isinstance(one, str) for one in said):
        raise ValueError("a grant is not a list of patterns")
    if len(said) > MAX_PATTERNS:
        raise ValueError(f"a grant lists {len(said)} patterns")
    return tuple(one for one in said if _is_pattern(one))


def _is_pattern(text: str) -> bool:
    try:
        _compiled(text)
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=10_000)
def _compiled(pattern: str) -> ChannelPattern:
    return ChannelPattern(pattern)
