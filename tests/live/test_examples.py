"""The examples, each started by its one command and used as its README says, in Chromium."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
import redis
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from examples.llm.model import ANSWER
from service.channels import RedisNames
from service.embedded import running_url
from service.settings import Settings
from tests.browser import chromium, console, resize, until
from tests.clone import made_clone
from tests.live_server import until as wait_until
from tests.valkey import free_port

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.parent.name for path in ROOT.glob("examples/*/__main__.py"))
MAX_LINES = 250
NOBODYS_REDIS = "redis://127.0.0.1:1/"
"""A REDIS_URL that somebody has exported: examples have a Valkey of their own."""


def two_ports() -> int:
    """A free port of which the next one is free too."""
    first, second = free_port(), free_port()
    while second != first + 1:
        first, second = second, free_port()
    return first


class Example:
    """A running example: Pushline on `port`, the application on the next one."""

    def __init__(self, name: str, port: int, log: Path) -> None:
        self.name, self.port, self.log = name, port, log
        self.url = f"http://127.0.0.1:{port + 1}/"
        self.pushline = f"http://127.0.0.1:{port}"
        self.command = [sys.executable, "-m", f"examples.{name}"]
        self.folder = ROOT
        self.status: int | None = None

    @contextmanager
    def running(self) -> Iterator[Example]:
        """Start it; in the end it must stop by itself, on one signal, without any error."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env={**os.environ, "PORT": str(self.port), "REDIS_URL": NOBODYS_REDIS},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield self
            self.end()
            assert self.process.wait(30) == self.status, self.log.read_text()
            assert "Traceback" not in self.log.read_text()
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def end(self) -> None:
        """Ask it to stop, once, and don't wait."""
        if self.status is None:
            self.status = 0
            self.process.send_signal(signal.SIGTERM)

    def interrupt(self) -> None:
        """Type Ctrl-C in its terminal: `make`, which has started it, then ends by that too."""
        self.status = -signal.SIGINT
        os.killpg(self.process.pid, signal.SIGINT)

    def post(self, path: str, **form: str) -> bytes:
        """Send the application a form, as its page does."""
        with urllib.request.urlopen(self.url + path, urlencode(form).encode(), 5) as answer:
            return bytes(answer.read())

    def wait_ready(self) -> None:
        """Until Pushline and the application answer."""
        both = (f"{self.pushline}/readyz", self.url)
        wait_until(lambda: all(map(answers, both)), 30, f"{self.name} answers")


def answers(url: str) -> bool:
    """Whether a URL is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Example]]:
    """All examples, started side by side, as each needs a second or two."""
    logs = tmp_path_factory.mktemp("examples")
    with ExitStack() as running:
        started = {
            name: running.enter_context(Example(name, two_ports(), logs / name).running())
            for name in NAMES
        }
        for one in started.values():
            one.wait_ready()
        yield started
        for one in started.values():
            one.end()


@pytest.fixture(scope="module", autouse=True)
def idle_reader(examples: dict[str, Example]) -> Iterator[socket.socket]:
    """A stream of the ticker that nobody reads while the other tests run."""
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(20)
        slow.connect(("127.0.0.1", examples["ticker"].port))
        page = (ROOT / "examples/ticker/page.html").read_text()
        (address,) = re.findall(r"/stream[?]channel=[^`]+", page)
        slow.sendall(f"GET {address} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        yield slow


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One Chromium for the module."""
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        resize(browser, 1000, 760)
        yield browser


@pytest.fixture
def browser(shared_browser: Chrome) -> Iterator[Chrome]:
    """Chromium, in which the test must leave no complaint on the console."""
    console(shared_browser)
    yield shared_browser
    complaints = console(shared_browser)
    shared_browser.get("about:blank")
    assert complaints == []


def text(browser: Chrome, name: str) -> str:
    """What the element with this id shows."""
    return str(browser.execute_script(f"return document.getElementById('{name}').textContent"))


def shows(browser: Chrome, name: str, wanted: str) -> None:
    """Until the element with this id shows a text that matches."""
    until(browser, lambda _: re.search(wanted, text(browser, name)), f"{wanted!r} in {name}")


def write(browser: Chrome, **fields: str) -> None:
    """Fill fields by their ids."""
    for name, value in fields.items():
        field = browser.find_element(By.ID, name)
        field.clear()
        field.send_keys(value)


def test_chat(examples: dict[str, Example], browser: Chrome) -> None:
    """What is said is seen in its room alone, by name, and by whoever comes later."""
    browser.get(examples["chat"].url)
    shows(browser, "state", "open")
    write(browser, name="Ana", text="hello <b>there</b>\n")
    shows(browser, "said", "Ana hello <b>there</b>")
    Select(browser.find_element(By.ID, "room")).select_by_visible_text("music")
    shows(browser, "state", "open")
    write(browser, text="any records?\n")
    shows(browser, "said", "^Ana any records[?]$")

    browser.get("about:blank")
    browser.get(examples["chat"].url)
    shows(browser, "said", "^Ana hello")
    browser.get(f"{examples['chat'].url}#music")
    browser.refresh()
    shows(browser, "said", "^Ana any records[?]$")


def test_progress(examples: dict[str, Example], browser: Chrome) -> None:
    """The bar moves, and is kept by a reload soon after its start, and after its end."""
    browser.get(examples["progress"].url)
    browser.find_element(By.ID, "start").click()
    shows(browser, "words", "^[1-9][0-9]* of 30 files")
    before = int(text(browser, "words").split()[0])
    browser.refresh()
    shows(browser, "words", "of 30 files")
    assert int(text(browser, "words").split()[0]) >= before
    shows(browser, "words", "^30 of 30 files, finished$")
    browser.refresh()
    shows(browser, "words", "^30 of 30 files, finished$")


def test_llm(examples: dict[str, Example], browser: Chrome) -> None:
    """An early reload loses and repeats no token; a new tab gets all of the answer."""
    browser.get(examples["llm"].url)
    write(browser, prompt="Why?\n")
    shows(browser, "answer", "This answer")
    browser.refresh()
    assert "You asked: Why?" in text(browser, "answer"), "the reload shows what there was at once"
    shows(browser, "state", "finished")
    whole = text(browser, "answer")
    browser.refresh()
    assert text(browser, "answer") == whole

    browser.execute_script("sessionStorage.clear()")
    browser.refresh()
    shows(browser, "state", "finished")
    assert text(browser, "answer") == whole
    assert whole == ANSWER.format(prompt="Why?") + " "


def test_orders(examples: dict[str, Example], browser: Chrome) -> None:
    """A user sees their own orders; the session, and nothing else, decides whose those are."""
    example = examples["orders"]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{example.pushline}/stream?channel=orders.ana", timeout=5)
    browser.get(example.url)
    write(browser, user="ana\n")
    shows(browser, "state", "open")
    for owner in ("ben", "ana"):
        write(browser, owner=owner)
        browser.find_element(By.CSS_SELECTOR, "#warehouse button").click()
    shows(browser, "orders", "^Order 17 is paid[.]$")

    refused = browser.execute_async_script(
        """const [address, done] = arguments;
        fetch(address, {credentials: "include"}).then((answer) => done(answer.status));""",
        f"{example.pushline}/stream?channel=orders.ben",
    )
    assert refused == 403
    assert [line for line in console(browser) if "403" not in line] == []


def test_ticker(examples: dict[str, Example], browser: Chrome, idle_reader: socket.socket) -> None:
    """Prices arrive; a reader that falls behind is told so and gets the newest of each stock."""
    browser.get(examples["ticker"].url)
    shows(browser, "state", "open")
    until(browser, lambda _: "0.00" not in text(browser, "stocks"), "a price of each stock")
    got = b""

    def told() -> bool:
        nonlocal got
        got += idle_reader.recv(65_536)
        return got.partition(b"$reset")[2].count(b"\ndata: ") >= 8

    wait_until(told, 15, "a $reset, and prices after it")
    before, _, after = got.partition(b"event: $reset")
    assert b'"skipped"' in after
    newest = re.findall(rb"event: ([A-Z]{4})\n", after)
    assert set(newest[:5]) == {b"ACME", b"BOLT", b"CRUX", b"DUNE", b"ECHO"}
    assert before


@pytest.mark.parametrize(
    ("name", "channel", "seconds"),
    [("chat", "chat.travel", 604_800), ("llm", "answer.", 3600), ("ticker", "ticker", 60)],
)
def test_publishers_keep_what_the_service_does(
    examples: dict[str, Example], name: str, channel: str, seconds: int
) -> None:
    """HISTORY_RULES of an example are those of its application too, which is who publishes."""
    example = examples[name]
    if name == "chat":
        example.post("rooms/travel", name="Ana", text="to Rome?")
    if name == "llm":
        channel = json.loads(example.post("answers", prompt="How long?"))["channel"]
    key = RedisNames("pushline:").history(channel)
    with redis.Redis.from_url(running_url(example.port)) as connection:
        kept = wait_until(lambda: max(connection.ttl(key), 0), 5, "an event that is kept")
    assert seconds - 30 <= kept <= seconds


@pytest.mark.parametrize(
    ("name", "path", "channel", "last_words"),
    [("progress", "jobs", "job.", "job .* is given up: .*"), ("llm", "answers", "", "")],
)
def test_ctrl_c_while_it_works(
    name: str, path: str, channel: str, last_words: str, tmp_path: Path
) -> None:
    """`make example-...` starts it; Ctrl-C ends it, and what it works on, without a trace."""
    example = Example(name, two_ports(), tmp_path / "log")
    (tmp_path / "clone").mkdir()
    example.folder, example.command = made_clone(tmp_path / "clone"), ["make", f"example-{name}"]
    with example.running():
        example.wait_ready()
        (made,) = json.loads(example.post(path, prompt="How long?")).values()
        events = f"{example.pushline}/channels/{channel}{made}/events"
        wait_until(lambda: b'"id"' in urllib.request.urlopen(events).read(), 10, "work begins")
        example.interrupt()
    wait_until(lambda: re.search(last_words, example.log.read_text()), 5, last_words)
    assert "Traceback" not in example.log.read_text()


def test_a_taken_port_is_told(examples: dict[str, Example]) -> None:
    """An example whose port another service has says so in one line, and opens nothing."""
    environ = {**os.environ, "PORT": str(examples["chat"].port)}
    command = [sys.executable, "-m", "examples.progress"]
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode == 0, done.stdout) == (False, "")
    assert re.fullmatch(r".*can't listen on 127[.]0[.]0[.]1 port .*PORT\n", done.stderr)


def test_an_example_and_the_quick_start_run_side_by_side() -> None:
    """Neither of an example's two ports is that of `serve`; what is to be opened is said."""
    environ = {key: value for key, value in os.environ.items() if key != "PORT"}
    ask = [sys.executable, "-c", "from examples.shared import starter; print(starter.PORT)"]
    port = int(subprocess.run(ask, cwd=ROOT, env=environ, capture_output=True, check=True).stdout)

    assert Settings.from_environ({}).port not in (port, port + 1)
    for name in ("examples/README.md", "Makefile"):
        assert f"http://127.0.0.1:{port + 1}/" in (ROOT / name).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_short_and_described(name: str) -> None:
    """Each is listed with its command, says it in its own README, and is read in a few minutes."""
    folder = ROOT / "examples" / name
    own, listing = (folder / "README.md").read_text(), (ROOT / "examples/README.md").read_text()

    assert f"make example-{name}\n" in own
    assert f"`make example-{name}`" in listing
    lines = sum(len(path.read_text().splitlines()) for path in folder.iterdir() if path.is_file())
    assert lines <= MAX_LINES
