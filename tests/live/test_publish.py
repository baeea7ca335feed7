"""POST /channels/<channel> and POST /publish against the real service and curl."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from service.event import EventId
from tests.live_server import LiveService, until
from tests.raw_http import Answer, RawConnection, ask, chunked, only_worker, request_bytes
from tests.sse_client import ParsedEvent, SseClient, event_data
from tests.valkey import Valkey

pytestmark = pytest.mark.live

LIMIT = 262_144
PAGE = "https://app.example"
REDIS_DOWN_SECONDS = 4.5
"""Within 3 s a publish is refused, and this machine may hold it up."""


@pytest.fixture
def channel() -> str:
    """A channel that nobody else uses."""
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def client(live: LiveService, channel: str) -> Iterator[SseClient]:
    """A stream of `channel`."""
    with SseClient.connect(f"{live.url}/stream?channel={channel}") as client:
        client.wait_body(b"\n\n", 5)
        yield client


def curl(*arguments: str, stdin: bytes = b"") -> bytes:
    """Run the real curl, without anybody's .curlrc, and return what it prints."""
    command = ["curl", "-q", "--silent", "--show-error", "--max-time", "20", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def post(service: LiveService, path: str, body: bytes | str, **headers: str) -> Answer:
    """POST on a connection of its own."""
    encoded = body if isinstance(body, bytes) else body.encode()
    return ask(service, "POST", path, encoded, **headers)


def publish_json(service: LiveService, body: Any) -> Answer:
    """POST /publish with `body` as JSON."""
    return post(service, "/publish", json.dumps(body), Content_Type="application/json")


# ------------------------------------------------------------------------------ what is published


def test_plain_curl(live: LiveService, channel: str, client: SseClient) -> None:
    """`curl -d hello` publishes hello, though curl calls it a form, and prints the receipt."""
    printed = curl("-d", "hello", f"{live.url}/channels/{channel}")
    assert printed.endswith(b"\n")
    receipt = json.loads(printed)
    event = client.next_event(5)
    assert receipt == {"id": event.last_event_id, "channel": channel, "replayed": False}
    assert (event.type, event.data) == ("message", "hello")


@pytest.mark.parametrize(
    "data",
    [
        "two\nlines",
        "\n",
        "\n\n",
        "ends with a newline\n",
        "  spaces: kept ",
        ":looks like a comment",
        "data: looks like a field\nid: 666\n\nevent: stolen",
        "a=1&b=2",
        "100%25 +plus+",
        '{"json": true}',
        "ünïcödé \u2028\u2029\x85 \U0001f680",
        "\ufeffBOM",
        "nul\0nul",
        "\x0b\x0c\x1c\x1d\x1e\x7f",
        "",
    ],
    ids=ascii,
)
def test_curl_byte_for_byte(live: LiveService, channel: str, client: SseClient, data: str) -> None:
    """`curl --data-binary` publishes exactly its bytes, newlines and unprintable ones too."""
    curl("--data-binary", "@-", f"{live.url}/channels/{channel}", stdin=data.encode())
    assert client.next_event(5).data == data
    assert client.parser.unknown_fields == []


def test_carriage_returns_arrive_as_newlines(
    live: LiveService, channel: str, client: SseClient
) -> None:
    """The format has no other way for CR: each CR, LF and CRLF arrives as one LF."""
    post(live, f"/channels/{channel}", "a\rb\r\nc\nd\r")
    assert client.next_event(5).data == "a\nb\nc\nd\n"


def test_curl_without_a_body(live: LiveService, channel: str, client: SseClient) -> None:
    """A POST without body publishes an event with empty data."""
    curl("-X", "POST", f"{live.url}/channels/{channel}")
    assert client.next_event(5).data == ""


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/json; charset=UTF-8", "text/html", "whatever", ""]
)
def test_any_text_type(live: LiveService, channel: str, client: SseClient, kind: str) -> None:
    """Any type of text is taken as it is."""
    assert post(live, f"/channels/{channel}", '{"a": 1}', Content_Type=kind).status == 200
    assert client.next_event(5).data == '{"a": 1}'


def test_event_name_and_retry(live: LiveService, channel: str, client: SseClient) -> None:
    """`event=` names the event, in any script, and `retry=` tells clients when to come back."""
    curl("-d", "x", f"{live.url}/channels/{channel}?event=price.up&retry=500")
    event = client.next_event(5)
    assert (event.type, event.data) == ("price.up", "x")
    assert client.parser.retry == 500
    curl("-d", "y", f"{live.url}/channels/{channel}?event=gr%C3%BC%C3%9Fe:%20alle&retry=60000")
    assert client.next_event(5).type == "grüße: alle"
    assert client.parser.retry == 60_000


def test_expect_100_continue(live: LiveService, channel: str, client: SseClient) -> None:
    """A client that waits for `100 Continue` gets it; curl does so before large uploads."""
    target = f"{live.url}/channels/{channel}"
    printed = curl("-v", "--stderr", "-", "-H", "Expect: 100-continue", "-d", "waited", target)
    assert b"< HTTP/1.1 100 Continue" in printed
    assert client.next_event(5).data == "waited"
    body = b" " * 1_500_000 + json.dumps({"channel": channel, "data": "large"}).encode()
    started = time.monotonic()
    curl("--expect100-timeout", "15", "--data-binary", "@-", f"{live.url}/publish", stdin=body)
    assert client.next_event(5).data == "large"
    assert time.monotonic() - started < 10  # without it curl would send the body after 15 s


def test_chunked_upload(live: LiveService, channel: str, client: SseClient) -> None:
    """A chunked body is one event, however it is cut."""
    data = "chünks " * 50
    with RawConnection(live.port) as connection:
        head = f"POST /channels/{channel} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        pieces = [data.encode()[n : n + 7] for n in range(0, len(data.encode()), 7)]
        for _ in range(2):  # the connection is fine afterwards
            assert connection.ask(head.encode() + chunked(*pieces)).status == 200
            assert client.next_event(5).data == data


def test_publish_object(live: LiveService, channel: str, client: SseClient) -> None:
    """POST /publish takes one object; data that isn't a string arrives as compact JSON."""
    cases: list[tuple[Any, str]] = [
        ("text", "text"),
        ({"b": [1, 2.5, None, True], "ü": "\n"}, '{"b":[1,2.5,null,true],"ü":"\\n"}'),
        (None, "null"),
        (12345678901234567890, "12345678901234567890"),
        ("", ""),
        ("\ufeff\0\u2028", "\ufeff\0\u2028"),
    ]
    for data, expected in cases:
        answer = publish_json(live, {"channel": channel, "data": data, "event": "e"})
        assert answer.status == 200
        event = client.next_event(5)
        assert (event.type, event.data) == ("e", expected)
        assert answer.json() == {
            "id": event.last_event_id,
            "channel": channel,
            "replayed": False,
        }


def test_publish_array(live: LiveService, channel: str, client: SseClient) -> None:
    """POST /publish takes an array, publishes it in order and answers a receipt for each."""
    items = [{"channel": channel, "data": str(n), "event": f"e{n % 3}"} for n in range(1000)]
    answer = publish_json(live, items)
    events = client.events(1000, 10)
    assert [event.data for event in events] == [item["data"] for item in items]
    assert [event.type for event in events] == [item["event"] for item in items]
    assert [receipt["id"] for receipt in answer.json()] == [e.last_event_id for e in events]
    assert publish_json(live, items[:1]).json()[0]["channel"] == channel


def test_publish_to_several_channels(live: LiveService, channel: str, client: SseClient) -> None:
    """`channels` sends one event, under one id, to each of them once."""
    other = f"{channel}-other"
    with SseClient.connect(f"{live.url}/stream?channel={other}") as second:
        second.wait_body(b"\n\n", 5)
        body = {"channels": [other, channel, channel], "channel": other, "data": "both"}
        receipt = publish_json(live, body).json()
        assert receipt["channels"] == sorted([channel, other])
        for one in (client, second):
            event = one.next_event(5)
            assert (event.data, event.last_event_id) == ("both", receipt["id"])
            assert one.events_within(0.1) == []


# ------------------------------------------------------------------------------------------- ids


def test_ids_increase_over_workers_and_channels(live: LiveService, channel: str) -> None:
    """Of two publishes, the one that began after the other's answer has the higher id.

    Whatever the worker and the channel; and no id is given twice.
    """
    seen: list[tuple[float, float, EventId]] = []

    def publish(connection: RawConnection, number: int) -> None:
        for n in range(50):
            path = f"/channels/{channel}-{(n + number) % 7}"
            began = time.monotonic()
            answer = connection.ask(request_bytes("POST", path, b"x"))
            seen.append((began, time.monotonic(), EventId.parse(answer.json()["id"])))

    with contextlib.ExitStack() as stack:
        connections = []
        for pid in live.worker_pids():
            with only_worker(live, pid):
                for _ in range(4):
                    connections.append(stack.enter_context(RawConnection(live.port)))
                    assert connections[-1].ask(request_bytes("GET", "/livez")).status == 200
        threads = [threading.Thread(target=publish, args=(c, n)) for n, c in enumerate(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({event_id for _, _, event_id in seen}) == len(seen) == 8 * 50
    for began, _, event_id in seen:
        earlier = [other for _, ended, other in seen if ended < began]
        assert not earlier or max(earlier) < event_id


def test_answer_comes_after_redis_has_accepted(own_valkey: Valkey, channel: str) -> None:
    """No publish is answered before Redis has taken it."""
    with LiveService(own_valkey.url) as service:
        service.publish(channel, "warm up")
        started = time.monotonic()
        own_valkey.cli("CLIENT", "PAUSE", 600, "WRITE")
        event_id = service.publish(channel, "late")
        assert time.monotonic() - started > 0.5
        assert own_valkey.cli("HGET", "pushline:clock", "id").decode() == event_id


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/channels/a%20b", "bad_channel"),
        ("/channels/a*", "bad_channel"),
        ("/channels/$sys", "bad_channel"),
        ("/channels/%24sys", "bad_channel"),
        ("/channels/a%0Ab", "bad_channel"),
        ("/channels/%C3%A4", "bad_channel"),
        ("/channels/%FF", "bad_channel"),
        ("/channels/" + "x" * 129, "bad_channel"),
        ("/channels/ok?event=%24reset", "bad_event"),
        ("/channels/ok?event=%24mine", "bad_event"),
        ("/channels/ok?event=open", "bad_event"),
        ("/channels/ok?event=error", "bad_event"),
        ("/channels/ok?event=", "bad_event"),
        ("/channels/ok?event=a%0Aid:%201", "bad_event"),
        ("/channels/ok?event=a%0D", "bad_event"),
        ("/channels/ok?event=a%00", "bad_event"),
        ("/channels/ok?event=a%C2%85", "bad_event"),
        ("/channels/ok?event=" + "x" * 129, "bad_event"),
        ("/channels/ok?retry=499", "bad_event"),
        ("/channels/ok?retry=60001", "bad_event"),
        ("/channels/ok?retry=-1", "bad_parameter"),
        ("/channels/ok?retry=1e3", "bad_parameter"),
        ("/channels/ok?retry=", "bad_parameter"),
        ("/channels/ok?retry=%D9%A3%D9%A3%D9%A3", "bad_parameter"),
        ("/channels/ok?evnt=typo", "bad_parameter"),
        ("/channels/ok?%00", "bad_parameter"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_bad_path_or_parameter(live: LiveService, path: str, code: str) -> None:
    """A bad channel, a reserved or unsafe event name, an unknown parameter: 400 with its code."""
    post(live, path, "x").problem(400, code)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_body"),
        (b"no JSON", "bad_body"),
        (b'{"channel": "ok", "data": "x"', "bad_body"),
        (b'{"channel": "ok", "data": NaN}', "bad_body"),
        (b'"text"', "bad_body"),
        (b"[]", "bad_body"),
        (b"[" * 100_000, "bad_body"),
        (b'{"channel": "ok"}', "bad_body"),
        (b'{"channel": "ok", "data": "x", "type": "e"}', "bad_body"),
        (b'{"channel": 1, "data": "x"}', "bad_body"),
        (b'{"channels": "ok", "data": "x"}', "bad_body"),
        (b'{"channels": [["ok"]], "data": "x"}', "bad_body"),
        (b'{"channel": "ok", "data": "x", "event": 1}', "bad_body"),
        (b'{"channel": "ok", "data": "x", "retry": "1000"}', "bad_body"),
        (b'{"channel": "ok", "data": "x", "retry": true}', "bad_body"),
        (b'{"channel": "ok", "data": "\xff"}', "bad_body"),
        (b'{"data": "x"}', "bad_channel"),
        (b'{"channel": "not ok", "data": "x"}', "bad_channel"),
        (b'{"channels": [], "data": "x"}', "bad_channel"),
        (b'{"channel": "ok", "data": "\\ud800"}', "bad_event"),
        (b'{"channel": "ok", "data": {"a": "\\ud800"}}', "bad_event"),
        (b'{"channel": "ok", "data": "x", "event": "$end"}', "bad_event"),
        (b'{"channel": "ok", "data": "x", "event": "a\\nb"}', "bad_event"),
        (b'{"channel": "ok", "data": "x", "event": "\\udfff"}', "bad_event"),
        (b'{"channel": "ok", "data": "x", "retry": 1}', "bad_event"),
        (json.dumps({"channels": [f"c{n}" for n in range(65)], "data": ""}), "bad_parameter"),
        (json.dumps([{"channel": "ok", "data": ""}] * 1001), "bad_body"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_bad_json(live: LiveService, body: bytes | str, code: str) -> None:
    """JSON that is broken, lacks a field or has an unknown one is 400 with its code."""
    post(live, "/publish", body, Content_Type="application/json").problem(400, code)


def test_one_bad_item_refuses_the_array(live: LiveService, channel: str, client: SseClient) -> None:
    """An array with one bad event publishes nothing, and the answer says which one it is."""
    good = {"channel": channel, "data": "x"}
    answer = publish_json(live, [good, good, {**good, "event": "$end"}, good])
    assert "item 2" in answer.problem(400, "bad_event")["detail"]
    assert client.events_within(0.2) == []


@pytest.mark.parametrize("body", [b"\xff", b"ok\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5"])
def test_bad_utf8(live: LiveService, channel: str, client: SseClient, body: bytes) -> None:
    """A body that is not UTF-8 is 400, and says where; nothing is published."""
    problem = post(live, f"/channels/{channel}", body).problem(400, "bad_body")
    assert "UTF-8" in problem["detail"]
    assert problem["fix"]
    assert client.events_within(0.05) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "multipart/mixed"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "text/plain; charset=iso-8859-1"},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "br"},
        {"Content-Encoding": "identity, gzip"},
    ],
    ids=str,
)
def test_unsupported_body(live: LiveService, headers: dict[str, str]) -> None:
    """Multipart, octet-stream, foreign charsets and compressed bodies are 415."""
    for path in ("/channels/ok", "/publish"):
        problem = ask(live, "POST", path, b"x", **headers).problem(415, "unsupported_body")
        assert problem["fix"]


def test_curl_form_upload_is_refused(live: LiveService) -> None:
    """`curl -F` is told that forms with files are not taken."""
    printed = curl("-F", "file=@-", f"{live.url}/channels/ok", stdin=b"x")
    assert json.loads(printed)["code"] == "unsupported_body"


def test_other_methods(live: LiveService) -> None:
    """Methods that a path does not take are 405 with those that it takes."""
    for path in ("/channels/ok", "/publish"):
        answer = ask(live, "PATCH", path, b"x")
        assert answer.problem(405, "method_not_allowed")["fix"]
        assert "POST" in (answer.header("Allow") or "").split(", ")


def test_unknown_path(live: LiveService) -> None:
    """A path that does not exist is 404 and says where to publish."""
    assert "POST /channels/NAME" in post(live, "/channel/x", "x").problem(404, "not_found")["fix"]
    post(live, "/channels/a/b", "x").problem(404, "not_found")
    post(live, "/channels/", "x").problem(404, "not_found")


# ------------------------------------------------------------------------------------------ sizes


def test_size_limit_with_content_length(live: LiveService, channel: str, client: SseClient) -> None:
    """A body of MAX_EVENT_BYTES is published whole; one byte more is 413."""
    for size in (LIMIT - 1, LIMIT):
        assert post(live, f"/channels/{channel}", b"x" * size).status == 200
        assert len(client.next_event(5).data) == size
    problem = post(live, f"/channels/{channel}", b"x" * (LIMIT + 1)).problem(413, "event_too_large")
    assert problem["fix"]
    assert client.events_within(0.1) == []


def test_size_limit_counts_bytes(live: LiveService, channel: str, client: SseClient) -> None:
    """Bytes of UTF-8 count, not characters, on both routes."""
    at_limit = "ü" * (LIMIT // 2)
    for data, status in ((at_limit, 200), (at_limit + "x", 413)):
        assert post(live, f"/channels/{channel}", data).status == status
        assert publish_json(live, {"channel": channel, "data": data}).status == status
    assert event_data(client.events(2, 5)) == [at_limit] * 2


def test_size_limit_chunked(live: LiveService, channel: str, client: SseClient) -> None:
    """A chunked body over the limit is 413 too, and never cut down to the limit."""
    head = f"POST /channels/{channel} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for size in (LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT):
        pieces = [b"x" * min(50_000, size - start) for start in range(0, size, 50_000)]
        with RawConnection(live.port) as connection:
            answer = connection.ask(head.encode() + chunked(*pieces))
        if size <= LIMIT:
            assert answer.status == 200
            assert len(client.next_event(5).data) == size
        else:
            answer.problem(413, "event_too_large")
    assert client.events_within(0.1) == []


def test_endless_bodies_are_refused_at_once(live: LiveService) -> None:
    """A body announced as huge is 413 before it comes; an endless chunked one when it is over."""
    with RawConnection(live.port) as connection:
        head = "POST /channels/ok HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n"
        answer = connection.ask(head.encode())
        answer.problem(413, "event_too_large")
        assert answer.seconds < 5  # one that waits for bodies does so for 10 s
    with RawConnection(live.port) as connection:
        connection.send(b"POST /publish HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = chunked(b" " * 65_536).removesuffix(b"0\r\n\r\n")
        for _ in range(16 * LIMIT // 65_536 + 1):
            connection.send(piece)
        answer = connection.answer()
        answer.problem(413, "event_too_large")
        assert answer.seconds < 5


def test_size_limit_is_a_setting(valkey: Valkey, channel: str) -> None:
    """MAX_EVENT_BYTES is the limit of both routes."""
    with LiveService(valkey.url, MAX_EVENT_BYTES=10) as service:
        assert post(service, f"/channels/{channel}", "x" * 10).status == 200
        assert post(service, f"/channels/{channel}", "x" * 11).status == 413
        assert publish_json(service, {"channel": channel, "data": "x" * 10}).status == 200
        answer = publish_json(service, {"channel": channel, "data": "x" * 11})
        assert answer.problem(413, "event_too_large")["detail"].startswith("the body: ")


def test_slow_bodies(live: LiveService, channel: str, client: SseClient) -> None:
    """A body that trickles or stops is 408 after 10 s, and nothing is published."""
    chunks = f"POST /channels/{channel} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    length = f"POST /channels/{channel} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    cases = [(length, b"x"), (chunks, b"1\r\nx\r\n"), (length, b""), (chunks, b"")]
    answers: list[tuple[float, Answer]] = []

    def trickle(head: str, piece: bytes) -> None:
        started = time.monotonic()
        with RawConnection(live.port, timeout=14) as connection:
            connection.send(head.encode())
            for _ in range(18):
                time.sleep(0.5)
                connection.send(piece)
            answers.append((time.monotonic() - started, connection.answer()))

    threads = [threading.Thread(target=trickle, args=case) for case in cases]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 9.5 < time.monotonic() - started < 12
    assert len(answers) == len(cases)
    for _, answer in answers:
        answer.problem(408, "body_too_slow")
    assert client.events_within(0.1) == []


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 10\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nZZ\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    ],
    ids=lambda rest: rest.decode().rpartition("\r\n\r\n")[2] or "ended",
)
def test_broken_off_body(live: LiveService, channel: str, client: SseClient, rest: bytes) -> None:
    """A body that ends early or is badly chunked is 400, publishes nothing and ends the connection.

    What comes after it on the connection can't be told from the body, so it is not taken either.
    """
    with RawConnection(live.port) as connection:
        request = f"POST /channels/{channel} HTTP/1.1\r\nHost: x\r\n".encode() + rest
        if b"Content-Length" not in rest:
            request += request_bytes("POST", f"/channels/{channel}", b"smuggled")
        connection.send(request)
        with contextlib.suppress(OSError):  # it may be closed already
            connection.sock.shutdown(socket.SHUT_WR)
        connection.answer().problem(400, "bad_body")
        with contextlib.suppress(ConnectionResetError):
            assert connection.sock.recv(65536) == b""
    assert client.events_within(0.1) == []


# ---------------------------------------------------------------------------------------- origins


@pytest.fixture(scope="module")
def listed(shared_valkey: Valkey) -> Iterator[LiveService]:
    """A service that lists one origin, and lets all others stream."""
    with LiveService(shared_valkey.url, CORS_ORIGINS=f"{PAGE} *") as service:
        yield service


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://app.example",
        f"{PAGE}.evil.example",
        "",
        "http://[::1",
    ],
)
def test_foreign_origin(listed: LiveService, channel: str, origin: str) -> None:
    """A page that is neither ours nor listed can't publish, by any route or content type."""
    with SseClient.connect(f"{listed.url}/stream?channel={channel}") as client:
        client.wait_body(b"\n\n", 5)
        body = json.dumps({"channel": channel, "data": "x"})
        for path in (f"/channels/{channel}", "/publish"):
            answer = post(listed, path, body, Origin=origin, Content_Type="text/plain")
            assert "CORS_ORIGINS" in answer.problem(403, "foreign_origin")["fix"]
            assert ask(listed, "OPTIONS", path, Origin=origin).status == 403
        assert client.events_within(0.2) == []


def test_own_and_listed_origins(listed: LiveService, live: LiveService, channel: str) -> None:
    """The service's own page and listed ones may publish; the latter get their CORS headers."""
    for service in (listed, live):
        own = post(service, f"/channels/{channel}", "x", Origin=service.url, Host=service.url[7:])
        assert own.status == 200
    answer = post(listed, f"/channels/{channel}", "x", Origin=PAGE)
    assert answer.status == 200
    assert answer.header("Access-Control-Allow-Origin") == PAGE
    assert answer.header("Access-Control-Allow-Credentials") == "true"
    assert answer.header("Vary") == "Origin"
    refused = post(listed, "/channels/not%20ok", "x", Origin=PAGE)
    assert refused.problem(400, "bad_channel")
    assert refused.header("Access-Control-Allow-Origin") == PAGE


def test_preflight_of_a_listed_page(listed: LiveService, channel: str) -> None:
    """A listed page may send JSON with POST and is told so; nothing is published."""
    for path in (f"/channels/{channel}", "/publish"):
        answer = ask(listed, "OPTIONS", path, Origin=PAGE, Access_Control_Request_Method="POST")
        assert (answer.status, answer.body) == (204, b"")
        assert answer.header("Access-Control-Allow-Origin") == PAGE
        assert "POST" in (answer.header("Access-Control-Allow-Methods") or "")
        assert "content-type" in (answer.header("Access-Control-Allow-Headers") or "")


# ----------------------------------------------------------------------------------------- Redis


def refused_within(service: LiveService, seconds: float) -> tuple[str, float]:
    """The code of a refused publish, which must come within `seconds`, and how long it took."""
    started = time.monotonic()
    answer = post(service, "/channels/outage", "lost?")
    took = time.monotonic() - started
    assert took < seconds
    code = str(answer.json()["code"])
    answer.problem(503, code)
    assert int(answer.header("Retry-After") or "") >= 1
    return code, took


def test_redis_killed_and_back(own_valkey: Valkey) -> None:
    """Without Redis a publish is 503 within 3 s, on both workers; with it back all works again."""
    with (
        LiveService(own_valkey.url, WEB_CONCURRENCY=2) as service,
        SseClient.connect(f"{service.url}/stream?channel=outage") as client,
    ):
        before = service.publish("outage", "before")
        assert client.next_event(5).data == "before"
        own_valkey.kill()
        for _ in range(6):
            code, _ = refused_within(service, REDIS_DOWN_SECONDS)
            assert code == "redis_down"
        assert service.get("/livez")[0] == 200
        status, body, _ = service.get("/readyz")
        assert status == 503
        assert set(json.loads(body)["reasons"]) == {"redis_not_followed", "redis_not_answering"}
        own_valkey.start()
        until(lambda: service.get("/readyz")[0] == 200, 10, "ready again")
        assert client.ended is None
        delivered: list[ParsedEvent] = []

        def publish_and_look() -> bool:
            answer = post(service, "/channels/outage", "after")
            if answer.status == 503:
                # The worker that wasn't asked for its readiness may not have seen the new one yet.
                answer.problem(503, "redis_changed")
                return False
            assert EventId.parse(answer.json()["id"]) > EventId.parse(before)
            delivered.extend(client.events_within(0.2))
            return delivered[-1:] != [] and delivered[-1].data == "after"

        until(publish_and_look, 10, "the open stream gets events again")
        # This Redis keeps nothing on disk, so the stream is told that something may be missing.
        assert [event.type for event in delivered[:2]] == ["$reset", "message"]
        assert {event.data for event in delivered[1:]} == {"after"}


def test_redis_frozen_and_back(own_valkey: Valkey) -> None:
    """A publish to a Redis that stops answering is 503 outcome_unknown within 3 s.

    The next ones find out while they connect, so they know that nothing was published.
    """
    with LiveService(own_valkey.url) as service:
        service.publish("outage", "before")
        own_valkey.stop_process()
        try:
            assert refused_within(service, REDIS_DOWN_SECONDS)[0] == "outcome_unknown"
            results: list[str] = []

            def publish() -> None:
                results.append(refused_within(service, REDIS_DOWN_SECONDS)[0])

            threads = [threading.Thread(target=publish) for _ in range(12)]
            for thread in threads:
                thread.start()
            assert service.get("/livez")[0] == 200
            for thread in threads:
                thread.join()
            assert len(results) == 12
            assert set(results) <= {"redis_down", "outcome_unknown", "redis_pool_busy"}
        finally:
            own_valkey.cont()
        until(lambda: post(service, "/channels/outage", "x").status == 200, 5, "publishing works")


def test_redis_that_refuses(own_valkey: Valkey) -> None:
    """A Redis that can't write now is 503 with the reason as its code, and works later."""
    with LiveService(own_valkey.url) as service:
        service.publish("outage", "before")
        own_valkey.cli("CONFIG", "SET", "maxmemory", "1")
        assert refused_within(service, REDIS_DOWN_SECONDS)[0] == "redis_out_of_memory"
        own_valkey.cli("CONFIG", "SET", "maxmemory", "0")
        own_valkey.cli("REPLICAOF", "127.0.0.1", "1")
        assert refused_within(service, REDIS_DOWN_SECONDS)[0] == "redis_readonly"
        own_valkey.cli("REPLICAOF", "NO", "ONE")
        assert service.publish("outage", "after")


def test_redis_that_is_busy(own_valkey: Valkey) -> None:
    """A Redis that runs somebody's endless script is 503 redis_busy, and works later."""
    own_valkey.cli("CONFIG", "SET", "busy-reply-threshold", "50")
    with LiveService(own_valkey.url) as service:
        service.publish("outage", "before")
        endless = (
            f"import redis; redis.Redis(port={own_valkey.port}, socket_timeout=60)"
            ".eval('while true do end', 0)"
        )
        script = subprocess.Popen([sys.executable, "-c", endless], stderr=subprocess.DEVNULL)
        try:
            until(lambda: refused_or_published(service) == "redis_busy", 5, "redis_busy")
        finally:
            own_valkey.cli("SCRIPT", "KILL")
            script.wait(10)
        assert service.publish("outage", "after")


def refused_or_published(service: LiveService) -> str:
    """The code of a publish's refusal, or nothing."""
    return str(post(service, "/channels/outage", "x").json().get("code", ""))


def test_flushed_redis(own_valkey: Valkey) -> None:
    """Losing its scripts and its clock makes no publish fail, and no id go backwards."""
    with (
        LiveService(own_valkey.url) as service,
        SseClient.connect(f"{service.url}/stream?channel=flushed") as client,
    ):
        ids = [service.publish("flushed", "1")]
        client.next_event(5)
        for n in (2, 3):
            own_valkey.cli("SCRIPT", "FLUSH")
            own_valkey.cli("FLUSHALL")
            ids.append(service.publish("flushed", str(n)))
            assert client.next_event(10).type == "$reset"
        ids.append(service.publish("flushed", "4"))
        assert client.next_event(5).data == "4"
        parsed = [EventId.parse(text) for text in ids]
        assert parsed == sorted(set(parsed))


def test_redis_with_a_password() -> None:
    """A password in REDIS_URL is used for both connections, and never logged."""
    with Valkey(password="p@ss:w/rd%") as secret:
        url = f"redis://:p%40ss%3Aw%2Frd%25@127.0.0.1:{secret.port}/0"
        with (
            LiveService(url) as service,
            SseClient.connect(f"{service.url}/stream?channel=a") as client,
        ):
            service.publish("a", "x")
            assert client.next_event(5).data == "x"
            secret.kill()
            assert refused_within(service, REDIS_DOWN_SECONDS)[0] == "redis_down"
            until(lambda: "Redis is lost" in service.log(), 5, "the loss is logged")
            for text in ("p@ss:w/rd%", "p%40ss"):
                assert text not in service.log()
