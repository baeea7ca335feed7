"""The demo page and pushline.js in a real Chromium, against the real service."""

import json
import socket
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import parse_qs, urlsplit

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

from tests.browser import Page, chromium, console, resize, until
from tests.live_server import LiveService

pytestmark = pytest.mark.live

NARROW = 360
NUMBERS = count(1)


# ---------------------------------------------------------------------- what stands between


@dataclass(frozen=True)
class Answer:
    """What the front says to a stream request instead of the service."""

    status: int
    content_type: str
    body: str


def refusal(status: int) -> Answer:
    """Problem+json, as the service would say it."""
    problem = {
        "type": "about:blank",
        "title": "Out of order",
        "status": status,
        "code": "out_of_order",
        "detail": "The test says no.",
        "fix": "Ask again later.",
    }
    return Answer(status, "application/problem+json", json.dumps(problem))


def script(*blocks: str) -> Answer:
    """An event stream with these blocks that ends at once."""
    return Answer(200, "text/event-stream", "".join(f"{block}\n\n" for block in blocks))


class Front(ThreadingHTTPServer):
    """A proxy before the service that can cut streams and answer them itself.

    `asked` holds the query of each EventSource's request; `answers` are given to the next ones.
    """

    daemon_threads = True
    block_on_close = False  # a stream may outlive its test

    def __init__(self, service: str) -> None:
        super().__init__(("127.0.0.1", 0), Passage)
        self.service = urlsplit(service)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[dict[str, list[str]]] = []
        self.answers: deque[Answer] = deque()
        self.streams: set[socket.socket] = set()

    def cut(self) -> None:
        """Break all the open streams, as a dying proxy would."""
        for stream in tuple(self.streams):
            stream.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Browsers leave in the middle: nothing to say about it."""


class Passage(BaseHTTPRequestHandler):
    """Passes one request on, byte for byte but for its Connection header."""

    server: Front

    def do_GET(self) -> None:
        """A stream, or anything else."""
        path = urlsplit(self.path)
        is_stream = path.path == "/stream" and "event-stream" in self.headers.get("Accept", "")
        if is_stream:
            self.server.asked.append(parse_qs(path.query))
            if self.server.answers:
                self._say(self.server.answers.popleft())
                return
        self._pass_on(is_stream)

    def do_POST(self) -> None:
        """A publish."""
        self._pass_on(False)

    def _say(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.end_headers()
        self.wfile.write(answer.body.encode())

    def _pass_on(self, is_stream: bool) -> None:
        del self.headers["Connection"]
        self.headers["Connection"] = "close"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        service = self.server.service
        with socket.create_connection((service.hostname, service.port)) as upstream:
            head = f"{self.command} {self.path} HTTP/1.1\r\n{self.headers}"
            upstream.sendall(head.replace("\r\n", "\n").replace("\n", "\r\n").encode() + body)
            if is_stream:
                self.server.streams.add(upstream)
            try:
                while piece := upstream.recv(65536):
                    self.wfile.write(piece)
            finally:
                self.server.streams.discard(upstream)

    def log_message(self, *_: object) -> None:
        """Not a line per request."""


# ---------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One Chromium for the module: it takes a second to start."""
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(shared_browser: Chrome) -> Iterator[Chrome]:
    """Chromium at the size of a laptop, left on an empty page."""
    resize(shared_browser, 1280, 900)
    console(shared_browser)  # forget what earlier tests said
    yield shared_browser
    shared_browser.get("about:blank")


@pytest.fixture
def front(live: LiveService) -> Iterator[Front]:
    """A proxy before the service."""
    front = Front(live.url)
    thread = threading.Thread(target=front.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield front
    front.shutdown()
    thread.join()
    front.server_close()


@pytest.fixture
def channel() -> str:
    """A channel that no other test uses."""
    return f"demo-page-{next(NUMBERS)}"


OVERFLOWING = """
const page = document.documentElement;
const wide = [...document.querySelectorAll("body *")].filter((element) => {
    const isHidden = element.closest("thead");  // for screen readers alone, when narrow
    return !isHidden && element.getBoundingClientRect().right > window.innerWidth + 1;
});
for (const scrolling of [page, ...document.querySelectorAll(".scroll, .controls, .data")]) {
    if (scrolling.scrollWidth > scrolling.clientWidth) wide.push(scrolling);
}
return wide.map((element) => element.outerHTML.slice(0, 80));
"""


# ------------------------------------------------------------------------------------- tests


def test_shows_a_published_event(live: LiveService, browser: Chrome, channel: str) -> None:
    """An event published over HTTP is listed with its id, type, data and latency."""
    page = Page(browser, live.url, f"?channel={channel}")
    page.wait_for_state("Open")
    live.publish(channel, "first")
    row = page.wait_for_row("first")
    milliseconds, sequence = row.id.split("-")
    assert milliseconds.isdecimal()
    assert sequence.isdecimal()
    assert row.type == "message"
    assert row.latency.endswith("ms")
    assert "named" not in row.classes


def test_streams_several_channels_in_one_list(
    live: LiveService, browser: Chrome, channel: str
) -> None:
    """Channels separated by commas and spaces are one stream, named in the page's address."""
    page = Page(browser, live.url, f"?channel={channel}")
    page.wait_for_state("Open")
    page.write("channels", f"{channel}-a, {channel}-b {channel}-a")
    page.click("start")
    wanted = f"?channel={channel}-a&channel={channel}-b"
    until(browser, lambda _: browser.current_url.endswith(wanted), "the channels in the address")
    page.wait_for_state("Open")
    live.publish(f"{channel}-a", "one")
    live.publish(f"{channel}-b", "two")
    page.wait_for_row("two")
    assert page.published() == ["two", "one"]

    browser.refresh()
    page.wait_for_state("Open")
    live.publish(f"{channel}-b", "three")
    page.wait_for_row("three")


def test_shows_event_names_it_listens_for(live: LiveService, browser: Chrome, channel: str) -> None:
    """Events with a name are shown if the page was told the name, also `error` and `state`."""
    names = ("price", "state")
    query = "&".join([f"?channel={channel}", *(f"listen={name}" for name in names)])
    page = Page(browser, live.url, query)
    page.wait_for_state("Open")
    for name in names:
        live.publish(channel, f"a {name}", name)
        row = page.wait_for_row(f"a {name}")
        assert row.type == name
        assert "named" in row.classes
    assert page.text("state-word") == "Open"


def test_publishes_from_the_form(live: LiveService, browser: Chrome, channel: str) -> None:
    """The form publishes, shows the id that came back, and hears the name it has just used."""
    page = Page(browser, live.url, f"?channel={channel}")
    page.wait_for_state("Open")
    page.write("publish-event", "greeting")
    page.write("publish-data", "from the form")
    page.click("publish")
    result = page.wait_for_result("Published ")
    row = page.wait_for_row("from the form")
    assert row.type == "greeting"
    assert f"Published {row.id}" in result
    assert browser.current_url.endswith(f"?channel={channel}&listen=greeting")


def test_says_why_a_publish_was_refused(live: LiveService, browser: Chrome, channel: str) -> None:
    """What problem+json says (title, detail, fix) is shown in words."""
    page = Page(browser, live.url, f"?channel={channel}")
    page.wait_for_state("Open")
    page.write("publish-channel", "no such channel")
    status, body, _ = live.post("/channels/no%20such%20channel", b"x")
    assert status == 400
    problem = json.loads(body)
    page.click("publish")
    result = page.wait_for_result(problem["title"])
    assert problem["detail"] in result
    assert problem["fix"] in result


def test_refuses_a_bad_channel_name_itself(live: LiveService, browser: Chrome) -> None:
    """A name that no channel can have is refused in words, and the running stream goes on."""
    page = Page(browser, live.url, "?channel=fine")
    page.wait_for_state("Open")
    page.write("channels", "fine, b/d")
    page.click("start")
    assert "“b/d” is no channel name" in page.text("channels-error")
    assert page.text("state-word") == "Open"


def test_leads_to_the_other_pages(live: LiveService, browser: Chrome) -> None:
    """The dashboard and the reference are a click away."""
    browser.get(live.url)
    links = browser.find_elements("css selector", "footer a")
    found = [str(link.get_attribute("href")) for link in links]
    assert found == [f"{live.url}/dashboard", f"{live.url}/docs"]
    assert [live.get(urlsplit(address).path)[0] for address in found] == [200, 200]


def test_works_by_keyboard_alone(live: LiveService, browser: Chrome, channel: str) -> None:
    """Choosing, starting, publishing and pausing need no mouse, and the focus is always visible."""
    page = Page(browser, live.url)
    page.wait_for_state("Open")

    def press(*keys: str) -> None:
        for key in keys:
            browser.switch_to.active_element.send_keys(key)

    def focused() -> str:
        script = "return document.activeElement.id || document.activeElement.className"
        return str(browser.execute_script(script))

    def is_outlined() -> bool:
        script = "return getComputedStyle(document.activeElement).outline"
        outline = str(browser.execute_script(script))
        return "solid" in outline and " 0px" not in outline

    press(Keys.TAB)
    assert focused() == "channels"
    press(Keys.CONTROL + "a", channel, Keys.ENTER)
    until(browser, lambda _: browser.current_url.endswith(channel), "the channel in the address")
    page.wait_for_state("Open")

    seen = [focused()]
    while seen[-1] != "pause":
        assert is_outlined(), seen
        assert len(seen) < 20, seen
        if seen[-1] == "publish-data":
            press(Keys.CONTROL + Keys.ENTER)
            page.wait_for_result("Published ")
            page.wait_for_row("Hello from this page")
        press(Keys.TAB)
        seen.append(focused())
    assert {"names", "stop", "publish-channel", "publish-event", "publish-data"} <= set(seen)

    press(Keys.SPACE)
    assert page.text("pause") == "Resume"


def test_stops_and_starts(live: LiveService, browser: Chrome, channel: str) -> None:
    """Stop closes the stream for good; Start opens it again and keeps the list."""
    page = Page(browser, live.url, f"?channel={channel}")
    page.wait_for_state("Open")
    page.click("stop")
    page.wait_for_state("Closed")
    live.publish(channel, "nobody hears this")
    page.click("start")
    page.wait_for_state("Open")
    live.publish(channel, "but this")
    page.wait_for_row("but this")
    assert page.published() == ["but this"]


def test_reconnects_after_a_cut(
    live: LiveService, browser: Chrome, front: Front, channel: str
) -> None:
    """When a stream breaks, the page comes back by itself, counts it, and events arrive again."""
    page = Page(browser, front.url, f"?channel={channel}")
    page.wait_for_state("Open")
    live.publish(channel, "before")
    page.wait_for_row("before")
    front.cut()
    until(browser, lambda _: page.text("reconnects") == "1", "one reconnect")
    page.wait_for_state("Open")
    live.publish(channel, "after")
    page.wait_for_row("after")
    assert page.published() == ["after", "before"]


def test_reopens_after_a_refusal_where_it_was(
    live: LiveService, browser: Chrome, front: Front, channel: str
) -> None:
    """A 503, after which EventSource gives up, costs nothing: reopened after the last event id."""
    page = Page(browser, front.url, f"?channel={channel}&channel={channel}-b")
    page.wait_for_state("Open")
    live.publish(channel, "before")
    last = page.wait_for_row("before").id
    front.answers.extend([refusal(503), refusal(503)])
    front.cut()
    until(browser, lambda _: page.text("reconnects") == "1", "one reconnect")
    page.wait_for_state("Open")
    assert len(front.asked) == 4
    first, native, second, third = front.asked
    assert first == native  # the browser repeats its address and sends the header
    assert "last_event_id" not in first
    for reopened in (second, third):
        assert reopened == {**first, "last_event_id": [last]}
    live.publish(channel, "after")
    page.wait_for_row("after")


def test_lets_go_of_the_stream_when_left(
    live: LiveService, browser: Chrome, front: Front, channel: str
) -> None:
    """A page that is left holds no connection (six would block a site); back, it goes on."""
    page = Page(browser, front.url, f"?channel={channel}")
    page.wait_for_state("Open")
    live.publish(channel, "before")
    last = page.wait_for_row("before").id
    for number in range(8):
        Page(browser, front.url, f"?channel={channel}-{number}").wait_for_state("Open")

    browser.get(f"{front.url}/?channel={channel}")
    page.wait_for_state("Open")
    live.publish(channel, "second")
    last = page.wait_for_row("second").id
    browser.get("about:blank")
    asked = len(front.asked)
    browser.back()
    until(browser, lambda _: len(front.asked) > asked, "it opens again")
    page.wait_for_state("Open")
    page.wait_for_row("second")
    assert front.asked[-1]["last_event_id"] == [last]


def test_says_why_a_stream_is_refused(
    live: LiveService, browser: Chrome, front: Front, channel: str
) -> None:
    """While it waits to open again, the page counts down; it says what a refusal said.

    The front refuses EventSource only: the page's question goes on to the service, which says
    no as well because of the name.
    """
    too_many = "&".join(f"channel={channel}-{number}" for number in range(65))
    front.answers.extend([refusal(400)] * 20)
    page = Page(browser, front.url, f"?{too_many}")
    page.wait_for_state("Retrying")
    until(browser, lambda _: page.text("notice").strip(), "a reason")
    assert "(400)" in page.text("notice")
    until(browser, lambda _: page.text("state-note").startswith("in "), "a countdown")


def test_pushline_asks_for_an_address_for_each_opening(
    live: LiveService, browser: Chrome, front: Front, channel: str
) -> None:
    """Given a function, pushline.js calls it anew after each refusal, also after its failure."""
    Page(browser, front.url, f"?channel={channel}").wait_for_state("Open")
    front.asked.clear()
    front.answers.extend([refusal(401), refusal(401)])
    states = browser.execute_async_script(
        """
        const [channel, done] = arguments;
        const {Pushline} = await import("/static/pushline.js");
        let openings = 0;
        const address = async () => {
            openings += 1;
            if (openings === 2) throw new Error("no ticket");
            return `/stream?channel=${channel}&opening=${openings}`;
        };
        const stream = new Pushline(address, {minDelay: 50});
        const states = [];
        stream.addEventListener("state", ({detail}) => {
            states.push(detail.error ? `${detail.state}: ${detail.error.message}` : detail.state);
            if (detail.state === "open") stream.close();
            if (detail.state === "closed") done(states);
        });
        """,
        channel,
    )
    assert [asked["opening"] for asked in front.asked] == [["1"], ["3"], ["4"]]
    assert [asked["ping"] for asked in front.asked] == [["event"]] * 3
    assert states == [
        *("connecting", "waiting"),
        *("connecting", "waiting: no ticket"),
        *("connecting", "waiting"),
        *("connecting", "open", "closed"),
    ]


def test_pushline_opens_nothing_once_closed(
    live: LiveService, browser: Chrome, front: Front, channel: str
) -> None:
    """A stream that is closed while its address is being fetched stays closed."""
    Page(browser, front.url, f"?channel={channel}").wait_for_state("Open")
    front.asked.clear()
    state = browser.execute_async_script(
        """
        const [channel, done] = arguments;
        const {Pushline} = await import("/static/pushline.js");
        const address = () => new Promise((resolve) => {
            setTimeout(() => resolve(`/stream?channel=${channel}`), 50);
        });
        const stream = new Pushline(address);
        setTimeout(() => stream.close(), 20);
        setTimeout(() => done(stream.state), 500);
        """,
        channel,
    )
    assert state == "closed"
    assert front.asked == []


def test_pushline_closed_at_its_end_stays_closed(
    live: LiveService, browser: Chrome, front: Front, channel: str
) -> None:
    """Who closes a stream that tells of its expiry has closed it: it isn't opened again."""
    Page(browser, front.url, f"?channel={channel}").wait_for_state("Open")
    front.asked.clear()
    front.answers.append(script('event: $end\ndata: {"reason": "expired"}'))
    states = browser.execute_async_script(
        """
        const [channel, done] = arguments;
        const {Pushline} = await import("/static/pushline.js");
        const stream = new Pushline(`/stream?channel=${channel}`, {minDelay: 50});
        const states = [];
        stream.addEventListener("state", ({detail}) => states.push(detail.state));
        stream.addEventListener("$end", () => {
            stream.close();
            setTimeout(() => done(states), 500);
        });
        """,
        channel,
    )
    assert states[-1] == "closed"
    assert len(front.asked) == 1


def test_tells_an_expired_stream_from_one_that_was_closed(
    live: LiveService, browser: Chrome, front: Front, channel: str
) -> None:
    """Of a stream's own ends, expiry opens it again, and the page says so; a revoked one is over.

    Neither is an event of the channel: what the position's id tells is not theirs.
    """
    first, second = (f"id: 1790000000001-{n}\nevent: $end" for n in (0, 1))
    front.answers.append(script(first + '\ndata: {"reason": "expired"}'))
    front.answers.append(script(second + '\ndata: {"reason": "revoked"}'))
    page = Page(browser, front.url, f"?channel={channel}")
    page.wait_for_state("Ended")
    page.wait_for_row("The service has closed this stream: Start opens another")
    revoked, expired = page.rows()
    assert expired.data == "The credential has expired: opening again"
    assert [expired.id, revoked.id] == ["", ""]
    assert front.asked[1]["last_event_id"] == ["1790000000001-0"]
    assert len(front.asked) == 2


def test_shows_what_the_service_says(
    live: LiveService, browser: Chrome, front: Front, channel: str
) -> None:
    """`$reset`, `$ping` and `$end` stand apart, in words; after `$end` nothing more is asked."""
    reset = {"channels": [channel], "reason": "trimmed", "oldest": None}
    front.answers.append(
        script(
            "retry: 100\nid: 1790000000000-0",
            f"event: $reset\nid: 1790000000001-0\ndata: {json.dumps(reset)}",
            'event: $ping\ndata: {"time": 1790000000002}',
            'event: $ping\ndata: {"time": 1790000000003}',
            f'event: $end\nid: 1790000000004-0\ndata: {{"channel": "{channel}", "reason": "done"}}',
        )
    )
    page = Page(browser, front.url, f"?channel={channel}")
    page.wait_for_state("Ended")
    page.wait_for_row(f"Channel {channel} has ended: done")
    end, ping, reset_row = page.rows()
    assert [end.type, ping.type, reset_row.type] == ["$end", "$ping", "$reset"]
    assert "2 in a row" in ping.data
    assert ping.id == ""
    assert f"Events of {channel} may be missing (trimmed)" in reset_row.data
    assert "alarm" in reset_row.classes
    assert all("service" in row.classes for row in (end, ping, reset_row))
    assert page.text("received") == "0"
    assert len(front.asked) == 1


def test_goes_on_while_one_channel_lives(
    live: LiveService, browser: Chrome, front: Front, channel: str
) -> None:
    """`$end` of one of two channels does not end the stream."""
    ended = json.dumps({"channel": f"{channel}-b", "reason": "done"})
    front.answers.append(script(f"retry: 100\nevent: $end\nid: 1790000000004-0\ndata: {ended}"))
    page = Page(browser, front.url, f"?channel={channel}&channel={channel}-b")
    until(browser, lambda _: page.text("reconnects") == "1", "one reconnect")
    live.publish(channel, "still here")
    page.wait_for_row("still here")


def test_pauses_clears_and_keeps_the_newest(
    live: LiveService, browser: Chrome, front: Front, channel: str
) -> None:
    """A pause holds events back and counts them; the list keeps the newest 500; Clear clears."""
    flood = [f"id: 1790000000000-{number}\ndata: n{number}" for number in range(1, 701)]
    front.answers.append(script("retry: 60000", *flood))
    page = Page(browser, front.url, f"?channel={channel}")
    page.wait_for_row("n700")
    assert page.text("count") == "newest 500"
    published = page.published()
    assert [published[0], published[-1]] == ["n700", "n201"]
    page.click("clear")
    assert page.rows() == []
    assert page.text("received") == "0"

    page.click("pause")
    page.click("stop")
    page.click("start")
    page.wait_for_state("Open")
    live.publish(channel, "held")
    until(browser, lambda _: page.text("count").endswith(" waiting"), "held events")
    assert page.published() == []
    page.click("pause")
    page.wait_for_row("held")


def test_treats_data_as_text(live: LiveService, browser: Chrome, channel: str) -> None:
    """Markup in an event's data or name is shown, never run, and a huge event is cut."""
    markup = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    page = Page(browser, live.url, f"?channel={channel}")
    page.wait_for_state("Open")
    live.publish(channel, markup)
    page.wait_for_row(markup)
    live.publish(channel, "w" * 100_000)
    until(browser, lambda _: page.published()[0].startswith("www"), "the huge event")
    assert len(page.published()[0]) < 2_100
    assert "taken" not in browser.title
    assert not browser.find_elements("css selector", "#events img, #events script")


def test_breaks_no_content_security_policy(
    live: LiveService, browser: Chrome, channel: str
) -> None:
    """The page has a policy that allows nothing but its own files, and never runs into it."""
    policy = live.get("/")[2]["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page = Page(browser, live.url, f"?channel={channel}")
    page.wait_for_state("Open")
    page.write("publish-data", "in order")
    page.click("publish")
    page.wait_for_row("in order")
    for name in ("pause", "pause", "clear", "stop", "start"):
        page.click(name)
    page.wait_for_state("Open")
    assert console(browser) == []


@pytest.mark.parametrize("width", [NARROW, 768, 1280])
def test_fits_the_window(
    live: LiveService, browser: Chrome, front: Front, channel: str, width: int
) -> None:
    """Nothing makes the page scroll sideways, whatever the events hold."""
    long_name = "n" * 60
    front.answers.append(
        script(
            "retry: 60000",
            f"event: {long_name}\nid: 1790000000004-123456\ndata: {'w' * 500}",
            'event: $reset\nid: 1790000000005-0\ndata: {"channels": ["' + "c" * 128 + '"]}',
        )
    )
    resize(browser, width, 800)
    page = Page(browser, front.url, f"?channel={channel}&listen={long_name}")
    page.wait_for_row("w" * 500)
    page.write("publish-channel", "x" * 300)
    page.click("publish")
    until(browser, lambda _: page.text("result"), "a result")
    assert overflowing(browser) == []

    front.answers.extend([refusal(503)] * 20)
    page.click("stop")
    page.click("start")
    page.wait_for_state("Retrying")
    assert overflowing(browser) == []

    page.write("channels", "/" * 300)
    page.click("start")
    until(browser, lambda _: page.text("channels-error"), "a complaint")
    assert overflowing(browser) == []


def overflowing(browser: Chrome) -> list[str]:
    """The elements that reach beyond the window's right edge, or that scroll sideways."""
    return list(browser.execute_script(OVERFLOWING))
