"""The files of deploy/ for systemd and proxies: taken by what reads them, true to the service."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.deploying import DEFAULTS, DEPLOY, ROOT, STOPPED_AFTER, check_environ, run

WORST_EXPOSURE = 2.0
"""Of 10, by systemd's own reckoning; a service without any protection has 9.6."""


def sections(path: Path) -> configparser.RawConfigParser:
    """A unit of systemd; of keys that come several times the last."""
    parser = configparser.RawConfigParser(strict=False, delimiters=["="], comment_prefixes=["#"])
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as its manual says
    parser.read(path)
    return parser


def environ_file() -> dict[str, str]:
    """The settings of the example for systemd."""
    lines = (DEPLOY / "pushline.env").read_text().splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name: value for name, _, value in pairs}


systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and not os.environ.get("CI"),
    reason="no systemd-analyze (Debian: systemd)",
)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A folder with the units, whose program is the Python of these tests."""
    for name in ("pushline.service", "pushline.socket"):
        text = (DEPLOY / name).read_text()
        text = text.replace("/opt/pushline/.venv/bin/python", sys.executable)
        (tmp_path / name).write_text(text.replace("/opt/pushline", str(ROOT)))
    return tmp_path


@systemd
def test_systemd_takes_the_units(units: Path) -> None:
    """systemd-analyze has nothing to say about them; about a misspelt key it has."""
    service = units / "pushline.service"
    done = run("systemd-analyze", "verify", service, units / "pushline.socket")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    service.write_text(service.read_text().replace("TimeoutStopSec", "TimeoutStopsec"))
    assert "TimeoutStopsec" in run("systemd-analyze", "verify", service).stderr


@systemd
def test_the_service_can_do_little_harm(units: Path) -> None:
    """By systemd's own reckoning the service is exposed about as little as one with a port can be.

    What that takes away from the service is tried in tests/live/test_deploy.py.
    """
    threshold = f"--threshold={WORST_EXPOSURE * 10:.0f}"
    command = ("systemd-analyze", "security", "--offline=true", "--no-pager", threshold)
    service = units / "pushline.service"
    done = run(*command, service)
    assert done.returncode == 0, done.stdout
    service.write_text(service.read_text().replace("SystemCallFilter", "# SystemCallFilter"))
    assert run(*command, service).returncode != 0


def test_systemd_leaves_time_for_the_drain() -> None:
    """Stopping is SIGTERM to gunicorn's master, which has time for all; reloading is SIGHUP."""
    service = sections(DEPLOY / "pushline.service")["Service"]
    assert float(service["TimeoutStopSec"]) > STOPPED_AFTER
    assert (service["KillSignal"], service["KillMode"]) == ("SIGTERM", "mixed")
    assert service["ExecReload"].endswith("kill -s HUP $MAINPID")
    assert int(service["LimitNOFILE"]) > 10_000


def test_systemd_has_settings_that_exist() -> None:
    """The example of an environment is taken, and names the address on which a proxy is."""
    environ = environ_file()
    check_environ(environ)
    assert environ["TRUSTED_PROXIES"] == "127.0.0.1/32"
    assert sections(DEPLOY / "pushline.socket")["Socket"]["ListenStream"] == "127.0.0.1:8000"


def test_proxies_wait_longer_than_a_heartbeat() -> None:
    """No proxy finds a stream idle, and none keeps a connection that the service closes first.

    An Ingress and its KEEPALIVE_SECONDS are in tests/test_kubernetes.py.
    """
    heartbeat = float(str(DEFAULTS["HEARTBEAT_SECONDS"]))
    keepalive = float(str(DEFAULTS["KEEPALIVE_SECONDS"]))
    nginx = (DEPLOY / "nginx.conf").read_text()
    caddy = (DEPLOY / "Caddyfile").read_text()
    (read,) = re.findall(r"proxy_read_timeout (\d+)s;", nginx)
    assert float(read) > 2 * heartbeat
    assert float(re.findall(r"keepalive_timeout (\d+)s;", nginx)[0]) < keepalive
    assert float(re.findall(r"\bkeepalive (\d+)s", caddy)[0]) < keepalive
