"""The command line, `python -m service`: finds the command, and tells errors in one line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # so that `python path/to/service` works from anywhere

from service.errors import PushlineError, RedisDown  # noqa: E402  after the path is set
from service.version import VERSION  # noqa: E402

LOCAL_HINT = "Is `serve` running, on this PORT? Else set REDIS_URL"

PURPOSES = (
    ("serve", "run the service, with a private Valkey unless REDIS_URL"),
    ("publish", "publish to a channel through Redis"),
    ("subscribe", "print what is published, through Redis"),
    ("keys", "print a new key for PUBLISH_KEYS"),
    ("token", "print a token, signed with JWT_SECRET"),
    ("doctor", "check a deployment, and say how to mend what is wrong"),
    ("bench", "measure a running service"),
    ("completion", "print the completion of a shell"),
)
COMMANDS = dict(PURPOSES)
"""What each module of service/commands does."""

OVERVIEW = """\
Pushline {version}: publish events over HTTP or Redis, stream them to browsers, curl and programs.

{commands}

On this machine, in three terminals:
  python -m service serve
  curl -N 'http://127.0.0.1:8000/stream?channel=news'
  curl -d hello http://127.0.0.1:8000/channels/news

`python -m service COMMAND --help` tells more, and so does the folder docs.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors are one line on standard error."""
    words = sys.argv[1:] if arguments is None else arguments
    args = make_parser(wanted=words[:1]).parse_args(words)
    if args.run is None:
        print(overview(), end="", file=sys.stderr)
        return 2
    try:
        return int(args.run(args))
    except PushlineError as error:
        hint = LOCAL_HINT if isinstance(error, RedisDown) else error.fix
        print(f"pushline: {error}" + (f" ({hint})" if hint else ""), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def make_parser(
    prog: str = "python -m service", wanted: Collection[str] = COMMANDS
) -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, which stays None without one.

    Only those `wanted` know their arguments: to import all of them takes long.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description="Pushline, a Server-Sent Events push service"
    )
    parser.add_argument("--version", action="version", version=f"Pushline {VERSION}")
    parser.set_defaults(run=None, make_parser=make_parser)
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose)
        if name in wanted:
            module = importlib.import_module(f"service.commands.{name}")
            module.describe(command)
            command.set_defaults(run=module.run)
    return parser


def overview() -> str:
    """What this is, its commands, and where to begin."""
    lines = [f"  {name:<11} {purpose}" for name, purpose in COMMANDS.items()]
    return OVERVIEW.format(version=VERSION, commands="\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
