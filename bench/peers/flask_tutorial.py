"""What tutorials on Flask and event streams arrive at: a generator with a queue for each client.

One Redis pub/sub connection per worker; started by gunicorn with gevent workers.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator

import gevent
import redis
from flask import Flask, Response
from flask import request as http_request
from gevent.queue import Queue

PREFIX = "bench:"

app = Flask(__name__)
client = redis.Redis.from_url(os.environ["REDIS_URL"])
queues: defaultdict[str, set[Queue[str]]] = defaultdict(set)


def listen() -> None:
    """Put each message into the queues of its channel's clients."""
    pubsub = client.pubsub()
    pubsub.psubscribe(f"{PREFIX}*")
    for message in pubsub.listen():
        if message["type"] == "pmessage":
            frame = f"data: {message['data'].decode()}\n\n"
            for queue in list(queues[message["channel"].decode().removeprefix(PREFIX)]):
                queue.put_nowait(frame)


@app.get("/stream/<channel>")
def stream(channel: str) -> Response:
    """Stream a channel."""

    def frames() -> Iterator[str]:
        queue: Queue[str] = Queue()
        queues[channel].add(queue)
        try:
            yield "retry: 2000\n\n"  # sends the response head
            while True:
                yield queue.get()
        finally:
            queues[channel].discard(queue)

    return Response(frames(), mimetype="text/event-stream")


@app.post("/publish/<channel>")
def publish(channel: str) -> str:
    """Publish the body."""
    client.publish(PREFIX + channel, http_request.get_data())
    return "ok"


gevent.spawn(listen)
