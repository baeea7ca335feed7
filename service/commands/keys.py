"""`keys`: print a new key to publish with, or a secret to sign tokens with."""

from __future__ import annotations

import argparse
import sys

from service.keys import new_key, new_secret

KEY_HINT = "Add it to PUBLISH_KEYS, as KEY or KEY=pattern; send it as Authorization: Bearer."
JWT_HINT = "Set JWT_SECRET to it, for the service and for whoever makes tokens."


def describe(keys: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    keys.add_argument("--jwt", action="store_true", help="a new JWT_SECRET instead")


def run(args: argparse.Namespace) -> int:
    """Print it, alone; a terminal is told what to do with it."""
    print(new_secret() if args.jwt else new_key())
    if sys.stdout.isatty():
        print(JWT_HINT if args.jwt else KEY_HINT, file=sys.stderr)
    return 0
