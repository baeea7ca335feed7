"""Real clients: curl, Python and Node.js libraries, and Chromium's EventSource."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from selenium.webdriver import Chrome

from tests.browser import chromium
from tests.browser import until as until_in
from tests.live_clients import Client, command_of, reload
from tests.live_server import LiveService, until
from tests.sse_client import SseClient, parse_stream
from tests.tap import Tap
from tests.valkey import Valkey

pytestmark = pytest.mark.live

LAST = "\nlast one"
MULTI_LINE = '{\n  "ünïcödé": "\U0001f680",\n\n  "indented": [1]\n}'


@pytest.fixture
def channel() -> str:
    """A channel that nobody else uses."""
    return f"test-{uuid.uuid4()}"


class PageServer(ThreadingHTTPServer):
    """Another origin: it serves an empty page."""

    daemon_threads = True
    block_on_close = False  # the browser keeps connections open

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), EmptyPage)
        self.url = f"http://127.0.0.1:{self.server_port}"


class EmptyPage(BaseHTTPRequestHandler):
    """Answers every GET with an empty page."""

    def do_GET(self) -> None:
        """An empty page."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not a line per request."""


@pytest.fixture(scope="module")
def page() -> Iterator[PageServer]:
    """A page of another origin, which the service lists."""
    server = PageServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def service(shared_valkey: Valkey, page: PageServer) -> Iterator[LiveService]:
    """A service that ends its streams fast when it is reloaded, and calls clients back soon."""
    with LiveService(
        shared_valkey.url,
        HEARTBEAT_SECONDS=1,
        RETRY_MILLISECONDS=200,
        DRAIN_SECONDS=0.2,
        CORS_ORIGINS=page.url,
    ) as service:
        yield service


@pytest.fixture
def tap(service: LiveService) -> Iterator[Tap]:
    """A proxy before the service that sees what clients ask."""
    with Tap(service.port) as tap:
        yield tap


def publish_all(service: LiveService, channel: str) -> list[dict[str, str]]:
    """Publish one event of each kind; what clients should show."""
    cases = [("hello", None), (MULTI_LINE, "greeting"), ("  indented", None), (LAST, None)]
    return [
        {"type": name or "message", "data": data, "id": service.publish(channel, data, name)}
        for data, name in cases
    ]


# ------------------------------------------------------------------------------ without a browser


def streaming(tap: Tap, times: int) -> None:
    """Wait until the service has opened so many streams."""
    until(lambda: tap.answered.count(b"retry: ") == times, 10, f"opened {times} times")


def test_curl(service: LiveService, channel: str) -> None:
    """`curl -N` shows each event at once, and ends with success when the service drains."""
    command = ["curl", "-q", "-sN", f"{service.url}/stream?channel={channel}"]
    with Client(*command) as client:
        assert client.process.stdout is not None
        shown = client.process.stdout.readline() + client.process.stdout.readline()
        assert shown.startswith(b"retry: ")
        expected = publish_all(service, channel)
        while parse_stream(shown)[-1:] == [] or parse_stream(shown)[-1].data != LAST:
            shown += client.process.stdout.readline()
        assert [
            {"type": event.type, "data": event.data, "id": event.last_event_id}
            for event in parse_stream(shown)
        ] == expected
        reload(service)
        rest = client.process.stdout.read()
        assert b"retry: " in rest
        assert client.process.wait(5) == 0


@pytest.mark.parametrize(
    "program", ["httpx_client.py", "aiohttp_client.py", "eventsource_client.mjs"]
)
def test_libraries_that_reconnect(
    service: LiveService, tap: Tap, channel: str, program: str
) -> None:
    """The library gets id, type and data; after an end it is back, says its position, goes on."""
    with Client(*command_of(program, f"{tap.url}/stream?channel={channel}")) as client:
        streaming(tap, 1)
        expected = publish_all(service, channel)
        if program == "aiohttp_client.py":
            for event in expected:  # it strips all spaces, not only the first
                event["data"] = re.sub("^ +", "", event["data"], flags=re.MULTILINE)
        assert [client.event() for _ in expected] == expected
        assert tap.answered.count(b"Content-Encoding: gzip") == 1
        tap.end()
        streaming(tap, 2)
        assert tap.streams()[0].get("last-event-id") is None
        position = tap.streams()[-1]["last-event-id"]
        assert position == expected[-1]["id"]
        event_id = service.publish(channel, "still there")
        assert client.event() == {"type": "message", "data": "still there", "id": event_id}
        assert len(tap.streams()) == 2


def test_sseclient_py(service: LiveService, tap: Tap, channel: str) -> None:
    """sseclient-py, which never reconnects, gets id, type and data, and sees a clean end."""
    url = f"{tap.url}/stream?channel={channel}"
    with Client(*command_of("sseclient_client.py", url)) as client:
        streaming(tap, 1)
        expected = publish_all(service, channel)
        assert [client.event() for _ in expected] == expected
        reload(service)
        assert client.process.wait(10) == 0


# --------------------------------------------------------------------------------- in a browser

BLANK = "/static/rate.js"
"""A text from which scripts may stream: what is no page of the service allows them nothing."""

WATCH = """
    window.seen = [];
    window.source = new EventSource(arguments[0], {withCredentials: arguments[1]});
    for (const name of ["message", "greeting"])
        source.addEventListener(name, ({type, data, lastEventId}) =>
            seen.push({type, data, id: lastEventId}));
    source.onopen = () => window.opened = (window.opened || 0) + 1;
    source.onerror = () => window.failed = (window.failed || 0) + 1;
    window.opened = window.failed = 0;
"""


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One Chromium for the module: it takes a second to start."""
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(shared_browser: Chrome) -> Iterator[Chrome]:
    """Chromium, left on an empty page: that ends its streams."""
    yield shared_browser
    shared_browser.get("about:blank")


def seen(browser: Chrome, count: int) -> list[dict[str, str]]:
    """What the page's EventSource has dispatched, once that is `count` events."""
    until_in(browser, lambda b: value(b, "seen.length") >= count, f"{count} events")
    events: list[dict[str, str]] = value(browser, "seen")
    return events


def value(browser: Chrome, expression: str) -> Any:
    """What a JavaScript expression is in the page."""
    return browser.execute_script(f"return {expression}")


def watch(browser: Chrome, url: str, *, credentials: bool = False) -> None:
    """Open an EventSource in the page and wait until it is open."""
    browser.execute_script(WATCH, url, credentials)
    opened(browser, 1)


def opened(browser: Chrome, times: int) -> None:
    """Wait until the page's stream has been opened so many times."""
    until_in(browser, lambda b: value(b, "opened") == times, f"opened {times} times")


def test_browser_same_origin(service: LiveService, tap: Tap, channel: str, browser: Chrome) -> None:
    """EventSource gets id, type and data; ended or broken, it comes back with its position."""
    browser.get(tap.url + BLANK)
    watch(browser, f"/stream?channel={channel}")
    expected = publish_all(service, channel)
    assert seen(browser, len(expected)) == expected
    for attempt, break_off in enumerate((tap.end, tap.cut), 1):
        break_off()
        opened(browser, attempt + 1)
        assert tap.streams()[attempt]["last-event-id"] == expected[-1]["id"]
        data = f"after {attempt}"
        expected.append({"type": "message", "data": data, "id": service.publish(channel, data)})
        assert seen(browser, len(expected)) == expected
    request = tap.streams()[0]
    assert request["accept"] == "text/event-stream"
    assert request["cache-control"] == "no-cache"
    assert "last-event-id" not in request


def test_browser_keeps_the_position_of_a_quiet_stream(
    service: LiveService, tap: Tap, channel: str, browser: Chrome
) -> None:
    """Also without any event EventSource says on its return where it was."""
    browser.get(tap.url + BLANK)
    watch(browser, f"/stream?channel={channel}")
    tap.end()
    opened(browser, 2)
    milliseconds, _, sequence = tap.streams()[1]["last-event-id"].partition("-")
    assert milliseconds.isdigit()
    assert sequence.isdigit()
    assert value(browser, "seen") == []


def test_browser_of_a_listed_origin(
    service: LiveService, tap: Tap, channel: str, browser: Chrome, page: PageServer
) -> None:
    """A listed page streams from the service, with cookies, and comes back with its position."""
    browser.get(tap.url + BLANK)
    browser.add_cookie({"name": "who", "value": "me"})
    browser.get(page.url)
    watch(browser, f"{tap.url}/stream?channel={channel}", credentials=True)
    event_id = service.publish(channel, "across", "greeting")
    expected = [{"type": "greeting", "data": "across", "id": event_id}]
    assert seen(browser, 1) == expected
    tap.end()
    opened(browser, 2)
    assert len(tap.streams()) == 2
    for request in tap.streams():
        assert request["origin"] == page.url
        assert "who=me" in request["cookie"]
    assert tap.streams()[1]["last-event-id"] == event_id


def test_browser_of_another_origin(
    live: LiveService, channel: str, browser: Chrome, page: PageServer
) -> None:
    """A page that the service does not list gets nothing, with and without credentials."""
    browser.get(page.url)
    for credentials in (False, True):
        url = f"{live.url}/stream?channel={channel}"
        browser.execute_script(WATCH, url, credentials)
        until_in(browser, lambda b: value(b, "failed") == 1, "the stream is refused")
        assert value(browser, "source.readyState") == 2
        assert value(browser, "opened") == 0


def test_browser_of_another_origin_cannot_publish(
    live: LiveService, channel: str, browser: Chrome, page: PageServer
) -> None:
    """A foreign page that posts, as a form would, publishes nothing; a listed one does."""
    browser.get(page.url)
    post = """
        const [url, done] = arguments;
        fetch(url, {method: "POST", body: "x", mode: "no-cors"})
            .then(() => done("sent"), () => done("nothing told"));
    """
    with SseClient.connect(f"{live.url}/stream?channel={channel}") as client:
        client.wait_body(b"\n\n", 5)
        url = f"{live.url}/channels/{channel}"
        assert browser.execute_async_script(post, url) == "nothing told"
        until(
            lambda: live.log_lines(path=f"/channels/{channel}", status=403), 5, "it has been sent"
        )
        assert client.events_within(0.3) == []


def test_browser_of_a_listed_origin_publishes_json(
    service: LiveService, channel: str, browser: Chrome, page: PageServer
) -> None:
    """A listed page may POST JSON, which takes a preflight, and may read the receipt."""
    browser.get(page.url)
    post = """
        const [url, channel, done] = arguments;
        fetch(url, {
            method: "POST", headers: {"Content-Type": "application/json", "Idempotency-Key": "1"},
            body: JSON.stringify({channel, data: "from a page"}), credentials: "include",
        }).then(r => r.json()).then(done, error => done(String(error)));
    """
    with SseClient.connect(f"{service.url}/stream?channel={channel}") as client:
        client.wait_body(b"\n\n", 5)
        url = f"{service.url}/publish"
        receipt = browser.execute_async_script(post, url, channel)
        event = client.next_event(5)
        assert event.data == "from a page"
        assert receipt == {"id": event.last_event_id, "channel": channel, "replayed": False}


def test_browser_that_is_refused_comes_back(
    shared_valkey: Valkey, channel: str, browser: Chrome
) -> None:
    """Over the limit EventSource waits and tries again; it does not give up for ever."""
    with LiveService(shared_valkey.url, MAX_CONNECTIONS_PER_IP=1) as full:
        browser.get(full.url + BLANK)
        with SseClient.connect(f"{full.url}/stream?channel={channel}"):
            url = f"/stream?channel={channel}"
            browser.execute_script(WATCH, url, False)
            until_in(browser, lambda b: value(b, "failed") == 1, "the stream is refused")
            assert value(browser, "source.readyState") == 0
