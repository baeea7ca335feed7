"""`doctor` names what is wrong with real set-ups, and finds nothing in a good one."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.__main__ import main
from service.doctor import redis_checks, stream_checks
from service.doctor.findings import WHY, Report
from service.embedded import socket_path
from service.remote import Remote
from tests.credentials import KEY, SECRET, token
from tests.little_server import LittleServer
from tests.live_server import LiveService
from tests.secrets_used import secret
from tests.valkey import Valkey, free_port

ROOT = Path(__file__).resolve().parents[1]
PASSWORD = secret("the/password@of-redis")
SERVICE_CHECKS = {"service", "clock", "ready", "stream", "publish", "buffering", "gzip"}
REDIS_URL = "redis://:the%2Fpassword%40of-redis@127.0.0.1:{}/0"


@pytest.fixture(scope="module")
def good_redis() -> Iterator[Valkey]:
    """A Redis as it should be."""
    with Valkey(aof=True, password=PASSWORD) as valkey:
        yield valkey


@pytest.fixture(scope="module")
def service(good_redis: Valkey) -> Iterator[LiveService]:
    """A service as it should be."""
    guarded = {"PUBLISH_OPEN": 0, "PUBLIC_CHANNELS": "news.*", "PUBLISH_KEYS": KEY}
    url = REDIS_URL.format(good_redis.port)
    with LiveService(url, **guarded, JWT_SECRET=SECRET) as service:
        yield service


UNSET = ("HOST", "REDIS_URL", "REDIS_URL_FILE", "PUBLISH_OPEN", "PUBLIC_CHANNELS", "JWT_SECRET",
         "HEARTBEAT_SECONDS", "MAX_CONNECTIONS", "WEB_CONCURRENCY", "PUSHLINE_TOKEN")  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A service that could start, and nothing of it running."""
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PUBLISH_KEYS", KEY)
    monkeypatch.setenv("PORT", str(free_port()))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(stream_checks, "LATE_SECONDS", 10)  # a pause of this process is no finding


def doctor(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What it says, as JSON; the exit status goes with the findings, and no secret is in it."""
    status = main(["doctor", "--json", *arguments])
    out, err = capfd.readouterr()
    assert err == ""
    for one in (PASSWORD, KEY, SECRET, "the%2Fpassword%40of-redis"):
        assert one not in out
    report: dict[str, Any] = json.loads(out)
    assert status == (1 if report["findings"] else 0)
    for finding in report["findings"]:
        assert all(finding[part] for part in ("what", "why", "fix")), finding
    return report


def found(report: dict[str, Any]) -> dict[str, str]:
    """The findings: what each check says."""
    return {one["check"]: one["what"] for one in report["findings"]}


# ------------------------------------------------------------------------------------ a good one


def test_a_good_deployment(
    service: LiveService, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """All is looked at, the running service too, and nothing is found."""
    for name, value in service.settings.items():
        monkeypatch.setenv(name, str(value))
    report = doctor(capfd)
    assert (report["findings"], report["skipped"]) == ([], {})
    assert set(report["passed"]) == set(WHY)
    assert main(["doctor"]) == 0
    assert capfd.readouterr().out == f"{len(WHY)} checks are fine, no findings.\n"


def test_a_good_service_from_outside(
    service: LiveService, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a token all of it is tried; without one it is said what could not be."""
    shown = token(publish=["doctor-*"], subscribe=["doctor-*"])
    open_checks = {"publish_open", "public_channels"}
    report = doctor(capfd, service.url)
    assert report["findings"] == []
    assert "PUSHLINE_TOKEN" in report["skipped"]["stream"]
    monkeypatch.setenv("PUSHLINE_TOKEN", shown)
    report = doctor(capfd, f"{service.url}/")
    assert (report["findings"], list(report["skipped"])) == ([], ["heartbeat"])
    assert set(report["passed"]) == SERVICE_CHECKS | open_checks
    monkeypatch.setenv("PUSHLINE_TOKEN", token(subscribe=["*"]))
    report = doctor(capfd, service.url)
    assert report["findings"] == []
    assert "not_granted" in report["skipped"]["publish"]
    assert set(report["skipped"]) == {"heartbeat", "publish", "buffering", "gzip"}
    assert set(report["passed"]) == open_checks | SERVICE_CHECKS - report["skipped"].keys()
    monkeypatch.setenv("PUSHLINE_TOKEN", KEY)
    assert doctor(capfd, service.url)["findings"] == [], "a key for publishing can't stream"
    monkeypatch.setenv("PUSHLINE_TOKEN", secret(f"{shown}x"))
    assert "bad_credential" in found(doctor(capfd, service.url))["stream"]


def test_a_service_that_takes_no_event(
    good_redis: Valkey,
    service: LiveService,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A full Redis is found from outside, and what could not be timed is not said to be good."""
    monkeypatch.setenv("PUSHLINE_TOKEN", token(publish=["doctor-*"], subscribe=["doctor-*"]))
    good_redis.cli("CONFIG", "SET", "maxmemory", "100kb")
    try:
        report = doctor(capfd, service.url)
    finally:
        good_redis.cli("CONFIG", "SET", "maxmemory", "0")
    assert found(report) == {"publish": "the service takes no event: redis_out_of_memory"}
    assert "maxmemory" in report["findings"][0]["fix"]
    assert {"buffering", "gzip"} <= report["skipped"].keys()
    assert {"stream", "buffering", "gzip", "publish"} & set(report["passed"]) == {"stream"}


def test_nothing_is_there(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where nothing runs that is said, and it is no fault."""
    monkeypatch.delenv("PUBLISH_KEYS")
    report = doctor(capfd)
    assert report["findings"] == []
    assert "REDIS_URL is not set" in report["skipped"]["redis"]
    assert "python -m service serve" in report["skipped"]["service"]


# ------------------------------------------------------------------- Redis, broken in many ways


@pytest.mark.parametrize(
    ("options", "check", "told"),
    [
        ({"maxmemory": "64mb", "maxmemory-policy": "allkeys-lru"}, "redis_eviction", "allkeys-lru"),
        ({"maxclients": "12"}, "redis_connections", "takes 12 connections"),
        ({"client-output-buffer-limit": "pubsub 1mb 256kb 60"}, "redis_pubsub_buffer", "1048576"),
        ({"appendonly": "no"}, "redis_persistence", "nothing to disk"),
        ({"maxmemory": "1mb"}, "redis_memory", "of 1.0 MiB"),
    ],
)
def test_a_bad_redis(
    options: dict[str, str],
    check: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A Redis with one option that is wrong: that is found, and nothing else."""
    with Valkey(options={"appendonly": "yes", **options}) as valkey:
        monkeypatch.setenv("REDIS_URL", valkey.url)
        report = doctor(capfd)
    assert list(found(report)) == [check]
    assert told in found(report)[check]
    monkeypatch.setenv("REDIS_URL", "")
    assert found(doctor(capfd)) == {}, "it is Redis that is wrong"


def test_a_replica(
    good_redis: Valkey, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A replica is named with its master."""
    with Valkey(options={"replicaof": f"127.0.0.1 {good_redis.port}"}) as replica:
        monkeypatch.setenv("REDIS_URL", replica.url)
        report = doctor(capfd, "--ignore", "redis_persistence")
    assert list(found(report)) == ["redis_replica"]
    assert f"127.0.0.1:{good_redis.port}" in found(report)["redis_replica"]
    assert "ignored" in report["skipped"]["redis_persistence"]


def test_no_way_into_redis(
    good_redis: Valkey, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A dead Redis, a wrong password and none at all are told apart."""
    for url, told in (
        (REDIS_URL.format(free_port()), "can't be reached at 127.0.0.1:"),
        (f"redis://:{secret('another-password')}@127.0.0.1:{good_redis.port}", "the password"),
        (f"redis://127.0.0.1:{good_redis.port}", "password"),
    ):
        monkeypatch.setenv("REDIS_URL", url)
        report = doctor(capfd)
        assert list(found(report)) == ["redis"]
        assert told in found(report)["redis"]
        assert "another-password" not in json.dumps(report)


def test_a_redis_that_tells_little(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where CONFIG is forbidden, as hosts like to, INFO has to do, and the rest is skipped."""
    with Valkey() as valkey:
        valkey.cli("ACL", "SETUSER", "default", "-config")
        monkeypatch.setenv("REDIS_URL", valkey.url)
        report = doctor(capfd)
    assert found(report) == {}
    assert {"redis_persistence", "redis_pubsub_buffer"} <= report["skipped"].keys()
    assert {"redis_eviction", "redis_connections"} <= set(report["passed"])


def test_a_redis_that_forbids_everything(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A user who may not even ask is told so."""
    with Valkey() as valkey:
        monkeypatch.setenv("REDIS_URL", valkey.url)
        valkey.cli("ACL", "SETUSER", "default", "-time")
        assert "redis_clock" in doctor(capfd, "--ignore", "redis_persistence")["skipped"]
        valkey.cli("ACL", "SETUSER", "default", "-info")
        assert "refuses INFO" in found(doctor(capfd))["redis"]


def test_a_private_valkey(
    shared_valkey: Valkey, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """That of `serve` on this PORT is looked at, though nothing of it is meant to last."""
    monkeypatch.setattr("service.commands.doctor.running_url", lambda port: shared_valkey.url)
    monkeypatch.setattr("service.commands.doctor.socket_path", lambda port: "/")
    report = doctor(capfd)
    assert report["findings"] == []
    assert "redis_eviction" in report["passed"]
    assert not {"redis_persistence", "redis_connections"} & set(report["passed"])


def test_a_private_valkey_of_somebody_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A directory that others may enter is a finding, and the report goes on."""
    trap = Path(socket_path(int(os.environ["PORT"])))
    trap.parent.mkdir(mode=0o755)
    trap.touch()
    report = doctor(capfd)
    assert list(found(report)) == ["redis"]
    assert "mode 700" in found(report)["redis"]
    assert "service" in report["skipped"]


def test_findings_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in colour there, each with its reason and its cure."""
    monkeypatch.setenv("HEARTBEAT_SECONDS", "50")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main(["doctor"]) == 1
        terminal.flush()
        shown = ""
        while "1 finding." not in shown:
            shown += os.read(ours, 10_000).decode()
    os.close(ours)
    assert "\x1b[31mheartbeat\x1b[0m: " in shown
    assert "\n  why: Routers" in shown
    assert "\n  fix: set HEARTBEAT_SECONDS to 15" in shown
    assert " checks are fine, 1 finding." in shown


def test_what_is_skipped_has_not_passed() -> None:
    """A check that has looked at one side only is not said to be good."""
    report = Report()
    report.check("publish_open", True)
    report.check("stream", True)
    report.skip("publish_open", "it could not be seen from outside")
    assert report.as_json()["passed"] == ["stream"]


def test_an_old_redis() -> None:
    """A Redis before 6.2 is too old, whatever comes after the second number."""
    for version, good in (("6.0.16", False), ("5.0.7", False), ("6.2.0", True), ("10.0", True)):
        report = Report()
        redis_checks.check_server(report, {"redis_version": version, "role": "master"})
        assert ("redis_version" in report.passed) == good, version


def test_a_redis_that_cannot_save() -> None:
    """A disk that is full is worse than none."""
    report = Report()
    facts = {"aof_enabled": "1", "aof_last_write_status": "err", "save": ""}
    redis_checks.check_durability(report, facts)
    assert [one.what for one in report.findings] == ["Redis can't save: aof_last_write_status"]


def test_clocks_that_differ_from_redis(
    good_redis: Valkey, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An hour between this machine and Redis is found."""
    monkeypatch.setenv("REDIS_URL", REDIS_URL.format(good_redis.port))
    fast = SimpleNamespace(time=lambda: time.time() + 3600)
    monkeypatch.setattr(redis_checks, "time", fast)
    report = doctor(capfd)
    assert list(found(report)) == ["redis_clock"]
    match = re.search(r"differ by ([0-9.]+) s", found(report)["redis_clock"])
    assert match is not None
    assert float(match[1]) == pytest.approx(3600, abs=10)


# ----------------------------------------------------------------------- settings and the machine


@pytest.mark.parametrize(
    ("variables", "checks"),
    [
        ({"HEARTBEAT_SECONDS": "50"}, ["heartbeat"]),
        ({"HEARTBEAT_SECONDS": "90"}, ["settings"]),
        ({"REDIS_URL": "http://localhost"}, ["settings"]),
        ({"HOST": "0.0.0.0", "PUBLISH_KEYS": ""}, ["settings"]),
        ({"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "RS256"}, ["settings"]),
        ({"HOST": "0.0.0.0", "PUBLISH_OPEN": "1", "PUBLIC_CHANNELS": "a *"},
         ["publish_open", "public_channels"]),
        ({"MAX_CONNECTIONS": "1000000"}, ["file_limit"]),
    ],
)  # fmt: skip
def test_bad_settings(
    variables: dict[str, str],
    checks: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each is found by its check, which shows no secret."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("resource.getrlimit", lambda _: (65_536, 65_536))
    assert list(found(doctor(capfd))) == checks


def test_a_low_file_limit() -> None:
    """The limit of the process that is asked, a real one, with the command that raises it."""
    command = [sys.executable, "-m", "service", "doctor"]
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -n 1024; exec "$@"', "sh", *command],
        cwd=ROOT,
        env={**os.environ, "REDIS_URL": ""},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "file_limit: the file limit of 1024 leaves room for 24 streams" in done.stdout
    assert "a service that runs may have another" in done.stdout
    assert "ulimit -n 2000" in done.stdout
    assert "\x1b" not in done.stdout, "colours are for terminals"


# --------------------------------------------------------------------------- services, from outside


@pytest.fixture
def little() -> Iterator[LittleServer]:
    """A server that says of itself that it is alive and ready."""
    with ExitStack() as stack:
        server = LittleServer(body=b'{"live": true, "ready": true}')
        server.start()
        stack.callback(server.stop)
        yield server


def test_what_is_not_pushline(little: LittleServer, capfd: pytest.CaptureFixture[str]) -> None:
    """Another server, however friendly; a redirect; and a closed port."""
    little.body = b"<html>ok"
    assert "is not Pushline" in found(doctor(capfd, little.url))["service"]
    little.status = 404
    assert "/livez says 404" in found(doctor(capfd, little.url))["service"]
    closed = f"http://127.0.0.1:{free_port()}"
    assert "Connection refused" in found(doctor(capfd, closed))["service"]
    unknown = "https://no-such-host.invalid"
    assert "no such host" in found(doctor(capfd, unknown))["service"]
    spoken = f"https://127.0.0.1:{little.port}"
    assert "TLS" in found(doctor(capfd, spoken))["service"]


def test_a_service_with_another_clock(
    little: LittleServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The date of its answers is looked at."""
    early = "Thu, 01 Jan 2026 00:00:00 GMT"
    monkeypatch.setattr(BaseHTTPRequestHandler, "date_time_string", lambda *_: early)
    assert "clocks" in found(doctor(capfd, little.url))["clock"]
    monkeypatch.setattr(BaseHTTPRequestHandler, "date_time_string", lambda *_: "today")
    assert "clock" in doctor(capfd, little.url)["skipped"]


def test_a_service_that_opens_no_stream(
    little: LittleServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """An answer that is no stream is told as what it is."""
    what = found(doctor(capfd, little.url))["stream"]
    assert what == "the service opens no stream: an answer of text/plain"


def test_the_catalogue_is_documented() -> None:
    """docs/cli.md has each check by its name."""
    page = (ROOT / "docs" / "cli.md").read_text()
    assert [name for name in WHY if f"| `{name}` |" not in page] == []


# ------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    "arguments",
    [
        ["ftp://example.com"],
        ["example.com"],
        [f"https://user:{PASSWORD}@example.com"],
        [f"https://example.com/?ticket={PASSWORD}"],
        ["https://example.com", "--token", PASSWORD],
        ["--ignore", "weather"],
    ],
)
def test_usage(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """A bad argument is told with status 2; none that may be a secret is repeated."""
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])
    assert ended.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert PASSWORD not in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "good"), [(f"{KEY}\nmore\n", True), (f"{PASSWORD} {KEY}\n", False), ("\n", False)]
)
def test_a_token_from_standard_input(
    text: str, good: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`--token -` reads one line; what is no token is refused without showing it."""
    seen: list[str] = []

    def remote(url: str, shown: str) -> Remote:
        seen.append(shown)
        return Remote(url)

    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    monkeypatch.setattr("service.commands.doctor.Remote", remote)
    status = main(["doctor", f"http://127.0.0.1:{free_port()}", "--token", "-"])
    out, err = capfd.readouterr()
    assert status == 1
    assert KEY not in out + err
    assert seen == ([KEY] if good else [])
    assert ("standard input holds no token" in err) == (not good)


@pytest.mark.parametrize(("command", "few"), [("doctor", []), ("bench", ["--streams", "1"])])
def test_a_token_in_clear_text(
    command: str, few: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A token goes to another machine over TLS, or where somebody has said that it may be read."""
    asked: list[str | None] = []

    class Asked(Remote):
        """Says to whom a token would be shown."""

        def connection(self) -> HTTPConnection:
            asked.append(self.token)
            raise ConnectionRefusedError

    monkeypatch.setattr(f"service.commands.{command}.Remote", Asked)
    call = [command, "http://push.example.com", *few]
    assert main(call) == 1
    assert asked.pop() is None, "without a token nothing is in danger"
    asked.clear()
    monkeypatch.setenv("PUSHLINE_TOKEN", KEY)
    capfd.readouterr()
    assert main(call) == 1
    out, err = capfd.readouterr()
    assert (out, asked) == ("", [])
    (line,) = err.splitlines()
    assert "use https://" in line
    assert KEY not in line
    for url, options in (
        ("http://push.example.com", ["--token-in-clear"]),
        ("https://push.example.com", []),
        ("http://localhost", []),
        ("http://[::1]", []),
    ):
        assert main([command, url, *few, *options]) == 1
        assert set(asked) == {KEY}, url
        asked.clear()
