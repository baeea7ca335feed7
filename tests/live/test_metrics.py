"""/metrics of real workers: right over all of them, also when some die, restart or reload."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.credentials import KEY, METRICS_TOKEN, SECRET, bearer, token
from tests.live_server import LiveService, until
from tests.raw_http import ask, only_worker
from tests.scraping import Scrape, scrape
from tests.sse_client import SseClient
from tests.valkey import Valkey

pytestmark = pytest.mark.live

STREAMS = 6
EVENTS = 25

PROCESS = ("process_cpu_seconds_total", "process_resident_memory_bytes")


@pytest.fixture
def service(own_valkey: Valkey) -> Iterator[LiveService]:
    """Two workers that want a token for their metrics."""
    settings = {
        "WEB_CONCURRENCY": 2,
        "METRICS_TOKEN": METRICS_TOKEN,
        "JWT_SECRET": SECRET,
        "HEARTBEAT_SECONDS": 50,
        "DRAIN_SECONDS": 1,
        "MAX_EVENT_BYTES": 1000,
    }
    with LiveService(own_valkey.url, **settings) as live:
        yield live.wait_workers()


def read(service: LiveService) -> Scrape:
    """What the service tells who has the token."""
    return scrape(service, **bearer(METRICS_TOKEN))


def settled(
    service: LiveService, condition: Callable[[Scrape], bool], seconds: float = 5
) -> Scrape:
    """Scrape until `condition` holds; both workers' numbers are a second old at most."""
    found: list[Scrape] = []

    def holds() -> bool:
        found[:] = [read(service)]
        return condition(found[0])

    try:
        until(holds, seconds, "the numbers are right")
    except AssertionError:
        print(found[-1].text)
        raise
    return found[0]


@contextlib.contextmanager
def streams(service: LiveService, channel: str) -> Iterator[list[SseClient]]:
    """Streams of one channel, half of them on each worker."""
    with contextlib.ExitStack() as stack:
        clients = []
        for worker in service.worker_pids():
            with only_worker(service, worker):
                for _ in range(STREAMS // 2):
                    client = SseClient.connect(f"{service.url}/stream?channel={channel}")
                    stack.callback(client.close)
                    client.wait_body(b"\n\n", 10)
                    clients.append(client)
        yield clients


def publish_all(service: LiveService, channel: str) -> None:
    """Publish the events of a test, one by one."""
    for number in range(EVENTS):
        service.publish(channel, f"event {number}")


def wait_gone(service: LiveService, workers: list[int], seconds: float) -> None:
    """Wait until gunicorn has no such worker any more."""
    until(lambda: not {*workers} & {*service.worker_pids()}, seconds, "the workers are gone")


def test_the_numbers_are_exact(service: LiveService) -> None:
    """Events, streams and bytes of both workers add up, whichever of them answers."""
    with streams(service, "a") as clients:
        publish_all(service, "a")
        for client in clients:
            client.events(EVENTS, 10)
        expected = STREAMS * EVENTS
        settled(service, lambda now: now.get("events_delivered_total") == expected)
        settled(service, lambda now: now.sum("publish_total") == EVENTS)
        for worker in service.worker_pids():
            with only_worker(service, worker):
                found = read(service)
                assert found.get("events_delivered_total") == expected
                assert found.get("connections") == STREAMS
                assert found.get("connections_opened_total") == STREAMS
                assert found.get("subscriptions") == STREAMS
                assert (found.get("workers"), found.get("redis_up")) == (2, 1)
                assert (found.get("channels"), found.get("views")) == (2, 2), "one on each worker"
                assert found.get("events_received_total") == 2 * EVENTS
                assert found.get("publish_total", via="http", result="published") == EVENTS
                assert found.get("publish_duration_seconds_count") == EVENTS
                passes = found.get("fanout_duration_seconds_count")
                assert 2 <= passes <= 2 * EVENTS
                assert found.get("delivery_lag_seconds_count") == passes
                assert found.get("bytes_sent_total") == sum(
                    len(chunk) for client in clients for chunk in client.chunks[1:]
                )
    left = settled(service, lambda now: now.get("connections") == 0)
    assert left.get("connections_closed_total", reason="client_left") == STREAMS
    assert left.sum("connections_closed_total") == STREAMS


def counters(found: Scrape) -> dict[object, float]:
    """All that must never go back."""
    return {
        key: number
        for key, number in found.numbers.items()
        if key[0].endswith(("_total", "_count", "_bucket", "_sum"))
    }


def assert_nothing_went_back(before: Scrape, now: Scrape) -> None:
    """No counter is gone or lower."""
    later = counters(now)
    assert {key: n for key, n in counters(before).items() if later.get(key, -1) < n} == {}


def test_a_killed_worker(service: LiveService) -> None:
    """Counters stay and go on, gauges forget the dead worker at once, files don't pile up."""
    with streams(service, "a") as clients:
        publish_all(service, "a")
        for client in clients:
            client.events(EVENTS, 10)
        expected = STREAMS * EVENTS
        before = settled(service, lambda now: now.get("events_delivered_total") == expected)
        for _ in range(3):
            victim = service.worker_pids()[0]
            os.kill(victim, signal.SIGKILL)
            wait_gone(service, [victim], 5)
            now = settled(service, lambda now: now.get("connections") <= STREAMS // 2)
            assert_nothing_went_back(before, now)
            settled(service, lambda now: now.get("workers") == 2 and now.get("redis_up") == 1, 20)
            before = read(service)
            assert before.get("events_delivered_total") == expected
            assert before.get("connections_closed_total", reason="client_left") == 0
        publish_all(service, "b")
        settled(service, lambda now: now.sum("publish_total") == 2 * EVENTS)
    assert len({file.rpartition("_")[2] for file in files(service)}) == 2, files(service)


def directory(service: LiveService) -> Path:
    """Where the workers write their numbers."""
    environ = Path(f"/proc/{service.worker_pids()[0]}/environ").read_bytes()
    # What is set after the start isn't there: ask for the open files.
    assert b"PROMETHEUS_MULTIPROC_DIR" not in environ
    for link in Path(f"/proc/{service.worker_pids()[0]}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = Path(os.readlink(link))
            if target.parent.name.startswith("pushline-metrics-"):
                return target.parent
    raise AssertionError("no file of metrics is open")


def files(service: LiveService) -> list[str]:
    """The files of numbers."""
    return sorted(path.name for path in directory(service).iterdir())


def test_the_directory(service: LiveService) -> None:
    """It is nobody else's, is kept over a reload with no more files, and goes with the service."""
    where = directory(service)
    assert where.stat().st_mode & 0o777 == 0o700
    publish_all(service, "a")
    before = settled(service, lambda now: now.sum("publish_total") == EVENTS)
    for _ in range(2):
        old = service.worker_pids()
        service.signal(signal.SIGHUP)
        wait_gone(service, old, 15)
        now = settled(service, lambda now: now.get("workers") == 2, 10)
        assert_nothing_went_back(before, now)
        before = now
    assert directory(service) == where
    assert len({file.rpartition("_")[2] for file in files(service)}) <= 4, "old and new at a time"
    service.signal(signal.SIGTERM)
    service.wait()
    assert not where.exists()


def test_what_is_refused_counts(service: LiveService) -> None:
    """Problems and soft refusals count by code, limits are told with their values."""
    sse = {"Accept": "text/event-stream"}
    ask(service, "POST", "/channels/a", b"x" * 1001).problem(413, "event_too_large")
    ask(service, "GET", "/stream?channel=a*", None, **sse).problem(400, "bad_channel")
    ask(service, "GET", "/nowhere", None).problem(404, "not_found")
    ask(service, "GET", "/metrics", None).problem(401, "no_credential")
    codes = ("event_too_large", "bad_channel", "not_found", "no_credential")
    found = settled(service, lambda now: now.sum("requests_refused_total") == len(codes))
    assert [found.get("requests_refused_total", code=code) for code in codes] == [1] * len(codes)
    assert found.get("limit", limit="max_event_bytes") == 1000


def test_soft_refusals_count(shared_valkey: Valkey) -> None:
    """An EventSource over a limit gets a 200, and is counted all the same; others too."""
    settings: dict[str, object] = {"MAX_CONNECTIONS": 1, "METRICS_TOKEN": METRICS_TOKEN}
    with LiveService(shared_valkey.url, **settings) as service:
        with SseClient.connect(f"{service.url}/stream?channel=a") as client:
            client.wait_body(b"\n\n", 5)
            sse = {"Accept": "text/event-stream"}
            assert ask(service, "GET", "/stream?channel=a", None, **sse).status == 200
            ask(service, "GET", "/stream?channel=a", None).problem(503, "too_many_streams")
            found = read(service)
        assert found.get("requests_refused_total", code="too_many_streams") == 2
        assert found.get("limit", limit="max_connections") == 1


def test_uploads_and_replays_count(service: LiveService) -> None:
    """Lines of an upload, a repeated key, a resumed stream and one with a hole each have a name."""
    ask(service, "PUT", "/channels/a", b"one\ntwo\nthree\n")
    for _ in range(2):
        ask(service, "POST", "/channels/a", b"four", Idempotency_Key="k")
    for cursor, events in (("earliest", 4), ("0-1", 1)):
        url = f"{service.url}/stream?channel=a&last_event_id={cursor}"
        with SseClient.connect(url) as client:
            client.events(events, 5)
    sums = {"publish_total": 5, "replay_total": 2, "connections_closed_total": 2}
    found = settled(service, lambda now: {name: now.sum(name) for name in sums} == sums)
    assert found.get("publish_total", via="upload", result="published") == 3
    assert found.get("publish_total", via="http", result="published") == 1
    assert found.get("publish_total", via="http", result="replayed") == 1
    assert found.get("replay_total", result="complete") == 1
    assert found.get("replay_total", result="reset") == 1
    assert found.sum("resets_total") == 1
    assert found.get("replayed_events_total") >= 5


def test_an_outage_counts(service: LiveService, own_valkey: Valkey) -> None:
    """Each worker counts the lost link once, with the reason that its log line has."""
    with streams(service, "a") as clients:
        service.publish("a", "before")
        for client in clients:
            client.events(1, 5)
        own_valkey.cli("CLIENT", "KILL", "TYPE", "pubsub")
        service.publish("a", "meanwhile")
        for client in clients:
            client.events(1, 10)
        found = settled(service, lambda now: now.sum("redis_reconnects_total") == 2)
        settled(service, lambda now: now.get("redis_up") == 1)
        reasons = [line["reason"] for line in service.log_lines(logger="pushline.redis")
                   if "reason" in line]  # fmt: skip
        assert len(reasons) == 2
        for reason in reasons:
            assert found.get("redis_reconnects_total", reason=reason) >= 1
        own_valkey.kill()
        settled(service, lambda now: now.get("redis_up") == 0)


def test_who_may_read(service: LiveService) -> None:
    """The token of the setting, or one with the claim admin; nothing in the query counts."""
    for shown in (bearer(METRICS_TOKEN), bearer(token(admin=True))):
        assert ask(service, "GET", "/metrics", None, **shown).status == 200
    ask(service, "GET", "/metrics", None).problem(401, "no_credential")
    query = f"/metrics?token={METRICS_TOKEN}&ticket={METRICS_TOKEN}"
    ask(service, "GET", query, None).problem(401, "no_credential")
    cut = METRICS_TOKEN[:-1]
    ask(service, "GET", "/metrics", None, **bearer(cut)).problem(401, "bad_credential")
    ask(service, "GET", "/metrics", None, **bearer(token())).problem(403, "not_granted")
    head = ask(service, "HEAD", "/metrics", None, **bearer(METRICS_TOKEN))
    assert (head.status, head.body) == (200, b"")
    assert head.header("Cache-Control") == "no-store"


def test_no_label_gives_anything_away(service: LiveService) -> None:
    """No channel, user, key or address is in the page, and label values are of few letters."""
    shown = bearer(token("ana-the-user", publish=["*"]))
    ask(service, "POST", "/channels/a-secret-channel", b"the-data", **shown)
    ask(service, "GET", "/a-secret-path?channel=a-secret-channel", None, **shown)
    with streams(service, "a-secret-channel"):
        found = settled(service, lambda now: now.get("connections") == STREAMS)
    for word in ("secret", "ana-the-user", "the-data", "127.0.0.1", METRICS_TOKEN, KEY):
        assert word not in found.text
    for name, labels in found.numbers:
        for label, value in labels:
            if label not in ("le", "version"):
                assert re.fullmatch("[a-z_]+", value), (name, label, value)


@pytest.mark.skipif(
    shutil.which("promtool") is None and not os.environ.get("CI"),
    reason="no promtool (Debian: prometheus)",
)
def test_promtool_likes_them(service: LiveService) -> None:
    """Prometheus's own checker finds nothing to complain about."""
    text = read(service).text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_process(service: LiveService) -> None:
    """CPU time and memory are those of both workers together."""
    found = read(service)
    seconds, resident = (found.numbers[name, frozenset()] for name in PROCESS)
    assert 0.1 < seconds < time.process_time() + 60
    assert 20e6 < resident < 1e9
