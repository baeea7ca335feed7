"""Streams over TLS in gunicorn: no socket can be taken over, so the iterator serves them."""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.live_server import LiveService, until
from tests.sse_client import End, SseClient
from tests.valkey import Valkey

pytestmark = pytest.mark.live


@pytest.fixture
def tls_service(valkey: Valkey, tmp_path: Path) -> Iterator[LiveService]:
    """A service that speaks TLS itself."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    service = LiveService(valkey.url, HEARTBEAT_SECONDS=1, DRAIN_SECONDS=2)
    with service.use_tls(tmp_path / "cert.pem", tmp_path / "key.pem", context):
        yield service


def stream(service: LiveService, channel: str) -> SseClient:
    """Open a stream over TLS."""
    assert service.tls is not None
    plain = socket.create_connection(("127.0.0.1", service.port), 5)
    client = SseClient(service.tls.wrap_socket(plain, server_hostname="localhost"))
    client.request("localhost", f"/stream?channel={channel}")
    return client


def test_a_stream_over_tls_is_the_same_stream(tls_service: LiveService) -> None:
    """Opening block, events, heartbeats and headers are those of a plain connection."""
    client = stream(tls_service, "tls")
    client.wait_body(b"\n\n", 5)
    event_id = tls_service.publish("tls", "one\ntwo", "greeting")
    event = client.next_event(5)
    client.wait_body(b":\n", 5)
    client.close()

    assert (event.type, event.data, event.last_event_id) == ("greeting", "one\ntwo", event_id)
    assert client.header("Content-Type") == "text/event-stream"
    assert client.header("Cache-Control") == "no-store, no-transform"
    assert bytes(client.body).startswith(b"retry: ")


def test_a_client_that_leaves_tls_is_noticed_by_a_heartbeat(tls_service: LiveService) -> None:
    """Nothing is left of a stream some heartbeats after its client has gone."""
    client = stream(tls_service, "tls-leaving")
    client.wait_body(b"\n\n", 5)
    client.close()

    until(lambda: tls_service.log_lines(path="/stream"), 8, "it is noticed")

    assert [line["reason"] for line in tls_service.log_lines(path="/stream")] == ["client_left"]


def test_a_drained_stream_over_tls_ends_cleanly(tls_service: LiveService) -> None:
    """On SIGTERM it gets a `retry:` and the last chunk, and the service is gone in time."""
    client = stream(tls_service, "tls-drain")
    client.wait_body(b"\n\n", 5)
    tls_service.signal(signal.SIGTERM)
    client.read_until_end(10)
    tls_service.wait(15)
    client.close()

    assert client.ended is End.TERMINATED
    assert bytes(client.body).endswith(b"\n\n")
    assert bytes(client.body).count(b"retry: ") == 2


def test_an_upload_over_tls(tls_service: LiveService) -> None:
    """Its lines go out at once, and a drain ends it with the line from which to go on."""
    assert tls_service.tls is not None
    client = stream(tls_service, "tls-upload")
    client.wait_body(b"\n\n", 5)
    plain = socket.create_connection(("127.0.0.1", tls_service.port), 5)
    with tls_service.tls.wrap_socket(plain, server_hostname="localhost") as upload:
        upload.sendall(
            b"PUT /channels/tls-upload HTTP/1.1\r\nHost: localhost\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for data in ("one", "two"):
            upload.sendall(b"4\r\n" + data.encode() + b"\n\r\n")
            assert client.next_event(5).data == data
        tls_service.signal(signal.SIGTERM)
        answer = b"".join(iter(lambda: upload.recv(10_000), b""))
    client.close()
    tls_service.wait(15)

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b'"line": 3, "events": 2}\n')
