"""What a command shows to a service: a token from the environment or from standard input."""

from __future__ import annotations

import argparse
import re
import sys

from service.errors import ConfigError
from service.remote import Remote
from service.settings import process_environ

VARIABLE = "PUSHLINE_TOKEN"

HELP = f"- reads a key or token from standard input; else it is taken from {VARIABLE}, if set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument("--token", type=_only_dash, metavar="-", help=HELP)


def _only_dash(text: str) -> str:
    if text != "-":  # what was given may be a token: it isn't repeated
        raise argparse.ArgumentTypeError(
            f"takes only -, for standard input, as others could read it here; or set {VARIABLE}"
        )
    return text


def service_url(text: str) -> str:
    """A URL as an argument; it isn't repeated where it is refused, as it may hold a password."""
    try:
        return Remote(text).url
    except ValueError:
        raise argparse.ArgumentTypeError(
            "give the service's address, such as https://push.example.com, without user,"
            f" password and query; a token goes into {VARIABLE}"
        ) from None


def read_token(args: argparse.Namespace) -> str | None:
    """The credential, or None. Raises ConfigError, which doesn't show it."""
    if args.token:
        where, text = "standard input", sys.stdin.readline().strip()
    else:
        where, text = VARIABLE, process_environ().get(VARIABLE, "").strip()
        if not text:
            return None
    if not re.fullmatch("[!-~]+", text):
        raise ConfigError(f"{where} holds no token: it is one word of ASCII")
    return text
