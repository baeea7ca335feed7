"""The documentation as a site: built without a warning, whole, and at home on one host."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.browser import chromium, console, resize, until
from tests.clone import made_clone, outside_make

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """The links, loaded files and anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what the tag links to, loads and is called."""
        known = {name: value or "" for name, value in attrs}
        self.ids.add(known.get("id", ""))
        address = known.get("href") or known.get("src") or ""
        if address and tag == "a":
            self.links.append(address)
        elif address:
            self.loaded.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by `make docs`, also where docs/ is newer than what was installed."""
    clone = made_clone(tmp_path_factory.mktemp("clone"))
    (clone / "docs").unlink()
    shutil.copytree(ROOT / "docs", clone / "docs")
    os.utime(clone / "docs")
    built = subprocess.run(
        ["make", "docs"],
        cwd=clone,
        env=outside_make(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    return clone / "build/docs"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One Chromium for the module."""
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        resize(browser, 1280, 900)
        yield browser


def test_links_and_anchors_lead_somewhere(site: Path) -> None:
    """Each page is there; its links lead to files and ids of the site; all it loads is its own."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    assert {path.stem for path in ROOT.glob("docs/*.md")} <= {path.stem for path in pages}
    astray = []
    for path, page in pages.items():
        assert not [one for one in page.loaded if urlsplit(one).netloc], path.name
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = file in pages and (
                not parts.fragment or unquote(parts.fragment) in pages[file].ids
            )
            if not (there or (not parts.fragment and file.is_file())):
                astray.append(f"{path.name}: {link}")
    assert astray == []


def test_the_site_needs_no_other_host(address: str, browser: Chrome) -> None:
    """A page loads from its own host alone, without a complaint, and fits its window."""
    for name in ("index", "guarantees", "stream"):
        browser.get(f"{address}/{name}.html")
        loaded = browser.execute_script(
            "return performance.getEntriesByType('resource').map((one) => one.name)"
        )
        assert [one for one in loaded if not one.startswith(f"{address}/")] == []
        assert len(loaded) > 3
    for width in (390, 1000, 1280, 1320, 1520):
        resize(browser, width, 900)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert console(browser) == []


def test_search_finds_a_page(address: str, browser: Chrome) -> None:
    """The search, made in the browser, finds the page about idempotence."""
    browser.get(f"{address}/search.html?q=Idempotency-Key")
    hit = (By.CSS_SELECTOR, "#search-results a[href^='publish.html']")
    until(browser, lambda page: page.find_elements(*hit), "the page among the hits")
    assert console(browser) == []


def test_the_site_is_light_and_dark(address: str, browser: Chrome) -> None:
    """The page's ground follows what the reader's system prefers."""
    grounds = []
    for scheme in ("light", "dark"):
        wish = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
        browser.get(f"{address}/index.html")
        grounds.append(
            browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        )
    light, dark = (sum(int(n) for n in ground[4:-1].split(",")) for ground in grounds)
    assert light > 600
    assert dark < 200
