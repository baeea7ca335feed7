"""Test F: many clients resume at once, each with events to replay, as after a deploy."""

from __future__ import annotations

import http.client
import json
import time

from bench.plan import Plan
from bench.publisher import Publisher
from bench.servers.pushline import Pushline
from bench.servers.server import Server
from bench.trials.trial import Costs, Figures, Trial, checked, settled, streaming, warm_up
from tests.swarm import Report

FORGET_SECONDS = 8.0
"""After the last stream of a channel, until the worker has nothing of it in memory."""


class Resumed(Trial):
    """The CPU of a resumed stream with its events, against that of a fresh connect."""

    letter = "F"
    title = "streams resume at once, with 100 events to replay each"

    def feeds(self, server: type[Server]) -> tuple[str, ...]:
        """Pushline: `Last-Event-ID` is an id that its publishing answers."""
        return ("http",) if server is Pushline else ()

    def measure(self, server: Server, feed: str, plan: Plan) -> Figures:
        """Open fresh streams, then resume as many: from the worker's memory, and from Redis."""
        warm_up(server, server.feed("http", "0"))
        streams = plan.resumed
        costs = Costs(server)
        with streaming(server, server.stream_url("1"), streams):
            fresh = costs.figures("connect", streams)
            cursor = _publish(server)
            Publisher(server.feed("http", "1"), count=plan.replayed).finish()
        figures, report = _resume(server, cursor, plan)
        time.sleep(FORGET_SECONDS)
        from_redis, other = _resume(server, cursor, plan)
        wanted = streams * plan.replayed
        return {
            **fresh,
            **figures,
            **{name.replace("resume", "cold_resume"): each for name, each in from_redis.items()},
            **checked(report, wanted),
            "lost_cold": checked(other, wanted)["lost"],
        }


def _publish(server: Server) -> str:
    """Publish one event, from which the streams resume; returns its id."""
    feed = server.feed("http", "1")
    connection = http.client.HTTPConnection("127.0.0.1", feed.port, timeout=10)
    connection.request("POST", feed.target, "the first", dict(feed.headers))
    told = json.loads(connection.getresponse().read())
    connection.close()
    return str(told["id"])


def _resume(server: Server, cursor: str, plan: Plan) -> tuple[dict[str, float], Report]:
    headers = {"Last-Event-ID": cursor}
    costs = Costs(server)
    with streaming(
        server, server.stream_url("1"), plan.resumed, headers=headers, expect=plan.replayed
    ) as swarm:
        report = settled(swarm)
        return costs.figures("resume", plan.resumed), report
