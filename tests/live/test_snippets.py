"""Every command and snippet of the documentation, run as it stands, page by page."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from tests.browser import chromium
from tests.clone import made_clone
from tests.live_server import LiveService
from tests.snippets import PAGES, ROOT, Shell, snippets
from tests.valkey import Valkey, free_port

pytestmark = pytest.mark.live

BY_A_NEWCOMER = {"README.md", "quickstart.md"}
"""What tests/live/test_readme.py runs in a fresh clone."""

PUBLISH_ORDERS = """
import sys, time
from service.client import MessagePublisher
with MessagePublisher("orders", sys.argv[1]) as publisher:
    while True:
        publisher.publish_message({"order": 7})
        time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One Chromium for the module."""
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def service() -> Iterator[LiveService]:
    """A service of its own: the pages' channels are the same in each of them."""
    with Valkey() as valkey, LiveService(valkey.url, WEB_CONCURRENCY=2) as service:
        command = [sys.executable, "-c", PUBLISH_ORDERS, valkey.url]
        others = subprocess.Popen(command, cwd=ROOT)
        yield service
        others.kill()
        others.wait()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a clone after `make`."""
    return made_clone(tmp_path)


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if page.name not in BY_A_NEWCOMER and any(one.runs for one in snippets(page))
    ],
    ids=lambda page: page.name,
)
def test_snippets_run(page: Path, clone: Path, service: LiveService, browser: Chrome) -> None:
    """All blocks of a page do, in order, what the page says they do."""
    blocks = snippets(page)
    port = free_port() if any(one.serves for one in blocks) else service.port
    environ = {
        "HOME": str(clone),
        "PATH": os.environ["PATH"],
        "PORT": str(port),
        "REDIS_URL": str(service.settings["REDIS_URL"]),
    }
    shell = Shell(clone, f"http://127.0.0.1:{port}", environ, sys.executable, browser)
    shell.run(blocks)
