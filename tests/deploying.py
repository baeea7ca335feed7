"""What the tests of deploy/ share: its files, and the settings in them."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
DEFAULTS = {spec.metadata["env"]: spec.default for spec in dataclasses.fields(Settings)}
KILLED_AFTER = 10.0
"""Seconds after a drain when gunicorn kills its workers (gunicorn_conf.py)."""

SECRETS = {
    "REDIS_URL": "redis://valkey:6379/0",
    "PUBLISH_KEYS": "k" * 32,
    "JWT_SECRET": "s" * 32,
}
"""What somebody fills in, where a file or a command of the documentation leaves room for it."""

STOPPED_AFTER = float(str(DEFAULTS["DRAIN_SECONDS"])) + KILLED_AFTER


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool and return what it said."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def check_environ(environ: dict[str, str]) -> None:
    """Each variable is a setting, all together can be served, and make publishing, tokens and thus
    streams and the dashboard possible. Secrets that somebody has to fill in are empty.
    """
    assert environ.keys() <= DEFAULTS.keys()
    filled = {name: text or SECRETS.get(name, "") for name, text in environ.items()}
    settings = Settings.from_environ(filled)
    settings.check_can_serve()
    assert settings.publish_keys
    assert settings.jwt_secret
    assert settings.public_patterns == (), "what is published is for nobody until somebody says so"


def told_secrets(start: str, pattern: str) -> dict[str, str]:
    """The secrets, yet empty, that a command of docs/deploy.md is given; it begins with `start`."""
    page = (ROOT / "docs" / "deploy.md").read_text().replace("\\\n", " ")
    (command,) = re.findall(rf"^{re.escape(start)}.*$", page, re.MULTILINE)
    return dict.fromkeys(re.findall(pattern, command), "")


def instructions(name: str) -> list[str]:
    """What follows an instruction, each time that it comes in the Dockerfile."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^\s*{name} (.*)$", text, re.MULTILINE)
