"""What `completion` prints makes real shells complete commands and options, and run them."""

from __future__ import annotations

import functools
import shutil
import subprocess

import pytest

from service.__main__ import COMMANDS, main
from service.commands.completion import FUNCTIONS
from service.version import VERSION
from tests.test_main import ROOT, run


@functools.cache
def script(shell: str) -> str:
    """What is printed for a shell."""
    done = run("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def in_bash(commands: str) -> list[str]:
    """The lines that a bash with the completion prints for `commands`."""
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script('bash')}\n{commands}"],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def completed(*words: str) -> set[str]:
    """What bash offers at the end of a line of `words`, the last of which is begun."""
    line = " ".join(f"'{word}'" for word in words)
    (function,) = in_bash("complete -p pushline | sed 's/.*-F \\([^ ]*\\).*/\\1/'")
    lines = in_bash(
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; {function};"
        " printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    return {one.strip() for one in lines}


def test_bash_completes() -> None:
    """Commands, options of one, and choices."""
    assert completed("pushline", "") >= COMMANDS.keys()
    assert completed("pushline", "do") == {"doctor"}
    assert completed("pushline", "bench", "--s") == {"--streams", "--seconds", "--size"}
    assert completed("pushline", "completion", "") >= {"bash", "fish", "zsh"}


def test_bash_runs_what_it_completes() -> None:
    """The name that is completed is this service, from any directory."""
    assert in_bash("pushline --version") == [f"Pushline {VERSION}"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(shell: str) -> None:
    """All commands are in their scripts too, which the shells can read where they are installed."""
    text = script(shell)
    assert str(ROOT / "service") in text
    assert all(command in text for command in COMMANDS)
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, timeout=20, check=True)


@pytest.mark.parametrize("shell", FUNCTIONS)
def test_the_script_is_printed(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In this process it is the same as from the command line."""
    assert main(["completion", shell]) == 0
    text = capfd.readouterr().out
    assert text.splitlines()[1:] == script(shell).splitlines()[1:], "but for the path of Python"


def test_an_unknown_shell() -> None:
    """The usage names the shells that are known."""
    done = run("completion", "cmd")
    assert done.returncode == 2
    assert "fish" in done.stderr
