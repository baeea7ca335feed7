"""The dashboard in a real Chromium, against the real service."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver import Chrome

from tests.browser import chromium, console, resize, until
from tests.credentials import SECRET, token
from tests.live_server import LiveService
from tests.sse_client import SseClient
from tests.valkey import Valkey

pytestmark = pytest.mark.live

LONG = "c" * 128
SIZES = [(390, 844), (1024, 800), (1600, 1000)]


@pytest.fixture(scope="module")
def service(live_valkey: Valkey) -> Iterator[LiveService]:
    """A service in local mode, with two workers."""
    settings: dict[str, object] = {"WEB_CONCURRENCY": 2, "PUSHLINE_EMBEDDED": 1}
    with LiveService(live_valkey.url, CHANNEL_PREFIX="dashboard:", **settings) as service:
        yield service.wait_workers()


@pytest.fixture(scope="module")
def guarded(live_valkey: Valkey) -> Iterator[LiveService]:
    """A service that wants tokens."""
    settings: dict[str, object] = {"JWT_SECRET": SECRET, "PUBLISH_OPEN": 0, "PUBLIC_CHANNELS": "*"}
    with LiveService(live_valkey.url, CHANNEL_PREFIX="guarded:", **settings) as service:
        yield service


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One Chromium for the module."""
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(shared_browser: Chrome) -> Iterator[Chrome]:
    """Chromium in the middle size, left on an empty page."""
    resize(shared_browser, 1024, 800)
    console(shared_browser)
    yield shared_browser
    shared_browser.get("about:blank")


READ_ROWS = """
const rows = [...document.getElementById(arguments[0]).rows];
return rows.map((row) => [...row.cells].map((cell) => cell.textContent));
"""


class Board:
    """The dashboard, seen through what it shows."""

    def __init__(self, browser: Chrome, service: LiveService) -> None:
        self.browser = browser
        browser.get(f"{service.url}/dashboard")

    def text(self, name: str) -> str:
        """What the element with this id shows."""
        return str(self.browser.find_element("id", name).text)

    def number(self, name: str) -> float:
        """The figure with this id; -1 before there is one."""
        found = re.match(r"[0-9.]+", self.text(name).removeprefix("≤ "))
        return float(found[0]) if found else -1.0

    def rows(self, name: str) -> dict[str, list[str]]:
        """The rows of a table: first cell, and the others."""
        found = self.browser.execute_script(READ_ROWS, name)
        return {first: rest for first, *rest in found}

    def wait(self, name: str, text: str) -> None:
        """Until the element with this id shows just this."""
        until(self.browser, lambda _: self.text(name) == text, f"{name}: {text!r}")

    def wait_for(self, name: str, part: str) -> None:
        """Until the text of the element with this id has this in it."""
        until(self.browser, lambda _: part in self.text(name), f"{name}: {part!r} in it")

    def write(self, name: str, text: str) -> None:
        """Replace the text of a field."""
        field = self.browser.find_element("id", name)
        field.clear()
        field.send_keys(text)

    def show_token(self, credential: str) -> None:
        """Answer the question for a token."""
        self.write("token", credential)
        self.browser.find_element("css selector", "#token-form .primary").click()


@contextlib.contextmanager
def streams(service: LiveService, *channels: str) -> Iterator[list[SseClient]]:
    """Open streams."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(SseClient.connect(f"{service.url}/stream?channel={one}"))
            for one in channels
        ]


# -------------------------------------------------------------------------------- what it shows


def test_figures_follow_the_service(service: LiveService, browser: Chrome) -> None:
    """Streams, events, latencies, closes and refusals show up as they happen; the dashboard itself
    is no stream, and nothing of it is an error.
    """
    board = Board(browser, service)
    board.wait("state-word", "Live")
    board.wait("streams", "0")
    board.wait("workers", "2")
    assert "No stream is open" in board.text("channels-empty")
    assert (board.text("delivered"), board.text("redis")) == ("0", "Up")
    with streams(service, "news", "news", "chat"):
        board.wait("streams", "3")
        wanted = {"news": ["2"], "chat": ["1"]}
        until(browser, lambda _: board.rows("channels-rows") == wanted, "channels by streams")
        workers = board.rows("workers-rows")
        assert sum(int(cells[0]) for cells in workers.values()) == 3
        assert all(cells[-1] == "ready" for cells in workers.values())

        def moves(_: Chrome) -> bool:
            service.publish("news", "x")
            service.post("/channels/no%20name", b"x")
            return all(board.number(one) > 0 for one in ("published", "delivered", "latency"))

        until(browser, moves, "published, delivered and latency")
        plot = browser.find_element("css selector", "#plot-out .canvas")
        assert "delivered" in str(plot.get_attribute("aria-label"))
    board.wait("streams", "0")
    until(browser, lambda _: board.rows("closed-rows").get("client_left", [""])[0] == "3", "closes")
    assert int(board.rows("refused-rows")["bad_channel"][0]) > 0
    assert console(browser) == []


def test_publishes(service: LiveService, browser: Chrome) -> None:
    """The box publishes an event with a name, shows its id, and says why one was refused."""
    board = Board(browser, service)
    board.wait("state-word", "Live")
    with streams(service, "box") as (client,):
        board.write("publish-channel", "box")
        board.write("publish-event", "greeting")
        board.write("publish-data", "from the box")
        browser.find_element("id", "publish").click()
        (event,) = client.events(1, 5)
    assert (event.type, event.data) == ("greeting", "from the box")
    board.wait_for("result", f"Published {event.last_event_id}")
    board.write("publish-channel", "no name")
    browser.find_element("id", "publish").click()
    board.wait_for("result", "(400)")


def test_a_worker_dies(service: LiveService, browser: Chrome) -> None:
    """Its figures go within seconds, another one takes its place, and the page comes back by
    itself if the dead one had it.
    """
    board = Board(browser, service)
    board.wait("workers", "2")
    pid = service.worker_pids()[0]
    (name,) = [one for one in board.rows("workers-rows") if one.endswith(f":{pid}")]
    os.kill(pid, signal.SIGKILL)

    def is_replaced(_: Chrome) -> bool:
        rows = board.rows("workers-rows")
        return name not in rows and len(rows) == 2

    until(browser, is_replaced, "another worker in its place")
    board.wait("state-word", "Live")


# ---------------------------------------------------------------------------------- who may see


def test_asks_for_a_token(guarded: LiveService, browser: Chrome) -> None:
    """Without the right to administrate the page asks, and says what is wrong with a token; with
    it, it shows the board, also when it is reloaded. The token is in no address, and nowhere but
    in the tab, until it is forgotten.
    """
    board = Board(browser, guarded)
    until(browser, lambda _: browser.find_element("id", "ask").is_displayed(), "the question")
    assert not browser.find_element("id", "board").is_displayed()
    assert board.text("token-error") == ""
    for wrong, told in (
        ("nonsense", "(401)"),
        (token(subscribe=["*"]), "(403)"),
        (token(admin=True, seconds=-60), "expired"),
    ):
        board.show_token(wrong)
        board.wait_for("token-error", told)
    refused = [
        line for line in console(browser) if "the server responded with a status" not in line
    ]
    assert refused == []
    right = token(admin=True, publish=["*"])
    board.show_token(right)
    board.wait("workers", "1")
    browser.find_element("id", "publish").click()
    board.wait_for("result", "Published ")
    browser.refresh()
    board.wait("workers", "1")
    script = """return [location.href, document.cookie, JSON.stringify(localStorage),
        ...performance.getEntriesByType("resource").map((one) => one.name)]"""
    seen = browser.execute_script(script)
    assert any("/tickets?channel=" in one for one in seen)
    assert not any(right in one for one in seen)
    assert console(browser) == []
    browser.find_element("id", "forget").click()
    until(browser, lambda _: browser.find_element("id", "ask").is_displayed(), "the question")
    assert browser.execute_script("return sessionStorage.length") == 0


# --------------------------------------------------------------------------------- how it looks

OVERFLOWING = """
const shown = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility());
const wide = shown.filter((one) => one.getBoundingClientRect().right > innerWidth + 1);
const page = document.documentElement;
const scrolling = [page, ...document.querySelectorAll(".card, .scroll")];
wide.push(...scrolling.filter((one) => one.scrollWidth > one.clientWidth));
return wide.map((one) => one.outerHTML.slice(0, 80));
"""


def test_fits_the_window(service: LiveService, browser: Chrome) -> None:
    """At no size does anything reach beyond the window or scroll sideways, whatever channels are
    called, and whatever a publish says.
    """
    board = Board(browser, service)
    with streams(service, LONG, "a"):
        board.wait("streams", "2")
        board.write("publish-channel", "x" * 300)
        browser.find_element("id", "publish").click()
        board.wait_for("result", "(400)")
        for size in SIZES:
            resize(browser, *size)
            until(browser, lambda _: browser.execute_script(OVERFLOWING) == [], f"it fits {size}")


CONTRASTS = """
const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const channels = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
};
const light = (colour) => {
    const [r, g, b] = channels(colour).map((one) => one / 255)
        .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
        const style = getComputedStyle(one);
        if (one.matches("td.measure")) return style.getPropertyValue("--wash");
        if (channels(style.backgroundColor)[3] === 255) return style.backgroundColor;
    }
    return "white";
};
const texts = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() &&
    [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
return texts.map((one) => {
    const both = [light(getComputedStyle(one).color), light(ground(one))].sort((a, b) => b - a);
    return [(both[0] + 0.05) / (both[1] + 0.05), one.outerHTML.slice(0, 80)];
});
"""


UNLABELLED = """
const named = (one) =>
    one.labels?.length || one.getAttribute("aria-label") || one.textContent.trim();
return [...document.querySelectorAll("input, textarea, button, a, [role=img]")]
    .filter((one) => !named(one)).map((one) => one.outerHTML.slice(0, 80));
"""


def test_is_for_everybody(service: LiveService, browser: Chrome) -> None:
    """All text has a contrast of 4.5 at least (WCAG 2.2, AA), in light and dark. There is one main
    heading, and none is left out below it; tables have heads; all that can be used, and each
    plot, has a name.
    """
    board = Board(browser, service)
    with streams(service, "a"):
        board.wait("streams", "1")
        browser.find_element("id", "publish").click()
        board.wait_for("result", "Published ")
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            found: list[tuple[float, str]] = browser.execute_script(CONTRASTS)
            assert len(found) > 40
            assert [one for one in found if one[0] < 4.5] == []
    assert browser.execute_script(UNLABELLED) == []
    script = "return [...document.querySelectorAll('h1,h2,h3,h4')].map((one) => one.tagName)"
    first, *others = browser.execute_script(script)
    assert first == "H1"
    assert set(others) == {"H2"}
    heads = browser.find_elements("css selector", "thead th[scope=col]")
    assert len(heads) == len(browser.find_elements("css selector", "thead th")) > 10


# ------------------------------------------------------------------------- the fleet by itself

FLEET = """
const done = arguments[arguments.length - 1];
import("/static/fleet.js").then(async ({Fleet, percentile}) => {
    const {History} = await import("/static/history.js");
    done((() => { %s })());
}).catch((error) => done(String(error.stack)));
"""

SNAPSHOT = """
const snapshot = (worker, at, delivered, more = {}) => ({
    worker, at, host: "h", pid: 1, streams: 5, limit: 0, counters: {delivered}, closed: {},
    refused: {}, bounds: [0.001, 0.01], delivery: [0, 0, 0], publish: [], lag: [], top: [],
    ...more});
const fleet = new Fleet();
"""


def run(browser: Chrome, service: LiveService, code: str) -> Any:
    """Run code with the dashboard's own modules."""
    browser.get(f"{service.url}/dashboard")
    return browser.execute_async_script(FLEET % (SNAPSHOT + code))


def test_rates_of_workers_that_come_and_go(service: LiveService, browser: Chrome) -> None:
    """A rate needs two snapshots; one of a worker that was missing for a while or has taken a dead
    one's place is no jump, nor one that comes late; five seconds of silence end a worker.
    """
    code = """
        const rates = [];
        const take = (...told) => { fleet.take(snapshot(...told), told[1] * 1000);
                                    rates.push(fleet.rate("delivered")); };
        take("a", 1, 1000);
        take("a", 2, 1010);
        take("b", 2.5, 1e9);
        take("b", 3.5, 1e9 + 4);
        take("a", 1.5, 1005);
        take("a", 4, 1050);
        fleet.expire(9000);
        rates.push(fleet.workers.length);
        fleet.expire(9001);
        rates.push(fleet.workers.length);
        take("a", 9.2, 5);
        take("a", 10.2, 3);
        return [rates, fleet.sum("streams")];
    """
    assert run(browser, service, code) == [[0, 10, 10, 14, 14, 24, 1, 0, 0, 0], 5]


def test_what_has_happened_in_five_minutes(service: LiveService, browser: Chrome) -> None:
    """Closes, refusals and latencies are those since the page was opened, of five minutes at most;
    what workers had counted before is not among them.
    """
    code = """
        const history = new History();
        const told = (at, left, slow) => fleet.take(snapshot("a", at, 0,
            {closed: {client_left: left}, refused: {bad_body: slow}, delivery: [0, slow, 0]}), 0);
        told(1, 500, 70);
        told(2, 503, 80);
        history.add(fleet, 2);
        told(3, 504, 80);
        history.add(fleet, 3);
        const first = [history.happened("closed"), history.happened("refused"),
                       history.percentile(fleet.bounds, "delivery", 0.5)];
        history.add(fleet, 302.5);
        return [first, history.happened("closed"),
                history.percentile(fleet.bounds, "delivery", 0.5),
                history.lines(["streams"], 302.5), fleet.labelled("closed")];
    """
    first, closed, latency, lines, in_all = run(browser, service, code)
    assert first == [{"client_left": 4}, {"bad_body": 10}, pytest.approx(0.0055)]
    assert closed == {"client_left": 1}
    assert latency is None
    assert lines == [[-299.5, -298.5, 0], [5, None, 5]], "what is not known is a gap"
    assert in_all == {"client_left": 504}


def test_percentiles(service: LiveService, browser: Chrome) -> None:
    """Between the bounds of its bucket, in proportion; beyond the last bound it is that."""
    code = """
        const of = (counts, share) => percentile([0.001, 0.01], counts, share);
        return [of([0, 0, 0], 0.5), of([4, 0, 0], 0.5), of([50, 50, 0], 0.99), of([0, 0, 9], 0.5),
                of([1, 0, 99], 0.01)];
    """
    expected = [None, 0.0005, 0.00982, 0.01, 0.001]
    assert run(browser, service, code) == [
        one if one is None else pytest.approx(one) for one in expected
    ]
