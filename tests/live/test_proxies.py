"""Behind nginx and Caddy as deploy/ sets them up: HTTP/2, at once, and whose request it is."""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from tests.credentials import METRICS_TOKEN, bearer
from tests.live_server import LiveService, until
from tests.proxies import Caddy, HastyCaddy, Nginx, Proxy
from tests.valkey import Valkey

pytestmark = pytest.mark.live

PROXIES = {"nginx": Nginx, "caddy": Caddy}
AT_ONCE = 0.5
ELSEWHERE = "127.0.0.2"
"""Another address of this machine, for a client that isn't where the proxy is."""


@pytest.fixture(scope="module")
def service(shared_valkey: Valkey) -> Iterator[LiveService]:
    """A service that believes the proxy's address and no other."""
    with LiveService(
        shared_valkey.url,
        HEARTBEAT_SECONDS=1,
        TRUSTED_PROXIES="127.0.0.1/32",
        METRICS_TOKEN=METRICS_TOKEN,
    ) as service:
        yield service


@pytest.fixture(scope="module", params=PROXIES)
def proxy(
    service: LiveService,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    """Each proxy in turn."""
    made = PROXIES[request.param](tmp_path_factory.mktemp(request.param), [service.port])
    with made as proxy:
        yield proxy


@pytest.fixture
def channel() -> str:
    """A channel that nobody else uses."""
    return f"test-{uuid.uuid4()}"


class Curl:
    """A running curl at a proxy. What it prints is read line by line."""

    def __init__(self, proxy: Proxy, path: str, *options: str) -> None:
        self.process = subprocess.Popen(
            ["curl", "-q", "-4sSN", "--cacert", proxy.authority, *options, proxy.url + path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def read_until(self, start: str, seconds: float = 5.0) -> list[str]:
        """The next lines, up to one that begins like this."""
        lines: list[str] = []
        assert self.process.stdout is not None
        with gevent.Timeout(seconds, AssertionError(f"no line {start!r} after {lines}")):
            while not lines or not lines[-1].startswith(start):
                line = self.process.stdout.readline()
                assert line, f"the end came before a line {start!r}: {lines}"
                lines.append(line.decode().rstrip("\r\n"))
        return lines

    def write(self, data: bytes) -> None:
        """Send this as the next part of an upload."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def __enter__(self) -> Curl:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def stream(proxy: Proxy, channel: str, *options: str) -> Curl:
    """Open a stream and show its head."""
    return Curl(proxy, f"/stream?channel={channel}", "-D", "-", *options)


def id_of(head: list[str]) -> str:
    """The id of a request in the head of its answer."""
    (line,) = [one for one in head if one.lower().startswith("x-request-id: ")]
    return line.partition(": ")[2]


def asked(proxy: Proxy, path: str, *options: str) -> tuple[int, str]:
    """The status and the body of an answer."""
    command = ["curl", "-q", "-4sS", "--cacert", str(proxy.authority), "-w", "\n%{http_code}"]
    done = subprocess.run(
        [*command, *options, proxy.url + path],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


@pytest.mark.parametrize(
    ("options", "version"),
    [(["--http2"], "HTTP/2 200"), (["--http1.1"], "HTTP/1.1 200 OK")],
    ids=["HTTP/2", "HTTP/1.1"],
)
def test_events_pass_at_once(
    service: LiveService, proxy: Proxy, channel: str, options: list[str], version: str
) -> None:
    """Head, events and heartbeats come as they are sent, over either version of HTTP."""
    with stream(proxy, channel, *options) as curl:
        head = curl.read_until("id: ")
        assert head[0].strip() == version
        assert "content-type: text/event-stream" in [line.lower() for line in head]
        assert not [line for line in head if line.lower().startswith("content-encoding")]
        seconds = []
        for data in ("one", "x" * 200_000, "three"):
            started = time.monotonic()
            service.publish(channel, data)
            assert curl.read_until("data: ")[-1] == f"data: {data}"
            seconds.append(time.monotonic() - started)
        assert statistics.median(seconds) < AT_ONCE
        curl.read_until(":", 3)


def test_compressed_streams_pass_at_once(service: LiveService, proxy: Proxy, channel: str) -> None:
    """What the service has compressed comes as it is, for who asks for it."""
    with stream(proxy, channel, "--compressed") as curl:
        head = [line.lower() for line in curl.read_until("id: ")]
        assert "content-encoding: gzip" in head
        seconds = []
        for data in ("short", "much the same, " * 100, "short again"):
            started = time.monotonic()
            service.publish(channel, data)
            assert curl.read_until("data: ")[-1] == f"data: {data}"
            seconds.append(time.monotonic() - started)
        assert statistics.median(seconds) < AT_ONCE


def test_streams_share_a_connection(service: LiveService, proxy: Proxy, channel: str) -> None:
    """Over HTTP/2 many streams of a browser take one connection, so that six are no limit."""
    count = 20
    url = f"{proxy.url}/stream?channel={channel}&n=[1-{count}]"
    told = "connections: %{num_connects} HTTP/%{http_version}\\n"
    command = ["curl", "-q", "-4sSN", "--http2", "--cacert", str(proxy.authority), "-w", told]
    with subprocess.Popen(
        [*command, "-Z", "--parallel-max", str(count), url], stdout=subprocess.PIPE, text=True
    ) as curl:
        before = len(_ended(service))
        until(lambda: _open_streams(service) >= count, 5, "all streams are open")
        service.publish(channel, "to all")
        service.post(f"/channels/{channel}/end", b"")
        output, _ = curl.communicate(timeout=10)
    assert curl.returncode == 0
    until(lambda: len(_ended(service)) - before == count, 5, "all have ended")
    assert output.count("data: to all") == count
    assert output.count("connections: 1 HTTP/2") == 1
    assert output.count("connections: 0 HTTP/2") == count - 1


def _ended(service: LiveService) -> list[dict[str, object]]:
    return service.log_lines(path="/stream", reason="channel_ended")


def _open_streams(service: LiveService) -> int:
    page = service.get("/metrics", **bearer(METRICS_TOKEN))[1].decode()
    return int(float(page.partition("\npushline_connections ")[2].partition("\n")[0]))


def test_whose_stream_it_is(service: LiveService, proxy: Proxy, channel: str) -> None:
    """The service learns the client's address from the proxy, whatever the client claims.

    And a client that leaves the proxy is released.
    """
    lie = ("-H", "X-Forwarded-For: 10.9.9.9")
    with stream(proxy, channel, "--http2", "--interface", ELSEWHERE, *lie) as curl:
        request_id = id_of(curl.read_until("id: "))
    lines = until(lambda: _lines_of(service, request_id), 5, "it is released")
    assert [(one["address"], one["reason"]) for one in lines] == [(ELSEWHERE, "client_left")]


def _lines_of(service: LiveService, request_id: str) -> list[dict[str, object]]:
    return service.log_lines(path="/stream", request_id=request_id)


def test_whose_id_a_request_has(proxy: Proxy) -> None:
    """The proxy's: a client can't make its request look like another's in the log."""
    chosen = "chosen-by-the-client"
    found = []
    for _ in range(2):
        status, answer = asked(proxy, "/livez", "-H", f"X-Request-Id: {chosen}", "-D", "-")
        assert status == 200
        found.append(id_of(answer.splitlines()))
    assert chosen not in found
    assert re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", found[0])
    assert found[0] != found[1]


def test_pages_publish_behind_it(proxy: Proxy, channel: str) -> None:
    """A page that came through the proxy may publish, a page of another origin may not."""
    path = f"/channels/{channel}"
    assert asked(proxy, path, "-H", f"Origin: {proxy.url}", "-d", "x")[0] == 200
    assert asked(proxy, path, "-H", "Origin: https://example.com", "-d", "x")[0] == 403


def test_uploads_pass_line_by_line(proxy: Proxy, channel: str) -> None:
    """A line of an upload is published when it is sent, not when the upload is complete."""
    with (
        stream(proxy, channel) as reader,
        Curl(proxy, f"/channels/{channel}", "-T", "-") as upload,
    ):
        reader.read_until("id: ")
        for data in ("one", "two"):
            upload.write(f"{data}\n".encode())
            assert reader.read_until("data: ")[-1] == f"data: {data}"
        output, _ = upload.process.communicate(timeout=5)
        assert b'"events": 2' in output


def test_a_reload_of_the_proxy(service: LiveService, proxy: Proxy, channel: str) -> None:
    """A stream survives that the proxy reads its configuration anew."""
    with stream(proxy, channel, "--http2") as curl:
        curl.read_until("id: ")
        proxy.reload()
        with stream(proxy, channel, "--http2") as later:
            later.read_until("id: ")
            service.publish(channel, "after")
            assert later.read_until("data: ")[-1] == "data: after"
            assert curl.read_until("data: ")[-1] == "data: after"


@pytest.mark.parametrize(
    ("kind", "there"),
    [(Nginx, False), (HastyCaddy, False), (HastyCaddy, True)],
    ids=["nginx, gone", "caddy, gone", "caddy, without Redis"],
)
def test_streams_come_back_later(kind: type[Proxy], there: bool, tmp_path: Path) -> None:
    """While no node can take a stream, an EventSource gets a 200 that tells it when to come back:
    after any other status it would give up for ever. Publishers get an error. nginx leaves a node
    without Redis where it is, and that refuses streams so itself.
    """
    with contextlib.ExitStack() as stack:
        service = LiveService("redis://127.0.0.1:1")
        if there:
            stack.callback(service.stop)
            service.start(ready=False)
        proxy = stack.enter_context(kind(tmp_path, [service.port]))
        if there:  # which asks after two seconds at the latest
            until(lambda: asked(proxy, "/livez")[0] == 503, 5, "the node is out")
        accept = ("-H", "Accept: text/event-stream", "-D", "-")
        status, answer = asked(proxy, "/stream?channel=a", *accept)
        assert status == 200
        assert re.search(r"^retry: \d{4,}$", answer, re.MULTILINE)
        assert "content-type: text/event-stream" in answer.lower()
        if not there:
            # Under HTTP/2 curl may hear of the end of its unread body before the answer.
            assert asked(proxy, "/channels/a", "-d", "x", "--http1.1")[0] in (502, 503)
