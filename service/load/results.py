"""What a measurement has shown, for programs and for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.load.load import BUSY_SHARE, Load

HELD = 0.95
"""A rate below this share of the one that was asked for was not held."""


def results(load: Load) -> dict[str, Any]:
    """All figures; times in milliseconds where nothing else is said."""
    published = sum(load.published.values())
    seconds = load.publishing_seconds or 1.0
    return {
        "streams": load.opened,
        "refused": dict(load.refused),
        "cut": load.cut,
        "connects_per_second": round(load.opened / max(load.opening_seconds, 1e-9), 1),
        "connect_milliseconds": load.connecting.milliseconds(),
        "published": published,
        "publishes_per_second": round(published / seconds, 1),
        "publishes_failed": dict(load.failed),
        "delivered": load.delivered,
        "deliveries_per_second": round(load.delivered / seconds, 1),
        "latency_milliseconds": load.latencies.milliseconds(),
        "lost": load.lost,
        "twice": load.twice,
        "out_of_order": load.disordered,
        "client_cpu_share": round(load.cpu_share, 2),
        "client_was_the_bottleneck": load.cpu_share > BUSY_SHARE,
    }


def is_sound(found: dict[str, Any]) -> bool:
    """Whether every stream that was asked for has got everything, once and in order."""
    faults = ("refused", "cut", "publishes_failed", "lost", "twice", "out_of_order")
    return not any(found[name] for name in faults)


def table(found: dict[str, Any], rate: float) -> Iterator[str]:
    """The same in lines; `rate` is what was asked for, 0 for as much as goes."""
    yield f"streams      {found['streams']} open, {found['connects_per_second']:g} connects/s"
    yield f"connect      {_times(found['connect_milliseconds'])}"
    yield f"published    {found['published']}, {found['publishes_per_second']:g}/s"
    yield f"delivered    {found['delivered']}, {found['deliveries_per_second']:g}/s"
    yield f"latency      {_times(found['latency_milliseconds'])}, from publish to read"
    yield (
        f"lost {found['lost']}, twice {found['twice']}, out of order {found['out_of_order']},"
        f" cut {found['cut']}"
    )
    for name, what in (("refused", "streams refused"), ("publishes_failed", "publishes failed")):
        for reason, count in found[name].items():
            yield f"{count} {what}: {reason}"
    if found["refused"].get("overloaded"):
        yield "The limits of one address: MAX_CONNECTIONS_PER_IP, MAX_CONNECTS_PER_SECOND_PER_IP."
    if found["client_was_the_bottleneck"]:
        share = f"{100 * found['client_cpu_share']:.0f} %"
        yield f"This client was busy {share} of the time: it was the limit. Take fewer streams."
    elif rate and found["publishes_per_second"] < HELD * rate:
        yield f"The service took fewer events than the {rate:g}/s that were sent."


def _times(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g} ms" for name, value in figures.items())
