"""Print a stream's events as JSON lines with httpx-sse; reconnect as its manual says."""

import json
import sys
import time

import httpx
from httpx_sse import connect_sse

last_event_id = ""
retry_seconds = 3.0
with httpx.Client(timeout=30) as client:
    while True:
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        with connect_sse(client, "GET", sys.argv[1], headers=headers) as source:
            for event in source.iter_sse():
                last_event_id = event.id
                if event.retry is not None:
                    retry_seconds = event.retry / 1000
                if event.data:  # it also yields blocks without data, which a browser doesn't
                    line = {"type": event.event, "data": event.data, "id": event.id}
                    print(json.dumps(line), flush=True)
        time.sleep(retry_seconds)
