"""A plain Flask application: it publishes over HTTP, and its sessions decide who may stream."""

from __future__ import annotations

import json
import secrets
import urllib.request

from flask import abort, request, session

from examples.shared.starter import APPLICATION_URL, PUSHLINE_URL, application, run

KEY = secrets.token_urlsafe(24)
STEPS = ("paid", "packed", "on its way", "delivered")

app = application(
    __name__,
    AUTHORIZE_URL=f"{APPLICATION_URL}/pushline",
    PUBLISH_KEYS=f"{KEY}=orders.*",
    PUBLIC_CHANNELS="news",
)
app.secret_key = secrets.token_bytes(32)


@app.post("/login")
def login() -> dict[str, str]:
    """Whoever gives a name is let in: a real application asks for a password."""
    session["user"] = request.form["user"]
    return {"user": session["user"]}


@app.get("/pushline")
def authorize() -> dict[str, object]:
    """Pushline asks here what a client may stream (AUTHORIZE_URL), with the client's own cookie."""
    if "user" not in session:
        abort(401)
    user = session["user"]
    return {"channels": [f"orders.{user}"], "user": user, "expires_in": 3600}


@app.post("/orders/<int:number>/next")
def next_step(number: int) -> tuple[str, int]:
    """Somebody in the warehouse has pushed a button: tell the order's owner."""
    order = {"number": number, "state": STEPS[int(request.form["step"])]}
    publish(f"orders.{request.form['owner']}", "order", order)
    return "", 204


def publish(channel: str, event: str, data: object) -> None:
    """Publish one event over HTTP. Raises urllib.error.URLError unless Pushline has accepted it."""
    body = json.dumps({"channel": channel, "event": event, "data": data, "private": True})
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    call = urllib.request.Request(f"{PUSHLINE_URL}/publish", body.encode(), headers)
    urllib.request.urlopen(call, timeout=5).close()


if __name__ == "__main__":
    run(app)
