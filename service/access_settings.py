"""The settings of who may publish, and who may stream what."""

from __future__ import annotations

from dataclasses import dataclass

from service.setting_fields import setting
from service.setting_rules import (
    ALGORITHMS,
    algorithm,
    channel_pattern,
    jwt_secret,
    listed,
    matching,
    number,
    pem_blocks,
    publish_key,
    switch,
    url,
    whole,
    without_credentials,
)


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """Credentials, what is open without one, and who else is asked."""

    publish_open: bool = setting(
        "PUBLISH_OPEN", False, switch(), "1 lets anyone who reaches the service publish"
    )
    publish_keys: tuple[tuple[str, tuple[str, ...]], ...] = setting(
        "PUBLISH_KEYS",
        (),
        listed(
            publish_key,
            "keys of 16 to 256 of A-Z a-z 0-9 _ -, each KEY or KEY=pattern, more patterns after"
            " vertical bars",
        ),
        "keys to publish with, and the channels each may publish to",
        secret=True,
    )
    jwt_secret: tuple[tuple[str, str], ...] = setting(
        "JWT_SECRET",
        (),
        listed(jwt_secret, "secrets of at least 32 bytes, each SECRET or KID:SECRET, and no PEM"),
        "secrets that tokens are signed with (HS256, HS384, HS512)",
        secret=True,
    )
    jwt_public_key: tuple[str, ...] = setting(
        "JWT_PUBLIC_KEY",
        (),
        (pem_blocks, "public keys in PEM, with line breaks or \\n between the lines"),
        "public keys that verify tokens; RSA keys have at least 2048 bits",
        secret=True,
    )
    jwt_jwks_url: str | None = setting(
        "JWT_JWKS_URL",
        None,
        url("https", "http", "file"),
        "where the issuer of tokens publishes its keys, a JSON Web Key Set",
        shown=without_credentials,
    )
    jwt_algorithms: tuple[str, ...] = setting(
        "JWT_ALGORITHMS",
        (),
        listed(algorithm, f"some of {' '.join(ALGORITHMS)}"),
        "how tokens may be signed; HS256 when only `JWT_SECRET` is set, else it must be given",
    )
    jwt_issuer: str | None = setting(
        "JWT_ISSUER", None, matching(r"\S{1,512}", "a text without spaces"), "`iss` of every token"
    )
    jwt_audience: str | None = setting(
        "JWT_AUDIENCE",
        None,
        matching(r"\S{1,512}", "a text without spaces"),
        "what `aud` of every token is or contains",
    )
    jwt_leeway_seconds: float = setting(
        "JWT_LEEWAY_SECONDS",
        10.0,
        number(0, 30),
        "how far clocks may differ in `exp`, `nbf` and `iat` of a token",
    )
    public_channels: tuple[str, ...] = setting(
        "PUBLIC_CHANNELS",
        (),
        listed(channel_pattern, "channel names; * in them stands for anything"),
        "channels that anyone may stream; in local mode * unless set",
    )
    cookie_name: str = setting(
        "COOKIE_NAME",
        "pushline",
        matching(r"[A-Za-z0-9_.-]{1,64}", "up to 64 of A-Z a-z 0-9 _ . -"),
        "cookie that may hold the token of a stream",
    )
    ticket_seconds: int = setting(
        "TICKET_SECONDS", 60, whole(1, 60), "how long a ticket can open streams"
    )
    authorize_url: str | None = setting(
        "AUTHORIZE_URL",
        None,
        url("https", "http"),
        "asked which channels a client may stream, when its credential doesn't tell",
        shown=without_credentials,
    )
    authorize_timeout_seconds: float = setting(
        "AUTHORIZE_TIMEOUT_SECONDS", 3.0, number(0.1, 60), "how long `AUTHORIZE_URL` may take"
    )
    authorize_cache_seconds: float = setting(
        "AUTHORIZE_CACHE_SECONDS",
        10.0,
        number(0, 3600),
        "how long its answers are remembered; 0: not at all",
    )

    metrics_token: str | None = setting(
        "METRICS_TOKEN",
        None,
        matching(r"[A-Za-z0-9._~+/=-]{16,256}", "16 to 256 of A-Z a-z 0-9 . _ ~ + / = -"),
        "token that reads `/metrics`; without one it takes a token with the claim admin",
        secret=True,
    )

    @property
    def has_credentials(self) -> bool:
        """Whether there is any credential that a publisher could show."""
        return bool(
            self.publish_keys or self.jwt_secret or self.jwt_public_key or self.jwt_jwks_url
        )

    @property
    def token_algorithms(self) -> tuple[str, ...]:
        """How tokens may be signed; empty when that must be said, or there are no tokens."""
        if self.jwt_algorithms:
            return self.jwt_algorithms
        only_secrets = self.jwt_secret and not (self.jwt_public_key or self.jwt_jwks_url)
        return ("HS256",) if only_secrets else ()
