"""flask-sse as its manual shows it; a Redis connection for each client is its design."""

from __future__ import annotations

import os
from itertools import chain

from flask import Flask, Response, request
from flask_sse import sse

app = Flask(__name__)
app.config["REDIS_URL"] = os.environ["REDIS_URL"]


def send_head(response: Response) -> Response:
    """Send the response head at once, not with the first event: clients wait for it."""
    return Response(chain([b"retry: 2000\n\n"], response.iter_encoded()), headers=response.headers)


@app.post("/publish/<channel>")
def publish(channel: str) -> str:
    """Publish the body."""
    sse.publish(request.get_data(as_text=True), channel=channel)
    return "ok"


sse.after_request(send_head)
app.register_blueprint(sse, url_prefix="/stream")
