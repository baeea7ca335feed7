"""An application as flask-sse's users have it: it publishes, and streams in flask-sse's own way."""

from __future__ import annotations

import os

from flask import Flask, request
from flask_sse import sse

app = Flask(__name__)
app.config["REDIS_URL"] = os.environ["REDIS_URL"]
app.register_blueprint(sse, url_prefix="/stream")


@app.post("/publish")
def publish() -> str:
    """Call flask-sse's publish with the request's JSON as arguments."""
    sse.publish(**request.get_json())
    return ""
