"""The page at /docs in a real Chromium; and its commands, as a reader would run them."""

from __future__ import annotations

import html
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from tests.browser import chromium, console, resize
from tests.credentials import SECRET, token
from tests.live_server import LiveService
from tests.valkey import Valkey

pytestmark = pytest.mark.live

SIZES = ((1400, 900), (820, 1000), (360, 740))

IN_SIGHT = """
return [...document.querySelectorAll("article")].map((one) => {
    const box = one.getBoundingClientRect();
    return [one.id, box.width > 0 && box.height > 0 && box.left >= 0 &&
        box.right <= document.documentElement.clientWidth];
});
"""

SPILLED = """
return [...document.querySelectorAll("main *")].filter((one) =>
    one.scrollWidth > one.clientWidth + 1 && !one.closest("thead")
        && getComputedStyle(one).display !== "inline"
).map((one) => one.outerHTML.slice(0, 200));
"""


@pytest.fixture(scope="module")
def service(shared_valkey: Valkey) -> Iterator[LiveService]:
    """A service where everything wants a credential."""
    settings = {"PUBLISH_OPEN": 0, "PUBLIC_CHANNELS": "", "JWT_SECRET": SECRET}
    settings["PRESENCE_CHANNELS"] = "news"
    with LiveService(shared_valkey.url, **settings) as service:
        yield service


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A Chromium."""
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_every_screen(service: LiveService, browser: Chrome, scheme: str) -> None:
    """Each operation is in sight, nothing is cut off or spills, and the console stays empty."""
    preference = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": preference})
    document = service.get("/openapi.json")[1].decode()
    names = set(re.findall(r'"operationId":"(\w+)"', document))
    for width, height in SIZES:
        resize(browser, width, height)
        browser.get(f"{service.url}/docs")
        shown = dict(browser.execute_script(IN_SIGHT))
        assert {name for name in names if not name.endswith("Head")} <= shown.keys()
        assert [name for name, is_so in shown.items() if not is_so] == []
        assert browser.execute_script(SPILLED) == []
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
    script = "return getComputedStyle(document.body).backgroundColor"
    colours = re.findall(r"\d+", browser.execute_script(script))
    assert (sum(map(int, colours[:3])) > 380) == (scheme == "light")
    assert console(browser) == []


def test_an_error_leads_to_its_meaning(service: LiveService, browser: Chrome) -> None:
    """The codes of an operation open, and lead to their row, which isn't under the heading."""
    resize(browser, 1400, 900)
    browser.get(f"{service.url}/docs#publishText")
    browser.find_element("css selector", "#publishText .errors summary").click()
    link = browser.find_element("css selector", "#publishText a[href='#error-channel_ended']")
    assert link.is_displayed()
    link.click()
    script = """
    const top = document.querySelector(":target").getBoundingClientRect().top;
    const head = document.querySelector("header").getBoundingClientRect().bottom;
    return top >= head && top < innerHeight;
    """
    assert browser.execute_script(script)


def commands(page: str) -> list[str]:
    """The commands of the page, in its order."""
    found = re.findall(r'<pre class="command"><code>(.*?)</code></pre>', page, re.DOTALL)
    return [html.unescape(one) for one in found]


def test_every_command_runs(service: LiveService, tmp_path: Path) -> None:
    """With PUSHLINE and TOKEN in a shell each command of the page works as it stands."""
    (tmp_path / ".curlrc").write_text("silent\nshow-error\nfail\n")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PUSHLINE": service.url,
        "TOKEN": token(publish=["*"], subscribe=["*"], admin=True),
    }
    listed = commands(service.get("/docs")[1].decode())
    assert len(listed) >= 18
    for command in sorted(listed, key=lambda one: "/end" in one):  # nothing goes out after that
        endless = command.startswith("curl -N")
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}" if endless else command],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if endless:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"retry: ")
            process.kill()
            process.communicate()
            continue
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 0, f"{command}\n{errors.decode()}"
