"""Uploads against the real service and the real curl: each line goes out as it arrives."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Self

import gevent
import pytest

from tests.live_server import LiveService, until
from tests.raw_http import Answer, RawConnection, ask, request_bytes, worker_of
from tests.sse_client import SseClient, event_data
from tests.valkey import Valkey

pytestmark = pytest.mark.live

LIMIT = 262_144
"""MAX_EVENT_BYTES; a line of JSON may have 16 times as many."""

NDJSON = "application/x-ndjson"


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


class Upload:
    """A request whose body is sent piece by piece, chunked or with a length."""

    def __init__(
        self,
        service: LiveService,
        path: str,
        *,
        method: str = "PUT",
        length: int | None = None,
        timeout: float = 30,
        **headers: str,
    ) -> None:
        self.connection = RawConnection(service.port, timeout=timeout)
        self.sock = self.connection.sock
        self.chunked = length is None
        framing = {"Transfer-Encoding": "chunked"} if length is None else {}
        if length is not None:
            framing = {"Content-Length": str(length)}
        self.sock.sendall(request_bytes(method, path, None, **headers, **framing))

    def send(self, data: bytes) -> Self:
        """Send a piece, as one chunk."""
        self.sock.sendall(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)
        return self

    def leave(self) -> Self:
        """Send no more, as a client that has crashed."""
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def finish(self) -> Answer:
        """End the body and read the answer."""
        if self.chunked:
            self.sock.sendall(b"0\r\n\r\n")
        return self.answer()

    def answer(self) -> Answer:
        """Read the answer."""
        return self.connection.answer("PUT")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.connection.close()


def item(channel: str, data: Any, **more: Any) -> bytes:
    """A line of an upload to /publish."""
    return json.dumps({"channel": channel, "data": data, **more}).encode() + b"\n"


def told(answer: Answer) -> dict[str, Any]:
    """What a finished upload is told."""
    assert answer.status == 200, answer.body
    body: dict[str, Any] = answer.json()
    assert body.keys() == {"events", "replayed", "last_id"}
    return body


def kept(service: LiveService, channel: str) -> list[str]:
    """The data of all events in a channel's history."""
    data: list[str] = []
    after = ""
    while True:
        answer = ask(service, "GET", f"/channels/{channel}/events?limit=1000{after}").json()
        data += [event["data"] for event in answer["events"]]
        if answer["next"] is None:
            return data
        after = f"&after={answer['next']}"


def shell(script: str, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script with curl in it; curl itself must succeed."""
    done = subprocess.run(
        ["timeout", "30", "bash", "-c", script], cwd=cwd, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


CURL = "curl -q --silent --show-error -T -"


# --------------------------------------------------------------------------------- all routes


@pytest.mark.parametrize("sized", [False, True], ids=["chunked", "length"])
@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("PUT", "/channels/{channel}", "text/plain"),
        ("PUT", "/publish", "text/plain"),
        ("POST", "/publish", NDJSON),
        ("POST", "/publish", "application/ndjson"),
    ],
)
def test_every_line_is_an_event_at_once(
    live: LiveService,
    channel: str,
    client: SseClient,
    method: str,
    path: str,
    kind: str,
    sized: bool,
) -> None:
    """On each route, in any framing, a line is delivered before the next is sent; the last one
    needs no end; then the connection takes another request.
    """
    data = [f"line {number} ü" for number in range(20)]
    if "{channel}" in path:
        lines = [f"{text}\n".encode() for text in data]
    else:
        lines = [item(channel, text) for text in data]
    lines[3] = lines[3].replace(b"\n", b"\r\n")
    lines[-1] = lines[-1].rstrip(b"\n")
    length = sum(map(len, lines)) if sized else None
    path = path.format(channel=channel)
    with Upload(live, path, method=method, length=length, Content_Type=kind) as upload:
        for text, line in zip(data[:-1], lines[:-1], strict=True):
            upload.send(line)
            assert client.next_event(5).data == text
        upload.send(lines[-1])
        answer = told(upload.finish())
        last = client.next_event(5)
        assert last.data == data[-1]
        assert answer == {"events": 20, "replayed": 0, "last_id": last.last_event_id}
        assert upload.connection.ask(request_bytes("GET", "/livez")).status == 200


def test_a_line_is_not_held_back(live: LiveService, channel: str, client: SseClient) -> None:
    """One line and then silence: it is there within a few milliseconds, however it was cut."""
    seconds = []
    with Upload(live, f"/channels/{channel}") as upload:
        for number in range(30):
            upload.send(b"half a ")
            assert client.events_within(0.02) == []
            started = time.monotonic()
            upload.send(b"line %d\n" % number)
            assert client.next_event(5).data == f"half a line {number}"
            seconds.append(time.monotonic() - started)
        assert told(upload.finish())["events"] == 30
    assert statistics.median(seconds) < 0.2
    print(f"a line takes {statistics.median(seconds) * 1000:.1f} ms, at most {max(seconds):.3f} s")


def test_an_upload_has_no_limit_in_time(live: LiveService, channel: str, client: SseClient) -> None:
    """A body that is read whole must come within 10 s; an upload may pause for longer."""
    with Upload(live, f"/channels/{channel}") as upload:
        upload.send(b"before\n")
        time.sleep(11)
        upload.send(b"after\n")
        assert told(upload.finish())["events"] == 2
    assert event_data(client.events(2, 5)) == ["before", "after"]


def test_keys_in_items(live: LiveService, channel: str, client: SseClient) -> None:
    """A repeated upload publishes what is new, and counts what isn't."""
    lines = [item(channel, n, idempotency_key=f"{channel}-{n}") for n in range(300)]
    for some, replayed in ((lines[:200], 0), (lines, 200), (lines, 300)):
        with Upload(live, "/publish") as upload:
            answer = told(upload.send(b"".join(some)).finish())
        assert (answer["events"], answer["replayed"]) == (len(some), replayed)
    assert event_data(client.events(300, 10)) == [str(n) for n in range(300)]
    assert client.events_within(0.2) == []


# ---------------------------------------------------------------------------------------- curl


def test_tail_and_curl(live: LiveService, channel: str, client: SseClient, tmp_path: Path) -> None:
    """`tail -f log | curl -T -` streams a log as it grows, and ends when tail does."""
    log = tmp_path / "log"
    log.write_text("first\n")
    command = "tail -f -n +1 log & echo $! >pid; wait"
    target = f"{live.url}/channels/{channel}"
    with subprocess.Popen(
        ["timeout", "60", "bash", "-c", f"({command}) | {CURL} {target}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    ) as shell:
        assert client.next_event(10).data == "first"
        for number in range(5):
            with log.open("a") as file:
                file.write(f"line {number}\n\n")
            assert event_data(client.events(2, 10)) == [f"line {number}", ""]
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
        printed = shell.communicate(timeout=20)[0]
    assert json.loads(printed)["events"] == 11


def test_curl_uploads_a_file(live: LiveService, channel: str, tmp_path: Path) -> None:
    """`curl -T file`, with a Content-Length, publishes each of its lines."""
    (tmp_path / "items").write_bytes(b"".join(item(channel, n) for n in range(5000)))
    done = shell(f"curl -q -sS -T items {live.url}/publish", tmp_path)
    assert json.loads(done.stdout)["events"] == 5000
    post = f"curl -q -sS -H 'Content-Type: {NDJSON}' --data-binary @items {live.url}/publish"
    assert json.loads(shell(post, tmp_path).stdout)["events"] == 5000


@pytest.mark.parametrize(
    ("lines", "path", "code", "line"),
    [
        ("yes bad", "/publish", "bad_body", 1),
        ("echo ok; yes | tr -d '\\n'", "/channels/{channel}", "event_too_large", 2),
        ("yes", "/channels/{channel}?colour=red", "bad_parameter", 1),
        ("yes", "/channels/not*allowed", "bad_channel", 1),
        ("yes ok | head -n 20000; echo -e '\\xff'; yes", "/channels/{channel}", "bad_body", 20001),
    ],
)
def test_curl_sees_why_its_upload_ended(
    live: LiveService, channel: str, lines: str, path: str, code: str, line: int
) -> None:
    """Though it would go on sending for ever, curl gets the whole answer, not a reset."""
    started = time.monotonic()
    done = shell(f"({lines}) | {CURL} '{live.url}{path.format(channel=channel)}'")
    problem = json.loads(done.stdout)
    assert (problem["code"], problem["line"], problem["events"]) == (code, line, line - 1)
    assert time.monotonic() - started < 20


# ---------------------------------------------------------------------------------- what goes wrong


def test_a_bad_line_in_the_middle(live: LiveService, channel: str, client: SseClient) -> None:
    """Those before it go out, also those of the same read; those after it don't; the answer says
    where, closes the connection, and comes whole though the client is still sending.
    """
    good = [item(channel, n) for n in range(1000)]
    with Upload(live, "/publish") as upload:
        upload.send(b"".join(good[:500]))
        assert len(client.events(500, 10)) == 500
        upload.send(b"".join([*good[500:], b'{"channel": "', *good]))
        with contextlib.suppress(OSError):
            for _ in range(50):
                upload.send(b"".join(good))
        answer = upload.answer()
    problem = answer.problem(400, "bad_body")
    assert (problem["line"], problem["events"]) == (1001, 1000)
    assert "line 1001" in problem["detail"]
    assert answer.header("Connection") == "close"
    assert event_data(client.events(500, 10)) == [str(n) for n in range(500, 1000)]
    assert client.events_within(0.3) == []


def test_a_client_that_does_not_stop_is_cut(live: LiveService, channel: str) -> None:
    """Who goes on sending after the answer has two seconds to read it; then the connection ends."""
    with Upload(live, f"/channels/{channel}") as upload:
        started = time.monotonic()
        upload.send(b"\xff\n")
        upload.answer().problem(400, "bad_body")
        with contextlib.suppress(OSError):  # a reset, or a broken pipe
            while time.monotonic() - started < 15:
                upload.send(b"x\n" * 100)
                time.sleep(0.01)
        assert 1.5 < time.monotonic() - started < 10


@pytest.mark.parametrize("at_once", [True, False])
def test_an_ended_channel_in_the_middle(
    live: LiveService, channel: str, client: SseClient, at_once: bool
) -> None:
    """409 with the line; of lines that came together those of other channels have gone out."""
    other = f"{channel}-other"
    with Upload(live, "/publish") as upload:
        upload.send(item(channel, 1) + item(other, 1))
        assert client.next_event(5).data == "1"
        assert ask(live, "POST", f"/channels/{channel}/end").status == 200
        lines = [item(other, 2), item(channel, 2), item(other, 3)]
        if at_once:
            upload.send(b"".join(lines))
        else:  # a piece that is sent before the one before it is dealt with may come with that
            upload.send(lines[0])
            until(lambda: kept(live, other) == ["1", "2"], 5, "it is published")
            upload.send(lines[1])
        problem = upload.answer().problem(409, "channel_ended")
        if not at_once:
            with contextlib.suppress(OSError):
                upload.send(lines[2])
            time.sleep(0.1)
    assert (problem["line"], problem["events"]) == (4, 4 if at_once else 3)
    assert "published" not in problem
    assert kept(live, other) == ["1", "2", "3"][: 3 if at_once else 2]


@pytest.mark.parametrize(
    ("path", "max_bytes"), [("/channels/{channel}", LIMIT), ("/publish", 16 * LIMIT)]
)
def test_a_line_that_is_too_long(
    live: LiveService, channel: str, path: str, max_bytes: int
) -> None:
    """At the limit a line is taken, whatever ends it; over it the upload is refused at once."""
    if path == "/publish":
        fits = item(channel, "x").rstrip(b"\n").ljust(max_bytes)
    else:
        fits = b"x" * max_bytes
    with Upload(live, path.format(channel=channel)) as upload:
        upload.send(fits + b"\r\n").send(fits + b"\n")
        until(lambda: len(kept(live, channel)) == 2, 10, "both are published")
        upload.send(b" " * (max_bytes + 1))
        problem = upload.answer().problem(413, "event_too_large")
        assert (problem["line"], problem["events"]) == (3, 2)
    assert len(kept(live, channel)) == 2


def cut_chunk(upload: Upload) -> None:
    """Leave inside a chunk."""
    upload.sock.sendall(b"10\r\nunfini")
    upload.leave()


def no_last_chunk(upload: Upload) -> None:
    """Leave between two chunks."""
    upload.send(b"unfini").leave()


def bad_chunk(upload: Upload) -> None:
    """Send what is no chunk."""
    upload.send(b"unfini").sock.sendall(b"nonsense\r\n")


def short_body(upload: Upload) -> None:
    """Leave before the Content-Length is reached."""
    upload.send(b"unfini").leave()


@pytest.mark.parametrize(
    ("breaks", "length"),
    [(cut_chunk, None), (no_last_chunk, None), (bad_chunk, None), (short_body, 100)],
)
def test_an_upload_that_breaks_off(
    live: LiveService,
    channel: str,
    client: SseClient,
    breaks: Callable[[Upload], None],
    length: int | None,
) -> None:
    """Whole lines are published, the unfinished one isn't, and the answer says how far it went."""
    with Upload(live, f"/channels/{channel}", length=length) as upload:
        upload.send(b"one\ntwo\n")
        breaks(upload)
        answer = upload.answer()
    problem = answer.problem(400, "bad_body")
    assert (problem["line"], problem["events"]) == (3, 2)
    assert answer.header("Connection") == "close"
    assert event_data(client.events(2, 5)) == ["one", "two"]
    assert client.events_within(0.3) == []


def test_a_client_that_vanishes(live: LiveService, channel: str, client: SseClient) -> None:
    """A reset connection is an upload that broke off; the service logs no error for it."""
    with Upload(live, f"/channels/{channel}") as upload:
        upload.send(b"one\nunfini")
        assert client.next_event(5).data == "one"
        upload.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    path = f"/channels/{channel}"
    until(lambda: live.log_lines(method="PUT", path=path), 5, "the upload's end is logged")
    assert client.events_within(0.2) == []
    assert live.log_lines(level="error") == []


def test_redis_goes_away_in_the_middle(own_valkey: Valkey, channel: str) -> None:
    """503 with the line from which the client goes on when Redis is back."""
    with (
        LiveService(own_valkey.url) as service,
        Upload(service, f"/channels/{channel}") as upload,
    ):
        upload.send(b"1\n2\n")
        until(lambda: kept(service, channel) == ["1", "2"], 5, "they are published")
        own_valkey.kill()
        answer = upload.send(b"3\n4\n").answer()
        problem = answer.json()
        answer.problem(503, problem["code"])
        assert problem["code"] in ("redis_down", "outcome_unknown")
        assert (problem["line"], problem["events"]) == (3, 2)
        assert int(answer.header("Retry-After") or "") > 0


# ---------------------------------------------------------------------------------------- load


def test_a_hundred_thousand_lines(shared_valkey: Valkey, channel: str) -> None:
    """All of one upload arrive on a stream, in order, each once."""
    lines = 100_000
    body = b"".join(item(channel, n) for n in range(lines))
    with (
        LiveService(shared_valkey.url, OUTBOX_BYTES=100_000_000, HISTORY_EVENTS=100) as service,
        SseClient.connect(f"{service.url}/stream?channel={channel}") as client,
        Upload(service, "/publish", length=len(body), timeout=100) as upload,
    ):
        client.wait_body(b"\n\n", 5)
        started = time.monotonic()
        sending = gevent.spawn(upload.send, body)
        answering = gevent.spawn(upload.answer)
        events = client.events(lines, 100)
        answer = told(answering.get(timeout=100))
        seconds = time.monotonic() - started
        sending.get()
        assert event_data(events) == [str(n) for n in range(lines)]
        assert answer == {"events": lines, "replayed": 0, "last_id": events[-1].last_event_id}
        assert client.events_within(0.2) == []
    print(f"one upload: {lines / seconds:.0f} events/s, with a stream that reads them in Python")


def test_uploads_side_by_side(live: LiveService, channel: str) -> None:
    """Many at once, each to a channel of its own: all are whole and in order, none is refused,
    and others can publish meanwhile.
    """
    uploads, lines = 40, 1000
    body = [[b"%d\n" % n for n in range(lines)] for _ in range(uploads)]
    waits: list[float] = []
    taken: list[bool] = []

    def run(number: int) -> dict[str, Any]:
        size = lines if number % 2 else 1 + number * 7 % 100
        with Upload(live, f"/channels/{channel}-{number}", timeout=60) as upload:
            for start in range(0, lines, size):
                upload.send(b"".join(body[number][start : start + size]))
            return told(upload.finish())

    def publish() -> None:
        while True:
            started = time.monotonic()
            status, body, _ = live.post(f"/channels/{channel}-other", b"x")
            assert status in (200, 503), body  # when Redis stands still for a moment
            waits.append(time.monotonic() - started)
            taken.append(status == 200)
            gevent.sleep(0.01)

    other = gevent.spawn(publish)
    running = [gevent.spawn(run, number) for number in range(uploads)]
    gevent.joinall(running, timeout=60, raise_error=True)
    assert not other.dead, "publishing goes on"
    other.kill()
    assert [one.get()["events"] for one in running] == [lines] * uploads
    for number in range(uploads):
        assert kept(live, f"{channel}-{number}") == [str(n) for n in range(lines)]
    assert max(waits) < 5
    assert statistics.mean(taken) > 0.9
    print(f"side by side: {len(waits)} other publishes, the slowest in {max(waits):.3f} s")


# ------------------------------------------------------------------------------------- draining


class Endless:
    """A client that uploads numbered lines without an end, and goes on where an answer says."""

    def __init__(self, service: LiveService, channel: str, pause: float) -> None:
        self.service = service
        self.path = f"/channels/{channel}"
        self.pause = pause
        self.next = 0
        self.answers: list[dict[str, Any]] = []
        self.upload: Upload | None = None
        self.stopped = False
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while not self.stopped:
            first = self.next
            with Upload(self.service, self.path) as self.upload:
                answering = gevent.spawn(self.upload.answer)
                self._send(self.upload, answering)
                answer = answering.get(timeout=20)
            self.answers.append(answer.json())
            if answer.status != 200:
                answer.problem(503, "draining")
                assert answer.header("Connection") == "close"
                self.next = first + self.answers[-1]["line"] - 1

    def _send(self, upload: Upload, answering: gevent.Greenlet[[], Answer]) -> None:
        # Each piece ends in the middle of a line, so there is always an unfinished one.
        rest = b""
        with contextlib.suppress(OSError):
            for number in count(self.next):
                if answering.ready():
                    return
                if self.stopped:
                    self.next = number
                    upload.send(rest + b"\n" * bool(rest)).sock.sendall(b"0\r\n\r\n")
                    return
                upload.send(rest + b"\n" * bool(rest) + b"%d" % number)
                rest = b" "
                gevent.sleep(self.pause)

    def worker(self) -> int | None:
        """The process id of the worker that has the upload; None between two of them."""
        with contextlib.suppress(AssertionError, OSError):
            return worker_of(self.service, self.upload.sock) if self.upload else None
        return None

    def finish(self) -> None:
        """Let it end properly."""
        self.stopped = True
        self._greenlet.get(timeout=30)


@pytest.mark.parametrize("pause", [0.02, 0.0], ids=["slow", "flood"])
def test_nothing_is_lost_or_repeated_over_drains(
    shared_valkey: Valkey, channel: str, pause: float
) -> None:
    """SIGTERM to the upload's worker ends it with 503 and the line to go on from; a client that
    does so has published every line once, in order, whatever was on its way. The worker is gone
    long before it would be killed.
    """
    with LiveService(
        shared_valkey.url, WEB_CONCURRENCY=2, DRAIN_SECONDS=1, HISTORY_EVENTS=1_000_000
    ) as service:
        endless = Endless(service, channel, pause)
        for _ in range(3):
            gevent.sleep(0.3)
            pid = until(lambda: endless.worker(), 10, "a worker has the upload")
            started, before = time.monotonic(), len(endless.answers)
            os.kill(pid, signal.SIGTERM)
            while pid in service.worker_pids():
                gevent.sleep(0.02)
                assert time.monotonic() - started < 12
            assert len(endless.answers) > before
        endless.finish()
        got = [line.strip() for line in kept(service, channel)]
        assert got == [str(n) for n in range(endless.next)]
        assert sum(answer["events"] for answer in endless.answers) == len(got)
        assert "SIGKILL" not in service.log()
        assert service.log_lines(level="error") == []
    print(f"{len(got)} lines over {len(endless.answers)} uploads")


def test_an_upload_is_refused_while_draining(shared_valkey: Valkey, channel: str) -> None:
    """Before anything is read, with 503 and Retry-After."""
    with (
        LiveService(shared_valkey.url, DRAIN_SECONDS=6) as service,
        SseClient.connect(f"{service.url}/stream?channel={channel}") as first,
        SseClient.connect(f"{service.url}/stream?channel={channel}") as second,
    ):
        first.wait_body(b"\n\n", 5)
        second.wait_body(b"\n\n", 5)
        service.signal(signal.SIGTERM)
        until(lambda: service.get("/readyz")[0] == 503, 5, "the drain has begun")
        with Upload(service, f"/channels/{channel}") as upload:
            answer = upload.send(b"x\n" * 1000).answer()
        problem = answer.problem(503, "draining")
        assert (problem["line"], problem["events"]) == (1, 0)
        assert int(answer.header("Retry-After") or "") > 0
        service.wait()
