"""The secrets that tests have used, and the search for them in all that the service has logged."""

from __future__ import annotations

import atexit
import base64
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

SHORTEST = 8
"""Letters of a secret that is looked for; shorter ones stand in other words too."""

ANY_TOKEN = r"eyJ[\w-]{5,}\.[\w-]+"
QUERY = r"\?[\w%.~-]+=(?!=)|&[\w%.~-]+="
"""The beginning of a query string, and the middle of one; `?...` is what the log makes of it."""

SECRET_PARAMETERS = re.compile(r"[?&](?:ticket|key|secret)=([^&\s]+)")


class Secrets:
    """What no log may show, and the logs in which to look for it."""

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self._logs: dict[Path, None] = {}

    def add(self, text: str) -> str:
        """Note a secret, and return it."""
        if len(text) >= SHORTEST:
            self._forms |= {text, quote(text, safe=""), json.dumps(text)[1:-1]}
            self._forms.add(base64.b64encode(text.encode()).decode().rstrip("="))
        return text

    def add_request(self, path: str, headers: Mapping[str, str]) -> None:
        """Note what a request shows: credentials in headers, tickets in the query."""
        for name, value in headers.items():
            kind = name.lower().replace("_", "-")
            if kind == "authorization":
                self.add(value.rpartition(" ")[2])
            elif kind == "cookie":
                for pair in value.split(";"):
                    self.add(pair.partition("=")[2].strip())
        for value in SECRET_PARAMETERS.findall(path):
            self.add(value)

    def add_settings(self, settings: Mapping[str, object]) -> None:
        """Note what a service is configured with: keys, secrets, passwords, queries of URLs."""
        for name, value in settings.items():
            text = str(value)
            if name.endswith("_FILE"):
                path = Path(text)
                self.add_settings({name.removesuffix("_FILE"): path.read_text().strip()})
            elif name == "METRICS_TOKEN":
                self.add(text)
            elif name in ("JWT_SECRET", "PUBLISH_KEYS"):
                for item in re.split(r"[,\s]+", text):
                    self.add(item.partition("=")[0].rpartition(":")[2])
            elif name.endswith("_URL"):
                parts = urlsplit(text)
                self.add(parts.password or "")
                for pair in parts.query.split("&"):
                    self.add(pair.partition("=")[2])

    def keep(self, log: Path) -> None:
        """Look in this log too; it is removed when the process ends."""
        if log not in self._logs:
            self._logs[log] = None
            atexit.register(log.unlink, missing_ok=True)

    def leaks(self, text: str) -> list[str]:
        """The lines of a log that show a secret, any token or a query string."""
        forms = sorted(map(re.escape, self._forms), key=len, reverse=True)
        pattern = re.compile("|".join([ANY_TOKEN, QUERY, *forms]))
        return [
            f"{match[0]!r} in {line[:500]!r}"
            for line in text.splitlines()
            if (match := pattern.search(line))
        ]

    def leaks_in_logs(self) -> list[str]:
        """The same for all logs that there are."""
        logs = [log for log in self._logs if log.exists()]
        return self.leaks("\n".join(self._suspicious_lines(logs)))

    def _suspicious_lines(self, logs: Sequence[Path]) -> list[str]:
        """Found by grep, which looks for thousands of words at once; `re` would take minutes."""
        if not logs:
            return []
        with tempfile.NamedTemporaryFile("w", prefix="pushline-forms-") as forms:
            forms.write("\n".join(form for form in self._forms if "\n" not in form))
            forms.flush()
            found: list[str] = []
            for how in (["-F", "-f", forms.name], ["-P", "-e", f"{ANY_TOKEN}|{QUERY}"]):
                command = ["grep", "--text", "--no-filename", *how, "--", *map(str, logs)]
                grep = subprocess.run(command, capture_output=True, check=False)
                assert grep.returncode in (0, 1), grep.stderr
                found += grep.stdout.decode(errors="replace").splitlines()
        return found


USED = Secrets()
"""Those of this run of the tests."""

secret = USED.add
