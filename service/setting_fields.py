"""How a setting is declared, and how its text is found: in the environment, or in a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import Any

from service.errors import ConfigError
from service.setting_rules import Rule

MAX_FILE_BYTES = 65_536
"""Size of a file with a secret: keys are far smaller, and a wrong path may lead anywhere."""

Shown = Callable[[str], str]


def setting(
    env: str,
    default: Any,
    rule: Rule,
    meaning: str,
    *,
    secret: bool = False,
    shown: Shown | None = None,
    empty: bool = False,
) -> Any:
    """A dataclass field that is read from the variable `env`.

    A `secret` may come from a file too, and no text shows it. `shown` makes of a text the part
    that may be shown when it can't be used. `empty` text counts, instead of meaning the default.
    """
    parse, accepts = rule
    metadata = {
        "env": env,
        "parse": parse,
        "accepts": accepts,
        "meaning": meaning,
        "secret": secret,
        "shown": shown,
        "empty": empty,
    }
    return field(default=default, repr=not secret and shown is None, metadata=metadata)


def read(specs: Iterable[dataclasses.Field[Any]], environ: Mapping[str, str]) -> dict[str, Any]:
    """The values of the settings that `environ` has, by field name.

    Raises ConfigError, one line with the key, the value unless it is secret, and what is taken.
    """
    texts = {spec.name: (spec, _text(spec, environ)) for spec in specs}
    return {name: _parsed(spec, text) for name, (spec, text) in texts.items() if text is not None}


def _text(spec: dataclasses.Field[Any], environ: Mapping[str, str]) -> str | None:
    env = spec.metadata["env"]
    text = environ.get(env)
    path = environ.get(f"{env}_FILE") if spec.metadata["secret"] else None
    if path and text:
        raise ConfigError(f"{env} and {env}_FILE are both set: keep one of them")
    if path:
        return _content(f"{env}_FILE", path)
    return None if text == "" and not spec.metadata["empty"] else text


def _content(env: str, path: str) -> str:
    """The text of a secret's file; its path isn't shown, as it may be the secret, by mistake."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "that is no path"
        raise ConfigError(f"the file that {env} names can't be read: {why}") from None
    try:
        if not text.strip() or len(text) > MAX_FILE_BYTES:
            raise ValueError
        return text.decode().rstrip()
    except ValueError:
        raise ConfigError(
            f"the file that {env} names can't be used: it is empty, no UTF-8, or over 64 KiB"
        ) from None


def _parsed(spec: dataclasses.Field[Any], text: str) -> Any:
    rule = spec.metadata
    try:
        return rule["parse"](text)
    except (ValueError, KeyError):
        shown = rule["shown"] or (None if rule["secret"] else str)
        value = f"={shown(text)!r}" if shown else ""
        raise ConfigError(
            f"{rule['env']}{value} can't be used: it takes {rule['accepts']}"
        ) from None
