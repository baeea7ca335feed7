"""The pages as Markdown: every link leads somewhere, every block is run or says why it isn't."""

from __future__ import annotations

import importlib.util
import json
import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from tests.links import anchors, broken
from tests.snippets import BLOCK, DATA, PAGES, ROOT, RUN, Snippet, snippets

MARKDOWN = [*PAGES, *sorted(ROOT.glob("examples/**/*.md")), ROOT / "bench/README.md"]
SNIPPETS = [one for page in PAGES for one in snippets(page)]

NOT_RUN = {
    ("benchmark.md", "it takes an hour and a half"),
    ("cli.md", "it asks a host that is not there"),
    ("cli.md", "it belongs to another shell"),
    ("cli.md", "they go on until they are interrupted"),
    ("dashboard.md", "it asks a host that is not there"),
    ("deploy.md", "docker"),
    ("deploy.md", "heroku"),
    ("deploy.md", "kubectl"),
    ("deploy.md", "systemd, as root"),
    ("logs.md", "jq"),
}
"""The blocks that no test runs, and why. Whoever adds one has no other way to try it."""

README_LINES = 100
"""Two screens."""


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each link of a page leads to a file that is there, and to a heading that it has."""
    assert broken(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    """A missing file, picture or heading is told; code is no link; doubled headings are two."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A `B`, c!\n## Twice\n## Twice\n[fine](#a-b-c) [fine](page.md#twice-1) `[code](no)`\n"
        '[no](#b) [no](gone.md) ![no](gone.png) <img src="gone.svg"> [no](ftp://x)\n'
        "```sh\n[code](gone)\n```\n"
    )
    assert anchors(page.read_text()) == {"a-b-c", "twice", "twice-1"}
    assert broken(page) == ["#b", "gone.md", "gone.png", "ftp://x", "gone.svg"]


def test_every_page_is_in_the_navigation() -> None:
    """docs/conf.py lists each page once, and index.md leads to it."""
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs/conf.py")
    assert spec is not None
    assert spec.loader is not None
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    listed = [name for names in conf.NAVIGATION.values() for name in names]

    assert len(listed) == len(set(listed))
    assert {page.stem for page in ROOT.glob("docs/*.md")} - set(listed) == {"index"}
    index = (ROOT / "docs/index.md").read_text()
    assert [name for name in listed if f"]({name}.md)" not in index] == []


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_blocks_are_run_or_data(snippet: Snippet) -> None:
    """A block has a language, and one that is run and prints something says what."""
    assert snippet.language in RUN | DATA, "say what it is: sh, python, js, json, text, ..."
    if snippet.runs:
        assert snippet.prints, f"{snippet}: <!-- prints: TEXT --> or <!-- not run: WHY -->"
    if snippet.language == "json":
        json.loads(snippet.code)
    if snippet.language == "toml":
        tomllib.loads(snippet.code)


def test_all_fences_are_seen() -> None:
    """Every fence of every page belongs to a block that the tests know."""
    for page in PAGES:
        fences = sum(line.startswith("```") for line in page.read_text().splitlines())
        assert fences == 2 * len(snippets(page)), page.name


def test_no_block_is_indented() -> None:
    """A block is a fence: what is merely indented is seen by none of these tests."""
    for page in PAGES:
        around = BLOCK.sub("", page.read_text())
        assert re.findall(r"\n\n((?: {4}|\t)\S.*)", around) == [], page.name


@pytest.mark.parametrize("snippet", [one for one in SNIPPETS if one.mark == "file"], ids=str)
def test_saved_files_are_run(snippet: Snippet) -> None:
    """What readers are told to save, they are told to run as well."""
    run = [one.code for one in SNIPPETS if one.page == snippet.page and one.runs]

    assert any(snippet.what in code for code in run)


def test_what_is_not_run_is_listed() -> None:
    """No block is left out of the tests but these."""
    assert {(one.page, one.what) for one in SNIPPETS if one.mark == "not run"} == NOT_RUN


@pytest.mark.parametrize("snippet", [one for one in SNIPPETS if one.mark == "from"], ids=str)
def test_quoted_code_is_that_of_the_file(snippet: Snippet) -> None:
    """A block that quotes a file has its lines, but for the indentation of all of them."""
    text = (ROOT / snippet.what).read_text()

    assert any(textwrap.indent(snippet.code, " " * width) in text for width in range(0, 12, 2))


def test_the_readme_has_two_screens() -> None:
    """The README is what is read first, and leads on."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES
