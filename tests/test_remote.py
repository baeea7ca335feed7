"""A service as clients see it, over TLS too, and what `doctor` makes of servers that misbehave."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import BadStatusLine, NotConnected
from pathlib import Path

import pytest
import trustme

from service.doctor import service_checks, silence_checks, stream_checks
from service.doctor.findings import Report
from service.load.load import connect_in_turn
from service.remote import Remote, connect_plainly, reason_of
from tests.live_server import ROOT, LiveService
from tests.scripted import Script, scripted
from tests.valkey import Valkey

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nPushline-Stream: x-1\r\n"
OPENING = b"retry: 1000\nid: 1-0\n\n"
ANSWER = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s"

SILENCE_SECONDS = 1.0
"""How long is waited for what never comes; what comes before it must not take as long."""


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause of this process makes nothing late."""
    monkeypatch.setattr(stream_checks, "LATE_SECONDS", 10)


def report_on(script: Script, seconds: float = 3.0) -> Report:
    """What the checks of streams say."""
    report = Report()
    with scripted(script, seconds) as remote:
        stream_checks.check_streams(report, remote, "x")
    return report


def probed(script: Script, seconds: float = 3.0) -> dict[str, str]:
    """What the checks of streams find."""
    return {one.check: one.what for one in report_on(script, seconds).findings}


# ------------------------------------------------------------------------ streams that come badly


def test_a_head_that_does_not_come() -> None:
    """A proxy that waits for the whole answer holds back even the head."""
    assert "head" in probed(lambda client, _: client.recv(1), 0.3)["buffering"]


def test_first_bytes_that_do_not_come() -> None:
    """The head passes, and nothing more."""

    def hold(client: socket.socket, request: bytes) -> None:
        client.sendall(HEAD + b"\r\n")
        client.recv(1)

    assert "do not come" in probed(hold, SILENCE_SECONDS)["buffering"]


def test_first_bytes_that_come_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after its time is a finding, though it comes."""
    monkeypatch.setattr(stream_checks, "LATE_SECONDS", 0.05)

    def delay(client: socket.socket, request: bytes) -> None:
        client.sendall(HEAD + b"\r\n")
        time.sleep(0.3)
        client.sendall(OPENING)

    assert re.search(r" \d\.\d s late", probed(delay)["buffering"])


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

    told = probed(publishing(twice, streams), SILENCE_SECONDS)["buffering"]
    assert "an event does not come" in told


def test_heartbeats_are_no_events(streams: list[socket.socket]) -> None:
    """They don't put the end of the wait for an event off."""

    def beat(client: socket.socket, request: bytes) -> None:
        publishing(lambda _: b":\n", streams)(client, request)
        client.close()
        for _ in range(100 if request.startswith(b"POST") else 0):
            streams[-1].sendall(b":\n")  # fails when the reader has gone
            time.sleep(0.05)

    began = time.monotonic()
    assert "an event does not come" in probed(beat, SILENCE_SECONDS)["buffering"]
    assert time.monotonic() - began < 4


def test_events_that_are_not_taken(streams: list[socket.socket]) -> None:
    """Only a credential that is missing is passed over; nothing that was not timed is good."""

    def publish_answer(status: int, body: bytes) -> Report:
        def serve(client: socket.socket, request: bytes) -> None:
            if request.startswith(b"GET"):
                publishing(lambda _: b"", streams)(client, request)
            elif status:
                client.sendall(ANSWER % (status, len(body), body))
            else:
                client.recv(1)

        report = report_on(serve, 3.0 if status else SILENCE_SECONDS)
        assert report.as_json()["passed"] == ["stream"]
        assert {"buffering", "gzip"} <= report.skipped.keys()
        return report

    for status in (401, 403):
        report = publish_answer(status, b"{}")
        assert report.findings == []
        assert "PUSHLINE_TOKEN" in report.skipped["publish"]
    for status, body, what, fix in (
        (503, b'{"code": "redis_readonly"}', "redis_readonly", "the master"),
        (503, b'{"code": "redis_busy"}', "redis_busy", "the log"),
        (500, b"oops", "500", "the log"),
        (429, b'{"code": "too_many_publishes"}', "too_many", "MAX_PUBLISHES_PER_SECOND"),
        (0, b"", "in time", "the log"),
    ):
        (finding,) = publish_answer(status, body).findings
        assert finding.check == "publish"
        assert what in finding.what
        assert fix in finding.fix


def test_a_bad_token_for_publishing(streams: list[socket.socket]) -> None:
    """One that was shown and refused is a fault."""
    serve = publishing(lambda _: b"", streams)

    def refuse(client: socket.socket, request: bytes) -> None:
        if request.startswith(b"GET"):
            serve(client, request)
        else:
            client.sendall(ANSWER % (401, 26, b'{"code": "bad_credential"}'))

    report = Report()
    with scripted(refuse) as remote:
        remote.token = "shown"
        stream_checks.check_streams(report, remote, "x")
    assert [one.what for one in report.findings] == ["the service takes no event: bad_credential"]


def held(script: Script) -> Report:
    """What is said of a silent stream."""
    report = Report()
    with scripted(script) as remote:
        silence_checks.check_silence(report, remote, "x")
    return report


def test_silent_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat in time is good; an end before it, none at all and no stream are told."""

    def beat(times: int) -> Script:
        def serve(client: socket.socket, request: bytes) -> None:
            client.sendall(HEAD + b"\r\n" + OPENING)
            for _ in range(times):
                time.sleep(0.1)
                client.sendall(b":\n")
            time.sleep(0.1)

        return serve

    def hold(client: socket.socket, request: bytes) -> None:
        client.sendall(HEAD + b"\r\n" + OPENING)
        client.recv(1)

    assert held(beat(2)).passed == ["heartbeat"]
    for script, patience, what, fix in (
        (beat(0), 60, "cut after", "proxy_read_timeout"),
        (beat(1), 60, "cut after", "proxy_read_timeout"),
        (hold, 0.5, "no heartbeat comes within 0.5 s", "buffering"),
    ):
        monkeypatch.setattr(silence_checks, "PATIENCE_SECONDS", patience)
        (finding,) = held(script).findings
        assert finding.check == "heartbeat"
        assert what in finding.what
        assert fix in finding.fix
    refused = held(lambda client, _: client.sendall(ANSWER % (503, 0, b"")))
    assert "503" in refused.skipped["heartbeat"]
    assert refused.findings == []


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


def test_a_closed_service_that_is_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether anyone may publish and stream can't be told from an error."""
    body = b'{"live": true, "ready": true}'

    def serve(client: socket.socket, request: bytes) -> None:
        ill = request.startswith((b"POST", b"HEAD"))
        client.sendall(ANSWER % (503 if ill else 200, len(body), body))

    monkeypatch.setattr(service_checks, "check_streams", lambda *_: False)
    report = Report()
    with scripted(serve) as remote:
        service_checks.check_service(report, remote, patient=True)
    assert {"publish_open", "public_channels", "heartbeat"} <= report.skipped.keys()
    assert not {"publish_open", "public_channels"} & set(report.passed)


def test_a_connection_that_is_over() -> None:
    """It is not made anew behind one's back, as that would be without TLS."""
    last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    requests: list[bytes] = []

    def serve(client: socket.socket, request: bytes) -> None:
        requests.append(request)
        client.sendall(last)

    with scripted(serve) as remote, contextlib.closing(remote.connection()) as connection:
        remote.request(connection, "GET", "/one").read()
        assert connection.sock is None
        with pytest.raises(NotConnected):
            remote.request(connection, "GET", "/two")
    assert len(requests) == 1


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
