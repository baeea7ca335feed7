"""Settings: what each takes, what is said about a bad one, and who may start."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
from ipaddress import ip_network

import pytest

from service.errors import ConfigError
from service.settings import (
    MOST_FILES,
    RESERVED_FILES,
    Settings,
    process_environ,
    raise_file_limit,
    streams_that_fit,
)


def test_defaults() -> None:
    """An empty environment gives the documented defaults; streams are as many as files allow."""
    settings = Settings.from_environ({})
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 1)
    assert (settings.channel_prefix, settings.redis_url) == ("pushline:", None)
    assert (settings.heartbeat_seconds, settings.retry_milliseconds) == (15, 2000)
    assert (settings.max_connections_per_ip, settings.max_channels_per_stream) == (100, 64)
    assert (settings.max_event_bytes, settings.outbox_bytes) == (262_144, 262_144)
    assert (settings.send_timeout_seconds, settings.drain_seconds) == (10, 10)
    assert (settings.redis_pool, settings.redis_tls_verify) == (3, True)
    assert (settings.publish_open, settings.embedded, settings.local) == (False, False, False)
    assert (settings.cors_origins, settings.trusted_proxies) == ((), ())
    assert settings.max_connections == streams_that_fit()


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("HOST", "0.0.0.0", "host", "0.0.0.0"),
        ("PORT", "65535", "port", 65535),
        ("WEB_CONCURRENCY", "4", "workers", 4),
        ("KEEPALIVE_SECONDS", "95", "keepalive_seconds", 95),
        ("REDIS_URL", "rediss://:pw@h:1/0", "redis_url", "rediss://:pw@h:1/0"),
        ("REDIS_URL", "unix:///tmp/x.sock", "redis_url", "unix:///tmp/x.sock"),
        ("REDIS_TLS_VERIFY", "0", "redis_tls_verify", False),
        ("CHANNEL_PREFIX", "", "channel_prefix", ""),
        ("CHANNEL_PREFIX", "app1:", "channel_prefix", "app1:"),
        ("HEARTBEAT_SECONDS", "0.5", "heartbeat_seconds", 0.5),
        ("DRAIN_SECONDS", "0", "drain_seconds", 0),
        ("MAX_CONNECTIONS", "5", "max_connections", 5),
        ("MAX_CONNECTIONS_PER_IP", "0", "max_connections_per_ip", 0),
        ("PUBLISH_OPEN", "1", "publish_open", True),
        (
            "CORS_ORIGINS",
            "https://A.example, http://b:8080\n*",
            "cors_origins",
            ("https://a.example", "http://b:8080", "*"),
        ),
        (
            "TRUSTED_PROXIES",
            "10.0.0.0/8,::1",
            "trusted_proxies",
            (ip_network("10.0.0.0/8"), ip_network("::1")),
        ),
        ("LOG_LEVEL", "WARNING", "log_level", "warning"),
        ("LOG_FORMAT", "json", "log_format", "json"),
    ],
)
def test_values_are_read(name: str, text: str, field: str, value: object) -> None:
    """Each variable sets its setting, in its own type."""
    assert getattr(Settings.from_environ({name: text}), field) == value


@pytest.mark.parametrize(
    ("name", "text", "accepts"),
    [
        ("PORT", "eighty", "a whole number from 1 to 65535"),
        ("PORT", "0", "a whole number from 1 to 65535"),
        ("PORT", "65536", "a whole number from 1 to 65535"),
        ("PORT", "80.5", "a whole number from 1 to 65535"),
        ("HOST", "http://x", "an address or a host name"),
        ("WEB_CONCURRENCY", "0", "from 1 to 256"),
        ("HEARTBEAT_SECONDS", "0.1", "a number from 0.5 to 50"),
        ("HEARTBEAT_SECONDS", "nan", "a number from 0.5 to 50"),
        ("HEARTBEAT_SECONDS", "inf", "a number from 0.5 to 50"),
        ("MAX_EVENT_BYTES", "-1", "from 1 to"),
        ("PUBLISH_OPEN", "yes", "0 or 1"),
        ("REDIS_URL", "localhost:6379", "redis://, rediss://, unix:// or redis+sentinel://"),
        ("REDIS_URL", "redis://", "redis://"),
        ("REDIS_URL", "unix://", "unix://"),
        ("REDIS_URL", "redis://h:port", "redis://"),
        ("CHANNEL_PREFIX", "a b", "A-Z a-z 0-9"),
        ("CORS_ORIGINS", "example.com", "https://example.com"),
        ("CORS_ORIGINS", "https://a.example/path", "https://example.com"),
        ("TRUSTED_PROXIES", "10.0.0.1/8", "10.0.0.0/8"),
        ("LOG_LEVEL", "loud", "one of debug, info, warning, error"),
        ("LOG_FORMAT", "xml", "one of auto, text, json"),
    ],
)
def test_bad_values_are_named(name: str, text: str, accepts: str) -> None:
    """A bad value is one line with the key, the value and what is taken."""
    with pytest.raises(ConfigError) as raised:
        Settings.from_environ({name: text})
    message = str(raised.value)
    assert message.startswith(f"{name}={text!r} can't be used: it takes ")
    assert accepts in message
    assert "\n" not in message


def test_a_password_is_never_shown() -> None:
    """A bad Redis address is shown without its password."""
    with pytest.raises(ConfigError) as raised:
        Settings.from_environ({"REDIS_URL": "http://user:s3cret@example.com"})
    assert "s3cret" not in str(raised.value)
    assert "example.com" in str(raised.value)


def test_an_empty_variable_is_a_missing_one() -> None:
    """`PORT=` means the default, as many tools set empty variables."""
    empty = dict.fromkeys([spec.metadata["env"] for spec in dataclasses.fields(Settings)], "")
    assert Settings.from_environ({**empty, "CHANNEL_PREFIX": "pushline:"}) == Settings.from_environ(
        {}
    )


def test_every_setting_is_described() -> None:
    """Every setting says where it comes from, what it takes and what it means; none is twice."""
    specs = dataclasses.fields(Settings)
    for spec in specs:
        assert spec.metadata["env"].isupper()
        assert spec.metadata["accepts"]
        assert spec.metadata["meaning"]
    assert len({spec.metadata["env"] for spec in specs}) == len(specs)


def test_defaults_are_in_their_own_range() -> None:
    """Every default would be accepted if somebody wrote it down."""
    for spec in dataclasses.fields(Settings):
        if isinstance(spec.default, (str, int, float)) and not isinstance(spec.default, bool):
            assert spec.metadata["parse"](str(spec.default)) == spec.default


def test_settings_are_frozen() -> None:
    """Nobody changes a setting while the service runs."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_the_environment_is_the_processes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mapping the process's environment is read; a copy of it can be changed safely."""
    monkeypatch.setenv("PORT", "1234")
    assert Settings.from_environ().port == 1234
    copy = process_environ()
    copy["PORT"] = "1"
    assert os.environ["PORT"] == "1234"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"redis_url": None}, "REDIS_URL is not set"),
        ({"redis_url": None, "publish_open": True}, "REDIS_URL is not set"),
        ({}, "PUBLISH_OPEN=1"),
        ({"host": "0.0.0.0"}, "PUBLISH_OPEN=1"),
        ({"host": "0.0.0.0", "embedded": True}, "PUBLISH_OPEN=1"),
        ({"publish_open": True}, None),
        ({"embedded": True}, None),
        ({"host": "::1", "embedded": True}, None),
        ({"host": "0.0.0.0", "embedded": True, "publish_open": True}, None),
    ],
)
def test_who_may_start(changes: dict[str, object], problem: str | None) -> None:
    """Only local mode, a private Valkey and a loopback address, starts with publishing open
    without anybody having said so.
    """
    values: dict[str, object] = {"redis_url": "redis://127.0.0.1", **changes}
    settings = Settings(**values)  # type: ignore[arg-type]
    if problem is None:
        settings.check_can_serve()
    else:
        with pytest.raises(ConfigError) as raised:
            settings.check_can_serve()
        assert problem in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("log_format", "terminal", "as_json"),
    [("auto", True, False), ("auto", False, True), ("json", True, True), ("text", False, False)],
)
def test_log_format(
    log_format: str, terminal: bool, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default people at a terminal get text, machines JSON."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert Settings(log_format=log_format).json_logs is as_json


class Limits:
    """Stands in for the kernel's limit of open files."""

    def __init__(self, soft: int, hard: int) -> None:
        self.limits = (soft, hard)
        self.set = False

    def getrlimit(self, which: int) -> tuple[int, int]:
        """The limits."""
        return self.limits

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        """Change them."""
        self.limits = limits
        self.set = True


INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "streams", "raised"),
    [
        (1024, 524_288, 523_288, (524_288, 524_288)),
        (1024, 1024, 64, None),
        (1024, 4096, 3096, (4096, 4096)),
        (1024, INFINITE, MOST_FILES - RESERVED_FILES, (MOST_FILES, INFINITE)),
        (1024, 10 * MOST_FILES, MOST_FILES - RESERVED_FILES, (MOST_FILES, 10 * MOST_FILES)),
        (INFINITE, INFINITE, MOST_FILES - RESERVED_FILES, None),
        (4096, 4096, 3096, None),
    ],
)
def test_the_file_limit(
    soft: int,
    hard: int,
    streams: int,
    raised: tuple[int, int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each stream is an open file: as many are planned as the hard limit allows, less what the
    worker itself needs, and the soft limit is lifted to it.
    """
    limits = Limits(soft, hard)
    monkeypatch.setattr(resource, "getrlimit", limits.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", limits.setrlimit)
    assert streams_that_fit() == streams
    raise_file_limit()
    assert (limits.limits if limits.set else None) == raised
