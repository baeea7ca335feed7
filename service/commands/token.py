"""`token`: print a token, signed with JWT_SECRET or a private key."""

from __future__ import annotations

import argparse
from pathlib import Path

from service.minting import Order, mint
from service.settings import Settings


def describe(token: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    for name, use in (("--publish", "publish to"), ("--subscribe", "stream")):
        what = f"channels to {use}; may be repeated"
        token.add_argument(name, action="append", default=[], metavar="PATTERN", help=what)
    token.add_argument("--admin", action="store_true", help="the right to administrate")
    token.add_argument("--user", default="", metavar="ID", help="whose token it is (sub)")
    token.add_argument("--info", metavar="JSON", help="what lists of users say of the user")
    token.add_argument("--expires", default="1h", help="30s, 15m, 1h or 7d from now (1h)")
    token.add_argument("--audience", help="its aud (JWT_AUDIENCE)")
    token.add_argument("--issuer", help="its iss (JWT_ISSUER)")
    token.add_argument("--private-key", type=Path, metavar="FILE", help="PEM to sign with instead")
    token.add_argument("--algorithm", help="how to sign (what the key and JWT_ALGORITHMS allow)")


def run(args: argparse.Namespace) -> int:
    """Print it, alone. Raises ConfigError."""
    order = Order(
        lifetime=args.expires,
        publish=args.publish,
        subscribe=args.subscribe,
        admin=args.admin,
        user=args.user,
        info=args.info,
        audience=args.audience,
        issuer=args.issuer,
        private_key=args.private_key,
        algorithm=args.algorithm,
    )
    print(mint(order, Settings.from_environ()))
    return 0
