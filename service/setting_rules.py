"""What settings may be: each rule reads a text, and says in words what it accepts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from service.redis_address import RedisAddress

Parse = Callable[[str], Any]

Rule = tuple[Parse, str]
"""Reads a text, or raises ValueError or KeyError; and what it accepts."""


def whole(low: int, high: int) -> Rule:
    """A whole number in a range."""
    return _ranged(_plain_int, low, high), f"a whole number from {low} to {high}"


def number(low: float, high: float) -> Rule:
    """A number in a range."""
    return _ranged(float, low, high), f"a number from {low:g} to {high:g}"


def _plain_int(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError  # int() also takes 8_0 and other scripts' digits
    return int(text)


def _ranged(kind: Callable[[str], Any], low: float, high: float) -> Parse:
    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def one_of(*choices: str) -> Rule:
    """One of some words, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError
        return text.lower()

    return parse, "one of " + ", ".join(choices)


def switch() -> Rule:
    """On or off."""
    return lambda text: {"0": False, "1": True}[text], "0 or 1"


def matching(pattern: str, accepts: str) -> Rule:
    """Text of which all matches `pattern`."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return parse, accepts


def listed(item: Callable[[str], Any], accepts: str) -> Rule:
    """Any number of items, with commas or spaces between them."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(item(part) for part in re.split(r"[,\s]+", text.strip()) if part)

    return parse, accepts


def cors_origin(text: str) -> str:
    """A page's origin, or `*`."""
    if text != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", text):
        raise ValueError
    return text.lower()


def checked_redis_url(text: str) -> str:
    """The URL of a Redis."""
    RedisAddress.parse(text)
    return text


def history_rule(text: str) -> tuple[str, int, int]:
    """A pattern, and how many events and seconds the channels that it selects keep."""
    match = re.fullmatch(r"([A-Za-z0-9_.:*-]{1,128})=(\d{1,7})/(\d{1,8})", text, re.ASCII)
    if match is None or int(match[3]) < 1:
        raise ValueError
    return match[1], int(match[2]), int(match[3])
