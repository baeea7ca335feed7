"""docs/cli.md has every command and option, and what it shows is a call that is taken."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex

import pytest

from service.__main__ import COMMANDS, make_parser
from service.doctor.findings import WHY
from tests.test_main import ROOT

PAGE = (ROOT / "docs" / "cli.md").read_text()
CALLS = re.findall(r"python -m service (?!COMMAND)([^`|)\n]+)", PAGE)


def options(command: str) -> set[str]:
    """The long options of a command."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"service.commands.{command}").describe(parser)
    return {name for name in parser.format_help().split() if re.fullmatch("--[a-z-]+", name)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_shown(command: str) -> None:
    """Each is in the table and in an example; so are the options of the newest."""
    assert re.search(rf"^\|.*`{command}`.*\|", PAGE, re.M)
    assert any(call.startswith(command) for call in CALLS)
    if command in ("doctor", "bench"):
        assert {name for name in options(command) - {"--help"} if name not in PAGE} == set()


def test_the_report_adds_up() -> None:
    """The sample of `doctor` has one finding, and each other check is fine."""
    match = re.search(r"^(\d+) checks are fine, 1 finding\.$", PAGE, re.M)
    assert match is not None
    assert int(match[1]) == len(WHY) - 1


@pytest.mark.parametrize("call", [call for call in CALLS if not call.startswith("--version")])
def test_every_call_is_taken(call: str) -> None:
    """What stands after `python -m service` is a command with its arguments."""
    words = shlex.split(call.partition("#")[0].strip().rstrip('"'))
    if words != ["COMMAND", "--help"]:
        assert make_parser().parse_args(words).run is not None
