"""GET /stream against the real service: bytes, filters, origins, limits, several workers."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live_server import LiveService, until
from tests.raw_http import Answer, RawConnection, ask, only_worker, request_bytes, worker_of
from tests.sse_client import End, SseClient, event_data
from tests.valkey import Valkey, free_port

pytestmark = pytest.mark.live

OPENING = re.compile(rb"retry: (\d+)\nid: (\d+-\d+)\n\n")
PAGE = "https://app.example"
OTHER_PAGE = "https://evil.example"
EVENT_STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def channel() -> str:
    """A channel that nobody else uses."""
    return f"test-{uuid.uuid4()}"


@pytest.fixture(scope="module")
def limited(shared_valkey: Valkey) -> Iterator[LiveService]:
    """One worker with few streams, few of them from one address, and 127.0.0.9 as its proxy."""
    with LiveService(
        shared_valkey.url,
        MAX_CONNECTIONS=4,
        MAX_CONNECTIONS_PER_IP=2,
        TRUSTED_PROXIES="127.0.0.9",
    ) as service:
        yield service


@pytest.fixture(scope="module")
def listed(shared_valkey: Valkey) -> Iterator[LiveService]:
    """A service with an allow-list of origins, and room for one stream from each address."""
    with LiveService(
        shared_valkey.url,
        CORS_ORIGINS=f"{PAGE}, http://localhost:3000",
        MAX_CONNECTIONS_PER_IP=1,
    ) as service:
        yield service


def stream(service: LiveService, query: str, **options: object) -> SseClient:
    """Open a stream."""
    connect: Callable[..., SseClient] = SseClient.connect
    return connect(f"{service.url}/stream?{query}", **options)


def opened(client: SseClient) -> re.Match[bytes]:
    """The opening block, after which a heartbeat may have come."""
    client.wait_body(b"\n\n", 5)
    match = OPENING.match(client.body)
    assert match, bytes(client.body)
    return match


# --------------------------------------------------------------------------- the response's bytes


def test_http11_response_is_exact(live: LiveService, channel: str) -> None:
    """An HTTP/1.1 stream has exactly the documented head, and is chunked."""
    with stream(live, f"channel={channel}") as client:
        assert (client.head.version, client.status, client.head.reason) == ("1.1", 200, "OK")
        date, *rest, (label, named), (last, request_id) = client.head.headers
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", date[1])
        assert rest == [
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
            ("content-type", "text/event-stream"),
            ("cache-control", "no-store, no-transform"),
            ("x-accel-buffering", "no"),
            ("x-content-type-options", "nosniff"),
            ("vary", "Accept-Encoding"),
        ]
        assert label == "pushline-stream"
        assert re.fullmatch(r"[0-9a-f]{8}-[1-9][0-9]*", named)
        assert last == "x-request-id"
        assert re.fullmatch(r"[0-9a-f]{12}-[1-9][0-9]*", request_id)
        opening = opened(client)
        assert client.chunks[0] == opening[0]


def test_http10_response_is_exact(live: LiveService, channel: str) -> None:
    """An HTTP/1.0 stream is answered in 1.0, not chunked, and ends with the connection."""
    with stream(live, f"channel={channel}", http10=True) as client:
        assert (client.head.version, client.status) == ("1.0", 200)
        assert client.header("connection") == "close"
        assert client.header("transfer-encoding") is None
        assert client.header("content-length") is None
        opened(client)
        assert client.wire == client.body
        live.publish(channel, "hello")
        assert client.next_event(5).data == "hello"


def test_http10_and_http11_carry_the_same_events(live: LiveService, channel: str) -> None:
    """Framing apart, both versions of HTTP carry the same bytes after the opening block."""
    with (
        stream(live, f"channel={channel}") as new,
        stream(live, f"channel={channel}", http10=True) as old,
    ):
        starts = [opened(client).end() for client in (new, old)]
        for data in ("one", "two\nlines", "", "ünïcödé \U0001f680"):
            live.publish(channel, data, "tick")
        for client in (new, old):
            assert len(client.events(4, 5)) == 4
        frames = [
            re.sub(rb"^:\n(id: \S+\n\n)?", b"", client.body[start:], flags=re.MULTILINE)
            for client, start in zip((new, old), starts, strict=True)
        ]
        assert frames[0] == frames[1]


def test_opening_block_sets_retry_and_position(live: LiveService, channel: str) -> None:
    """A stream opens with `retry:`, jittered by half, and the position, without an event."""
    before = live.publish("elsewhere", "x")
    retries = []
    for _ in range(8):
        with stream(live, f"channel={channel}") as client:
            match = opened(client)
            retries.append(int(match[1]))
            assert client.parser.last_event_id == match[2].decode() >= before
            assert client.parser.quiet_blocks == 1
            assert client.events_within(0) == []
    assert all(1000 <= retry <= 3000 for retry in retries)
    assert len(set(retries)) > 1


def test_first_byte_comes_at_once(live: LiveService, channel: str) -> None:
    """Once a channel is warm, head and opening block are there within half a second."""
    with contextlib.ExitStack() as stack:
        for pid in live.worker_pids():
            with only_worker(live, pid):
                opened(stack.enter_context(stream(live, f"channel={channel}")))
        seconds = []
        for _ in range(5):
            started = time.monotonic()
            opened(stack.enter_context(stream(live, f"channel={channel}")))
            seconds.append(time.monotonic() - started)
        assert statistics.median(seconds) < 0.5


def test_event_comes_at_once_and_exact(live: LiveService, channel: str) -> None:
    """An event arrives within half a second: name, id and each line of its data."""
    with stream(live, f"channel={channel}") as client:
        opened(client)
        seconds = []
        for _ in range(3):
            started = time.monotonic()
            event_id = live.publish(channel, "first\nsecond", "greeting")
            event = client.next_event(5)
            seconds.append(time.monotonic() - started)
            assert (event.type, event.data) == ("greeting", "first\nsecond")
            assert event.last_event_id == event_id
            frame = f"\nevent: greeting\nid: {event_id}\ndata: first\ndata: second\n\n"
            assert frame.encode() in client.body
        assert statistics.median(seconds) < 0.5


def test_heartbeat_is_a_comment_without_a_blank_line(live: LiveService, channel: str) -> None:
    """A quiet stream gets `:` and a newline each HEARTBEAT_SECONDS, and no stray blank line."""
    started = time.monotonic()
    with stream(live, f"channel={channel}") as client:
        opened(client)
        while len(client.parser.comments) < 3:  # two may come together
            client.read_some(5)
        assert 1.7 < time.monotonic() - started < 5
        assert set(client.parser.comments) == {""}
        assert client.parser.stray_blank_lines == 0
        assert client.events_within(0) == []


def test_visible_pings(live: LiveService, channel: str) -> None:
    """With ping=event a quiet stream gets `$ping` events with the time, whatever the filter."""
    with stream(live, f"channel={channel}&ping=event&event=other") as client:
        position = opened(client)[2].decode()
        ping = client.next_event(3)
        assert ping.type == "$ping"
        assert abs(json.loads(ping.data)["time"] / 1000 - time.time()) < 5
        assert ping.last_event_id == position
        assert client.parser.comments == []


def test_stream_on_a_reused_connection(live: LiveService, channel: str) -> None:
    """A connection that has served other requests can become a stream."""
    with RawConnection(live.port) as connection:
        request = request_bytes("GET", "/livez")
        assert connection.ask(request).status == 200
        assert connection.ask(request).status == 200
        client = SseClient(connection.sock)
        client.request("127.0.0.1", f"/stream?channel={channel}")
        opened(client)
        live.publish(channel, "still here")
        assert client.next_event(5).data == "still here"


def test_stream_on_a_unix_socket(valkey: Valkey, tmp_path: Path, channel: str) -> None:
    """A service on a unix socket streams too, and no limit for an address holds there."""
    port, path = free_port(), str(tmp_path / "pushline.sock")
    service = LiveService(
        valkey.url,
        PORT=port,
        MAX_CONNECTIONS_PER_IP=1,
        GUNICORN_CMD_ARGS=f"--bind 127.0.0.1:{port} --bind unix:{path}",
    )
    service.port, service.url = port, f"http://127.0.0.1:{port}"
    with service, contextlib.ExitStack() as stack:
        clients = []
        for _ in range(2):
            sock = socket.socket(socket.AF_UNIX)
            client = stack.enter_context(SseClient(sock))
            sock.connect(path)
            client.request("localhost", f"/stream?channel={channel}")
            opened(client)
            clients.append(client)
        service.publish(channel, "over a unix socket")
        for client in clients:
            assert client.next_event(5).data == "over a unix socket"
        client.close()
        until(lambda: service.log_lines(reason="client_left"), 5, "the client's leaving is logged")


def test_new_channels_leave_the_service_ready(live: LiveService, channel: str) -> None:
    """A channel that Redis is about to confirm is no reason to call a worker not ready."""
    with RawConnection(live.port) as connection:
        for n in range(100):
            with RawConnection(live.port) as opening:
                opening.send(request_bytes("GET", f"/stream?channel={channel}-{n}"))
                answer = connection.ask(request_bytes("GET", "/readyz")).json()
                assert "redis_not_followed" not in answer["reasons"], answer


# -------------------------------------------------------------------------------------- selection


def test_event_filter(live: LiveService, channel: str) -> None:
    """`event=` lets only these names through; `message` is the name of events without one."""
    with (
        stream(live, f"channel={channel}&event=a&event=message") as some,
        stream(live, f"channel={channel}") as every,
    ):
        opened(some)
        opened(every)
        for name in ("a", "b", None, "A", "end"):
            live.publish(channel, str(name), name)
        assert event_data(every.events(5, 5)) == ["a", "b", "None", "A", "end"]
        assert event_data(some.events(2, 5)) == ["a", "None"]
        assert some.events_within(0.2) == []


def test_several_channels_in_order(live: LiveService, channel: str) -> None:
    """A stream of several channels gets the events of all of them, in the order of their ids."""
    names = [f"{channel}:{n}" for n in range(5)]
    query = "&".join(f"channel={name}" for name in [*names, names[0]])
    with stream(live, query) as client:
        opened(client)
        ids = [live.publish(names[n % 5], str(n)) for n in range(25)]
        events = client.events(25, 5)
        assert event_data(events) == [str(n) for n in range(25)]
        assert [event.last_event_id for event in events] == ids


def test_event_to_several_channels_comes_once(live: LiveService, channel: str) -> None:
    """One event published to several channels reaches a stream of several of them once."""
    names = [f"{channel}:{n}" for n in range(3)]
    with (
        stream(live, "&".join(f"channel={name}" for name in names)) as all_three,
        stream(live, f"channel={names[2]}") as one,
    ):
        opened(all_three)
        opened(one)
        body = json.dumps({"channels": names, "data": "once"}).encode()
        receipt = ask(live, "POST", "/publish", body).json()
        assert receipt["channels"] == names
        live.publish(names[0], "after")
        events = all_three.events(2, 5)
        assert event_data(events) == ["once", "after"]
        assert events[0].last_event_id == receipt["id"]
        assert one.next_event(5) == events[0]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "bad_channel"),
        ("channel=", "bad_channel"),
        ("channel=a%20b", "bad_channel"),
        ("channel=a*", "bad_channel"),
        ("channel=%24control", "bad_channel"),
        ("channel=a%0A", "bad_channel"),
        ("channel=%C3%A4", "bad_channel"),
        ("channel=" + "x" * 129, "bad_channel"),
        ("channel=ok&channel=not%2Fok", "bad_channel"),
        ("&".join(f"channel=c{n}" for n in range(65)), "bad_parameter"),
        ("channel=ok&ping=loud", "bad_parameter"),
        ("channel=ok&event=a%0Ab", "bad_event"),
        ("channel=ok&event=", "bad_event"),
        ("channel=ok&" + "&".join(f"event=e{n}" for n in range(65)), "bad_parameter"),
    ],
)
def test_bad_selection(live: LiveService, query: str, code: str) -> None:
    """A stream without a channel, with a bad name or too many is 400, also for an EventSource."""
    for headers in (EVENT_STREAM, {}):
        document = ask(live, "GET", f"/stream?{query}", None, **headers).problem(400, code)
        assert document.get("fix") or code == "bad_event"


def test_longest_selection(live: LiveService) -> None:
    """A name of 128 characters, all kinds of them, and 64 channels are fine."""
    for query in (
        "channel=" + "aZ09_.:-" * 16,
        "&".join(f"channel=c{n}" for n in range(64)),
    ):
        with stream(live, query) as client:
            opened(client)


# ----------------------------------------------------------------------------- HEAD, OPTIONS, CORS


def test_head_opens_no_stream(live: LiveService, channel: str) -> None:
    """HEAD has a stream's headers, no body, and leaves no stream behind."""
    with RawConnection(live.port) as connection:
        for _ in range(3):
            answer = connection.ask(request_bytes("HEAD", f"/stream?channel={channel}"))
            assert answer.status == 200
            assert answer.header("Content-Type") == "text/event-stream"
            assert answer.header("Cache-Control") == "no-store, no-transform"
            assert answer.header("Content-Length") is None
        assert connection.ask(request_bytes("GET", "/livez")).json()["live"]
        assert connection.ask(request_bytes("HEAD", "/stream")).status == 400
    until(lambda: len(live.log_lines(method="HEAD", status=200)) >= 3, 5, "HEAD is logged")
    assert all("reason" not in line for line in live.log_lines(method="HEAD"))


def test_options_opens_no_stream(live: LiveService, channel: str) -> None:
    """OPTIONS is answered with what is allowed and leaves no stream behind."""
    with RawConnection(live.port) as connection:
        answer = connection.ask(request_bytes("OPTIONS", f"/stream?channel={channel}"))
        assert (answer.status, answer.body) == (204, b"")
        assert answer.header("Allow") == "GET, HEAD, OPTIONS"
        assert answer.header("Access-Control-Allow-Origin") is None
        assert connection.ask(request_bytes("GET", "/livez")).status == 200
    until(lambda: live.log_lines(method="OPTIONS"), 5, "OPTIONS is logged")
    assert all("reason" not in line for line in live.log_lines(method="OPTIONS"))


def test_other_methods(live: LiveService) -> None:
    """Other methods are 405 with what is allowed."""
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = ask(live, method, "/stream?channel=a", b"")
        answer.problem(405, "method_not_allowed")
        assert answer.header("Allow") == "GET, HEAD, OPTIONS"


def cors(answer: Answer | SseClient) -> dict[str, str]:
    """The CORS headers of an answer, and by what it varies besides its coding."""
    found = {
        name.removeprefix("access-control-"): value
        for name, value in answer.head.headers
        if name.startswith("access-control-")
    }
    vary = (answer.head.get("vary") or "").removeprefix("Accept-Encoding").removeprefix(", ")
    return {**found, **({"vary": vary} if vary else {})}


EXPOSED = {"expose-headers": "mercure-last-event-id, pushline-stream, retry-after, x-request-id"}
GRANTED = {"vary": "Origin", "allow-origin": PAGE, "allow-credentials": "true", **EXPOSED}


def test_listed_origin_may_stream(listed: LiveService, channel: str) -> None:
    """A listed page gets exactly its own origin, and credentials; soft and hard refusals too."""
    source = {"source": "127.0.0.21"}
    with stream(listed, f"channel={channel}", headers={"Origin": PAGE}, **source) as client:
        assert cors(client) == GRANTED
        opened(client)
        refused = stream(listed, f"channel={channel}", headers={"Origin": PAGE}, **source)
        with refused:  # over the limit of its address
            assert cors(refused) == GRANTED
            assert refused.read_until_end(2) == []
    assert cors(ask(listed, "GET", "/stream", Origin=PAGE)) == GRANTED
    assert cors(ask(listed, "HEAD", "/stream?channel=a", Origin=PAGE)) == GRANTED


@pytest.mark.parametrize(
    "origin", [OTHER_PAGE, "null", "https://app.example.evil.example", "http://app.example", "*"]
)
def test_other_origin_gets_no_grant(listed: LiveService, origin: str) -> None:
    """A page that is not listed gets no CORS header but Vary, so caches keep answers apart."""
    assert cors(ask(listed, "HEAD", "/stream?channel=a", Origin=origin)) == {"vary": "Origin"}
    assert cors(ask(listed, "HEAD", "/stream?channel=a")) == {"vary": "Origin"}
    preflight = ask(listed, "OPTIONS", "/stream?channel=a", Origin=origin)
    assert cors(preflight) == {"vary": "Origin"}


def test_preflight(listed: LiveService) -> None:
    """A listed page's preflight names methods and headers, Last-Event-ID among them."""
    answer = ask(
        listed,
        "OPTIONS",
        "/stream?channel=a",
        Origin=PAGE,
        Access_Control_Request_Method="GET",
        Access_Control_Request_Headers="last-event-id",
    )
    assert answer.status == 204
    assert cors(answer) == {
        **GRANTED,
        "allow-methods": "GET, HEAD, OPTIONS",
        "allow-headers": ", ".join(
            ["authorization", "cache-control", "content-type", "idempotency-key", "last-event-id"]
        ),
        "max-age": "600",
    }


def test_any_origin_may_stream_without_credentials(valkey: Valkey, channel: str) -> None:
    """CORS_ORIGINS=* lets any page stream, with `*` and never with credentials."""
    with LiveService(valkey.url, CORS_ORIGINS="*") as service:
        for origin in (PAGE, "null"):
            with stream(service, f"channel={channel}", headers={"Origin": origin}) as client:
                assert cors(client) == {"vary": "Origin", "allow-origin": "*", **EXPOSED}
        with stream(service, f"channel={channel}") as client:
            assert cors(client) == {"vary": "Origin"}


def test_without_a_list_no_origin_is_granted(live: LiveService, channel: str) -> None:
    """Without CORS_ORIGINS there are no CORS headers at all."""
    with stream(live, f"channel={channel}", headers={"Origin": PAGE}) as client:
        assert cors(client) == {}


# ----------------------------------------------------------------------------------------- limits


def assert_soft_refusal(service: LiveService, source: str, **headers: str) -> None:
    """An EventSource is told to come back in 5 to 30 s: 200, `retry:`, and a clean end."""
    retries = []
    for _ in range(4):
        with stream(service, "channel=limits", source=source, headers=headers) as client:
            assert client.status == 200
            assert client.header("Content-Type") == "text/event-stream"
            assert client.read_until_end(2) == []
            assert client.ended in (End.LENGTH, End.TERMINATED)
            assert not client.parser.inside_block
            assert re.fullmatch(rb"retry: \d+\n\n", client.body)
            assert client.parser.retry is not None
            retries.append(client.parser.retry)
    assert all(5_000 <= retry <= 30_000 for retry in retries)
    assert len(set(retries)) > 1


def assert_hard_refusal(
    service: LiveService, source: str, status: int, code: str, **headers: str
) -> None:
    """Any other client is told the status, the reason and when to come back."""
    with RawConnection(service.port, source=source) as connection:
        request = request_bytes("GET", "/stream?channel=limits", None, Accept="*/*", **headers)
        answer = connection.ask(request)
        document = answer.problem(status, code)
        assert document["fix"]
        assert int(answer.header("Retry-After") or "") >= 1


def settled(service: LiveService, count: int) -> None:
    """Wait until `count` streams have ended since the service started."""
    until(
        lambda: len(service.log_lines(path="/stream", reason="client_left")) == count,
        5,
        f"{count} streams released",
    )


def test_limits_per_address_and_in_all(limited: LiveService) -> None:
    """Streams over MAX_CONNECTIONS_PER_IP or MAX_CONNECTIONS are refused; ended ones make room."""
    ended = len(limited.log_lines(path="/stream", reason="client_left"))
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(stream(limited, "channel=limits", source=source))
            for source in ("127.0.0.31", "127.0.0.31", "127.0.0.32")
        ]
        assert_soft_refusal(limited, "127.0.0.31")
        assert_hard_refusal(limited, "127.0.0.31", 429, "too_many_streams_from_address")
        clients.append(stack.enter_context(stream(limited, "channel=limits", source="127.0.0.33")))
        assert_soft_refusal(limited, "127.0.0.34")
        assert_hard_refusal(limited, "127.0.0.34", 503, "too_many_streams")
        assert limited.publish("limits", "all of you")
        for client in clients:
            assert client.next_event(5).data == "all of you"
        clients[0].close()
        settled(limited, ended + 1)
        with stream(limited, "channel=limits", source="127.0.0.31") as again:
            opened(again)
        settled(limited, ended + 2)
    settled(limited, ended + 5)


def test_forwarded_address_counts_from_trusted_proxies_only(limited: LiveService) -> None:
    """X-Forwarded-For names the client when a trusted proxy says so, and means nothing else."""
    ended = len(limited.log_lines(path="/stream", reason="client_left"))
    proxied = {"X-Forwarded-For": "10.9.9.9, 203.0.113.7"}
    other = {"X-Forwarded-For": "203.0.113.7, 203.0.113.8"}
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(
                stream(limited, "channel=limits", source="127.0.0.9", headers=proxied)
            )
        assert_hard_refusal(limited, "127.0.0.9", 429, "too_many_streams_from_address", **proxied)
        assert_soft_refusal(limited, "127.0.0.9", **proxied)
        stack.enter_context(stream(limited, "channel=limits", source="127.0.0.9", headers=other))
        stack.enter_context(stream(limited, "channel=limits", source="127.0.0.41", headers=proxied))
    settled(limited, ended + 4)
    lines = limited.log_lines(path="/stream", reason="client_left")[ended:]
    addresses = sorted(line["address"] for line in lines)
    assert addresses == ["127.0.0.41", "203.0.113.7", "203.0.113.7", "203.0.113.8"]


def test_forwarded_address_of_others_means_nothing(limited: LiveService) -> None:
    """A client that is no trusted proxy can't escape its limit by naming other addresses."""
    ended = len(limited.log_lines(path="/stream", reason="client_left"))
    names = [{"X-Forwarded-For": f"198.51.100.{n}"} for n in range(3)]
    with contextlib.ExitStack() as stack:
        for headers in names[:2]:
            stack.enter_context(
                stream(limited, "channel=limits", source="127.0.0.42", headers=headers)
            )
        assert_hard_refusal(limited, "127.0.0.42", 429, "too_many_streams_from_address", **names[2])
    settled(limited, ended + 2)


# ------------------------------------------------------------------------------- several workers


def test_each_worker_delivers_what_the_other_published(live: LiveService, channel: str) -> None:
    """Streams on both workers get every event once and in order, whichever worker took it."""
    with contextlib.ExitStack() as stack:
        clients, publishers = [], []
        for pid in live.worker_pids():
            with only_worker(live, pid):
                for _ in range(4):
                    clients.append(stack.enter_context(stream(live, f"channel={channel}")))
                    publishers.append(stack.enter_context(RawConnection(live.port)))
                    assert publishers[-1].ask(request_bytes("GET", "/livez")).status == 200
                    assert worker_of(live, clients[-1].sock) == pid
                    assert worker_of(live, publishers[-1].sock) == pid
        expected = []
        for n in range(40):
            body = str(n).encode()
            request = request_bytes("POST", f"/channels/{channel}", body)
            answer = publishers[n * 5 % 8].ask(request)
            expected.append((answer.json()["id"], str(n)))
        for client in clients:
            events = client.events(40, 5)
            assert [(event.last_event_id, event.data) for event in events] == expected


# -------------------------------------------------------------------------------------------- log


def test_log_line_of_a_stream(live: LiveService, channel: str) -> None:
    """A stream that ended has one access line: who, how long, how much and why it ended."""
    with stream(live, f"channel={channel}&event=mine", source="127.0.0.51") as client:
        opened(client)
        for name in ("mine", "mine", "other"):
            live.publish(channel, "x" * 10, name)
        client.events(2, 5)
    (line,) = until(
        lambda: live.log_lines(path="/stream", address="127.0.0.51"), 5, "the stream is logged"
    )
    assert (line["method"], line["path"], line["status"]) == ("GET", "/stream", 200)
    assert (line["events"], line["reason"]) == (2, "client_left")
    assert line["bytes"] > 2 * 10
    assert 0 <= line["seconds"] < 10


def test_log_holds_no_query_string(live: LiveService) -> None:
    """Nothing of a query string is logged, be the request fine, refused or malformed."""
    secret = f"secret{uuid.uuid4().hex}"
    with stream(live, f"channel={secret}1&token={secret}"):
        pass
    requests = [
        request_bytes("GET", f"/stream?channel=%24&token={secret}2"),
        request_bytes("HEAD", f"/stream?channel=a&token={secret}3"),
        request_bytes("POST", f"/channels/a?retry={secret}4", b"x"),
        request_bytes("GET", f"/nothing?{secret}5"),
        request_bytes("GET", f"/livez?{secret}6", Referer=f"http://x/?{secret}7"),
        request_bytes("GET", "/stream?channel=" + secret * 200),
        f"GET /stream?{secret} 8 HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        f"GET /stream?{secret}9 HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n".encode(),
        f"get /stream?{secret}10 HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    ]
    for request in requests:
        with RawConnection(live.port) as connection:
            connection.send(request)
            assert connection.sock.recv(65536)
    time.sleep(0.2)
    assert secret not in live.log()
