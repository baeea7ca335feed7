"""The names on which others rely: `python -m tests.stable_names` records those that are new."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

from service import errors
from service.app import create_app
from service.error_codes import codes_of
from service.errors import ConfigError, PushlineError
from service.reset import Loss
from service.settings import Settings
from service.subscriber import Ending
from tests.scraping import Scrape

RECORD = Path(__file__).with_name("stable_names.json")
NOWHERE = "redis://127.0.0.1:1"

Names = dict[str, list[str]]


def present() -> Names:
    """The names that the code has now, by what they are names of."""
    app = create_app(Settings(redis_url=NOWHERE))
    page = Scrape(app.extensions["pushline"].metrics.page(as_openmetrics=False)[0].decode())
    kinds = [one for _, one in inspect.getmembers(errors, inspect.isclass)]
    told = [one for one in kinds if issubclass(one, PushlineError) and one is not ConfigError]
    routes = {
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    metrics = {
        f"{name} {label}".strip()
        for name, labels in page.numbers
        for label in [key for key, _ in labels if key != "le"] or [""]
    }
    return {
        "settings": sorted(spec.metadata["env"] for spec in dataclasses.fields(Settings)),
        "routes": sorted(routes),
        "metrics": sorted(metrics),
        "error codes": codes_of(told),
        "reasons of an end": sorted(one.value for one in Ending),
        "reasons of $reset": sorted(one.value for one in Loss),
    }


def recorded() -> Names:
    """The names that were recorded."""
    found: Names = json.loads(RECORD.read_text())
    return found


def main() -> None:
    """Record what is new; what has gone stays recorded, and fails the test."""
    old = recorded() if RECORD.exists() else {}
    merged = {kind: sorted({*names, *old.get(kind, [])}) for kind, names in present().items()}
    RECORD.write_text(json.dumps(merged, indent=1) + "\n")


if __name__ == "__main__":
    main()
