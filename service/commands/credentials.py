"""What a command shows to a service: a token from the environment or from standard input."""

from __future__ import annotations

import argparse
import re
import sys

from service.errors import ConfigError
from service.remote import Remote
from service.settings import LOOPBACK_HOSTS, process_environ

VARIABLE = "PUSHLINE_TOKEN"

CLEAR_HELP = "send the token over http:// to another machine too"
HELP = f"- reads a key or token from standard input; else it is taken from {VARIABLE}, if set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--token", type=_only_dash, metavar="-", help=HELP)
    parser.add_argument("--token-in-clear", action="store_true", help=CLEAR_HELP)


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
    """The credential for `args.url`, or None. Raises ConfigError, which doesn't show it."""
    if args.token:
        where, text = "standard input", sys.stdin.readline().strip()
    else:
        where, text = VARIABLE, process_environ().get(VARIABLE, "").strip()
        if not text:
            return None
    if not re.fullmatch("[!-~]+", text):
        raise ConfigError(f"{where} holds no token: it is one word of ASCII")
    if args.url and not args.token_in_clear:
        _check_way(Remote(args.url), where)
    return text


def _check_way(remote: Remote, where: str) -> None:
    """Raise ConfigError where others could read the token on its way."""
    if not remote.tls and remote.host not in LOOPBACK_HOSTS:
        raise ConfigError(
            f"over http:// anyone on the way could read the token of {where}: use https://,"
            " or add --token-in-clear where the network is your own"
        )
