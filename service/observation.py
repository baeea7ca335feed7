"""What of a worker's parts is measured: the labels of its counts, its gauges and its limits."""

from __future__ import annotations

import functools

from service.broker import Broker
from service.counts import Counts
from service.error_codes import problem_codes
from service.hub import Hub
from service.metrics import Metrics
from service.open_streams import OpenStreams
from service.reset import Loss
from service.settings import Settings
from service.subscriber import Ending

LIMITS = (
    "max_connections",
    "max_connections_per_ip",
    "max_connections_per_user",
    "max_connects_per_second_per_ip",
    "max_publishes_per_second",
    "max_channels_per_stream",
    "max_event_bytes",
    "outbox_bytes",
)
"""Settings that are told as metrics, for alerts to compare with."""

OF_ADDRESSES = ("max_connections_per_ip", "max_connects_per_second_per_ip")
"""Those of them that don't hold in local mode, where all streams come from one address."""


def new_counts() -> Counts:
    """Counts that know all endings, codes and losses."""
    return Counts(
        endings=[one.value for one in Ending],
        codes=problem_codes(),
        losses=[one.value for one in Loss],
    )


def observed(
    settings: Settings, counts: Counts, hub: Hub, broker: Broker, streams: OpenStreams
) -> Metrics:
    """The metrics of these parts, which raise `counts`."""
    read_gauges = functools.partial(gauges, hub, broker, streams)
    return Metrics(counts, read_gauges, limits(settings), settings.metrics_slot)


def limits(settings: Settings) -> dict[str, float]:
    """The limits that hold; 0 is none."""
    held = [one for one in LIMITS if not (settings.local and one in OF_ADDRESSES)]
    return {**dict.fromkeys(LIMITS, 0), **{one: getattr(settings, one) for one in held}}


def gauges(hub: Hub, broker: Broker, streams: OpenStreams) -> dict[str, float]:
    """How it is now; takes a moment for each stream that has bytes unsent, and none for others."""
    return {
        "pushline_connections": len(streams),
        "pushline_channels": broker.channels,
        "pushline_subscriptions": broker.subscriptions,
        "pushline_views": len(hub.views),
        "pushline_slow_connections": len(hub.slow),
        "pushline_send_buffer_bytes": sum(one.unsent for one in hub.slow),
        "pushline_redis_up": broker.connected,
    }
