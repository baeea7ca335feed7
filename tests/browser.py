"""Chromium for live tests: Debian's own, driven by its chromedriver; and the demo page in it.

Both speak plain HTTP to the test, so this also works where gevent has patched the standard library.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from tests.untested import untested

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
PATIENCE_SECONDS = 30.0

Found = TypeVar("Found")


@contextmanager
def chromium(profile: Path, **preferences: object) -> Iterator[Chrome]:
    """A fresh Chromium with its profile in `profile`; without one the test is skipped, not in CI.

    `preferences` are those of the profile's section of the same name.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    driver = shutil.which("chromedriver")
    if not program or not driver:
        untested("a browser is needed, and its chromedriver (Debian: chromium-driver)")
    options = ChromeOptions()
    options.binary_location = program
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    named = {f"profile.{name}": value for name, value in preferences.items()}
    options.add_experimental_option("prefs", named)
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


@dataclass(frozen=True)
class Row:
    """One event as the demo page lists it."""

    id: str
    type: str
    data: str
    latency: str
    classes: str


READ_ROWS = """
return [...document.querySelectorAll("#events tr")].map((row) => {
    const text = (name) => row.querySelector(name).textContent;
    return [row.dataset.id, text(".type"), text(".data"), text(".latency"), row.className];
});
"""


class Page:
    """The demo page, seen through what it shows."""

    def __init__(self, browser: Chrome, service: str, query: str = "") -> None:
        self.browser = browser
        browser.get(f"{service}/{query}")

    def rows(self) -> list[Row]:
        """The listed events, newest first."""
        return [Row(*row) for row in self.browser.execute_script(READ_ROWS)]

    def published(self) -> list[str]:
        """What the listed events hold, newest first, without those of the service itself."""
        return [row.data for row in self.rows() if "service" not in row.classes]

    def text(self, name: str) -> str:
        """What the element with this id shows."""
        script = "return document.getElementById(arguments[0]).textContent"
        return str(self.browser.execute_script(script, name))

    def write(self, name: str, text: str) -> None:
        """Replace the text of a field."""
        field = self.browser.find_element("id", name)
        field.clear()
        field.send_keys(text)

    def click(self, name: str) -> None:
        """Click the element with this id."""
        self.browser.find_element("id", name).click()

    def wait_for_state(self, word: str) -> None:
        """Until the page says that its stream is in this state."""
        until(self.browser, lambda _: self.text("state-word") == word, f"the state {word!r}")

    def wait_for_row(self, data: str) -> Row:
        """Until the page lists an event with this text."""

        def find(_: Chrome) -> Row | None:
            return next((row for row in self.rows() if row.data == data), None)

        row = until(self.browser, find, f"an event {data!r}")
        assert row is not None
        return row

    def wait_for_result(self, start: str) -> str:
        """Until the page says this of a publish."""
        until(
            self.browser,
            lambda _: self.text("result").startswith(start),
            f"a result that begins with {start!r}",
        )
        return self.text("result")
