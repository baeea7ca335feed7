"""Print a stream's events as JSON lines with aiohttp-sse-client2, which reconnects by itself."""

import asyncio
import json
import sys

from aiohttp_sse_client2.client import EventSource


async def main() -> None:
    """Print events until killed."""
    async with EventSource(sys.argv[1]) as source:
        async for event in source:
            name = event.type or "message"
            line = {"type": name, "data": event.data, "id": event.last_event_id}
            print(json.dumps(line), flush=True)


asyncio.run(main())
