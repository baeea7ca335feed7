"""All settings: one frozen object, read once from the environment and checked at start."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.errors import ConfigError
from service.setting_rules import (
    Rule,
    checked_redis_url,
    cors_origin,
    history_rule,
    listed,
    matching,
    number,
    one_of,
    switch,
    whole,
)

RESERVED_FILES = 1000
"""File descriptors of a worker that are kept from streams: requests in flight, Redis, logs."""

MOST_FILES = 1_048_576
"""Where the file limit is endless or absurd, streams are planned for this many."""

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


def _setting(env: str, default: Any, rule: Rule, meaning: str) -> Any:
    parse, accepts = rule
    metadata = {"env": env, "parse": parse, "accepts": accepts, "meaning": meaning}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting with its default; `from_environ` reads and checks them.

    Units stand in the names. Constructors get the few values that they need, never this object.
    """

    host: str = _setting(
        "HOST",
        "127.0.0.1",
        matching(r"[^\s/\[\]]+", "an address or a host name, without brackets"),
        "address to listen on",
    )
    port: int = _setting("PORT", 8000, whole(1, 65535), "port to listen on")
    workers: int = _setting("WEB_CONCURRENCY", 1, whole(1, 256), "worker processes")
    keepalive_seconds: int = _setting(
        "KEEPALIVE_SECONDS",
        15,
        whole(1, 300),
        "how long an idle connection stays open between requests; 95 on Heroku",
    )
    redis_url: str | None = _setting(
        "REDIS_URL",
        None,
        (checked_redis_url, "redis://, rediss://, unix:// or redis+sentinel://, without a query"),
        "Redis or Valkey; without it `serve` starts a private Valkey",
    )
    redis_tls_verify: bool = _setting(
        "REDIS_TLS_VERIFY", True, switch(), "0 accepts any certificate of a rediss:// server"
    )
    redis_pool: int = _setting(
        "REDIS_POOL", 3, whole(1, 1000), "command connections to Redis of each worker"
    )
    channel_prefix: str = _setting(
        "CHANNEL_PREFIX",
        "pushline:",
        matching(r"[A-Za-z0-9_.:-]{0,64}", "up to 64 of A-Z a-z 0-9 _ . : -"),
        "before Redis channels and keys; empty to share channels with flask-sse",
    )
    history_events: int = _setting(
        "HISTORY_EVENTS", 1000, whole(0, 1_000_000), "events that each channel keeps; 0: none"
    )
    history_seconds: int = _setting(
        "HISTORY_SECONDS",
        86_400,
        whole(1, 31_536_000),
        "how long a channel keeps them after its last event",
    )
    history_rules: tuple[tuple[str, int, int], ...] = _setting(
        "HISTORY_RULES",
        (),
        listed(history_rule, "pattern=events/seconds, such as orders.*=100/3600"),
        "other numbers for the channels that a pattern selects; the first one counts",
    )
    replay_events: int = _setting(
        "REPLAY_EVENTS", 10_000, whole(1, 1_000_000), "events replayed to one stream at most"
    )
    replay_bytes: int = _setting(
        "REPLAY_BYTES",
        8_388_608,
        whole(1024, 1_073_741_824),
        "bytes of events replayed to one stream at most",
    )
    idempotency_seconds: int = _setting(
        "IDEMPOTENCY_SECONDS", 300, whole(1, 86_400), "how long an Idempotency-Key is remembered"
    )
    heartbeat_seconds: float = _setting(
        "HEARTBEAT_SECONDS", 15.0, number(0.5, 50), "longest silence on a stream"
    )
    retry_milliseconds: int = _setting(
        "RETRY_MILLISECONDS",
        2000,
        whole(100, 600_000),
        "how long a client waits before it reconnects; jittered",
    )
    max_connections: int = _setting(
        "MAX_CONNECTIONS", 0, whole(0, 1_000_000), "streams of a worker; 0: from the file limit"
    )
    max_connections_per_ip: int = _setting(
        "MAX_CONNECTIONS_PER_IP",
        100,
        whole(0, 1_000_000),
        "streams of a worker from one address (IPv6: one /64); 0: no limit",
    )
    max_channels_per_stream: int = _setting(
        "MAX_CHANNELS_PER_STREAM", 64, whole(1, 1000), "channels that one stream may name"
    )
    max_event_bytes: int = _setting(
        "MAX_EVENT_BYTES", 262_144, whole(1, 16_777_216), "size of an event's data in UTF-8"
    )
    outbox_bytes: int = _setting(
        "OUTBOX_BYTES",
        262_144,
        whole(1024, 1_073_741_824),
        "unsent bytes beyond which a slow stream is closed",
    )
    send_timeout_seconds: float = _setting(
        "SEND_TIMEOUT_SECONDS", 10.0, number(0.5, 300), "how long a stream may take nothing"
    )
    drain_seconds: float = _setting(
        "DRAIN_SECONDS", 10.0, number(0, 600), "over how long a stopping worker ends its streams"
    )
    publish_open: bool = _setting(
        "PUBLISH_OPEN", False, switch(), "1 lets anyone who reaches the service publish"
    )
    cors_origins: tuple[str, ...] = _setting(
        "CORS_ORIGINS",
        (),
        listed(cors_origin, "origins such as https://example.com, or * for streams"),
        "pages of other origins that may stream and publish",
    )
    trusted_proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = _setting(
        "TRUSTED_PROXIES",
        (),
        listed(ipaddress.ip_network, "networks such as 10.0.0.0/8"),
        "proxies whose X-Forwarded-For is believed",
    )
    log_level: str = _setting(
        "LOG_LEVEL", "info", one_of("debug", "info", "warning", "error"), "least level logged"
    )
    log_format: str = _setting(
        "LOG_FORMAT",
        "auto",
        one_of("auto", "text", "json"),
        "auto: text on a terminal, else json",
    )
    embedded: bool = _setting(
        "PUSHLINE_EMBEDDED", False, switch(), "set by `serve` when it started its own Valkey"
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read every setting from `environ` (by default the process's own).

        A missing or empty one has its default.

        Raises ConfigError, one line with key, value and the accepted range.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for spec in dataclasses.fields(cls):
            text = environ.get(spec.metadata["env"], "")
            if text == "" and spec.name != "channel_prefix":
                continue
            if text == "" and spec.metadata["env"] not in environ:
                continue
            values[spec.name] = _parsed(spec, text)
        if not values.get("max_connections"):
            values["max_connections"] = streams_that_fit()
        return cls(**values)

    @property
    def local(self) -> bool:
        """Local mode: a private Valkey and a loopback bind, so only this machine gets in."""
        return self.embedded and self.host in LOOPBACK_HOSTS

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

    def check_publishing(self) -> None:
        """Raise ConfigError when anyone could publish and nobody has said that this is meant."""
        if not self.local and not self.publish_open:
            raise ConfigError(
                "anyone could publish: set PUBLISH_OPEN=1 to allow that,"
                " or stay on 127.0.0.1 without REDIS_URL"
            )


def _parsed(spec: dataclasses.Field[Any], text: str) -> Any:
    try:
        return spec.metadata["parse"](text)
    except (ValueError, KeyError):
        env, accepts = spec.metadata["env"], spec.metadata["accepts"]
        shown = _without_password(text) if env == "REDIS_URL" else text
        raise ConfigError(f"{env}={shown!r} can't be used: it takes {accepts}") from None


def _without_password(url: str) -> str:
    return re.sub(r"//.*@", "//***@", url.partition("?")[0])


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
