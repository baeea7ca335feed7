"""Tests E, E2, E3: what it costs to take events when nobody streams."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from typing import Any

import redis

from bench.plan import Plan
from bench.publisher import EVENT_BYTES, Publisher
from bench.servers.pushline import KEY, Pushline
from bench.servers.server import Server
from bench.trials.trial import Costs, Figures, Skipped, Trial
from service.client import MessagePublisher
from tests.swarm import payload

CONNECTIONS = 8
WARM_PUBLISHES = 200
WARM_MESSAGES = 1_000
PIPELINED = 100
"""PUBLISH commands that redis-py sends at once, as many as an upload's batch has."""

UPLOAD_SECONDS = 120.0


class Publishes(Trial):
    """Single publishes over HTTP; each waits for its answer."""

    letter = "E"
    title = "HTTP publishes from 8 connections, no streams"

    def feeds(self, server: type[Server]) -> tuple[str, ...]:
        """All that take them."""
        return ("http",) if server.answers_publishes else ()

    def measure(self, server: Server, feed: str, plan: Plan) -> Figures:
        """Publish for `seconds`."""
        way = server.feed("http", "0")
        Publisher(way, count=WARM_PUBLISHES, connections=CONNECTIONS).finish()
        costs = Costs(server)
        publisher = Publisher(way, seconds=plan.seconds, connections=CONNECTIONS)
        done = publisher.finish(may_be_refused=True)
        return {
            "publishes_per_s": done.accepted / done.seconds,
            **costs.figures("publish", done.accepted),
            "refused": done.refused,
            "publisher_busy": done.cpu_seconds / done.seconds,
        }


class Upload(Trial):
    """One upload of many events, stored in history."""

    letter = "E2"
    title = "one NDJSON upload"

    def feeds(self, server: type[Server]) -> tuple[str, ...]:
        """Pushline alone has uploads."""
        return ("http",) if server is Pushline else ()

    def measure(self, server: Server, feed: str, plan: Plan) -> Figures:
        """Upload `uploaded` lines in one request, after a short one."""
        _upload(server, WARM_MESSAGES)
        costs, started = Costs(server), time.monotonic()
        _upload(server, plan.uploaded)
        seconds = time.monotonic() - started
        return {
            "publishes_per_s": plan.uploaded / seconds,
            **costs.figures("publish", plan.uploaded),
        }


def _upload(server: Server, count: int) -> None:
    lines = [
        json.dumps({"channel": "0", "data": payload(number, EVENT_BYTES)})
        for number in range(1, count + 1)
    ]
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/x-ndjson"}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=UPLOAD_SECONDS)
    connection.request("PUT", "/publish", "\n".join(lines), headers)
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    if answer.status != 200 or told["events"] != count:
        raise RuntimeError(f"the upload failed: {answer.status} {told}")


class FromPython(Trial):
    """Events published by a Python program through Redis, stored, against plain PUBLISH."""

    letter = "E3"
    title = "MessagePublisher.publish_messages, and pipelined PUBLISH of redis-py"

    def feeds(self, server: type[Server]) -> tuple[str, ...]:
        """Pushline's library, and the Redis of its service."""
        return ("redis",) if server is Pushline else ()

    def measure(self, server: Server, feed: str, plan: Plan) -> Figures:
        """Publish `uploaded` messages either way. Raises Skipped without `publish_messages`."""
        ours, theirs = _publish_messages(server.redis_url), _redis_py(server.redis_url)
        ours(_messages(WARM_MESSAGES))
        theirs(_messages(WARM_MESSAGES))
        our_speed, their_speed = _speed(ours, plan.uploaded), _speed(theirs, plan.uploaded)
        return {"publishes_per_s": our_speed, "plain_publishes_per_s": their_speed}


PublishAll = Callable[[list[str]], object]


def _publish_messages(url: str) -> PublishAll:
    publisher: Any = MessagePublisher("0", url)
    if not hasattr(publisher, "publish_messages"):
        raise Skipped("MessagePublisher has no publish_messages")
    return lambda messages: publisher.publish_messages(messages)


def _redis_py(url: str) -> PublishAll:
    client = redis.Redis.from_url(url)

    def publish(messages: list[str]) -> None:
        for start in range(0, len(messages), PIPELINED):
            pipeline = client.pipeline(transaction=False)
            for message in messages[start : start + PIPELINED]:
                pipeline.publish("pushline:0", message)
            pipeline.execute()

    return publish


def _messages(count: int) -> list[str]:
    return [payload(number, EVENT_BYTES) for number in range(1, count + 1)]


def _speed(publish: PublishAll, count: int) -> float:
    """Messages a second."""
    messages, started = _messages(count), time.monotonic()
    publish(messages)
    return count / (time.monotonic() - started)
