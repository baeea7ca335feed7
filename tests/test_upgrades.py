"""What an upgrade leaves as it is: names, and where the version stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.__main__ import COMMANDS
from service.version import VERSION
from tests import stable_names
from tests.applications import making

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
PAGE = (ROOT / "docs" / "upgrades.md").read_text()
RECORDED, PRESENT = stable_names.recorded(), stable_names.present()


def test_the_record_is_of_all_kinds() -> None:
    """What docs/upgrades.md promises is what is recorded."""
    assert RECORDED.keys() == PRESENT.keys()
    assert all(names for names in PRESENT.values())
    for kind in RECORDED:
        assert f"| {kind} |" in PAGE


@pytest.mark.parametrize("kind", PRESENT)
def test_no_name_goes(kind: str) -> None:
    """A name that was there is there: others have it in their settings, alerts and programs."""
    assert sorted(set(RECORDED[kind]) - set(PRESENT[kind])) == []


@pytest.mark.parametrize("kind", PRESENT)
def test_new_names_are_recorded(kind: str) -> None:
    """A new name is a promise, so it is recorded: `python -m tests.stable_names` does that."""
    assert sorted(set(PRESENT[kind]) - set(RECORDED[kind])) == []


def test_the_version_is_told() -> None:
    """/livez, the metrics and /docs tell the version, which the change log has as its newest."""
    with making(stable_names.NOWHERE) as make:
        app = make(metrics_token="t" * 16)
        assert app.client.get("/livez").get_json()["version"] == VERSION
        headers = {"Authorization": "Bearer " + "t" * 16}
        metrics = app.client.get("/metrics", headers=headers).text
        assert f'pushline_build_info{{version="{VERSION}"}} 1' in metrics
        assert VERSION in app.client.get("/docs").text
    versions = re.findall(r"^## \[(.+?)\]", CHANGELOG, re.MULTILINE)
    assert next(one for one in versions if one != "Unreleased") == VERSION


def test_the_change_log_has_what_there_is() -> None:
    """Each command is named, and what else somebody would look for."""
    *_, first = CHANGELOG.partition("## [0.1.0]")
    for name in (*COMMANDS, "/dashboard", "$sys", "$join", "$leave", "X-Request-Id", "make docs"):
        assert f"`{name}`" in first, name
    for what in ("uploads", "gzip", "Counts", "presence", "examples"):
        assert what in first, what


def test_the_change_log_keeps_its_form() -> None:
    """As keepachangelog.com has it: versions with their dates, under them kinds of changes."""
    for heading in re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE):
        assert re.fullmatch(r"\[Unreleased\]|\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading)
    kinds = set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
