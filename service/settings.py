"""All settings: one frozen object, read once from the environment and checked at start."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from service.access_settings import AccessSettings
from service.errors import ConfigError
from service.setting_fields import read, setting
from service.setting_rules import (
    channel_pattern,
    checked_redis_url,
    cors_origin,
    history_rule,
    listed,
    matching,
    number,
    one_of,
    switch,
    whole,
    without_credentials,
)

RESERVED_FILES = 1000
"""File descriptors of a worker that are kept from streams: requests in flight, Redis, logs."""

MOST_FILES = 1_048_576
"""Where the file limit is endless or absurd, streams are planned for this many."""

TELLING_SECONDS = 30
"""For how long workers may try to tell a change of presence again: it must stay one event."""

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, kw_only=True)
class Settings(AccessSettings):
    """Every setting with its default; `from_environ` reads and checks them.

    Units stand in the names. Constructors get the few values that they need, never this object.
    """

    host: str = setting(
        "HOST",
        "127.0.0.1",
        matching(r"[^\s/\[\]]+", "an address or a host name, without brackets"),
        "address to listen on",
    )
    port: int = setting("PORT", 8000, whole(1, 65535), "port to listen on")
    workers: int = setting("WEB_CONCURRENCY", 1, whole(1, 256), "worker processes")
    keepalive_seconds: int = setting(
        "KEEPALIVE_SECONDS",
        15,
        whole(1, 300),
        "how long an idle connection stays open between requests; 95 on Heroku",
    )
    redis_url: str | None = setting(
        "REDIS_URL",
        None,
        (checked_redis_url, "redis://, rediss://, unix:// or redis+sentinel://, without a query"),
        "Redis or Valkey; without it `serve` starts a private Valkey",
        secret=True,
        shown=without_credentials,
    )
    redis_tls_verify: bool = setting(
        "REDIS_TLS_VERIFY", True, switch(), "0 accepts any certificate of a rediss:// server"
    )
    redis_pool: int = setting(
        "REDIS_POOL", 3, whole(1, 1000), "command connections to Redis of each worker"
    )
    channel_prefix: str = setting(
        "CHANNEL_PREFIX",
        "pushline:",
        matching(r"[A-Za-z0-9_.:-]{0,64}", "up to 64 of A-Z a-z 0-9 _ . : -"),
        "before Redis channels and keys; empty to share channels with flask-sse",
        empty=True,
    )
    history_events: int = setting(
        "HISTORY_EVENTS", 1000, whole(0, 1_000_000), "events that each channel keeps; 0: none"
    )
    history_seconds: int = setting(
        "HISTORY_SECONDS",
        86_400,
        whole(1, 31_536_000),
        "how long a channel keeps them after its last event",
    )
    history_rules: tuple[tuple[str, int, int], ...] = setting(
        "HISTORY_RULES",
        (),
        listed(history_rule, "pattern=events/seconds, such as orders.*=100/3600"),
        "other numbers for the channels that a pattern selects; the first one counts",
    )
    replay_events: int = setting(
        "REPLAY_EVENTS", 10_000, whole(1, 1_000_000), "events replayed to one stream at most"
    )
    replay_bytes: int = setting(
        "REPLAY_BYTES",
        8_388_608,
        whole(1024, 1_073_741_824),
        "bytes of events replayed to one stream at most",
    )
    idempotency_seconds: int = setting(
        "IDEMPOTENCY_SECONDS", 300, whole(1, 86_400), "how long an Idempotency-Key is remembered"
    )
    heartbeat_seconds: float = setting(
        "HEARTBEAT_SECONDS", 15.0, number(0.5, 50), "longest silence on a stream"
    )
    retry_milliseconds: int = setting(
        "RETRY_MILLISECONDS",
        2000,
        whole(100, 600_000),
        "how long a client waits before it reconnects; jittered",
    )
    max_connections: int = setting(
        "MAX_CONNECTIONS", 0, whole(0, 1_000_000), "streams of a worker; 0: from the file limit"
    )
    max_connections_per_ip: int = setting(
        "MAX_CONNECTIONS_PER_IP",
        100,
        whole(0, 1_000_000),
        "streams of a worker from one address (IPv6: one /64); 0: no limit",
    )
    max_connections_per_user: int = setting(
        "MAX_CONNECTIONS_PER_USER",
        20,
        whole(0, 1_000_000),
        "streams of a worker with tokens of one user (`sub`); 0: no limit",
    )
    max_connects_per_second_per_ip: int = setting(
        "MAX_CONNECTS_PER_SECOND_PER_IP",
        20,
        whole(0, 1_000_000),
        "streams, tickets, histories and counts that one address may ask for a second, twice that"
        " at once; 0: no limit",
    )
    max_publishes_per_second: int = setting(
        "MAX_PUBLISHES_PER_SECOND",
        0,
        whole(0, 1_000_000),
        "events that one credential may publish a second, twice that at once; 0: no limit",
    )
    max_channels_per_stream: int = setting(
        "MAX_CHANNELS_PER_STREAM", 64, whole(1, 1000), "channels that one stream may name"
    )
    max_event_bytes: int = setting(
        "MAX_EVENT_BYTES", 262_144, whole(1, 16_777_216), "size of an event's data in UTF-8"
    )
    outbox_bytes: int = setting(
        "OUTBOX_BYTES",
        262_144,
        whole(1024, 1_073_741_824),
        "unsent bytes beyond which a slow stream is closed",
    )
    send_timeout_seconds: float = setting(
        "SEND_TIMEOUT_SECONDS", 10.0, number(0.5, 300), "how long a stream may take nothing"
    )
    compress_min_bytes: int = setting(
        "COMPRESS_MIN_BYTES",
        256,
        whole(0, 1_048_576),
        "least bytes that are compressed for streams which accept gzip; 0: no gzip",
    )
    drain_seconds: float = setting(
        "DRAIN_SECONDS", 10.0, number(0, 600), "over how long a stopping worker ends its streams"
    )
    presence_channels: tuple[str, ...] = setting(
        "PRESENCE_CHANNELS",
        (),
        listed(channel_pattern, "channel names; * in them stands for anything"),
        "channels of which it is told who is there",
    )
    presence_grace_seconds: float = setting(
        "PRESENCE_GRACE_SECONDS",
        5.0,
        number(1.5, 300),
        "how long somebody without a stream is still there",
    )
    cors_origins: tuple[str, ...] = setting(
        "CORS_ORIGINS",
        (),
        listed(cors_origin, "origins such as https://example.com, or * for streams"),
        "pages of other origins that may stream and publish",
    )
    trusted_proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = setting(
        "TRUSTED_PROXIES",
        (),
        listed(ipaddress.ip_network, "networks such as 10.0.0.0/8"),
        "proxies whose X-Forwarded-For and X-Request-Id are believed",
    )
    log_level: str = setting(
        "LOG_LEVEL", "info", one_of("debug", "info", "warning", "error"), "least level logged"
    )
    log_format: str = setting(
        "LOG_FORMAT",
        "auto",
        one_of("auto", "text", "json"),
        "auto: text on a terminal, else json",
    )
    embedded: bool = setting(
        "PUSHLINE_EMBEDDED", False, switch(), "set by `serve` when it started its own Valkey"
    )
    metrics_slot: int | None = setting(
        "PUSHLINE_METRICS_SLOT",
        None,
        whole(0, 65_535),
        "set for each worker of gunicorn: which of the shared files of metrics are its own",
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read every setting from `environ` (by default the process's own).

        A missing or empty one has its default. Secrets may come from files: JWT_SECRET_FILE.

        Raises ConfigError, one line with key, value and the accepted range; secrets aren't shown.
        """
        values = read(dataclasses.fields(cls), os.environ if environ is None else environ)
        if not values.get("max_connections"):
            values["max_connections"] = streams_that_fit()
        return cls(**values)

    @property
    def local(self) -> bool:
        """Local mode: a private Valkey and a loopback bind, so only this machine gets in."""
        return self.embedded and self.host in LOOPBACK_HOSTS

    @property
    def bind(self) -> str:
        """Where gunicorn listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def public_patterns(self) -> tuple[str, ...]:
        """The channels that anyone may stream."""
        return self.public_channels or (("*",) if self.local else ())

    @property
    def json_logs(self) -> bool:
        """Whether log lines are JSON objects."""
        if self.log_format == "auto":
            return not sys.stderr.isatty()
        return self.log_format == "json"

    def check_can_serve(self) -> None:
        """Raise ConfigError when a service must not start like this (DESIGN section 8)."""
        if self.redis_url is None:
            raise ConfigError(
                "REDIS_URL is not set: set it to a Redis or Valkey URL,"
                " or start a private one with `python -m service serve`"
            )
        self.check_publishing()
        if self.presence_channels and self.idempotency_seconds < TELLING_SECONDS:
            raise ConfigError(
                f"IDEMPOTENCY_SECONDS={self.idempotency_seconds} is too short"
                f" for PRESENCE_CHANNELS: set it to {TELLING_SECONDS} or more"
            )

    def check_publishing(self) -> None:
        """Raise ConfigError in production when nobody has said who may publish."""
        if not (self.local or self.publish_open or self.has_credentials):
            raise ConfigError(
                "nobody could publish: set PUBLISH_KEYS (`python -m service keys` makes one),"
                " JWT_SECRET, JWT_PUBLIC_KEY or JWT_JWKS_URL, or PUBLISH_OPEN=1 for anyone"
            )


def streams_that_fit() -> int:
    """How many streams the file limit of a process leaves room for."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = hard if hard != resource.RLIM_INFINITY else MOST_FILES
    return max(64, min(limit, MOST_FILES) - RESERVED_FILES)


def raise_file_limit() -> None:
    """Lift this process's soft file limit to the hard one; each stream is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def process_environ() -> dict[str, str]:
    """A copy of this process's environment."""
    return dict(os.environ)
