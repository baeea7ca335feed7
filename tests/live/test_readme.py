"""Two newcomers: what the README and the quick start say to type, each in an empty environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from tests.browser import chromium
from tests.snippets import ROOT, Shell, snippets
from tests.valkey import free_port

pytestmark = pytest.mark.live


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh clone, in a home of its own with nothing in it."""
    folder = tmp_path / "home/pushline"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return folder


def pip_cache() -> str:
    """Where pip keeps what it has downloaded."""
    ask = [sys.executable, "-m", "pip", "cache", "dir"]
    return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One Chromium for the module."""
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_a_newcomer_gets_there(page: str, clone: Path, browser: Chrome) -> None:
    """Each block of the page works, from the installation on, with nothing but Python and make."""
    port = free_port()
    environ = {
        "HOME": str(clone.parent),
        "PATH": os.environ["PATH"],
        "PORT": str(port),
        "PIP_CACHE_DIR": pip_cache(),  # what is downloaded is the one thing that isn't tried anew
        "PIP_NO_COMPILE": "1",  # seconds, for files of which most are never loaded
        **{key: value for key, value in os.environ.items() if key.lower().startswith("pip_")},
    }
    shell = Shell(clone, f"http://127.0.0.1:{port}", environ, ".venv/bin/python", browser)
    shell.run(snippets(clone / page))
