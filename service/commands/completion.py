"""`completion`: print what lets a shell complete commands, as a function `pushline`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

NAME = "pushline"
"""What is completed: `python -m service` is three words, the first of which isn't ours."""

FUNCTIONS = {
    "bash": '{name}() {{ {command} "$@"; }}',
    "zsh": '{name}() {{ {command} "$@"; }}\n'
    "(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit; }}",
    "fish": "function {name}; {command} $argv; end",
}
"""The function of each shell that has the name, and runs this very installation.

zsh completes nothing, and knows no compdef, before its compinit.
"""


def describe(completion: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    completion.add_argument("shell", choices=sorted(FUNCTIONS))


def run(args: argparse.Namespace) -> int:
    """Print the function and its completion, for the shell to evaluate."""
    import shtab  # `--help` of all commands does without

    service = Path(__file__).resolve().parents[1]
    command = shlex.join([sys.executable, str(service)])
    print(FUNCTIONS[args.shell].format(name=NAME, command=command))
    print(shtab.complete(args.make_parser(NAME), args.shell))
    return 0
