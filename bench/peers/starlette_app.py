"""sse-starlette as its manual shows it: a queue for each client, one Redis connection."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio as redis
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

PREFIX = "bench:"

client = redis.Redis.from_url(os.environ["REDIS_URL"])
queues: defaultdict[str, set[asyncio.Queue[str]]] = defaultdict(set)


async def listen() -> None:
    """Put each message into the queues of its channel's clients."""
    pubsub = client.pubsub()
    await pubsub.psubscribe(f"{PREFIX}*")
    async for message in pubsub.listen():
        if message["type"] == "pmessage":
            data = message["data"].decode()
            for queue in list(queues[message["channel"].decode().removeprefix(PREFIX)]):
                queue.put_nowait(data)


async def stream(request: Request) -> Response:
    """Stream a channel."""
    channel = request.path_params["channel"]

    async def events() -> AsyncIterator[dict[str, str]]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        queues[channel].add(queue)
        try:
            while True:
                yield {"data": await queue.get()}
        finally:
            queues[channel].discard(queue)

    return EventSourceResponse(events())


async def publish(request: Request) -> Response:
    """Publish the body."""
    await client.publish(PREFIX + request.path_params["channel"], await request.body())
    return PlainTextResponse("ok")


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Listen while the application runs."""
    task = asyncio.create_task(listen())
    yield
    task.cancel()


app = Starlette(
    routes=[
        Route("/stream/{channel}", stream),
        Route("/publish/{channel}", publish, methods=["POST"]),
    ],
    lifespan=lifespan,
)
