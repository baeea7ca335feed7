"""A chat: each room is a channel, and what the channel keeps is the room's history."""

from __future__ import annotations

from flask import abort, request

from examples.shared.starter import application, run
from service.client import MessagePublisher

ROOMS = ("lobby", "music", "travel")

app = application(__name__, HISTORY_RULES="chat.*=500/604800")
publishers = {room: MessagePublisher(f"chat.{room}") for room in ROOMS}


@app.post("/rooms/<room>")
def say(room: str) -> tuple[str, int]:
    """Publish what somebody says. An application with accounts takes the name from its session."""
    name, text = request.form["name"].strip()[:40], request.form["text"].strip()[:2000]
    if room not in publishers or not (name and text):
        abort(400)
    publishers[room].publish_message({"name": name, "text": text}, event="said")
    return "", 204


if __name__ == "__main__":
    run(app)
