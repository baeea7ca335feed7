"""Keys and tokens for services that want them; each is noted as a secret that no log may show."""

from __future__ import annotations

import time
from typing import Any

import jwt

from tests.secrets_used import secret

SECRET = secret("the-secret-of-the-tests-which-is-long-enough")
KEY = secret("publish-key-of-the-tests")
LIMITED_KEY = secret("limited-publish-key-of-the-tests")
METRICS_TOKEN = secret("metrics-token-of-the-tests")


def token(
    user: str = "ana",
    *,
    seconds: float = 3600,
    signed_with: str = SECRET,
    claim: str = "pushline",
    **rights: Any,
) -> str:
    """A token of `user` with these rights: lists of patterns `publish` and `subscribe`, `admin`."""
    claims = {"sub": user, "exp": time.time() + seconds, claim: rights}
    return secret(jwt.encode(claims, signed_with, "HS256"))


def bearer(credential: str) -> dict[str, str]:
    """The header that shows it."""
    return {"Authorization": f"Bearer {credential}"}


def cookie(credential: str) -> dict[str, str]:
    """The cookie that shows it, among others."""
    return {"Cookie": f"theme=dark; pushline={credential}; other=1"}
