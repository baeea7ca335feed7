"""Cookies, tickets and tokens in a real Chromium: pages of the service, and of other origins."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from urllib.request import Request, urlopen

import jwt
import pytest
from selenium.webdriver import Chrome

from tests.browser import Page, chromium, console, resize, until
from tests.live_server import ROOT, LiveService
from tests.live_server import until as until_true
from tests.valkey import Valkey

pytestmark = pytest.mark.live

SECRET = "what-signs-the-tokens-of-the-browser-tests"
KEY = "what-the-browser-tests-publish-with"
NUMBERS = count(1)


def token(user: str = "ana", *, seconds: float = 300, **rights: Any) -> str:
    """A token for `user`."""
    claims = {"sub": user, "exp": time.time() + seconds, "pushline": rights}
    return jwt.encode(claims, SECRET, "HS256")


# ------------------------------------------------------------------ an application's own site


class Site(ThreadingHTTPServer):
    """An application's own web server. Whoever asks gets a token, at `/token` or as a cookie."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SiteRequest)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.other_name = f"http://localhost:{self.server_port}"


class SiteRequest(BaseHTTPRequestHandler):
    """A page without anything, pushline.js, or a token for a channel."""

    def do_GET(self) -> None:
        """Answer."""
        address = urlsplit(self.path)
        asked = dict(parse_qsl(address.query))
        fresh = token(subscribe=[asked.get("channel", "")], seconds=float(asked.get("seconds", 60)))
        if address.path == "/pushline.js":
            self._say("text/javascript", (ROOT / "static" / "pushline.js").read_bytes())
        elif address.path == "/token":
            self._say("text/plain", fresh.encode())
        elif address.path == "/cookie":
            self._say("text/plain", b"", Set_Cookie=f"pushline={fresh}; Path=/; HttpOnly")
        else:
            self._say("text/html", b"<!doctype html><link rel=icon href=data:>")

    def _say(self, content_type: str, body: bytes, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not a line per request."""


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Run the site in a thread."""
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        site.shutdown()
        thread.join()
        site.server_close()


# ------------------------------------------------------------------------- a page with streams

HELPERS = """
window.logs = {};
window.follow = (name, source) => {
    const log = {events: [], ends: [], resets: [], states: [], opened: 0, refused: false};
    window.logs[name] = log;
    source.addEventListener("message", ({data}) => log.events.push(data));
    source.addEventListener("$end", ({data}) => log.ends.push(JSON.parse(data).reason));
    source.addEventListener("$reset", ({data}) => log.resets.push(data));
    if (!(source instanceof EventSource)) {
        source.addEventListener("state", ({detail: {state}}) => {
            log.states.push(state);
            if (state === "open") log.opened += 1;
        });
        return;
    }
    source.addEventListener("open", () => log.opened += 1);
    source.addEventListener("error", () => log.refused = source.readyState === EventSource.CLOSED);
};
window.ticket = async (service, channel, token) => {
    const headers = token ? {Authorization: `Bearer ${token}`} : {};
    const answer = await fetch(`${service}/tickets?channel=${channel}`, {method: "POST", headers});
    if (!answer.ok) throw new Error(answer.status);
    return (await answer.json()).ticket;
};
"""


@dataclass
class Log:
    """What a page has seen of one stream."""

    events: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    resets: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    opened: int = 0
    refused: bool = False


class Tab:
    """A page whose script the test writes; `follow(name, source)` in it keeps a Log."""

    def __init__(self, browser: Chrome, url: str) -> None:
        self.browser = browser
        browser.get(url)
        browser.execute_script(HELPERS)

    def run(self, script: str, **values: object) -> Any:
        """The value of an asynchronous function's body, in which `values` are constants."""
        names = ", ".join(values)
        answer = self.browser.execute_async_script(
            f"""
            const [{{{names}}}, done] = arguments;
            (async () => {{ {script} }})().then(
                (value) => done({{value}}), (error) => done({{error: String(error)}}),
            );
            """,
            values,
        )
        assert "error" not in answer, answer["error"]
        return answer.get("value")

    def log(self, name: str) -> Log:
        """What has been seen so far."""
        return Log(**self.browser.execute_script("return window.logs[arguments[0]]", name))

    def wait_open(self, *names: str) -> None:
        """Until these streams are open."""
        self._wait(lambda: all(self.log(name).opened for name in names), f"{names} are open")

    def wait_refused(self, *names: str) -> None:
        """Until the browser has given these streams up."""
        self._wait(lambda: all(self.log(name).refused for name in names), f"{names} are refused")

    def wait_events(self, name: str, *events: str) -> None:
        """Until a stream has brought exactly these events, in this order."""
        last = list(events[-1:])
        self._wait(lambda: self.log(name).events[-1:] == last, f"{name} gets {last}")
        assert self.log(name).events == list(events)

    def _wait(self, come: Callable[[], bool], hope: str) -> None:
        until(self.browser, lambda _: come(), hope)


# -------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A site that CORS_ORIGINS lists."""
    with serving(Site()) as site:
        yield site


@pytest.fixture(scope="module")
def stranger() -> Iterator[Site]:
    """A site on the same host, so that it has the same cookies, that CORS_ORIGINS does not list."""
    with serving(Site()) as site:
        yield site


@pytest.fixture(scope="module")
def shared_service(live_valkey: Valkey, site: Site) -> Iterator[LiveService]:
    """A service that wants credentials, and whose log keeps nothing back."""
    with LiveService(
        live_valkey.url,
        CHANNEL_PREFIX="browser-access:",
        CORS_ORIGINS=f"{site.url} {site.other_name}",
        HEARTBEAT_SECONDS=1,
        JWT_LEEWAY_SECONDS=0,
        JWT_SECRET=SECRET,
        LOG_LEVEL="debug",
        PUBLIC_CHANNELS="public.*",
        PUBLISH_KEYS=KEY,
        PUBLISH_OPEN=0,
        RETRY_MILLISECONDS=500,
        WEB_CONCURRENCY=2,
    ) as service:
        yield service.wait_workers()


@pytest.fixture
def service(shared_service: LiveService) -> LiveService:
    """The shared service. Tests use channels of their own."""
    return shared_service


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One Chromium for the module, which doesn't keep cookies from other sites by itself."""
    with chromium(tmp_path_factory.mktemp("profile"), cookie_controls_mode=0) as browser:
        yield browser


@pytest.fixture
def browser(shared_browser: Chrome) -> Iterator[Chrome]:
    """Chromium without a cookie, left on an empty page."""
    resize(shared_browser, 1280, 900)
    shared_browser.execute_cdp_cmd("Network.clearBrowserCookies", {})
    console(shared_browser)
    yield shared_browser
    shared_browser.get("about:blank")


@pytest.fixture
def channel() -> str:
    """A channel that no other test uses, and nobody may stream without a grant."""
    return f"private.{next(NUMBERS)}"


@pytest.fixture
def public() -> str:
    """A channel that no other test uses, and anybody may stream."""
    return f"public.{next(NUMBERS)}"


def publish(service: LiveService, channel: str, data: str, query: str = "") -> None:
    """Publish with the key."""
    path = f"/channels/{channel}{query}"
    status, body, _ = service.post(path, data.encode(), Authorization=f"Bearer {KEY}")
    assert status == 200, body


def get_ticket(service: LiveService, channel: str, credential: str) -> str:
    """A ticket, got as another program would."""
    path = f"/tickets?channel={channel}"
    status, body, _ = service.post(path, b"", Authorization=f"Bearer {credential}")
    assert status == 200, body
    return str(json.loads(body)["ticket"])


def set_cookie(browser: Chrome, service: LiveService, value: str, **more: object) -> None:
    """Give the browser the cookie that the service looks for."""
    cookie = {"name": "pushline", "value": value, "url": service.url, "httpOnly": True, **more}
    assert browser.execute_cdp_cmd("Network.setCookie", cookie)["success"]


@contextmanager
def addresses_kept(browser: Chrome) -> Iterator[None]:
    """Let pages that are opened meanwhile keep the addresses of their streams."""
    source = """
    window.addresses = [];
    window.EventSource = class extends EventSource {
        constructor(url, options) {
            super(url, options);
            window.addresses.push(String(url));
        }
    };
    """
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    yield
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


# ------------------------------------------------------------------------ pages of the service


def test_the_demo_page_streams_by_cookie(
    service: LiveService, browser: Chrome, channel: str
) -> None:
    """A page of the service's own origin needs nothing but the cookie; without it, it says what is
    wanted. The cookie never publishes.
    """
    page = Page(browser, service.url, f"?channel={channel}")
    page.wait_for_state("Retrying")
    until(browser, lambda _: page.text("notice").strip(), "a reason")
    notice = page.text("notice")
    assert notice.startswith("This wants a credential (401)")
    assert f"{channel} is not public." in notice
    assert "Put a token into the field Token." in notice

    set_cookie(browser, service, token(subscribe=["private.*"]), sameSite="Strict")
    browser.refresh()
    page.wait_for_state("Open")
    publish(service, channel, "by cookie")
    page.wait_for_row("by cookie")
    assert page.text("token") == ""
    page.click("publish")
    page.wait_for_result("This wants a credential (401)")

    set_cookie(browser, service, token(subscribe=["elsewhere"]), sameSite="Strict")
    page.click("stop")
    page.click("start")
    until(browser, lambda _: "(403)" in page.text("notice"), "another reason")
    assert f"the credential does not cover {channel}." in page.text("notice")


def test_the_demo_page_works_with_a_token(
    service: LiveService, browser: Chrome, channel: str
) -> None:
    """The token of the field streams and publishes; once it has expired the page says so, and with
    a new one it goes on where it was.
    """
    page = Page(browser, service.url, f"?channel={channel}")
    rights: dict[str, Any] = {"subscribe": ["private.*"], "publish": [channel]}
    page.write("token", f" Bearer {token(**rights, seconds=8)} ")
    page.click("start")
    page.wait_for_state("Open")
    page.click("publish")
    page.wait_for_result("Published ")
    page.wait_for_row("Hello from this page")

    page.wait_for_row("The credential has expired: opening again")
    until(browser, lambda _: "expired (401)" in page.text("notice"), "a reason")
    assert "Put a new one into the field Token." in page.text("notice")
    publish(service, channel, "missed")
    page.click("publish")
    page.wait_for_result("The credential has expired (401)")

    page.write("token", token(**rights))
    page.click("start")
    page.wait_for_state("Open")
    page.wait_for_row("missed")
    assert page.published() == ["missed", "Hello from this page"]


def test_the_demo_page_keeps_the_token_to_itself(
    service: LiveService, browser: Chrome, channel: str
) -> None:
    """The token stands in no address, history, storage or log. Each opening has a ticket of its
    own, which isn't logged either. A reload forgets the token.
    """
    secret = token("someone", subscribe=[channel], publish=[channel])
    with addresses_kept(browser):
        page = Page(browser, service.url, f"?channel={channel}")
        page.write("token", secret)
        for _ in range(2):
            page.click("start")
            page.wait_for_state("Open")
            page.click("stop")
            page.wait_for_state("Closed")
        page.click("publish")
        page.wait_for_result("Published ")

    addresses = browser.execute_script("return window.addresses")
    tickets = [dict(parse_qsl(urlsplit(one).query)).get("ticket", "") for one in addresses]
    tickets = [one for one in tickets if one]  # before the token was applied there were none
    assert len(tickets) == len(set(tickets)) == 2
    # A stream that is refused is logged elsewhere than one that was open.
    assert service.get(f"/stream?channel={channel}.other&ticket={tickets[0]}")[0] == 403
    history = browser.execute_cdp_cmd("Page.getNavigationHistory", {})["entries"]
    stored = browser.execute_script(
        "return [{...localStorage}, {...sessionStorage}, document.cookie, history.state, location]"
    )
    shown = browser.execute_script("return document.documentElement.outerHTML")
    log = until_true(lambda: f"/channels/{channel}" in (log := service.log()) and log, 5, "logged")
    signature = secret.rpartition(".")[2]
    for place in (addresses, history, stored, shown, log):
        assert signature not in str(place)
    for hidden in (*tickets, "ticket=", SECRET, KEY):
        assert hidden not in log

    browser.refresh()
    page.wait_for_state("Retrying")
    assert browser.find_element("id", "token").get_property("value") == ""


def test_the_demo_page_masks_the_token(service: LiveService, browser: Chrome, public: str) -> None:
    """What the field holds is shown to who asks for it, and masked again."""
    masking = "return getComputedStyle(document.getElementById('token')).webkitTextSecurity"
    page = Page(browser, service.url, f"?channel={public}")
    assert not browser.find_element("id", "show").is_displayed()
    page.write("token", "whatever")
    seen = [browser.execute_script(masking)]
    for _ in range(2):
        page.click("show")
        seen.append(browser.execute_script(masking))
    assert seen == ["disc", "none", "disc"]


def test_the_demo_page_refuses_what_is_no_token(
    service: LiveService, browser: Chrome, public: str
) -> None:
    """What no header can hold is refused in words, and the running stream goes on."""
    page = Page(browser, service.url, f"?channel={public}")
    page.wait_for_state("Open")
    page.write("token", "not a token")
    page.click("start")
    assert "This is no token" in page.text("token-error")
    page.click("publish")
    assert page.text("result") == ""
    assert page.text("state-word") == "Open"


def test_streams_by_ticket(service: LiveService, browser: Chrome, channel: str) -> None:
    """A ticket opens a stream, of pushline.js and a native one, for its channels alone."""
    tab = Tab(browser, service.url)
    tab.run(
        """
        const {Pushline} = await import("/static/pushline.js");
        const address = async () =>
            `/stream?channel=${channel}&ticket=${await ticket("", channel, token)}`;
        follow("pushline", new Pushline(address));
        follow("native", new EventSource(await address()));
        follow("without", new EventSource(`/stream?channel=${channel}`));
        follow("elsewhere", new EventSource((await address()).replace(channel, "private.other")));
        """,
        channel=channel,
        token=token(subscribe=["private.*"]),
    )
    tab.wait_open("pushline", "native")
    tab.wait_refused("without", "elsewhere")
    publish(service, channel, "by ticket")
    tab.wait_events("pushline", "by ticket")
    tab.wait_events("native", "by ticket")


def test_a_closed_stream_stays_closed(service: LiveService, browser: Chrome, channel: str) -> None:
    """DELETE /streams?user= ends the streams of that user, on all workers, and no other's.

    pushline.js takes that as final, though its credential is still good.
    """
    tab = Tab(browser, service.url)
    tab.run(
        """
        const {Pushline} = await import("/static/pushline.js");
        window.asked = {eve: 0, ben: 0};
        for (const [user, token] of Object.entries(tokens)) {
            const address = async () => {
                asked[user] += 1;
                return `/stream?channel=${channel}&ticket=${await ticket("", channel, token)}`;
            };
            follow(user, new Pushline(address, {minDelay: 50}));
        }
        """,
        channel=channel,
        tokens={user: token(user, subscribe=[channel]) for user in ("eve", "ben")},
    )
    tab.wait_open("eve", "ben")
    headers = {"Authorization": f"Bearer {token('root', admin=True)}"}
    request = Request(f"{service.url}/streams?user=eve", None, headers, method="DELETE")
    with urlopen(request, timeout=10) as answer:
        assert answer.status == 202
    until(browser, lambda _: tab.log("eve").states[-1] == "ended", "the end")
    time.sleep(0.5)  # ten times the delay after which it would open again
    assert tab.log("eve").ends == ["revoked"]
    assert tab.log("eve").states == ["connecting", "open", "ended"]
    assert browser.execute_script("return window.asked") == {"eve": 1, "ben": 1}
    publish(service, channel, "for the others")
    tab.wait_events("ben", "for the others")
    assert tab.log("eve").events == []


def test_private_events_need_a_grant(service: LiveService, browser: Chrome, public: str) -> None:
    """On a public channel, private events come to who has a grant for it: a cookie, or a ticket of
    a token. A ticket that was got without a token, or with one for other channels, is no grant.
    """
    set_cookie(browser, service, token(subscribe=["public.*"]))
    tab = Tab(browser, service.url)
    tab.run(
        """
        const {Pushline} = await import("/static/pushline.js");
        const address = `/stream?channel=${public}`;
        const tickets = {
            granted: await ticket("", public, granted),
            other: await ticket("", public, other),
            key: await ticket("", public, key),
            nobody: await (await fetch(`/tickets?channel=${public}`, {
                method: "POST", credentials: "omit",
            })).json().then(({ticket}) => ticket),
        };
        follow("cookie", new EventSource(address));
        for (const [name, got] of Object.entries(tickets)) {
            follow(name, new Pushline(`${address}&ticket=${got}`));
        }
        """,
        public=public,
        granted=token(subscribe=[public]),
        other=token(subscribe=["private.*"]),
        key=KEY,
    )
    tab.wait_open("cookie", "granted", "other", "key", "nobody")
    publish(service, public, "for some", "?private=1")
    publish(service, public, "for all")
    for name in ("cookie", "granted"):
        tab.wait_events(name, "for some", "for all")
    for name in ("other", "key", "nobody"):
        tab.wait_events(name, "for all")


# ------------------------------------------------------------------------ pages of other origins


def test_a_listed_origin_streams(
    service: LiveService, browser: Chrome, site: Site, channel: str
) -> None:
    """A page that CORS_ORIGINS lists streams with the cookie, if it asks for that, or a ticket."""
    tab = Tab(browser, site.url)
    tab.run(
        """
        const {Pushline} = await import("/pushline.js");
        const withCredentials = true;
        await fetch(`/cookie?channel=${channel}`);
        const token = await (await fetch(`/token?channel=${channel}`)).text();
        const address = `${service}/stream?channel=${channel}`;
        follow("cookie", new EventSource(address, {withCredentials}));
        follow("pushline", new Pushline(address, {withCredentials}));
        follow("without", new EventSource(address));
        const got = await ticket(service, channel, token);
        follow("ticket", new EventSource(`${address}&ticket=${got}`));
        follow("both", new Pushline(async () =>
            `${address}&ticket=${await ticket(service, channel, token)}`));
        """,
        service=service.url,
        channel=channel,
    )
    tab.wait_open("cookie", "pushline", "ticket", "both")
    tab.wait_refused("without")
    publish(service, channel, "to the site")
    for name in ("cookie", "pushline", "ticket", "both"):
        tab.wait_events(name, "to the site")


def test_a_listed_site_of_another_name_streams(
    service: LiveService, browser: Chrome, site: Site, channel: str
) -> None:
    """A ticket works from another site too, a cookie only if it allows that (SameSite=None)."""
    address = f"{service.url}/stream?channel={channel}"
    for same_site, is_open in (("None", True), ("Lax", False)):
        set_cookie(browser, service, token(subscribe=[channel]), sameSite=same_site, secure=is_open)
        tab = Tab(browser, site.other_name)
        tab.run(
            """
            const got = await ticket(service, channel, token);
            follow("cookie", new EventSource(address, {withCredentials: true}));
            follow("ticket", new EventSource(`${address}&ticket=${got}`));
            """,
            service=service.url,
            address=address,
            channel=channel,
            token=token(subscribe=[channel]),
        )
        tab.wait_open("ticket")
        if is_open:
            tab.wait_open("cookie")
        else:
            tab.wait_refused("cookie")
        publish(service, channel, f"to another site: {same_site}")
        for name in ("cookie", "ticket") if is_open else ("ticket",):
            tab.wait_events(name, f"to another site: {same_site}")


def test_an_unlisted_origin_does_not_stream(
    service: LiveService, browser: Chrome, stranger: Site, channel: str, public: str
) -> None:
    """A page that is not listed gets nothing, though the browser sends the cookie: by cookie and
    for tickets the service refuses it, and what anybody may stream its browser doesn't let it read.
    """
    credential = token(subscribe=[channel])
    set_cookie(browser, service, credential)

    def refused() -> int:
        return len(service.log_lines(path="/stream", status=403))

    before = refused()
    tab = Tab(browser, stranger.url)
    answers = tab.run(
        """
        const credentials = "include";
        const said = (asked) => asked.then(({type}) => type, (error) => error.name);
        follow("cookie", new EventSource(`${address}${channel}`, {withCredentials: true}));
        follow("ticket", new EventSource(`${address}${channel}&ticket=${got}`));
        follow("public", new EventSource(`${address}${other}`));
        return [
            await said(ticket(service, channel, credential)),
            await said(fetch(`${service}${tickets}`, {method: "POST", credentials})),
            await said(fetch(`${address}${channel}`, {credentials})),
        ];
        """,
        service=service.url,
        address=f"{service.url}/stream?channel=",
        tickets=f"/tickets?channel={channel}",
        channel=channel,
        other=public,
        credential=credential,
        got=get_ticket(service, channel, credential),
    )
    assert answers == ["TypeError"] * 3
    tab.wait_refused("cookie", "ticket", "public")
    publish(service, channel, "not for strangers")
    publish(service, public, "not for their pages")
    for name in ("cookie", "ticket", "public"):
        assert tab.log(name) == Log(refused=True)
    # The cookie was sent both times: without one it would have been a 401.
    until_true(lambda: refused() >= before + 2, 5, "both are logged")
    assert refused() == before + 2
    told = {"path": "/tickets", "method": "POST", "status": 403}
    until_true(lambda: service.log_lines(**told), 5, "it is logged")


def test_expiring_tokens_lose_nothing(
    service: LiveService, browser: Chrome, site: Site, channel: str
) -> None:
    """While tokens live for three seconds and events come every 50 ms, a page that renews them gets
    each event once, in order: pushline.js by new tickets, a native EventSource by a new cookie.
    """
    expiries = 3
    tab = Tab(browser, site.url)
    tab.run(
        """
        const {Pushline} = await import("/pushline.js");
        const fresh = `channel=${channel}&seconds=3`;
        await fetch(`/cookie?${fresh}`);
        setInterval(() => fetch(`/cookie?${fresh}`), 500);
        const address = `${service}/stream?channel=${channel}`;
        follow("cookie", new EventSource(address, {withCredentials: true}));
        follow("ticket", new Pushline(async () => {
            const token = await (await fetch(`/token?${fresh}`)).text();
            return `${address}&ticket=${await ticket(service, channel, token)}`;
        }, {minDelay: 300}));
        """,
        service=service.url,
        channel=channel,
    )
    tab.wait_open("cookie", "ticket")
    published: list[str] = []
    enough, deadline = False, time.monotonic() + 45
    while not enough:
        assert time.monotonic() < deadline, (tab.log("cookie"), tab.log("ticket"))
        began = time.monotonic()
        published.append(str(len(published)))
        publish(service, channel, published[-1])
        if len(published) % 20 == 0:
            logs = [tab.log(name) for name in ("cookie", "ticket")]
            enough = all(len(one.ends) >= expiries and one.opened > expiries for one in logs)
        time.sleep(max(0, began + 0.05 - time.monotonic()))
    for name in ("cookie", "ticket"):
        tab.wait_events(name, *published)
        log = tab.log(name)
        assert set(log.ends) == {"expired"}
        assert log.resets == []
        assert not log.refused
