"""Stands for a language model: yields tokens about as fast as one does. Put yours here."""

from __future__ import annotations

import time
from collections.abc import Iterator

ANSWER = (
    "You asked: {prompt}\n\n"
    "This answer is made on the server and published token by token to a channel of its own. "
    "Nobody has to listen while that happens. Reload this page now: the text so far is shown again "
    "at once, and the rest goes on after it, with no token missing and none twice. Close the tab "
    "and come back in a minute, or open the same address on another machine: the whole answer is "
    "there, because the channel keeps it.\n\n"
    "When the model is done, the channel is ended. The event `$end` tells each reader that there "
    "is nothing to wait for, and the stream closes by itself."
)
TOKENS_PER_SECOND = 40


def tokens(prompt: str) -> Iterator[str]:
    """The pieces of an answer; joined they are its text."""
    for word in ANSWER.format(prompt=prompt).split(" "):
        time.sleep(1 / TOKENS_PER_SECOND)
        yield f"{word} "
