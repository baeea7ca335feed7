"""What becomes of a test that needs something which is not here."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def untested(reason: str) -> NoReturn:
    """Skip the running test loudly; in CI fail it, where nothing may go untested."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI must not skip this test")
    pytest.skip(f"NOT TESTED: {reason}")
