"""What settings may be: each rule reads a text, and says in words what it accepts."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

from service.redis_address import RedisAddress

Parse = Callable[[str], Any]

Rule = tuple[Parse, str]
"""Reads a text, or raises ValueError or KeyError; and what it accepts."""

ALGORITHMS = (
    *("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""How tokens may be signed; the first one that fits a key is its usual one."""

MIN_SECRET_BYTES = 32
"""A shorter one could be guessed from a token; RFC 7518 wants as many bytes as HS256 makes."""

_PATTERN = r"[A-Za-z0-9_.:*-]{1,128}"
_PUBLISH_KEY = re.compile(
    rf"([A-Za-z0-9_-]{{16,256}})(?:=({_PATTERN}(?:\|{_PATTERN})*))?", re.ASCII
)
_PEM = re.compile(r"-----BEGIN ((?:RSA )?PUBLIC KEY)-----\s[^-]+-----END \1-----")


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
    match = re.fullmatch(rf"({_PATTERN})=(\d{{1,7}})/(\d{{1,8}})", text, re.ASCII)
    if match is None or int(match[3]) < 1:
        raise ValueError
    return match[1], int(match[2]), int(match[3])


def channel_pattern(text: str) -> str:
    """A pattern that selects channels."""
    if not re.fullmatch(_PATTERN, text, re.ASCII):
        raise ValueError
    return text


def publish_key(text: str) -> tuple[str, tuple[str, ...]]:
    """A key, and the patterns of the channels that it may publish to."""
    match = _PUBLISH_KEY.fullmatch(text)
    if match is None:
        raise ValueError
    return match[1], tuple((match[2] or "*").split("|"))


def jwt_secret(text: str) -> tuple[str, str]:
    """Key id, or nothing, and secret. A PEM is none: its first word is too short."""
    kid, colon, secret = text.partition(":")
    if not colon:
        kid, secret = "", text
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise ValueError
    return kid, secret


def pem_blocks(text: str) -> tuple[str, ...]:
    """Each public key of a PEM text; files of variables write its line breaks as `\\n`."""
    text = text.replace("\\n", "\n")
    blocks = tuple(match[0] for match in _PEM.finditer(text))
    if not blocks or _PEM.sub("", text).strip():
        raise ValueError
    return blocks


def algorithm(text: str) -> str:
    """How a token may be signed."""
    if text not in ALGORITHMS:
        raise ValueError
    return text


def url(*schemes: str) -> Rule:
    """A URL with one of some schemes, without user and password."""

    def parse(text: str) -> str:
        if split_url(text, *schemes).fragment:
            raise ValueError
        return text

    return parse, f"a URL with {' or '.join(f'{one}://' for one in schemes)}, without a password"


def split_url(text: str, *schemes: str) -> SplitResult:
    """The parts of a URL that can be asked; raises ValueError for any other."""
    parts = urlsplit(text)
    if parts.scheme not in schemes or not re.fullmatch("[!-~]+", text):
        raise ValueError("it has another scheme, or what no URL has")
    if parts.scheme == "file":
        good = bool(parts.path) and not parts.netloc
    else:
        good = parts.port != 0 and "@" not in parts.netloc and _is_host(parts.hostname or "")
    if not good:
        raise ValueError("it names no place, or a user")
    return parts


def _is_host(name: str) -> bool:
    """Whether there can be such a host; raises ValueError for some that can't be."""
    if ":" in name:
        return bool(ipaddress.IPv6Address(name))
    # This codec is what a look-up uses: it refuses empty and long labels, as in a..b.
    return bool(re.fullmatch("[a-z0-9_.-]+", name) and name.encode("idna").strip(b"."))


def without_credentials(text: str) -> str:
    """What may be shown of something that was meant to be a URL: no password, no query."""
    scheme = re.match(r"[a-z+]{1,20}://", text)
    _, at, place = text[scheme.end() if scheme else 0 :].rpartition("@")
    return (scheme[0] if scheme else "") + ("***@" if at else "") + place.partition("?")[0]
