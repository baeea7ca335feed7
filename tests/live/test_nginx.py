"""Behind a real nginx, which speaks HTTP/1.0 or HTTP/1.1 to the service."""

from __future__ import annotations

import contextlib
import itertools
import re
import signal
import statistics
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live_server import LiveService, until
from tests.proxies import need, nginx_command
from tests.raw_http import RawConnection, ask, request_bytes
from tests.sse_client import End, SseClient, event_data
from tests.valkey import Valkey, free_port

pytestmark = pytest.mark.live

INSIDE = """
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header Connection "";
    server {{
        listen 127.0.0.1:{old_port};
        location / {{ proxy_pass {upstream}; }}
    }}
    server {{
        listen 127.0.0.1:{new_port};
        location / {{ proxy_pass {upstream}; proxy_http_version 1.1; }}
    }}
    server {{
        listen 127.0.0.1:{upload_port};
        location / {{
            proxy_pass {upstream};
            proxy_http_version 1.1;
            proxy_request_buffering off;
            client_max_body_size 0;
        }}
    }}
"""


class Nginx:
    """A running nginx: its port `old` speaks HTTP/1.0 to the service, `new` and `upload` HTTP/1.1.

    `upload` passes requests on as they arrive, the others when they are complete.
    """

    def __init__(self, directory: Path, upstream: str) -> None:
        self.directory = directory
        self.old, self.new, self.upload = free_port(), free_port(), free_port()
        inside = INSIDE.format(
            upstream=upstream,
            old_port=self.old,
            new_port=self.new,
            upload_port=self.upload,
        )
        self.process = subprocess.Popen(nginx_command(directory, inside), stderr=subprocess.DEVNULL)
        until(self._listens, 10, "nginx listens")

    def _listens(self) -> bool:
        assert self.process.poll() is None, (self.directory / "error.log").read_text()
        try:
            with RawConnection(self.new), RawConnection(self.old):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def service(shared_valkey: Valkey) -> Iterator[LiveService]:
    """A service that believes a proxy on this machine, with two streams for each address."""
    need("nginx")
    with LiveService(
        shared_valkey.url,
        WEB_CONCURRENCY=1,
        HEARTBEAT_SECONDS=1,
        MAX_CONNECTIONS_PER_IP=2,
        TRUSTED_PROXIES="127.0.0.0/8",
    ) as service:
        yield service


@pytest.fixture(scope="module")
def nginx(service: LiveService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx before the service."""
    server = Nginx(tmp_path_factory.mktemp("nginx"), service.url)
    yield server
    server.stop()


@pytest.fixture
def channel() -> str:
    """A channel that nobody else uses."""
    return f"test-{uuid.uuid4()}"


def stream(
    port: int,
    channel: str,
    *,
    address: str,
    http10: bool = False,
    accept: str = "text/event-stream",
    coding: str = "identity",
) -> SseClient:
    """Open a stream at `port` as a client of this address."""
    headers = {"X-Forwarded-For": address, "Accept": accept, "Accept-Encoding": coding}
    url = f"http://127.0.0.1:{port}/stream?channel={channel}"
    return SseClient.connect(url, headers=headers, http10=http10)


def opened(client: SseClient) -> int:
    """Wait for the opening block and return where it ends."""
    client.wait_body(b"\n\n", 5)
    return client.body.index(b"\n\n") + 2


def ended(service: LiveService, address: str) -> list[str]:
    """How the streams of this address have ended so far."""
    lines = service.log_lines(path="/stream", address=address)
    return [line["reason"] for line in lines if "reason" in line]


def seconds_to_release(service: LiveService, address: str, count: int) -> float:
    """Wait until `count` streams of this address have ended; returns how long it took."""
    started = time.monotonic()
    until(lambda: len(ended(service, address)) == count, 5, f"{count} streams are released")
    return time.monotonic() - started


def test_streams_through_nginx_are_identical(
    service: LiveService, nginx: Nginx, channel: str
) -> None:
    """Directly or through nginx, with any version of HTTP on either side: the same events, at once.

    nginx changes the framing only, and holds nothing back.
    """
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(stream(port, channel, address=f"10.1.0.{n}", http10=http10))
            for n, (port, http10) in enumerate(
                [
                    (service.port, False),
                    (service.port, True),
                    (nginx.old, False),
                    (nginx.old, True),
                    (nginx.new, False),
                    (nginx.new, True),
                ]
            )
        ]
        starts = [opened(client) for client in clients]
        for client in clients:
            assert client.status == 200
            assert client.header("Content-Type") == "text/event-stream"
            assert client.header("Cache-Control") == "no-store, no-transform"
            assert client.header("X-Accel-Buffering") in (None, "no")
        seconds = []
        for n, data in enumerate(["x", "two\nlines", "", "\ufeffünïcödé", "y" * 100_000, "\0\n\n"]):
            started = time.monotonic()
            service.publish(channel, data, f"e{n}")
            for client in clients:
                event = client.next_event(5)
                assert (event.type, event.data) == (f"e{n}", data)
            seconds.append(time.monotonic() - started)
        assert statistics.median(seconds) < 0.5
        bodies = {
            re.sub(rb"^:\n(id: \S+\n\n)?", b"", client.body[start:], flags=re.MULTILINE)
            for client, start in zip(clients, starts, strict=True)
        }
        assert len(bodies) == 1


def test_compressed_streams_pass_nginx(service: LiveService, nginx: Nginx, channel: str) -> None:
    """What the service has compressed comes as it is and at once, in any version of HTTP."""
    text = "much the same, " * 100
    with contextlib.ExitStack() as stack:
        for n, (port, http10) in enumerate(
            itertools.product((nginx.old, nginx.new), (False, True))
        ):
            client = stack.enter_context(
                stream(port, channel, address=f"10.8.0.{n}", http10=http10, coding="gzip, deflate")
            )
            opened(client)
            assert client.header("Content-Encoding") == "gzip"
            assert client.header("Vary") == "Accept-Encoding"
            seconds = []
            for data in ("short", text, "short again", text + "2", "short at last"):
                started = time.monotonic()
                service.publish(channel, data)
                assert client.next_event(5).data == data
                seconds.append(time.monotonic() - started)
            assert statistics.median(seconds) < 0.5
            assert len(client.wire) < len(text)
            client.wait_body(b"\n:\n", 3)


def test_heartbeats_pass_nginx(nginx: Nginx, channel: str) -> None:
    """Heartbeats come through as they are sent, so that no proxy finds the stream idle."""
    with (
        stream(nginx.old, channel, address="10.2.0.1") as old,
        stream(nginx.new, channel, address="10.2.0.1") as new,
    ):
        for client in (old, new):
            client.wait_body(b"\n:\n", 3)
            assert client.parser.stray_blank_lines == 0


def test_leaving_nginx_is_noticed(service: LiveService, nginx: Nginx, channel: str) -> None:
    """A client that leaves nginx is released by the service within a second, with FIN or RST.

    Within five, when this machine holds one of two up.
    """
    address = "10.3.0.1"
    seconds = []
    for n, (port, leave) in enumerate(
        [
            (nginx.old, SseClient.close),
            (nginx.new, SseClient.close),
            (nginx.old, SseClient.abort),
            (nginx.new, SseClient.abort),
        ]
    ):
        client = stream(port, channel, address=address)
        opened(client)
        assert len(ended(service, address)) == n
        leave(client)
        seconds.append(seconds_to_release(service, address, n + 1))
    assert max(min(seconds[:2]), min(seconds[2:])) < 1
    assert ended(service, address) == ["client_left"] * 4


def test_address_behind_nginx_counts(service: LiveService, nginx: Nginx, channel: str) -> None:
    """The limit for an address is that of the client's, which nginx reports, not of nginx itself.

    Nginx appends the address that it sees to what the client claims.
    """
    with contextlib.ExitStack() as stack:
        for address in ("10.4.0.1", "10.4.0.1", "10.4.0.2", "10.4.0.3", "2001:db8::1"):
            client = stack.enter_context(stream(nginx.new, channel, address=address))
            opened(client)
        soft = stack.enter_context(stream(nginx.old, channel, address="10.4.0.1"))
        assert soft.read_until_end(2) == []
        assert soft.status == 200
        assert 5_000 <= (soft.parser.retry or 0) <= 30_000
        for address, status in (("10.4.0.1", 429), ("2001:db8::2", 200), ("2001:db8::3", 429)):
            client = stack.enter_context(stream(nginx.new, channel, address=address, accept="*/*"))
            assert client.status == status
        assert client.header("Retry-After") == "5"
        service.publish(channel, "x")


def test_publish_through_nginx(nginx: Nginx, channel: str) -> None:
    """Publishing works through nginx, errors keep their form, and the own origin is the page's."""
    with stream(nginx.new, channel, address="10.5.0.1") as client:
        opened(client)
        for port in (nginx.old, nginx.new):
            with RawConnection(port) as connection:
                for data in ("one", "two"):
                    request = request_bytes(
                        "POST",
                        f"/channels/{channel}",
                        data.encode(),
                        Host=f"localhost:{port}",
                        Origin=f"http://localhost:{port}",
                    )
                    assert connection.ask(request).status == 200
                request = request_bytes("POST", f"/channels/{channel}", b"\xff")
                connection.ask(request).problem(400, "bad_body")
        assert event_data(client.events(4, 5)) == ["one", "two"] * 2


def start_upload(port: int, path: str) -> RawConnection:
    """Begin a chunked request whose body is still to come."""
    head = request_bytes("PUT", path, None, Transfer_Encoding="chunked")
    return RawConnection(port).send(head)


def test_uploads_through_nginx(nginx: Nginx, channel: str) -> None:
    """Without nginx's buffers lines pass at once, and so does the answer to a bad one; with them
    an upload arrives as a whole, which is no help but no harm either.
    """
    path = f"/channels/{channel}"
    with stream(nginx.new, channel, address="10.7.0.1") as client:
        opened(client)
        with start_upload(nginx.upload, path) as upload:
            for data in ("one", "two"):
                upload.send(b"4\r\n" + data.encode() + b"\n\r\n")
                assert client.next_event(5).data == data
            assert upload.ask(b"0\r\n\r\n").json()["events"] == 2
        with start_upload(nginx.upload, path) as upload:
            problem = upload.ask(b"4\r\nx\n\xff\n\r\n").problem(400, "bad_body")
            assert (problem["line"], client.next_event(5).data) == (2, "x")
        with start_upload(nginx.new, path) as upload:
            upload.send(b"4\r\nall\n\r\n")
            assert client.events_within(0.5) == []
            assert upload.ask(b"0\r\n\r\n").json()["events"] == 1
            assert client.next_event(5).data == "all"


def compressing_curl(port: int, channel: str) -> subprocess.Popen[bytes]:
    """A curl that asks for a compressed stream, and shows its text."""
    url = f"http://127.0.0.1:{port}/stream?channel={channel}"
    command = ["curl", "-q", "-sN", "--compressed", url]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_drain_through_nginx(shared_valkey: Valkey, tmp_path: Path, channel: str) -> None:
    """A drained stream ends cleanly for clients of nginx too: the last chunk comes through."""
    with LiveService(shared_valkey.url, DRAIN_SECONDS=0.2) as service:
        nginx = Nginx(tmp_path, service.url)
        try:
            with (
                stream(nginx.old, channel, address="10.6.0.1") as old,
                stream(nginx.new, channel, address="10.6.0.1", coding="gzip, br") as new,
                compressing_curl(nginx.old, channel) as curl_old,
                compressing_curl(nginx.new, channel) as curl_new,
            ):
                opened(old)
                opened(new)
                curls = (curl_old, curl_new)
                for curl in curls:
                    assert curl.stdout is not None
                    assert curl.stdout.readline().startswith(b"retry: ")
                assert ask(service, "GET", "/readyz").status == 200
                service.signal(signal.SIGTERM)
                for client in (old, new):
                    assert client.read_until_end(5) == []
                    assert not client.parser.inside_block
                assert new.ended is End.TERMINATED
                assert old.ended in (End.TERMINATED, End.FIN)
                assert [curl.wait(5) for curl in curls] == [0, 0]
                service.wait()
        finally:
            nginx.stop()
