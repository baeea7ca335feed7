"""The metrics of one process: what is counted, and that the documentation has all of it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from prometheus_client import generate_latest, values
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from service.counts import Counts, Distribution
from service.errors import ChannelEnded, OutcomeUnknown, PushlineError
from service.event import Event
from service.grants import Grant
from service.metrics import Metrics
from service.publication import Publication, Receipt
from service.publishing import Publishing
from service.rates import RateLimit
from service.version import VERSION
from tests.applications import Application, Make, making
from tests.live_server import until
from tests.scraping import Scrape
from tests.valkey import Valkey

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
TOKEN = "a-token-to-read-metrics"


@pytest.fixture
def make(valkey: Valkey) -> Iterator[Make]:
    """Make applications on the shared Valkey."""
    with making(valkey.url) as one:
        yield one


def read(app: Application) -> Scrape:
    """What an application in local mode, or with the token, tells now."""
    response = app.client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert response.status_code == 200
    return Scrape(response.text)


def test_the_documentation_has_them_all(make: Make) -> None:
    """docs/metrics.md has each metric that there is, with its type and labels, and no other one."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| \S", PAGE.read_text(), re.MULTILINE)
    told = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    found = {}
    for family in read(make(metrics_token=TOKEN)).families:
        labels = {label for one in family.samples for label in one.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, labels)
    assert told == found
    assert len(rows) == len(told)


def test_openmetrics_if_asked_for(make: Make) -> None:
    """Accept chooses the format; a parser of OpenMetrics, which is strict, takes the page."""
    app = make(metrics_token=TOKEN)
    shown = {"Authorization": f"bearer  {TOKEN}"}
    for accept, media_type in (
        ("application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1", "application/openmetrics"),
        ("application/openmetrics-text; version=\xff", "application/openmetrics-text"),
        ("text/plain;version=x", "text/plain; version=0.0.4"),
        ("", "text/plain; version=0.0.4"),
    ):
        response = app.client.get("/metrics", headers={**shown, "Accept": accept})
        assert response.content_type.startswith(media_type)
        assert response.headers["Cache-Control"] == "no-store"
    text = app.client.get("/metrics", headers={**shown, "Accept": "application/openmetrics-text"})
    assert len(list(text_string_to_metric_families(text.text))) == len(read(app).families)


def test_services_in_one_process_are_apart(make: Make) -> None:
    """Each has its own numbers."""
    first, second = make(metrics_token=TOKEN), make(metrics_token=TOKEN)
    first.publish("a", "x")
    assert read(first).sum("publish_total") == 1
    assert read(second).sum("publish_total") == 0


def test_the_version_is_told(make: Make) -> None:
    """That of service/version.py."""
    assert read(make(metrics_token=TOKEN)).get("build_info", version=VERSION) == 1


def test_local_mode_needs_no_token(make: Make) -> None:
    """Neither does it want METRICS_TOKEN, nor has it limits for addresses."""
    local = make(publish_open=False, embedded=True, metrics_token=TOKEN)
    response = local.client.get("/metrics")
    assert response.status_code == 200
    assert Scrape(response.text).get("limit", limit="max_connections_per_ip") == 0
    made = make(metrics_token=TOKEN, max_connections_per_ip=7)
    assert read(made).get("limit", limit="max_connections_per_ip") == 7


def test_streams_count(make: Make) -> None:
    """From their opening to their end, by reason; what is live and what is replayed apart."""
    app = make(metrics_token=TOKEN)
    stream = app.stream("channel=a&channel=b")
    stream.read()
    ids = [app.publish("a", "x") for _ in range(2)]
    stream.events(2)
    later = app.stream(f"channel=a&last_event_id={ids[0]}")
    later.events(1)
    now = read(app)
    assert (now.get("connections"), now.get("subscriptions"), now.get("channels")) == (2, 3, 2)
    assert (now.get("views"), now.get("redis_up")) == (2, 1)
    assert (now.get("events_delivered_total"), now.get("replayed_events_total")) == (2, 1)
    stream.close()
    assert app.client.post("/channels/a/end").status_code == 200
    later.read_to_end()
    now = read(app)
    assert now.get("connections_closed_total", reason="client_left") == 1
    assert now.get("connections_closed_total", reason="channel_ended") == 1
    assert (now.get("connections"), now.get("connections_opened_total")) == (0, 2)
    until(lambda: read(app).get("channels") == 0, 20, "channels linger for 5 s")


def test_the_last_numbers_are_told(make: Make) -> None:
    """A worker that stops leaves behind what it did since the last tick."""
    app = make(metrics_token=TOKEN)
    app.publish("a", "x")
    app.service.stop()
    told = Scrape(generate_latest(app.service.metrics._registry).decode())
    assert told.get("publish_total", via="http", result="published") == 1


def test_faults_count(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the service is one request refused as `internal`, and a good one is none."""
    app = make(metrics_token=TOKEN)

    def fail(*_: object) -> None:
        raise ValueError

    app.publish("a", "x")
    monkeypatch.setattr(app.service.publishing, "_publish", fail)
    assert app.client.post("/channels/a", data="x").status_code == 500
    now = read(app)
    assert now.get("requests_refused_total", code="internal") == 1
    assert now.sum("requests_refused_total") == 1
    assert now.get("publish_total", via="http", result="failed") == 1


@pytest.mark.parametrize(
    ("published", "replayed", "failed", "expected"),
    [
        ((), 0, ChannelEnded(), (0, 0, 3)),
        (("1-0", None, "1-1"), 0, OutcomeUnknown(), (2, 0, 1)),
        ((), 2, None, (1, 2, 0)),
    ],
)
def test_what_becomes_of_events(
    published: Sequence[str | None],
    replayed: int,
    failed: PushlineError | None,
    expected: tuple[int, int, int],
) -> None:
    """Of a batch each event is published, replayed, or failed, whatever the others are."""
    counts = Counts()

    def publish(events: Sequence[Publication]) -> list[Receipt]:
        if failed is not None:
            failed.published = published
            raise failed
        return [Receipt((1, n), n < replayed) for n in range(len(events))]  # type: ignore[arg-type]  # any id

    publishing = Publishing(publish, RateLimit(0), counts)
    batch = [Publication(Event("x"), ("a",))] * 3
    with contextlib.suppress(PushlineError):
        publishing.pass_on(Grant(publish=("*",)), batch)
    results = ("published", "replayed", "failed")
    assert tuple(counts.publishes["upload", one] for one in results) == expected
    assert sum(counts.publish_seconds.counts) == 1


def test_a_distribution() -> None:
    """A value belongs to the first bound that isn't below it, and beyond the last to the rest."""
    made = Distribution((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.5):
        made.note(value)
    assert (made.counts, made.total) == ([2, 2, 1], 7.0)


def test_workers_share_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker tells of all; who takes a dead one's slot goes on with its numbers."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)  # what it is comes back
    made: list[Metrics] = []
    kinds = []
    for slot, received in ((0, 3), (1, 5), (0, 7)):
        counts = Counts()
        made.append(Metrics(counts, lambda: {"pushline_redis_up": 1}, {}, slot))
        kinds.append(values.ValueClass)
        counts.received = received
        made[-1].flush()
        if len(made) == 1:
            kinds[0].close_all_files()
    for metrics in made[1:]:
        found = Scrape(metrics.page(as_openmetrics=False)[0].decode())
        assert found.get("events_received_total") == 3 + 5 + 7
        assert (found.get("workers"), found.get("redis_up")) == (2, 1)
    for kind in kinds:
        kind.close_all_files()


def test_what_is_told_is_told_once() -> None:
    """Each flush adds what is new, and nothing else."""
    counts = Counts(codes=["bad_body"])
    metrics = Metrics(counts, dict, {})
    for number in (3, 3, 5):
        counts.refused["bad_body"] = counts.received = number
        counts.fan_out_seconds.note(0.5)
        metrics.flush()
    found = Scrape(metrics.page(as_openmetrics=False)[0].decode())
    assert found.get("requests_refused_total", code="bad_body") == 5
    assert found.get("events_received_total") == 5
    assert found.get("fanout_duration_seconds_count") == 3
    assert found.get("fanout_duration_seconds_sum") == 1.5
    assert found.get("fanout_duration_seconds_bucket", le="0.25") == 0
    assert found.get("fanout_duration_seconds_bucket", le="1.0") == 3
