"""The alert rules and the dashboard of docs/ fit the metrics that there are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from service.app import create_app
from service.settings import Settings
from tests.scraping import Scrape

ROOT = Path(__file__).resolve().parents[1]
ALERTS = ROOT / "docs" / "alerts.yml"
DASHBOARD = ROOT / "docs" / "grafana.json"
NAME = re.compile(r"\b(?:pushline|process)_\w+")
SELECTOR = re.compile(r'\b(\w+)=~?\\*"([a-z_|]+)\\*"')
"""A label with values, as PromQL has it, in JSON too."""

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None and not os.environ.get("CI"),
    reason="no promtool (Debian: prometheus)",
)


@pytest.fixture(scope="module")
def page() -> Scrape:
    """The metrics of a service that has done nothing."""
    app = create_app(Settings(redis_url="redis://127.0.0.1:1"))
    return Scrape(app.extensions["pushline"].metrics.page(as_openmetrics=False)[0].decode())


@pytest.mark.parametrize("path", [ALERTS, DASHBOARD], ids=lambda path: path.name)
def test_every_name_exists(path: Path, page: Scrape) -> None:
    """Each metric that a rule or a panel names is there, and each label with that value."""
    text = path.read_text()
    names = {name for name, _ in page.numbers}
    assert set(NAME.findall(text)) <= names
    labels = {label for _, labels in page.numbers for label in labels}
    wanted = {(label, one) for label, some in SELECTOR.findall(text) for one in some.split("|")}
    assert wanted
    assert wanted <= labels


def test_the_dashboard_shows_them_all(page: Scrape) -> None:
    """No metric but the version and what needs no picture is left out."""
    shown = set(NAME.findall(DASHBOARD.read_text()))
    kinds = {one.name for one in page.families}
    left_out = {name for name in kinds if not any(one.startswith(name) for one in shown)}
    assert left_out == {"pushline_build_info", "pushline_gaps"}


def test_the_dashboard_is_whole() -> None:
    """Panels have titles, units and explanations of their own, and don't overlap."""
    board = json.loads(DASHBOARD.read_text())
    panels = board["panels"]
    for of in ("id", "title", "description"):
        assert len({panel[of] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    for panel in panels:
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])


def run_promtool(*arguments: str) -> None:
    """Run promtool, which has to be content."""
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_the_rules_are_rules() -> None:
    """Prometheus takes them."""
    run_promtool("check", "rules", str(ALERTS))


@promtool
def test_the_rules_fire_when_they_should(tmp_path: Path) -> None:
    """With numbers of a service that is ill each one fires, with those of a busy one none."""
    text = (ROOT / "tests" / "alerts.yml").read_text()
    told = set(re.findall(r"- alert: (\w+)", ALERTS.read_text()))
    assert set(re.findall(r'alertname="(\w+)"', text)) == told
    copy = tmp_path / "alerts.yml"
    copy.write_text(text.replace("RULES", str(ALERTS)))
    run_promtool("test", "rules", str(copy))


@promtool
def test_the_queries_of_the_dashboard_are_queries(tmp_path: Path) -> None:
    """Prometheus can parse each one, with Grafana's variables filled in."""
    board = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(queries) > len(board["panels"])
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries)
    ]
    file = tmp_path / "queries.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    run_promtool("check", "rules", str(file))
