"""Compressed streams as clients see them: each event at its time, and the end as an end."""

from __future__ import annotations

import json
import random
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome

from tests.browser import chromium, until
from tests.live_clients import Client, command_of, reload
from tests.live_server import LiveService
from tests.live_server import until as until_true
from tests.sse_client import End, SseClient, event_data, parse_stream
from tests.tap import Tap
from tests.valkey import Valkey

pytestmark = pytest.mark.live

GZIP = {"Accept-Encoding": "gzip"}
LONG = '{"name": "much the same", "price": 17.5}, ' * 50
TEXTS = ["short", LONG, "1", LONG * 100, "another", LONG + "2", "the last"]
DELAY_SECONDS = 4.0
"""Far less than until the next heartbeat, and the next event comes only after this one."""


@pytest.fixture(scope="module")
def service(shared_valkey: Valkey) -> Iterator[LiveService]:
    """A service that is silent between events, and ends its streams fast when it is reloaded."""
    with LiveService(
        shared_valkey.url, HEARTBEAT_SECONDS=15, RETRY_MILLISECONDS=200, DRAIN_SECONDS=0.2
    ) as service:
        yield service


@pytest.fixture
def tap(service: LiveService) -> Iterator[Tap]:
    """A proxy before the service that sees what is sent."""
    with Tap(service.port) as tap:
        yield tap


@pytest.fixture
def channel() -> str:
    """A channel that nobody else uses."""
    return f"test-{uuid.uuid4()}"


def stream(
    service: LiveService, channel: str, *, receive_buffer: int | None = None, **headers: str
) -> SseClient:
    """Open a compressed stream."""
    url = f"{service.url}/stream?channel={channel}"
    headers = {name.replace("_", "-"): value for name, value in headers.items()} | GZIP
    client = SseClient.connect(url, headers=headers, receive_buffer=receive_buffer)
    assert client.header("Content-Encoding") == "gzip"
    return client


# ------------------------------------------------------------------------------ without a library


@pytest.mark.parametrize("http10", [False, True])
def test_each_event_at_its_time(service: LiveService, channel: str, http10: bool) -> None:
    """Small ones are stored, large ones compressed, and none waits for the next."""
    url = f"{service.url}/stream?channel={channel}"
    with SseClient.connect(url, headers=GZIP, http10=http10) as client:
        assert client.header("Vary") == "Accept-Encoding"
        client.wait_body(b"\n\n", 5)
        for text in TEXTS:
            started = time.monotonic()
            service.publish(channel, text)
            assert client.next_event(5).data == text
            assert time.monotonic() - started < DELAY_SECONDS
        assert len(client.wire) < len(client.body) / 20


def test_a_resumed_stream(service: LiveService, channel: str) -> None:
    """A replay of many pages, then what is live."""
    texts = [f"{number} {LONG * 10}" for number in range(300)]
    ids = [service.publish(channel, text) for text in texts]
    with stream(service, channel, Last_Event_ID=ids[0]) as client:
        assert event_data(client.events(299, 10)) == texts[1:]
        service.publish(channel, "live")
        assert client.next_event(5).data == "live"


def test_a_slow_reader(service: LiveService, channel: str) -> None:
    """A client that falls behind gets everything, whatever its kernel takes at a time."""
    chance = random.Random(1)
    texts = [chance.randbytes(chance.choice([10, 2000, 20_000])).hex() for _ in range(35)]
    with stream(service, channel, receive_buffer=4096) as client:
        client.wait_body(b"\n\n", 5)
        for text in texts:
            service.publish(channel, text)
        assert event_data(client.events(len(texts), 20)) == texts


def test_heartbeats(shared_valkey: Valkey, channel: str) -> None:
    """A quiet stream stays one that can be decoded, and goes on."""
    quick = LiveService(shared_valkey.url, HEARTBEAT_SECONDS=0.5)
    with quick as service, stream(service, channel) as client:
        client.wait_body(b"\n:\n:\n", 5)
        service.publish(channel, LONG)
        assert client.next_event(5).data == LONG


def test_the_end(shared_valkey: Valkey, channel: str) -> None:
    """A finished channel and a drain end streams with the last chunk; no gzip trailer comes."""
    with (
        LiveService(shared_valkey.url, DRAIN_SECONDS=0.2) as service,
        stream(service, channel) as finished,
        stream(service, channel + "2") as drained,
    ):
        service.post(f"/channels/{channel}/end", b"")
        assert [event.type for event in finished.read_until_end(5)] == ["$end"]
        service.signal(signal.SIGTERM)
        assert drained.read_until_end(5) == []
        assert drained.body.count(b"retry: ") == 2
        for client in (finished, drained):
            assert client.ended is End.TERMINATED
            assert not client.parser.inside_block
        service.wait()


def test_off(shared_valkey: Valkey, channel: str) -> None:
    """COMPRESS_MIN_BYTES=0 leaves streams as they are."""
    with LiveService(shared_valkey.url, COMPRESS_MIN_BYTES=0) as service:
        url = f"{service.url}/stream?channel={channel}"
        with SseClient.connect(url, headers=GZIP) as client:
            assert client.header("Content-Encoding") is None
            client.wait_body(b"retry: ", 5)


# -------------------------------------------------------------------------------------- libraries


def opened(tap: Tap, times: int) -> None:
    """Wait until so many compressed streams have been opened: a worker that drains opens none."""
    head = b"Content-Encoding: gzip"
    until_true(lambda: tap.answered.count(head) >= times, 10, f"opened {times} times")


def check_times(service: LiveService, tap: Tap, channel: str, client: Client) -> None:
    """Each event comes at its time."""
    for text in TEXTS:
        event_id = service.publish(channel, text)
        started = time.monotonic()
        assert client.event() == {"type": "message", "data": text, "id": event_id}
        assert time.monotonic() - started < DELAY_SECONDS
    assert LONG.encode() not in tap.answered


@pytest.mark.parametrize(
    "program", ["httpx_client.py", "aiohttp_client.py", "eventsource_client.mjs"]
)
def test_libraries_that_reconnect(
    service: LiveService, tap: Tap, channel: str, program: str
) -> None:
    """They get each event at its time; when the service drains they come back and go on.

    That they say their position is shown in test_clients.py, with compressed streams too.
    """
    with Client(*command_of(program, f"{tap.url}/stream?channel={channel}")) as client:
        opened(tap, 1)
        check_times(service, tap, channel, client)
        reload(service)
        opened(tap, 2)
        event_id = service.publish(channel, LONG)
        assert client.event() == {"type": "message", "data": LONG, "id": event_id}


@pytest.mark.parametrize("program", ["requests_client.py", "fetch_client.mjs"])
def test_libraries_that_end(service: LiveService, tap: Tap, channel: str, program: str) -> None:
    """They get each event at its time; when the service drains they end without an error."""
    with Client(*command_of(program, f"{tap.url}/stream?channel={channel}")) as client:
        opened(tap, 1)
        check_times(service, tap, channel, client)
        reload(service)
        assert client.process.wait(10) == 0


def test_curl(service: LiveService, tap: Tap, channel: str) -> None:
    """`curl --compressed` shows each event at its time, and ends with success at a drain."""
    url = f"{tap.url}/stream?channel={channel}"
    with Client("curl", "-q", "-sN", "--compressed", url) as client:
        opened(tap, 1)
        assert client.process.stdout is not None
        shown = b""
        for text in TEXTS:
            service.publish(channel, text)
            started = time.monotonic()
            while parse_stream(shown)[-1:] == [] or parse_stream(shown)[-1].data != text:
                shown += client.process.stdout.readline()
            assert time.monotonic() - started < DELAY_SECONDS
        reload(service)
        assert b"retry: " in client.process.stdout.read()
        assert client.process.wait(5) == 0


# --------------------------------------------------------------------------------------- Chromium

EVENT_SOURCE = """
    window.seen = [];
    window.source = new EventSource(arguments[0]);
    source.onmessage = ({data, lastEventId}) => seen.push([data, lastEventId]);
"""

FETCH = """
    window.text = ""; window.end = null;
    const [url] = arguments;
    (async () => {
        try {
            const response = await fetch(url), decoder = new TextDecoder();
            const reader = response.body.getReader();
            for (;;) {
                const {done, value} = await reader.read();
                if (done) break;
                text += decoder.decode(value, {stream: true});
            }
            end = "clean";
        } catch (error) { end = String(error) }
    })();
"""


def value(browser: Chrome, expression: str) -> Any:
    """What a JavaScript expression is in the page."""
    return browser.execute_script(f"return {expression}")


def true_in(browser: Chrome, expression: str) -> None:
    """Wait until a JavaScript expression is true in the page."""
    until(browser, lambda _: value(browser, expression), expression)


def test_chromium(service: LiveService, tap: Tap, channel: str, tmp_path: Path) -> None:
    """EventSource and fetch get each event at its time; at a drain the one comes back with its
    position, the other's body ends without an error.
    """
    with chromium(tmp_path) as browser:
        browser.get(f"{tap.url}/static/rate.js")
        url = f"/stream?channel={channel}"
        browser.execute_script(EVENT_SOURCE, url)
        browser.execute_script(FETCH, url)
        opened(tap, 2)
        seen = []
        for text in TEXTS:
            seen.append([text, service.publish(channel, text)])
            started = time.monotonic()
            true_in(browser, f"seen.length == {len(seen)}")
            true_in(browser, f"text.endsWith({json.dumps(text.splitlines()[-1])} + '\\n\\n')")
            assert time.monotonic() - started < DELAY_SECONDS
        assert value(browser, "seen") == seen
        reload(service)
        opened(tap, 3)
        true_in(browser, "end")
        assert value(browser, "end") == "clean"
        assert tap.streams()[-1]["last-event-id"] == seen[-1][1]
        service.publish(channel, LONG)
        true_in(browser, f"seen.length == {len(seen) + 1}")
        browser.get("about:blank")
