"""Takes the pictures of docs/pictures: the pages in Chromium, with a service that has much to do.

`python -m gevent.monkey --module tests.pictures` makes them; with `--all FOLDER` it takes the
dashboard of 0, 10 and 10 000 streams, light and dark, at three sizes, for somebody to look at.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import io
import itertools
import math
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
from PIL import Image
from selenium.webdriver import Chrome

from tests.browser import Page, chromium, resize, until
from tests.live_server import LiveService
from tests.sse_client import SseClient
from tests.swarm import Swarm
from tests.valkey import Valkey

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
SIZES = {"wide": (1600, 1000), "middle": (1024, 900), "narrow": (390, 844)}
SCHEMES = ("light", "dark")
COLOURS = 256
"""Of a picture: enough for pages, and less than half the bytes."""

WORKERS = 4
CHANNELS = ("scores.live", "chat.general", "prices.eur", "orders.berlin", "news", "chat.support")
MANY = [f"answers.{number:04}" for number in range(250)]

ORDERS = ("created", "paid", "packed", "shipped")


def addresses(service: LiveService) -> list[str]:
    """Addresses of streams, popular channels more often than others."""
    popular = [name for place, name in enumerate(CHANNELS) for _ in range(300 // (place + 1))]
    return [f"{service.url}/stream?channel={name}" for name in [*popular, *MANY]]


def traffic(service: LiveService) -> None:
    """Publish, sometimes more and sometimes less, for ever."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", service.port)) as connection:
        for number in itertools.count():
            channel = random.choice([*CHANNELS[1:], *MANY])
            connection.request("POST", f"/channels/{channel}", f"event {number}")
            connection.getresponse().read()
            if number % 40 == 0:
                visit(service)
            time.sleep(0.02 + 0.015 * math.sin(time.monotonic() / 9))


def visit(service: LiveService) -> None:
    """Open a stream and leave, and ask for one that is refused."""
    for path in ("/stream?channel=news", "/stream?channel=no%20name"):
        with SseClient.connect(f"{service.url}{path}"):
            pass


@contextlib.contextmanager
def busy(streams: int) -> Iterator[LiveService]:
    """A service in local mode with so many streams, and traffic if there are any."""
    with Valkey() as valkey, LiveService(
        valkey.url, WEB_CONCURRENCY=WORKERS, PUSHLINE_EMBEDDED=1
    ) as service:  # fmt: skip
        service.wait_workers()
        publisher = gevent.spawn(traffic, service) if streams else None
        with contextlib.ExitStack() as stack:
            if streams:
                urls = addresses(service)[:: max(1, 900 // streams)]
                swarm = stack.enter_context(Swarm(urls, streams, reopen="ended"))
                swarm.wait_open(60)
            yield service
        if publisher is not None:
            publisher.kill()


def shoot(browser: Chrome, path: Path, size: tuple[int, int], scheme: str, *, whole: bool) -> None:
    """Save a picture of the page, with `whole` all of it."""
    look(browser, size, scheme)
    if whole:
        height = browser.execute_script("return document.documentElement.scrollHeight")
        look(browser, (size[0], height), scheme)
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    print(path, f"{path.stat().st_size // 1024} KiB")


def look(browser: Chrome, size: tuple[int, int], scheme: str) -> None:
    """Show the page at this size in light or dark."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    resize(browser, *size)
    gevent.sleep(1.5)  # a tick of the dashboard


def open_dashboard(browser: Chrome, service: LiveService, seconds: float) -> None:
    """Show the dashboard for so long."""
    resize(browser, *SIZES["wide"])
    browser.get(f"{service.url}/dashboard")
    until(browser, lambda _: browser.find_element("id", "board").is_displayed(), "the dashboard")
    gevent.sleep(seconds)


def show_demo(browser: Chrome, service: LiveService) -> None:
    """Show the demo page, with some events in it."""
    page = Page(browser, service.url, "?channel=orders&listen=order&listen=price")
    page.wait_for_state("Open")
    for number in range(14):
        for state in ORDERS[: 1 + number % 4]:
            text = (
                f'{{"order": {4711 + number}, "state": "{state}", "eur": {19.9 + number * 7:.2f}}}'
            )
            service.publish("orders", text, "order")
            gevent.sleep(random.uniform(0.1, 0.5))
        if number % 3 == 0:
            service.publish("orders", f'{{"berlin": {71.4 + number / 10:.2f}}}', "price")
    service.publish("orders", "Warehouse Berlin opens at 8")
    gevent.sleep(1)


def take_all(browser: Chrome, folder: Path, seconds: float) -> None:
    """Take every picture of the dashboard."""
    for streams in (0, 10, 10_000):
        with busy(streams) as service:
            open_dashboard(browser, service, seconds)
            for scheme in SCHEMES:
                for name, size in SIZES.items():
                    path = folder / f"{streams}-{name}-{scheme}.png"
                    shoot(browser, path, size, scheme, whole=True)


def take(browser: Chrome, seconds: float) -> None:
    """Take those of the documentation."""
    with busy(10_000) as service:
        open_dashboard(browser, service, seconds)
        for scheme in SCHEMES:
            shoot(browser, PICTURES / f"dashboard-{scheme}.png", SIZES["wide"], scheme, whole=False)
        shoot(browser, PICTURES / "dashboard-narrow.png", SIZES["narrow"], "light", whole=False)
    with busy(0) as service:
        resize(browser, 1280, 800)
        show_demo(browser, service)
        shoot(browser, PICTURES / "demo.png", (1280, 800), "light", whole=False)


def main() -> None:
    """Read the command line, and take them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="every state, to look at")
    parser.add_argument("--seconds", type=float, default=300, help="of history (default 300)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        if asked.all:
            take_all(browser, asked.all, asked.seconds)
        else:
            take(browser, asked.seconds)


if __name__ == "__main__":
    main()
