"""The commands that try an operation of openapi.json out, made of the document's examples."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

from service.routes.openapi_schemas import Schema

STREAM = "text/event-stream"


def commands(method: str, path: str, operation: Schema) -> Iterator[str]:
    """A `curl` for each example of a body, or one where there is no body.

    They need the shell variables PUSHLINE, where the service is, and TOKEN.
    """
    words = _words(method, path, operation)
    contents = operation.get("requestBody", {}).get("content", {})
    first_lines = True
    for media_type, content in contents.items():
        lines = media_type.endswith("ndjson")
        if lines and not first_lines:
            continue  # the same under another name
        first_lines = first_lines and not lines
        for example in examples(content):
            yield _with_body(words, method, media_type, example)
    if not contents:
        yield _joined(words)


def _words(method: str, path: str, operation: Schema) -> list[str]:
    """The command without a body."""
    words = ["curl"]
    if STREAM in operation["responses"].get("200", {}).get("content", {}):
        words[0] += " -N"
    if method not in ("GET", "PUT") and not (method == "POST" and "requestBody" in operation):
        words[0] += f" -X {method}"
    words[0] += f' "$PUSHLINE{_filled(path, operation["parameters"])}"'
    if operation["security"] and {} not in operation["security"]:
        words.append('-H "Authorization: Bearer $TOKEN"')
    return words


def _filled(path: str, parameters: list[Schema]) -> str:
    """The path and query with the parameters that have an example."""
    query: dict[str, Any] = {}
    for one in parameters:
        if "example" in one and one["in"] == "path":
            path = path.replace(f"{{{one['name']}}}", quote(one["example"]))
        elif "example" in one and one["in"] == "query":
            query[one["name"]] = one["example"]
    return path + ("?" + urlencode(query, doseq=True) if query else "")


def examples(holder: Schema) -> list[Any]:
    """The examples of a parameter, or of a body of one type."""
    named = [one["value"] for one in holder.get("examples", {}).values()]
    return named + ([holder["example"]] if "example" in holder else [])


def _with_body(words: list[str], method: str, media_type: str, example: Any) -> str:
    text = example if isinstance(example, str) else json.dumps(example)
    if not media_type.startswith("text/"):
        words = [*words, f"-H 'Content-Type: {media_type}'"]
    if method == "PUT":  # as it arrives: what makes the lines may go on for hours
        printed = shlex.quote(text.replace("\\", "\\\\").replace("%", "%%").replace("\n", "\\n"))
        return f"printf {printed} | \\\n  " + _joined([words[0], *words[1:], "-T -"])
    option = "--data-binary" if "\n" in text else "-d"
    return _joined([*words, f"{option} {shlex.quote(text)}"])


def _joined(words: list[str]) -> str:
    """One line, or where that is long a line for each option."""
    line = " ".join(words)
    return line if len(line) <= 60 else " \\\n  ".join(words)
