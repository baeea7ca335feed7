"""The files of the pages: what is copied from elsewhere, and the pictures of the documentation."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

UPLOT = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a",
    "uPlot.min.css": "df630c6a8d6f8eea",
    "LICENSE": "8f989229699b4fe2",
}
"""The files of uPlot 1.6.32, as npm has them, with the start of their SHA-256."""

MAX_PICTURE_BYTES = 150_000


@pytest.mark.parametrize("name", UPLOT)
def test_what_is_copied_is_as_published(name: str) -> None:
    """Nobody has changed a file that isn't ours."""
    found = hashlib.sha256((ROOT / "static" / "uplot" / name).read_bytes()).hexdigest()
    assert found.startswith(UPLOT[name])


def test_the_documentation_names_the_version() -> None:
    """docs/dashboard.md says which version is copied."""
    head = (ROOT / "static" / "uplot" / "uPlot.iife.min.js").read_text()[:100]
    version = re.search(r"\(v([0-9.]+)\)", head)
    assert version
    assert f"{version[1]} (MIT)" in (ROOT / "docs" / "dashboard.md").read_text()


def test_pictures_are_small() -> None:
    """Each one is shown somewhere in the documentation, and is quickly loaded."""
    texts = [(ROOT / "README.md").read_text()]
    texts += [page.read_text() for page in ROOT.glob("docs/*.md")]
    pictures = list(ROOT.glob("docs/pictures/*.png"))
    assert len(pictures) >= 4
    for picture in pictures:
        assert picture.stat().st_size < MAX_PICTURE_BYTES
        assert any(f"pictures/{picture.name}" in text for text in texts), picture.name
