"""A service as clients see it, over TLS too, and what `doctor` makes of servers that misbehave."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import BadStatusLine
from pathlib import Path

import pytest
import trustme

from service.doctor import service_checks, stream_checks
from service.doctor.findings import Report
from service.load.load import connect_in_turn
from service.remote import Remote, connect_plainly, reason_of
from tests.live_server import ROOT, LiveService
from tests.valkey import Valkey

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nPushline-Stream: x-1\r\n"
OPENING = b"retry: 1000\nid: 1-0\n\n"
ANSWER = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s"

Script = Callable[[socket.socket, bytes], object]


class Scripted:
    """A server on a free port that answers each connection as `script` does with its request."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client, contextlib.suppress(OSError):
                request = client.recv(65536)
                if request.startswith(b"STOP"):
                    return
                self._script(client, request)

    def close(self) -> None:
        """End it."""
        with socket.create_connection(self._listener.getsockname()) as last:
            last.sendall(b"STOP")
        self._thread.join()
        self._listener.close()


@contextlib.contextmanager
def scripted(script: Script) -> Iterator[Remote]:
    """Such a server, for whose answers nobody waits long."""
    server = Scripted(script)
    try:
        yield Remote(server.url, seconds=0.3)
    finally:
        server.close()


def probed(script: Script) -> dict[str, str]:
    """What the checks of streams find."""
    report = Report()
    with scripted(script) as remote:
        stream_checks.check_streams(report, remote, "x")
    return {one.check: one.what for one in report.findings}


# ------------------------------------------------------------------------ streams that come badly


def test_a_head_that_does_not_come() -> None:
    """A proxy that waits for the whole answer holds back even the head."""
    assert "head" in probed(lambda client, _: time.sleep(0.5))["buffering"]


def test_first_bytes_that_do_not_come() -> None:
    """The head passes, and nothing more."""

    def hold(client: socket.socket, request: bytes) -> None:
        client.sendall(HEAD + b"\r\n")
        time.sleep(0.5)

    assert "do not come" in probed(hold)["buffering"]


def test_first_bytes_that_come_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after its time is a finding, though it comes."""
    monkeypatch.setattr(stream_checks, "LATE_SECONDS", 0.05)

    def delay(client: socket.socket, request: bytes) -> None:
        client.sendall(HEAD + b"\r\n")
        time.sleep(0.1)
        client.sendall(OPENING)

    assert "0.1 s late" in probed(delay)["buffering"]


@pytest.fixture
def streams() -> Iterator[list[socket.socket]]:
    """Streams that outlive their requests, but not the test."""
    kept: list[socket.socket] = []
    yield kept
    for one in kept:
        one.close()


def publishing(events: Callable[[int], bytes], streams: list[socket.socket]) -> Script:
    """A server that takes events, and says on a stream what `events` makes of their number."""
    published = [0]

    def serve(client: socket.socket, request: bytes) -> None:
        if request.startswith(b"GET"):
            client.sendall(HEAD + b"\r\n" + OPENING)
            streams.append(client.dup())
            return
        client.sendall(ANSWER % (200, 2, b"{}"))
        streams[-1].sendall(events(published[0]))
        published[0] += 1

    return serve


def test_events_that_do_not_come(streams: list[socket.socket]) -> None:
    """A buffer may let the first ones pass."""

    def twice(number: int) -> bytes:
        return b"data: doctor %d\n\n" % number if number < 2 else b":\n"

    assert "an event does not come" in probed(publishing(twice, streams))["buffering"]


def test_a_stream_that_breaks_off() -> None:
    """Its end is told as such, at whatever moment."""

    def end(client: socket.socket, request: bytes) -> None:
        if request.startswith(b"GET"):
            client.sendall(HEAD + b"Content-Length: 21\r\n\r\n" + OPENING)
        else:
            client.sendall(ANSWER % (200, 2, b"{}"))

    assert "breaks off" in probed(end)["buffering"]


@pytest.mark.parametrize("coding", [b"br", b"gzip"])
def test_a_proxy_that_compresses(coding: bytes) -> None:
    """Nobody has asked for it."""

    def compress(client: socket.socket, request: bytes) -> None:
        client.sendall(HEAD + b"Content-Encoding: %s\r\n\r\n" % coding + OPENING)

    assert coding.decode() in probed(compress)["gzip"]


def test_gzip_that_is_none(streams: list[socket.socket]) -> None:
    """A stream that is plain unless asked otherwise, and then is called what it is not."""
    plain = publishing(lambda number: b"data: doctor %d\n\n" % number, streams)

    def lie(client: socket.socket, request: bytes) -> None:
        if b"gzip" in request:
            client.sendall(HEAD + b"Content-Encoding: gzip\r\n\r\n" + OPENING)
        else:
            plain(client, request)

    assert "breaks off" in probed(lie)["gzip"]


def test_a_refusal_without_a_code() -> None:
    """A proxy's own error page has a status."""
    found = probed(lambda client, _: client.sendall(ANSWER % (502, 4, b"oops")))
    assert "502" in found["stream"]


# ---------------------------------------------------------------------------------- other answers


def test_a_redirect() -> None:
    """The address that it leads to is the one to use; a query stays out of it."""
    report = Report()
    place = (
        b"HTTP/1.1 301 X\r\nLocation: https://other.example/livez?x=1\r\nContent-Length: 0\r\n\r\n"
    )
    with scripted(lambda client, _: client.sendall(place)) as remote:
        service_checks.check_service(report, remote)
    assert [one.fix for one in report.findings] == ["use https://other.example"]


def test_what_is_no_http() -> None:
    """Some other server is told apart from none."""
    report = Report()
    with scripted(lambda client, _: client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")) as remote:
        service_checks.check_service(report, remote)
    assert "it answers no HTTP" in report.findings[0].what


def test_reasons() -> None:
    """Each is short, and has nothing of a request in it."""
    told = {
        reason_of(TimeoutError()): "in time",
        reason_of(BadStatusLine("token=secret")): "BadStatusLine",
        reason_of(OSError()): "OSError",
        reason_of(OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))): "reset",
        reason_of(socket.gaierror(-2, "x")): "host",
        reason_of(ssl.SSLError()): "TLS",
    }
    assert all(part in reason for reason, part in told.items())
    assert "secret" not in " ".join(told)


@pytest.mark.parametrize(
    "url", ["", "x", "ftp://x", "http://", "http://u:p@x", "http://x/?q=1", "http://x/#f"]
)
def test_addresses_that_are_none(url: str) -> None:
    """The error doesn't repeat them."""
    with pytest.raises(ValueError, match=r"^it "):
        Remote(url)


# -------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who issues the certificates here."""
    return trustme.CA()


@pytest.fixture(scope="module")
def service(
    shared_valkey: Valkey, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveService]:
    """A service that speaks TLS itself."""
    directory = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    issued.private_key_pem.write_to_path(str(directory / "key.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    made = LiveService(shared_valkey.url, WEB_CONCURRENCY=1)
    with made.use_tls(directory / "cert.pem", directory / "key.pem", context):
        yield made


@pytest.mark.parametrize("connect", [connect_plainly, connect_in_turn])
def test_tls(
    service: LiveService,
    authority: trustme.CA,
    connect: Callable[[str, int, bool, float], socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A certificate that this machine trusts is good, another is told."""
    remote = Remote(service.url, connect=connect)
    with pytest.raises(ssl.SSLCertVerificationError) as refused:
        remote.ask("GET", "/livez")
    assert "its certificate is not valid" in reason_of(refused.value)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert remote.ask("GET", "/livez").json()["live"] is True
    with remote.stream("tls") as stream:
        assert stream.opened
        assert b"id: " in stream.read()


def test_commands_over_tls(service: LiveService, authority: trustme.CA, tmp_path: Path) -> None:
    """Both commands, as processes that nobody has patched."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    environ = {**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    for arguments in (
        ["doctor", service.url, "--ignore", "publish_open", "--ignore", "public_channels"],
        ["bench", service.url, "--streams", "3", "--seconds", "0.5"],
    ):
        done = subprocess.run([sys.executable, "-m", "service", *arguments], cwd=ROOT, env=environ,
                              capture_output=True, text=True, timeout=30, check=False)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr
