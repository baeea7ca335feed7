"""What workers tell Redis of their streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from service.redis_store import RedisStore
from service.stream_reports import EXPIRY_SECONDS, StreamReports
from tests.nodes import NAMES, make_store
from tests.valkey import Valkey


@pytest.fixture
def store(valkey: Valkey) -> Iterator[RedisStore]:
    """A store on the emptied Valkey."""
    store = make_store(valkey.url)
    yield store
    store.close()


@pytest.fixture
def reports(store: RedisStore) -> StreamReports:
    """The reports there."""
    return StreamReports(store.pool, NAMES)


def test_reports_add_up(reports: StreamReports) -> None:
    """A channel has the streams of all workers, as each has told them last."""
    assert reports.streams("a") == 0
    assert reports.write("w1", 1, {"a": 2, "b": 1}) == 0
    assert reports.write("w2", 1, {"a": 3}) == 0
    assert (reports.streams("a"), reports.streams("b")) == (5, 1)
    assert reports.write("w1", 2, {"a": 1, "b": 0}) == 1
    assert (reports.streams("a"), reports.streams("b")) == (4, 0)


def test_a_report_expires_with_its_worker(reports: StreamReports, valkey: Valkey) -> None:
    """Each write, one without changes too, lets the report live for EXPIRY_SECONDS more."""
    reports.write("w1", 1, {"a": 1})
    for version in (2, 3):
        valkey.cli("PEXPIRE", NAMES.report("w1"), 50)
        reports.write("w1", version, {})
        assert 0 < valkey.cli("PTTL", NAMES.report("w1")) <= EXPIRY_SECONDS * 1000
        assert valkey.cli("PTTL", NAMES.report("w1")) > 50
    assert EXPIRY_SECONDS < 5, "what is documented"


def test_the_dead_are_known(reports: StreamReports, valkey: Valkey) -> None:
    """Who has had a report and has none any more is dead; who reports again isn't."""
    for worker in ("w1", "w2", "w3"):
        reports.write(worker, 1, {"a": 1})
    reports.withdraw("w1")
    valkey.cli("DEL", NAMES.report("w2"))
    assert sorted(reports.dead()) == ["w1", "w2"]
    assert reports.streams("a") == 1
    reports.write("w1", 2, {})
    assert reports.dead() == ["w2"]
    valkey.cli("SREM", NAMES.workers, "w3")
    assert reports.streams("a") == 0
    reports.write("w3", 2, {})
    assert reports.streams("a") == 1, "who was forgotten comes back"


def test_all_channels_are_read_in_pages(reports: StreamReports) -> None:
    """However many there are, each page is small, and each channel comes once for each worker."""
    for worker in ("w1", "w2"):
        for start in range(0, 3000, 500):
            streams = {f"c{number}": 1 for number in range(start, start + 500)}
            reports.write(worker, start + 1, streams)
    pages = list(reports.pages())
    assert max(map(len, pages)) < 700
    total: Counter[str] = Counter()
    for page in pages:
        total.update(page)
    assert total == {f"c{number}": 2 for number in range(3000)}
