"""Static keys to publish with, and the making of new ones."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable

from service.grants import Grant


class PublishKeys:
    """The keys of PUBLISH_KEYS; false when there are none."""

    def __init__(self, keys: Iterable[tuple[str, tuple[str, ...]]]) -> None:
        """Take keys with their patterns; a key that comes twice may publish to both's channels."""
        patterns: dict[bytes, tuple[str, ...]] = {}
        for key, more in keys:
            digest = _digest(key)
            patterns[digest] = patterns.get(digest, ()) + more
        self._grants = [
            (digest, Grant(publish=publish, credential=f"key:{digest.hex()[:12]}"))
            for digest, publish in patterns.items()
        ]

    def __bool__(self) -> bool:
        return bool(self._grants)

    def grant_of(self, key: str) -> Grant | None:
        """What `key` allows, or None; the time this takes tells nothing of the keys."""
        digest, found = _digest(key), None
        for known, grant in self._grants:
            if hmac.compare_digest(known, digest):
                found = grant  # all are looked at, whether or not one has matched
        return found


def new_key() -> str:
    """A new key for PUBLISH_KEYS."""
    return secrets.token_urlsafe(32)


def new_secret() -> str:
    """A new JWT_SECRET, long enough for every algorithm."""
    return secrets.token_urlsafe(64)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
