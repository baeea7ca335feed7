"""`publish`: publish to a channel through Redis, one text or each line of standard input."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator

from service.errors import PushlineError
from service.message_publisher import MessagePublisher

PROGRESS_SECONDS = 0.2
"""How often `publish -` tells a terminal how far it is."""


def describe(publish: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    publish.add_argument("channel")
    publish.add_argument("data", nargs="?", default="-", help="the data, or - for a line each (-)")
    publish.add_argument("--event", help="the event's name")


def run(args: argparse.Namespace) -> int:
    """Print the id of what was published, or how many lines were. Raises PushlineError."""
    with MessagePublisher(args.channel) as publisher:
        if args.data != "-":
            print(publisher.publish_message(args.data, args.event))
            return 0
        count = 0
        for count, line in enumerate(_with_progress(sys.stdin.buffer), 1):
            try:
                publisher.publish_message(line.removesuffix(b"\n").removesuffix(b"\r"), args.event)
            except PushlineError as error:
                error.args = (f"line {count}: {error}; {count - 1} lines were published",)
                raise
        print(f"{count} published", file=sys.stderr)
    return 0


def _with_progress(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Pass `lines` on; on a terminal, tell how many went by and how fast."""
    shown = sys.stderr.isatty()
    started = told = time.monotonic()
    for count, line in enumerate(lines, 1):
        yield line
        now = time.monotonic()
        if shown and now - told >= PROGRESS_SECONDS:
            told = now
            print(f"\r{count} events, {count / (now - started):.0f}/s ", end="", file=sys.stderr)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr)  # the cursor's line is empty again
