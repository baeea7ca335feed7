"""What others publish through Redis: raw text from any language, and the real flask-sse."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live_server import ROOT, LiveService, until
from tests.sse_client import SseClient, event_data
from tests.valkey import Valkey, free_port

pytestmark = pytest.mark.live


@pytest.fixture
def channel() -> str:
    """A channel that nobody else uses."""
    return f"test-{uuid.uuid4()}"


def opened(service: LiveService, channel: str) -> SseClient:
    """A stream of `channel`, past its opening block."""
    client = SseClient.connect(f"{service.url}/stream?channel={channel}")
    client.wait_body(b"\n\n", 5)
    return client


# ------------------------------------------------------------------------------- a raw PUBLISH


def test_raw_publish_is_live_only(live: LiveService, live_valkey: Valkey, channel: str) -> None:
    """A raw PUBLISH arrives at once as a message, without an id, so the position stays."""
    with opened(live, channel) as first, opened(live, channel) as second:
        position = live.publish(channel, "with an id")
        assert live_valkey.cli("PUBLISH", f"pushline:{channel}", "from redis-cli") >= 1
        for client in (first, second):
            assert client.next_event(5).last_event_id == position
            event = client.next_event(5)
            assert (event.type, event.data) == ("message", "from redis-cli")
            assert event.last_event_id == position
            assert client.body.count(b"\ndata: from redis-cli\n\n") == 1


RAW_PAYLOADS: list[tuple[bytes, str]] = [
    (b"text", "text"),
    (b"two\nlines\r\nthree\rfour", "two\nlines\nthree\nfour"),
    (b"data: injected\n\nid: 1", "data: injected\n\nid: 1"),
    (b"", ""),
    (b"\xff\xfe\x00binary", "\ufffd\ufffd\0binary"),
    ("ünïcödé \U0001f680".encode(), "ünïcödé \U0001f680"),
    (b"{}", "{}"),
    (b'{"no": "data"}', '{"no": "data"}'),
    (b'{"data": "x", "more": 1}', '{"data": "x", "more": 1}'),
    (b'{"data": "broken', '{"data": "broken'),
    (b'[{"data": "x"}]', '[{"data": "x"}]'),
    (b'"text"', '"text"'),
    (b"42", "42"),
    (b'{"data":' + b"[" * 60_000, '{"data":' + "[" * 60_000),
    (b"\xffP1 no frame", "\ufffdP1 no frame"),
    (b"\xffP1 1-1 name\nno end", "\ufffdP1 1-1 name\nno end"),
    (b"\xffP1 x-1 name\ndata: x\n\n", "\ufffdP1 x-1 name\ndata: x\n\n"),
]


def test_raw_payloads_arrive_as_text(live: LiveService, live_valkey: Valkey, channel: str) -> None:
    """Whatever isn't a frame of ours or flask-sse's JSON arrives as it is, and breaks nothing."""
    with opened(live, channel) as client:
        for payload, expected in RAW_PAYLOADS:
            live_valkey.cli("PUBLISH", f"pushline:{channel}", payload)
            event = client.next_event(5)
            assert (event.type, event.data) == ("message", expected)
        live.publish(channel, "fine")
        assert client.next_event(5).data == "fine"
        assert client.parser.unknown_fields == []


FLASK_SSE_JSON: list[tuple[dict[str, Any], str, str]] = [
    ({"data": "x"}, "message", "x"),
    ({"data": "x", "type": "greeting"}, "greeting", "x"),
    ({"data": {"a": [1, None]}}, "message", '{"a": [1, null]}'),
    ({"data": 1}, "message", "1"),
    ({"data": None}, "message", "null"),
    ({"data": "a\nb", "type": "t", "id": "666", "retry": 3000}, "t", "a\nb"),
    ({"data": "x", "id": "1\nevent: y"}, "message", "x"),
    ({"data": "x", "type": "a\nid: 1"}, "message", "x"),
    ({"data": "x", "type": "$reset"}, "message", "x"),
    ({"data": "x", "type": "error"}, "message", "x"),
    ({"data": "x", "type": ["a"]}, "message", "x"),
    ({"data": "x", "type": ""}, "message", "x"),
    ({"data": "x", "retry": "soon"}, "message", "x"),
    ({"data": "x", "retry": 10**30}, "message", "x"),
    ({"data": "\ud800"}, "message", "?"),
]


def test_flask_sse_json(live: LiveService, live_valkey: Valkey, channel: str) -> None:
    """flask-sse's JSON is unwrapped; its id, and a bad or reserved type, are dropped."""
    with opened(live, channel) as client:
        for fields, name, data in FLASK_SSE_JSON:
            live_valkey.cli("PUBLISH", f"pushline:{channel}", json.dumps(fields))
            event = client.next_event(5)
            assert (event.type, event.data) == (name, data)
        assert b"id: 666" not in client.body
        assert client.parser.retry == 60_000  # 10**30 is as long as allowed
        assert client.parser.unknown_fields == []


def test_foreign_events_keep_their_order(
    live: LiveService, live_valkey: Valkey, channel: str
) -> None:
    """Events of both kinds arrive in the order in which Redis took them."""
    with opened(live, channel) as client:
        for n in range(0, 40, 2):
            live.publish(channel, str(n))
            live_valkey.cli("PUBLISH", f"pushline:{channel}", str(n + 1))
        assert event_data(client.events(40, 5)) == [str(n) for n in range(40)]


def test_other_prefix_is_another_world(
    live: LiveService, live_valkey: Valkey, channel: str
) -> None:
    """Without the prefix, or with another service's, nothing arrives."""
    with (
        LiveService(live_valkey.url, CHANNEL_PREFIX="other:") as other,
        opened(live, channel) as ours,
        opened(other, channel) as theirs,
    ):
        assert live_valkey.cli("PUBLISH", channel, "no prefix") == 0
        other.publish(channel, "theirs")
        live.publish(channel, "ours")
        assert ours.next_event(5).data == "ours"
        assert theirs.next_event(5).data == "theirs"
        assert ours.events_within(0.3) == theirs.events_within(0.3) == []


# --------------------------------------------------------------------------------- flask-sse


@pytest.fixture(scope="module")
def drop_in(live_valkey: Valkey) -> Iterator[LiveService]:
    """A service that shares its channels with flask-sse."""
    with LiveService(live_valkey.url, CHANNEL_PREFIX="", WEB_CONCURRENCY=2) as service:
        yield service


class FlaskSseApp:
    """A process with an application that uses the real flask-sse."""

    def __init__(self, redis_url: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        port = self.url.rpartition(":")[2]
        command = [sys.executable, "-m", "flask", "--app", "tests.live.flask_sse_app", "run"]
        self.process = subprocess.Popen(
            [*command, "--port", port],
            cwd=ROOT,
            env={**os.environ, "REDIS_URL": redis_url},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def answers(self) -> bool:
        """Whether it serves."""
        assert self.process.poll() is None, "the application ended"
        try:
            urllib.request.urlopen(self.url, timeout=5)
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            return False
        return True

    def publish(self, **arguments: Any) -> None:
        """Let it call `sse.publish(...)`."""
        request = urllib.request.Request(
            f"{self.url}/publish",
            json.dumps(arguments).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.status == 200


@pytest.fixture(scope="module")
def flask_sse_app(live_valkey: Valkey) -> Iterator[FlaskSseApp]:
    """The application, serving."""
    app = FlaskSseApp(live_valkey.url)
    try:
        until(app.answers, 15, "the application answers")
        yield app
    finally:
        app.process.kill()
        app.process.wait()


PUBLISHED: list[dict[str, Any]] = [
    {"data": "hello"},
    {"data": "hello", "type": "greeting"},
    {"data": {"message": "Hello!", "n": [1, 2.5, None, True]}, "type": "greeting"},
    {"data": ["ünïcödé", "\U0001f680"]},
    {"data": 17, "retry": 5000},
    {"data": "two\nlines", "type": "text", "id": "from-flask-sse"},
]


def test_flask_sse_publish_arrives(
    drop_in: LiveService, flask_sse_app: FlaskSseApp, channel: str
) -> None:
    """What `sse.publish` sends arrives with the type and data that flask-sse's stream shows."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(opened(drop_in, channel)) for _ in range(4)]
        for arguments in PUBLISHED:
            flask_sse_app.publish(channel=channel, **arguments)
        for client in clients:
            events = client.events(len(PUBLISHED), 5)
            for event, arguments in zip(events, PUBLISHED, strict=True):
                assert event.type == arguments.get("type", "message")
                sent = arguments["data"]
                assert (event.data if isinstance(sent, str) else json.loads(event.data)) == sent
                assert event.last_event_id != "from-flask-sse"
            assert client.parser.retry == 5000


def test_flask_sse_default_channel(drop_in: LiveService, flask_sse_app: FlaskSseApp) -> None:
    """flask-sse's own default channel is the channel `sse`."""
    with opened(drop_in, "sse") as client:
        flask_sse_app.publish(data="to all")
        assert client.next_event(5).data == "to all"


def test_own_and_flask_sse_events_on_one_channel(
    drop_in: LiveService, flask_sse_app: FlaskSseApp, channel: str
) -> None:
    """A site can move over piece by piece: both ways of publishing reach one stream in order."""
    with opened(drop_in, channel) as client:
        for n in range(0, 10, 2):
            flask_sse_app.publish(channel=channel, data=str(n))
            drop_in.publish(channel, str(n + 1))
        assert event_data(client.events(10, 5)) == [str(n) for n in range(10)]


def test_keys_keep_a_prefix(drop_in: LiveService, live_valkey: Valkey, channel: str) -> None:
    """With bare channel names the service's keys are still its own."""
    drop_in.publish(channel, "x")
    assert live_valkey.cli("EXISTS", "pushline:clock") == 1
    assert live_valkey.cli("EXISTS", "clock") == 0
