"""Print a stream's events as JSON lines with sseclient-py, over the standard library's HTTP."""

import json
import sys
import urllib.request

import sseclient

with urllib.request.urlopen(sys.argv[1], timeout=30) as response:
    for event in sseclient.SSEClient(response).events():
        line = {"type": event.event, "data": event.data, "id": event.id}
        print(json.dumps(line), flush=True)
