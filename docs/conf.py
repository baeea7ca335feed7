"""How Sphinx makes a site of these pages: `make docs`. It loads nothing from other hosts."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

from service.version import VERSION

NAVIGATION = {
    "Begin": ["quickstart", "concepts", "guarantees"],
    "Use": ["publish", "stream", "llm", "presence", "python", "migrate-flask-sse"],
    "Run": [
        "deploy",
        "security",
        "settings",
        "operations",
        "upgrades",
        "troubleshooting",
        "dashboard",
    ],
    "Look up": ["http", "cli", "metrics", "logs"],
    "Look inside": ["architecture", "decisions", "testing", "benchmark"],
}
"""The pages at the side, in the order in which they are read; index.md leads to them by goal."""

project = "Pushline"
version = release = VERSION
extensions = ["myst_parser"]
myst_heading_anchors = 4

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"Pushline {VERSION}"
html_logo = html_favicon = "../static/favicon.svg"
html_show_sourcelink = html_copy_source = html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b7a5c", "color-brand-content": "#0b7a5c"},
    "dark_css_variables": {"color-brand-primary": "#3fcf9f", "color-brand-content": "#3fcf9f"},
}


def unlink_what_is_no_page(_: Sphinx, __: str, source: list[str]) -> None:
    """Leave only the words of links to Markdown outside docs/, which is not on the site."""
    source[0] = re.sub(r"\[([^]]*)\]\(\.\./[^)]*\.md(?:#[^)]*)?\)", r"\1", source[0])


def add_navigation(app: Sphinx, name: str, source: list[str]) -> None:
    """Append the table of contents to index.md, which so reads well as plain Markdown too."""
    if name != "index":
        return
    for caption, pages in NAVIGATION.items():
        there = [page for page in pages if Path(app.srcdir, f"{page}.md").exists()]
        tree = [f"```{{toctree}}\n:hidden:\n:caption: {caption}\n", *there, "```"]
        source[0] += "\n" + "\n".join(tree) + "\n"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", unlink_what_is_no_page)
    app.connect("source-read", add_navigation)
