"""The look-up of known vulnerabilities, against a server that answers as OSV does; and the pins."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.audit import ROOT, accepted, audit, installed

PACKAGES = {"sound": "1.0", "leaky": "2.1"}
LEAK: dict[str, Any] = {
    "id": "PYSEC-2026-7",
    "aliases": ["CVE-2026-77"],
    "summary": "It leaks",
}


class FakeOsv(ThreadingHTTPServer):
    """Knows one vulnerability, of version 2.1 of the package leaky."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.details: Any = LEAK
        self.status = 200
        self.asked = 0

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Its two routes."""

    server: FakeOsv

    def do_POST(self) -> None:
        """Which packages have which vulnerabilities."""
        self.server.asked += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        results = [
            {"vulns": [{"id": LEAK["id"], "modified": "2026-01-01T00:00:00Z"}]}
            if (one["package"], one["version"]) == ({"ecosystem": "PyPI", "name": "leaky"}, "2.1")
            else {}
            for one in body["queries"]
        ]
        self.answer({"results": results})

    def do_GET(self) -> None:
        """What one of them is."""
        assert self.path == f"/v1/vulns/{LEAK['id']}"
        self.answer(self.server.details)

    def answer(self, said: Any) -> None:
        """Send JSON."""
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def osv() -> Iterator[FakeOsv]:
    """The server."""
    with FakeOsv() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_vulnerable_package_is_an_error(osv: FakeOsv, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named with its version, all names of the vulnerability, and what it is."""
    assert audit(PACKAGES, {}, osv.url) == 1
    said = capsys.readouterr().out
    assert "leaky 2.1: PYSEC-2026-7 CVE-2026-77: It leaks" in said
    assert "sound" not in said


def test_sound_packages_are_none(osv: FakeOsv, capsys: pytest.CaptureFixture[str]) -> None:
    """All is well with other versions; one request is enough for all packages."""
    assert audit({"sound": "1.0", "leaky": "2.2"}, {}, osv.url) == 0
    assert "No known vulnerability in 2 packages" in capsys.readouterr().out
    assert osv.asked == 1


@pytest.mark.parametrize("name", ["PYSEC-2026-7", "CVE-2026-77"])
def test_what_does_not_concern_us_is_accepted(osv: FakeOsv, name: str) -> None:
    """pyproject.toml may list a vulnerability, under any of its names, with the reason."""
    assert audit(PACKAGES, {name: "that part is not used"}, osv.url) == 0


def test_what_is_accepted_for_nothing_is_an_error(
    osv: FakeOsv, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list holds nothing that has been mended."""
    assert audit({"sound": "1.0"}, {"CVE-2026-77": "that part is not used"}, osv.url) == 1
    assert "CVE-2026-77" in capsys.readouterr().out


def test_what_was_withdrawn_is_none(osv: FakeOsv) -> None:
    """A vulnerability that turned out to be none is no finding."""
    osv.details = {**LEAK, "withdrawn": "2026-02-01T00:00:00Z"}
    assert audit(PACKAGES, {}, osv.url) == 0


def test_silence_is_said_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody answers, that is no success in silence, and no error either."""
    assert audit(PACKAGES, {}, "http://127.0.0.1:1") == 0
    assert capsys.readouterr().out.count("NOT AUDITED") == 2


@pytest.mark.parametrize(("status", "details"), [(503, LEAK), (200, ["no", "object"])])
def test_nonsense_is_silence(
    osv: FakeOsv, capsys: pytest.CaptureFixture[str], status: int, details: Any
) -> None:
    """An answer that says nothing is none, such as that of a proxy that lets nobody out."""
    osv.status, osv.details = status, details
    assert audit(PACKAGES, {}, osv.url) == 0
    assert "NOT AUDITED" in capsys.readouterr().out


def test_the_whole_environment_is_looked_up() -> None:
    """What the pinned packages need themselves is looked up too, as it is installed."""
    assert {"Flask", "Werkzeug", "Jinja2"} <= installed().keys()


def test_reasons_are_read(tmp_path: Path) -> None:
    """The accepted ones stand in pyproject.toml, which has none now or a reason for each."""
    file = tmp_path / "pyproject.toml"
    file.write_text('[tool.audit.accepted]\nCVE-2026-77 = "that part is not used"\n')
    assert accepted(file) == {"CVE-2026-77": "that part is not used"}
    assert all(accepted(ROOT / "pyproject.toml").values())


# ------------------------------------------------------------------------------------- pins


def pins(name: str) -> dict[str, str]:
    """What a file of requirements pins: package -> version."""
    lines = [line.strip() for line in (ROOT / name).read_text().splitlines()]
    found = {}
    for line in lines:
        if line and not line.startswith(("#", "-r ")):
            match = re.fullmatch(r"([a-z0-9-]+)(?:\[[a-z]+\])?==([0-9][0-9a-z.]*)", line)
            assert match is not None, f"{name}: {line} is not pinned"
            found[match[1]] = match[2]
    return found


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned(name: str) -> None:
    """Each line names one version, and that is the one that is installed, tested and audited."""
    pinned = pins(name)

    assert pinned
    assert {package: version(package) for package in pinned} == pinned


def test_nothing_is_pinned_twice() -> None:
    """The two files can't come apart."""
    assert pins("requirements.txt").keys().isdisjoint(pins("requirements-dev.txt"))


def test_ignored_rules_have_reasons() -> None:
    """Each rule that bandit skips has a comment beside it."""
    text = (ROOT / "pyproject.toml").read_text()
    for rule in tomllib.loads(text)["tool"]["bandit"]["skips"]:
        assert re.search(rf'"{rule}", # \w+', text), rule
    for path in (ROOT / "service").rglob("*.py"):
        for line in path.read_text().splitlines():
            if "nosec" in line:
                assert re.search(r"# nosec B\d+ # \w+", line), f"{path.name}: {line}"
