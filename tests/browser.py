"""Chromium for live tests: Debian's own, driven by its chromedriver.

Both speak plain HTTP to the test, so this also works where gevent has patched the standard library.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # root in a container has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_SECONDS = 10.0

Found = TypeVar("Found")


@contextmanager
def chromium(profile: Path) -> Iterator[Chrome]:
    """A fresh Chromium with its profile in `profile`; skips the test where there is none.

    With CI in the environment a missing browser is a failure: nothing may go untested there.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    driver = shutil.which("chromedriver")
    if not program or not driver:
        reason = "no browser test: needs chromium and chromedriver (Debian: chromium-driver)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    options = ChromeOptions()
    options.binary_location = program
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def resize(browser: Chrome, width: int, height: int) -> None:
    """Make the page's window this large; Chromium's own window can't be as narrow as a phone."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def console(browser: Chrome) -> list[str]:
    """What the browser has written to its console since this was asked last."""
    entries = browser.execute("getLog", {"type": "browser"})["value"]
    return [str(entry["message"]) for entry in entries]


def until(browser: Chrome, look: Callable[[Chrome], Found], hope: str) -> Found:
    """The first true answer of `look`, or a failure that says what was hoped for."""
    wait = WebDriverWait(browser, PATIENCE_SECONDS, poll_frequency=0.05)
    answer = wait.until(look, f"not seen within {PATIENCE_SECONDS:g} s: {hope}")
    assert answer  # until never returns a false one, but its annotation says it might
    return answer
