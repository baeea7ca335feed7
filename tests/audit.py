"""Looks whether any installed package has a known vulnerability: `make check` runs it.

It asks OSV, which knows what PyPI's advisories and GitHub's say, about all packages of this
environment in one request. Findings are an error. Where OSV can't be reached nothing is known,
and that is said, but it is none: most who have no way to it can't help it.
"""

from __future__ import annotations

import json
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

OSV = "https://api.osv.dev"
TIMEOUT_SECONDS = 10.0
ROOT = Path(__file__).resolve().parents[1]


class Unreachable(Exception):
    """OSV gave no answer that says anything."""


@dataclass(frozen=True)
class Finding:
    """A known vulnerability of an installed package."""

    package: str
    version: str
    ids: tuple[str, ...]
    """Its id at OSV, and its other names: CVE-..., GHSA-..., PYSEC-..."""
    summary: str

    def __str__(self) -> str:
        names = " ".join(self.ids)
        return f"{self.package} {self.version}: {names}: {self.summary}"


def installed() -> dict[str, str]:
    """Every package of this environment with its version."""
    return {one.name: one.version for one in distributions()}


def accepted(pyproject: Path) -> dict[str, str]:
    """The vulnerabilities that don't concern this project, each with the reason."""
    tools = tomllib.loads(pyproject.read_text())["tool"]
    reasons: dict[str, str] = tools.get("audit", {}).get("accepted", {})
    return reasons


def findings(packages: dict[str, str], osv: str = OSV) -> Iterator[Finding]:
    """The known vulnerabilities of `packages`. Raises Unreachable."""
    queries = [
        {"package": {"ecosystem": "PyPI", "name": name}, "version": version}
        for name, version in packages.items()
    ]
    results = _ask(f"{osv}/v1/querybatch", {"queries": queries}).get("results", [])
    if len(results) != len(queries):
        raise Unreachable(f"it answered {len(results)} of {len(queries)} questions")
    for (name, version), result in zip(packages.items(), results, strict=True):
        for found in result.get("vulns", []):
            details = _ask(f"{osv}/v1/vulns/{found['id']}")
            if "withdrawn" not in details:
                ids = (found["id"], *details.get("aliases", []))
                yield Finding(name, version, ids, details.get("summary", "see there"))


def _ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            told = json.load(answer)
    except (OSError, ValueError) as error:
        raise Unreachable(str(error)) from error
    if not isinstance(told, dict):
        raise Unreachable("its answer is no object")
    return told


def audit(packages: dict[str, str], reasons: dict[str, str], osv: str = OSV) -> int:
    """Print what is known of `packages`; return the exit status."""
    try:
        found = list(findings(packages, osv))
    except Unreachable as error:
        print(f"NOT AUDITED: {osv} can't be reached ({error}), so that no package was looked up.")
        print("NOT AUDITED: run `make check` where it can before a release.")
        return 0
    open_ones = [one for one in found if not reasons.keys() & set(one.ids)]
    known = {name for one in found for name in one.ids}
    for one in open_ones:
        print(f"vulnerable: {one} (https://osv.dev/vulnerability/{one.ids[0]})")
    needless = [name for name in reasons if name not in known]
    for name in needless:
        print(f"accepted for nothing: {name} concerns no installed package any more")
    if not open_ones and not needless:
        print(f"No known vulnerability in {len(packages)} packages, {len(found)} accepted")
    return 1 if open_ones or needless else 0


def main() -> int:
    """Audit this environment."""
    return audit(installed(), accepted(ROOT / "pyproject.toml"))


if __name__ == "__main__":
    sys.exit(main())
