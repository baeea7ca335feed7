"""Print a stream's events as JSON lines with sseclient-py over requests, to its end."""

import json
import sys

import requests
import sseclient

with requests.get(sys.argv[1], stream=True, timeout=30) as response:
    for event in sseclient.SSEClient(iter(response)).events():
        line = {"type": event.event, "data": event.data, "id": event.id}
        print(json.dumps(line), flush=True)
