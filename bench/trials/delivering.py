"""Tests A, B, D, G: what it costs to bring events to open streams, and how fast that is."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence

from bench.plan import Plan
from bench.publisher import Publisher
from bench.servers.server import Server
from bench.trials.trial import FAULTS, Figures, Trial, deliver, streaming, warm_up
from tests.swarm import Swarm

IN_FLIGHT = {"http": 16, "redis": 50, "lines": 1}
"""Requests without an answer on the one connection of a flood; lines are not answered at all."""

CHANNELS_PER_STREAM = 3


class Steady(Trial):
    """Each event alone: the cost of a delivery when nothing can be joined."""

    letter = "A"
    title = "streams on one channel, events at a steady rate"

    def feeds(self, server: type[Server]) -> tuple[str, ...]:
        """Everybody, in every way."""
        return server.feeds

    def measure(self, server: Server, feed: str, plan: Plan) -> Figures:
        """Publish `rate` events a second for `seconds`."""
        way, count = server.feed(feed, "0"), round(plan.rate * plan.seconds)
        warm_up(server, way)
        with streaming(server, server.stream_url("0"), plan.streams) as swarm:
            return deliver(
                server, swarm, lambda: Publisher(way, count=count, rate=plan.rate), count
            )


class Flood(Trial):
    """As fast as the server takes them."""

    letter = "B"
    title = "the same streams, events as fast as they are taken"

    def feeds(self, server: type[Server]) -> tuple[str, ...]:
        """Everybody, in every way."""
        return server.feeds

    def measure(self, server: Server, feed: str, plan: Plan) -> Figures:
        """Floods for at least `flood_seconds`."""
        warm_up(server, server.feed(feed, "0"))
        with streaming(server, server.stream_url("0"), plan.streams) as swarm:
            floods, started = [flood(server, swarm, feed, plan)], time.monotonic()
            while time.monotonic() < started + plan.flood_seconds:
                floods.append(flood(server, swarm, feed, plan))
        return medians(floods)


def medians(all_figures: Sequence[Figures]) -> dict[str, float]:
    """The median of each figure; of faults the worst, since none may hide."""
    return {
        name: (max if name in FAULTS else statistics.median)(each[name] for each in all_figures)
        for name in all_figures[0]
    }


def flood(server: Server, swarm: Swarm, feed: str, plan: Plan) -> dict[str, float]:
    """Publish `flood_events` to channel 0 over one connection, and wait until all have arrived."""
    way, count = server.feed(feed, "0"), plan.flood_events
    return deliver(
        server, swarm, lambda: Publisher(way, count=count, in_flight=IN_FLIGHT[feed]), count
    )


class ManyChannels(Trial):
    """One stream per channel: nothing is shared."""

    letter = "D"
    title = "channels with one stream each, events in turn as fast as they are taken"

    def feeds(self, server: type[Server]) -> tuple[str, ...]:
        """Everybody, in every way."""
        return server.feeds

    def measure(self, server: Server, feed: str, plan: Plan) -> Figures:
        """Publish `many_events` over `many_channels` in turn."""
        warm_up(server, server.feed(feed, "0"))
        way, channels = server.feed(feed), plan.many_channels
        with streaming(server, server.stream_url("%d"), channels) as swarm:
            return deliver(
                server,
                swarm,
                lambda: Publisher(
                    way, count=plan.many_events, channels=channels, in_flight=IN_FLIGHT[feed]
                ),
                plan.many_events // channels,
            )


class Mixed(Trial):
    """Streams that are each on several channels, as an application's usually are."""

    letter = "G"
    title = "streams on 3 of 50 channels each, events on all of them at a steady rate"

    def feeds(self, server: type[Server]) -> tuple[str, ...]:
        """Those that can have several channels in a stream."""
        return server.feeds if server.several_channels else ()

    def measure(self, server: Server, feed: str, plan: Plan) -> Figures:
        """Publish `mixed_rate` events a second for `seconds` to all channels in turn."""
        warm_up(server, server.feed(feed, "0"))
        way, channels = server.feed(feed), plan.mixed_channels
        per_channel = max(1, round(plan.mixed_rate * plan.seconds / channels))
        # A stream's numbers are those of three channels, so only their count is looked at.
        with streaming(server, mixed_urls(server, plan), plan.streams) as swarm:
            figures = deliver(
                server,
                swarm,
                lambda: Publisher(
                    way, count=per_channel * channels, channels=channels, rate=plan.mixed_rate
                ),
                per_channel * CHANNELS_PER_STREAM,
            )
        return {**figures, "lost": figures["lost"] - figures["twice"], "twice": 0}


def mixed_urls(server: Server, plan: Plan) -> list[str]:
    """URLs that streams take in turn, each of three channels; the same in every run."""
    chosen = random.Random(1)
    names = [str(number) for number in range(plan.mixed_channels)]
    return [
        server.stream_url(*chosen.sample(names, CHANNELS_PER_STREAM))
        for _ in range(min(plan.streams, 4 * plan.mixed_channels))
    ]
