"""The code of the documentation: found in its pages, and run against a service.

A comment above a block says what is wanted of it; it shows nowhere:

    <!-- prints: TEXT -->    its output has this text (for js: the browser's console)
    <!-- file: NAME -->      a reader saves it as this file, which a later block runs
    <!-- from: PATH -->      it is a part of this file, which is tested itself
    <!-- not run: WHY -->    it can't be run here; tests/test_pages.py lists all of these

Blocks of a page run in order. One that streams, or serves, goes on until the page is done.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from selenium.webdriver import Chrome

from tests.browser import console
from tests.live_server import until

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
RUN = frozenset({"sh", "python", "js", "js node"})
DATA = frozenset({"dockerfile", "html", "http", "ini", "json", "nginx", "text", "toml", "yaml"})
"""Languages of blocks that are nothing to run."""

URL = "http://127.0.0.1:8000"
"""What pages write for the service."""

REDIS = "redis://localhost:6379"
"""What pages write for a Redis that the reader has: the REDIS_URL of the environment."""

SERVES = re.compile(r"\bserve$|\bmake run$", re.MULTILINE)
"""What starts a service, which goes on."""

PATIENCE_SECONDS = 300.0
"""A block with an installation in it may take a while on a busy machine without pip's cache."""

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>prints|file|from|not run): (?P<what>[^\n]+) -->\n)?"
    r"^```(?P<language>[a-z]+(?: node)?)?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
INJECT = """
const script = document.createElement("script");
script.type = "module";
script.textContent = arguments[0];
document.head.append(script);
"""


@dataclass(frozen=True)
class Snippet:
    """One block of code: where it stands, its language and text, and its mark."""

    page: str
    line: int
    language: str
    code: str
    mark: str
    what: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def prints(self) -> str:
        """The text that its output must have."""
        return self.what if self.mark == "prints" else ""

    @property
    def serves(self) -> bool:
        """Whether it starts a service."""
        return self.runs and SERVES.search(self.code) is not None

    @property
    def runs(self) -> bool:
        """Whether it is to be run."""
        return self.language in RUN and self.mark not in ("file", "from", "not run")


def snippets(page: Path) -> list[Snippet]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Snippet(
            page.name,
            text.count("\n", 0, match.start("code")),
            match["language"] or "",
            match["code"],
            match["mark"] or "",
            match["what"] or "",
        )
        for match in BLOCK.finditer(text)
    ]


@dataclass
class Shell:
    """Runs snippets in the folder `cwd`, with `environ` alone, against the service at `url`."""

    cwd: Path
    url: str
    environ: Mapping[str, str]
    python: str
    browser: Chrome
    _running: list[tuple[Snippet, subprocess.Popen[bytes], Path]] = field(default_factory=list)

    def run(self, page: list[Snippet]) -> None:
        """Run a page; fails with the output of the first block that does not do what it should."""
        try:
            for snippet in page:
                if snippet.mark == "file":
                    file = self.cwd / snippet.what
                    file.parent.mkdir(exist_ok=True)
                    file.write_text(snippet.code)
                elif snippet.runs and snippet.language == "js":
                    self._browse(snippet)
                elif snippet.runs:
                    self._start(snippet)
            for snippet, process, output in self._running:
                self._check(snippet, process, output)
        finally:
            self._stop()

    def _start(self, snippet: Snippet) -> None:
        code = snippet.code.replace(URL, self.url)
        code = code.replace(REDIS, self.environ.get("REDIS_URL", REDIS))
        command = {
            "sh": ["bash", "-e", "-o", "pipefail", "-c", code],
            "python": [self.python, "-c", code],
            "js node": ["node", "--input-type=module", "-e", code],
        }[snippet.language]
        output = self.cwd / f"output-{len(self._running)}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=self.cwd,
                env=dict(self.environ),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append((snippet, process, output))
        until(lambda: self._is_on_its_way(snippet, process, output), PATIENCE_SECONDS, str(snippet))

    def _is_on_its_way(
        self, snippet: Snippet, process: subprocess.Popen[bytes], output: Path
    ) -> bool:
        """Whether the next block may start: this one has ended, or streams, or serves."""
        if process.poll() is not None:
            assert process.returncode == 0, _told(snippet, output)
            return True
        if "curl -N" in snippet.code:
            return b"retry:" in output.read_bytes()
        return snippet.serves and self._is_ready()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @staticmethod
    def _check(snippet: Snippet, process: subprocess.Popen[bytes], output: Path) -> None:
        deadline = time.monotonic() + 10
        while not _printed(snippet, output) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert _printed(snippet, output), _told(snippet, output)
        assert process.poll() in (None, 0), _told(snippet, output)

    def _browse(self, snippet: Snippet) -> None:
        self.browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
        self.browser.get(self.url)
        console(self.browser)
        self.browser.execute_script(INJECT, snippet.code)
        said: list[str] = []

        def printed() -> bool:
            said.extend(console(self.browser))
            return any(snippet.prints in line for line in said)

        until(printed, 10, f"{snippet} logs {snippet.prints!r}, not {said}")
        self.browser.get("about:blank")

    def _stop(self) -> None:
        for _, process, _ in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)  # services end without a drain
        for _, process, _ in self._running:
            process.wait(30)
        self._running.clear()


def _printed(snippet: Snippet, output: Path) -> bool:
    text = output.read_text(errors="replace")
    return snippet.prints in text and text != ""


def _told(snippet: Snippet, output: Path) -> str:
    return f"{snippet} prints {snippet.prints!r}, not:\n{output.read_text(errors='replace')}"
