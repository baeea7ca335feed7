"""A folder that looks like a clone of this project after `make`, without its minutes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MADE = {"build", "node_modules"}
MAKES_OWN = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}
PYTHON = f"""#!/bin/sh
exec '{sys.executable}' "$@"
"""


def made_clone(folder: Path) -> Path:
    """Fill `folder` with links to this project, and with a .venv that holds this very Python."""
    for path in ROOT.iterdir():
        if path.name not in MADE and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    (folder / "node_modules").symlink_to(ROOT / "tests/live/node_modules")
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    for ready in (".requirements", ".requirements-dev"):  # in this order: the second one is newer
        (folder / ".venv" / ready).touch()
    return folder


def outside_make() -> dict[str, str]:
    """The environment without what `make test` tells a make below it."""
    return {name: value for name, value in os.environ.items() if name not in MAKES_OWN}
