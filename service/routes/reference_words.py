"""What a schema asks for, in words; and the little markup that the words have.

Markup is `code` and [text](#anchor), and the descriptions of openapi.json have no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup, escape

from service.routes.openapi_schemas import Schema

LONGEST_PATTERN = 40
"""Letters of a regular expression that still help a reader."""

FEW = 4
"""Values that read well with `or` between them."""

MARKED = re.compile(r"`([^`]+)`|\[([^\]]+)\]\((#[^)]+)\)")


def marked(text: str) -> Markup:
    """The markup of `text` as HTML; all else is escaped."""
    parts, end = [], 0
    for found in MARKED.finditer(text):
        code, words, anchor = found.groups()
        parts.append(escape(text[end : found.start()]))
        if code is not None:
            parts.append(Markup("<code>{}</code>").format(code))
        else:
            parts.append(Markup('<a href="{}">{}</a>').format(anchor, words))
        end = found.end()
    return Markup("").join([*parts, escape(text[end:])])


def link(reference: str) -> str:
    """The markup that leads to a schema of the document."""
    name = reference.rpartition("/")[2]
    return f"[{name}](#schema-{name})"


def kind(schema: Schema) -> str:
    """What a value has to be, such as `list of up to 64 ChannelName`, with markup."""
    for member, words in WORDS.items():
        if member in schema:
            return words(schema)
    return "any JSON"


def _choice(schema: Schema) -> str:
    values = [_literal(one) for one in schema["enum"]]
    return " or ".join(values) if len(values) <= FEW else "one of " + ", ".join(values)


def _either(schema: Schema) -> str:
    return " or ".join(kind(one) for one in schema.get("anyOf") or schema["oneOf"])


def _typed(schema: Schema) -> str:
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " or ".join(_one_type(one, schema) for one in types)


def _one_type(name: str, schema: Schema) -> str:
    if name == "array":
        # The description tells what else it may be.
        items = [one["items"] for one in (schema, *schema.get("anyOf", ())) if "items" in one]
        return f"list of {_span(schema, 'minItems', 'maxItems')}{kind(items[0])}"
    if name in ("integer", "number"):
        return f"{name} {_span(schema, 'minimum', 'maximum')}".strip()
    if name == "string":
        return f"string {_length(schema)}{_pattern(schema)}".strip()
    return name


def _span(schema: Schema, least: str, most: str) -> str:
    """The limits of a value; a list of at least one item is nothing to tell of."""
    low, high = schema.get(least), schema.get(most)
    if low is not None and high is not None:
        return f"{low} to {high} "
    if high is not None:
        return f"up to {high} "
    return "" if low is None or least == "minItems" else f"from {low} on "


def _length(schema: Schema) -> str:
    span = _span(schema, "minLength", "maxLength")
    return f"of {span}letters " if span else ""


def _pattern(schema: Schema) -> str:
    pattern = schema.get("pattern", "")
    readable = pattern.isascii() and pattern.isprintable() and len(pattern) <= LONGEST_PATTERN
    return f"like `{pattern}`" if pattern and readable else ""


def _literal(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


WORDS: dict[str, Callable[[Schema], str]] = {
    "$ref": lambda schema: link(schema["$ref"]),
    "const": lambda schema: _literal(schema["const"]),
    "enum": _choice,
    "type": _typed,
    "anyOf": _either,
    "oneOf": _either,
}
"""The members that tell what a value is; the first that is there counts."""


def about(schema: Schema) -> str:
    """What else a schema says: its description, examples and default, with markup."""
    told = [schema.get("description", "")]
    if "examples" in schema:
        told.append("Such as " + ", ".join(map(_literal, schema["examples"])))
    if "default" in schema:
        told.append(f"Default {_literal(schema['default'])}")
    return ". ".join(filter(None, told))
