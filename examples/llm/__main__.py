"""Answers of a language model that survive reloads: a channel per answer, ended when it is done."""

from __future__ import annotations

import threading
import uuid

from flask import request

from examples.llm.model import tokens
from examples.shared.starter import application, run
from service.client import MessagePublisher
from service.errors import ChannelEnded, RedisError

# An answer may have more than the 1000 tokens that a channel keeps by default.
app = application(__name__, HISTORY_RULES="answer.*=10000/3600")


@app.post("/answers")
def ask() -> dict[str, str]:
    """Begin to answer and return the channel; who streams it, and when, is all the same."""
    channel = f"answer.{uuid.uuid4().hex}"
    threading.Thread(target=answer, args=(channel, request.form["prompt"])).start()
    return {"channel": channel}


def answer(channel: str, prompt: str) -> None:
    """Publish each token as it comes, and the end, also where the model fails."""
    with MessagePublisher(channel) as publisher:
        try:
            for token in tokens(prompt):
                publisher.publish_message(token, event="token")
            publisher.end("finished")
        except (RedisError, ChannelEnded) as error:  # no end can be told, or somebody has told it
            app.logger.error("%s is given up: %s", channel, error)
        except Exception:
            publisher.end("failed")
            raise


if __name__ == "__main__":
    run(app)
