"""Reading /metrics, with prometheus_client's own parser."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from tests.live_server import LiveService


class Scrape:
    """What one answer says: a number for each name and labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        self.numbers: Mapping[tuple[str, frozenset[tuple[str, str]]], float] = {
            (one.name, frozenset(one.labels.items())): one.value
            for family in self.families
            for one in family.samples
        }

    def get(self, name: str, **labels: str) -> float:
        """The number of a metric, without `pushline_`."""
        return self.numbers[f"pushline_{name}", frozenset(labels.items())]

    def sum(self, name: str) -> float:
        """Those of all its labels added up."""
        return sum(n for (one, _), n in self.numbers.items() if one == f"pushline_{name}")


def scrape(service: LiveService, **headers: str) -> Scrape:
    """Ask a service that answers with 200; whichever worker does."""
    status, body, _ = service.get("/metrics", **headers)
    assert status == 200, body
    return Scrape(body.decode())
