"""`subscribe`: print what is published to channels, through Redis."""

from __future__ import annotations

import argparse
import json

from service.message_subscriber import MessageSubscriber


def describe(subscribe: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    subscribe.add_argument("channels", nargs="+", metavar="CHANNEL")
    subscribe.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Print a line for each message, until interrupted. Raises PushlineError."""
    with MessageSubscriber(args.channels) as subscriber:
        for message in subscriber.listen_messages():
            if args.json:
                line = json.dumps({"id": message.id, "event": message.event, "data": message.data})
            else:
                line = f"{message.id or '-'} {message.event} {message.data}"
            print(line, flush=True)
    return 0
