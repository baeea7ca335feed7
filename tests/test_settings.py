"""Settings: what each takes, what is said about a bad one, and who may start."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from service.errors import ConfigError
from service.setting_fields import MAX_FILE_BYTES
from service.settings import (
    MOST_FILES,
    RESERVED_FILES,
    Settings,
    process_environ,
    raise_file_limit,
    streams_that_fit,
)

PEM = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\nAAAA\n-----END PUBLIC KEY-----"
OTHER_PEM = "-----BEGIN RSA PUBLIC KEY-----\nMIIB\n-----END RSA PUBLIC KEY-----"
KEY = "a-key-of-16-or-more"
SECRETS = {
    "REDIS_URL": "redis://user:hunter2@h:1/0",
    "PUBLISH_KEYS": f"{KEY}=a.*",
    "JWT_SECRET": "a secret".replace(" ", "-") * 4,
    "JWT_PUBLIC_KEY": PEM,
    "METRICS_TOKEN": "hunter2-reads-metrics",
}
"""A good value of each secret."""


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
    assert (settings.publish_keys, settings.jwt_secret, settings.jwt_public_key) == ((), (), ())
    assert (settings.jwt_jwks_url, settings.jwt_issuer, settings.jwt_audience) == (None,) * 3
    assert (settings.jwt_leeway_seconds, settings.token_algorithms) == (10, ())
    assert (settings.cookie_name, settings.ticket_seconds) == ("pushline", 60)
    assert (settings.authorize_url, settings.authorize_timeout_seconds) == (None, 3)
    assert (settings.authorize_cache_seconds, settings.public_patterns) == (10, ())
    assert (settings.max_connections_per_user, settings.max_publishes_per_second) == (20, 0)
    assert settings.max_connects_per_second_per_ip == 20
    assert not settings.has_credentials


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
        (
            "PUBLISH_KEYS",
            f" {KEY}, {'b' * 256}=a.*|*:b\n{'C' * 16}=x",
            "publish_keys",
            ((KEY, ("*",)), ("b" * 256, ("a.*", "*:b")), ("C" * 16, ("x",))),
        ),
        (
            "JWT_SECRET",
            f"{'s' * 32},k1:{'t' * 40} :{'u:' * 16}",
            "jwt_secret",
            (("", "s" * 32), ("k1", "t" * 40), ("", "u:" * 16)),
        ),
        ("JWT_SECRET", "é" * 16, "jwt_secret", (("", "é" * 16),)),
        ("JWT_PUBLIC_KEY", PEM, "jwt_public_key", (PEM,)),
        ("JWT_PUBLIC_KEY", PEM.replace("\n", "\\n") + "\\n", "jwt_public_key", (PEM,)),
        ("JWT_PUBLIC_KEY", f"{PEM}\n{OTHER_PEM}\n", "jwt_public_key", (PEM, OTHER_PEM)),
        ("JWT_JWKS_URL", "https://h/keys?x=1", "jwt_jwks_url", "https://h/keys?x=1"),
        ("JWT_JWKS_URL", "http://[::1]:80/k", "jwt_jwks_url", "http://[::1]:80/k"),
        ("JWT_JWKS_URL", "file:///etc/keys", "jwt_jwks_url", "file:///etc/keys"),
        ("JWT_ALGORITHMS", "RS256, EdDSA", "jwt_algorithms", ("RS256", "EdDSA")),
        ("JWT_ISSUER", "https://i.example/", "jwt_issuer", "https://i.example/"),
        ("JWT_AUDIENCE", "pushline", "jwt_audience", "pushline"),
        ("JWT_LEEWAY_SECONDS", "0", "jwt_leeway_seconds", 0),
        ("PUBLIC_CHANNELS", "news, chat.*", "public_channels", ("news", "chat.*")),
        ("COOKIE_NAME", "__Host-pushline", "cookie_name", "__Host-pushline"),
        ("TICKET_SECONDS", "1", "ticket_seconds", 1),
        ("AUTHORIZE_URL", "http://h:8080/may", "authorize_url", "http://h:8080/may"),
        ("AUTHORIZE_URL", "http://127.0.0.1/", "authorize_url", "http://127.0.0.1/"),
        ("AUTHORIZE_URL", "https://A_b.c-d.example.", "authorize_url", "https://A_b.c-d.example."),
        ("AUTHORIZE_TIMEOUT_SECONDS", "0.5", "authorize_timeout_seconds", 0.5),
        ("AUTHORIZE_CACHE_SECONDS", "0", "authorize_cache_seconds", 0),
        ("MAX_CONNECTIONS_PER_USER", "0", "max_connections_per_user", 0),
        ("MAX_CONNECTS_PER_SECOND_PER_IP", "5", "max_connects_per_second_per_ip", 5),
        ("MAX_PUBLISHES_PER_SECOND", "100", "max_publishes_per_second", 100),
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
        ("PRESENCE_GRACE_SECONDS", "1.4", "a number from 1.5 to 300"),
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
        ("JWT_JWKS_URL", "ftp://h/keys", "a URL with https:// or http:// or file://"),
        ("JWT_JWKS_URL", "keys.json", "a URL with"),
        ("JWT_JWKS_URL", "https://", "a URL with"),
        ("JWT_JWKS_URL", "file://host/keys", "a URL with"),
        ("JWT_JWKS_URL", "https://h:99999/", "a URL with"),
        ("JWT_JWKS_URL", "https://h:0/", "a URL with"),
        ("JWT_JWKS_URL", "https://[::1/", "a URL with"),
        ("JWT_JWKS_URL", "https://h/a b", "a URL with"),
        ("JWT_JWKS_URL", "https://h/#key", "a URL with"),
        ("JWT_ALGORITHMS", "none", "some of HS256 HS384"),
        ("JWT_ALGORITHMS", "rs256", "some of HS256 HS384"),
        ("JWT_ALGORITHMS", "RS256 ES256K", "some of HS256 HS384"),
        ("JWT_AUDIENCE", "two words", "a text without spaces"),
        ("JWT_LEEWAY_SECONDS", "31", "a number from 0 to 30"),
        ("JWT_LEEWAY_SECONDS", "-1", "a number from 0 to 30"),
        ("PUBLIC_CHANNELS", "a/b", "channel names"),
        ("PUBLIC_CHANNELS", "https://example.com/{id}", "channel names"),
        ("COOKIE_NAME", "a;b", "A-Z a-z 0-9 _ . -"),
        ("TICKET_SECONDS", "61", "from 1 to 60"),
        ("TICKET_SECONDS", "0", "from 1 to 60"),
        ("AUTHORIZE_URL", "file:///x", "a URL with https:// or http://, without"),
        *(
            (name, text, "a URL with https:// or http://")
            for name in ("AUTHORIZE_URL", "JWT_JWKS_URL")
            for text in (
                *("http://a..b/", "http://.a/", "http://./", f"http://{'a' * 64}.example/"),
                *("http://h:99999/", "http://h:x/", "http://h:0/", "http://:80/", "http:///x"),
                *("http://h,i/", "http://h%2e/", "http://h\\i/", "http://[::g]/", "http://1::2/"),
                *("http://h/\t", "http://h/\xe4", "http://\xe4/", "//h/", "h:80"),
            )
        ),
        ("AUTHORIZE_TIMEOUT_SECONDS", "0", "a number from 0.1 to 60"),
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:p@ss?w/rd@h:x", "redis://***@h:x"),
        ("redis://h:x?password=hunter2", "redis://h:x"),
        ("redis:hunter2@h", "***@h"),
        ("//user:hunter2@h", "***@h"),
        ("REDIS://:hunter2@h:1/0", "***@h:1/0"),
    ],
)
def test_passwords_are_cut_from_any_text(text: str, shown: str) -> None:
    """Also from what is hardly a URL: all up to the last @ may be the password."""
    with pytest.raises(ConfigError) as raised:
        Settings.from_environ({"REDIS_URL": text})
    assert str(raised.value).startswith(f"REDIS_URL={shown!r} can't be used")


@pytest.mark.parametrize("name", ["JWT_JWKS_URL", "AUTHORIZE_URL"])
def test_urls_have_no_password(name: str) -> None:
    """A URL with a password is refused, and shown without it; neither its query is shown."""
    with pytest.raises(ConfigError) as raised:
        Settings.from_environ({name: "https://user:hunter2@h/keys?key=hunter2"})
    assert str(raised.value).startswith(f"{name}='https://***@h/keys' can't be used")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PUBLISH_KEYS", "hunter2"),
        ("PUBLISH_KEYS", "hunter2-hunter2-ü"),
        ("PUBLISH_KEYS", "hunter2" * 40),
        ("PUBLISH_KEYS", "hunter2-hunter2-hunter2=a/b"),
        ("PUBLISH_KEYS", "hunter2-hunter2-hunter2="),
        ("PUBLISH_KEYS", "hunter2-hunter2-hunter2=a||b"),
        ("PUBLISH_KEYS", f"{KEY}, hunter2"),
        ("JWT_SECRET", "hunter2"),
        ("JWT_SECRET", f"hunter2:{'x' * 31}"),
        ("JWT_SECRET", f"{'x' * 32}, hunter2"),
        ("JWT_SECRET", f"hunter2{PEM}"),
        ("JWT_SECRET", PEM.replace("\n", "\\n").replace(" ", "_") + " hunter2"),
        ("JWT_SECRET", "-----BEGIN RSA PRIVATE KEY-----\\nhunter2\\n-----END RSA PRIVATE KEY-----"),
        ("JWT_PUBLIC_KEY", "hunter2"),
        ("JWT_PUBLIC_KEY", f"{PEM} hunter2"),
        ("JWT_PUBLIC_KEY", PEM.replace("END PUBLIC", "END RSA PUBLIC")),
        ("JWT_PUBLIC_KEY", PEM.replace("PUBLIC", "PRIVATE").replace("AAAA", "hunter2")),
        ("JWT_PUBLIC_KEY", PEM + PEM.replace("PUBLIC KEY", "CERTIFICATE")),
    ],
)
def test_a_bad_secret_is_not_shown(name: str, text: str) -> None:
    """The message names the key and what it takes, and has nothing of the value."""
    with pytest.raises(ConfigError) as raised:
        Settings.from_environ({name: text})
    message = str(raised.value)
    assert message.startswith(f"{name} can't be used: it takes ")
    assert raised.value.__suppress_context__
    for part in ("hunter2", KEY, "MCow", "xxx"):
        assert part not in message


def test_settings_do_not_show_secrets() -> None:
    """No log line or traceback that has the settings in it gives a secret away."""
    urls = {"JWT_JWKS_URL": "https://h/k?s=hunter2", "AUTHORIZE_URL": "https://h/a?s=hunter2"}
    settings = Settings.from_environ({**SECRETS, **urls, "JWT_ALGORITHMS": "HS256 EdDSA"})
    assert settings.has_credentials
    for shown in (repr(settings), str(settings), f"{settings}"):
        for secret in ("hunter2", KEY, "a-secret", "MCow"):
            assert secret not in shown
        assert "port=8000" in shown


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_come_from_a_file(name: str, tmp_path: Path) -> None:
    """`<NAME>_FILE` is read instead, white space at its end aside; what is wrong names the key,
    and shows neither the content nor the path, which may be the secret itself.
    """
    path, variable = tmp_path / "hunter2", f"{name}_FILE"
    path.write_text(f"{SECRETS[name]}\n \n")
    expected = Settings.from_environ({name: SECRETS[name]})
    assert Settings.from_environ({variable: str(path)}) == expected
    assert Settings.from_environ({variable: str(path), name: ""}) == expected
    assert Settings.from_environ({variable: "", name: SECRETS[name]}) == expected

    def message(environ: dict[str, str]) -> str:
        with pytest.raises(ConfigError) as raised:
            Settings.from_environ(environ)
        assert "hunter2" not in str(raised.value)
        assert raised.value.__suppress_context__ or raised.value.__context__ is None
        return str(raised.value)

    both = message({variable: str(path), name: SECRETS[name]})
    assert both == f"{name} and {variable} are both set: keep one of them"
    for missing in (f"{path}/x", f"{path}2", str(tmp_path), "hunter2\0"):
        assert message({variable: missing}).startswith(f"the file that {variable} names can't be")
    for content in (b"", b" \n", b"hunter2\xff", b"x" * (MAX_FILE_BYTES + 1)):
        path.write_bytes(content)
        assert message({variable: str(path)}).startswith(f"the file that {variable} names can't be")
    path.write_text("hunter2")
    if name != "REDIS_URL":  # of a bad URL all but the password is shown
        assert message({variable: str(path)}).startswith(f"{name} can't be used")


def test_only_secrets_come_from_files(tmp_path: Path) -> None:
    """PORT_FILE is nothing: only secrets have such a variable, and they are the ones listed."""
    (tmp_path / "port").write_text("1234")
    assert Settings.from_environ({"PORT_FILE": str(tmp_path / "port")}).port == 8000
    secret = {spec.metadata["env"] for spec in dataclasses.fields(Settings) if not spec.repr}
    assert secret == {*SECRETS, "JWT_JWKS_URL", "AUTHORIZE_URL"}


@pytest.mark.parametrize(
    ("changes", "patterns"),
    [
        ({}, ()),
        ({"embedded": True}, ("*",)),
        ({"embedded": True, "host": "0.0.0.0"}, ()),
        ({"embedded": True, "public_channels": ("a",)}, ("a",)),
        ({"public_channels": ("a", "b.*")}, ("a", "b.*")),
    ],
)
def test_what_is_public(changes: dict[str, Any], patterns: tuple[str, ...]) -> None:
    """In local mode all channels are, unless some are named; in production only those."""
    assert Settings(**changes).public_patterns == patterns


@pytest.mark.parametrize(
    ("changes", "algorithms"),
    [
        ({"jwt_secret": (("", "s"),)}, ("HS256",)),
        ({"jwt_secret": (("", "s"),), "jwt_public_key": ("pem",)}, ()),
        ({"jwt_secret": (("", "s"),), "jwt_jwks_url": "https://h"}, ()),
        ({"jwt_secret": (("", "s"),), "jwt_algorithms": ("HS512",)}, ("HS512",)),
        ({"jwt_public_key": ("pem",), "jwt_algorithms": ("RS256", "PS256")}, ("RS256", "PS256")),
    ],
)
def test_hs256_is_taken_for_granted(changes: dict[str, Any], algorithms: tuple[str, ...]) -> None:
    """Only with nothing but secrets; with public keys it must be said."""
    assert Settings(**changes).token_algorithms == algorithms


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
        ({}, "PUBLISH_KEYS (`python -m service keys` makes one)"),
        ({}, "JWT_SECRET, JWT_PUBLIC_KEY or JWT_JWKS_URL"),
        ({}, "PUBLISH_OPEN=1"),
        ({"authorize_url": "https://h"}, "PUBLISH_OPEN=1"),
        ({"public_channels": ("*",)}, "PUBLISH_OPEN=1"),
        ({"publish_keys": ((KEY, ("*",)),)}, None),
        ({"jwt_secret": (("", "s"),), "host": "0.0.0.0"}, None),
        ({"jwt_public_key": ("pem",)}, None),
        ({"jwt_jwks_url": "https://h"}, None),
        ({"redis_url": None, "jwt_jwks_url": "https://h"}, "REDIS_URL is not set"),
        ({"publish_open": True, "idempotency_seconds": 29}, None),
        (
            {"publish_open": True, "idempotency_seconds": 29, "presence_channels": ("*",)},
            "IDEMPOTENCY_SECONDS=29 is too short for PRESENCE_CHANNELS: set it to 30 or more",
        ),
        ({"publish_open": True, "idempotency_seconds": 30, "presence_channels": ("*",)}, None),
        ({"host": "0.0.0.0"}, "PUBLISH_OPEN=1"),
        ({"host": "0.0.0.0", "embedded": True}, "PUBLISH_OPEN=1"),
        ({"publish_open": True}, None),
        ({"embedded": True}, None),
        ({"host": "::1", "embedded": True}, None),
        ({"host": "0.0.0.0", "embedded": True, "publish_open": True}, None),
    ],
)
def test_who_may_start(changes: dict[str, object], problem: str | None) -> None:
    """Production starts with a credential to publish with, or where publishing is said to be
    open; local mode, a private Valkey and a loopback address, starts with neither.
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
