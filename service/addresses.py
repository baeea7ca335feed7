"""Whose connection it is: the client's address behind trusted proxies, and the key for limits."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections import Counter
from collections.abc import Sequence

from service.errors import TooManyStreams, TooManyStreamsFromAddress, TooManyStreamsOfUser

_HOP = re.compile(r"(?:([0-9.]+)|\[([^\]]+)\])(?::\d{1,5})?")
"""An IPv4 address, or an IPv6 address in brackets, with the port that some proxies add."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def client_address(peer: str, forwarded_for: str, trusted: Sequence[Network]) -> str:
    """The rightmost address of `forwarded_for` that no trusted proxy added, or the peer's own.

    `peer` is empty on unix sockets. What isn't an address ends the search: it proves nothing.
    """
    if not (forwarded_for and trusted):
        return peer
    address = peer
    for hop in reversed(forwarded_for.split(",")):
        if not is_trusted(address, trusted):
            break
        match = _HOP.fullmatch(hop.strip())
        parsed = _parsed(match[1] or match[2] if match else hop.strip())
        if parsed is None:
            break
        address = str(parsed)
    return address


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    """Whether `address`, which may be empty, is one of the `trusted` proxies."""
    parsed = _parsed(address)
    return parsed is not None and any(parsed in network for network in trusted)


@functools.lru_cache(maxsize=10_000)
def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


@functools.lru_cache(maxsize=10_000)
def address_key(address: str) -> str:
    """What counts as one client: an IPv4 address, or a /64 of IPv6, which one client owns whole.

    Empty for an empty address, as on unix sockets; what isn't an address counts as itself.
    """
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed) if parsed else address


class StreamLimits:
    """Counts this worker's streams: in all, of each address (as `address_key`), of each user.

    Limits of 0 per address and per user mean none.
    """

    def __init__(self, at_most: int, at_most_per_address: int, at_most_per_user: int = 0) -> None:
        self._at_most = at_most
        self._at_most_per_address = at_most_per_address
        self._at_most_per_user = at_most_per_user
        self._total = 0
        self._by_address: Counter[str] = Counter()
        self._by_user: Counter[str] = Counter()

    def admit(self, address: str, user: str = "") -> None:
        """Count one stream; an empty address or user is not counted.

        Raises TooManyStreams, TooManyStreamsFromAddress or TooManyStreamsOfUser, with nothing
        counted.
        """
        key, user = self._keys(address, user)
        if self._total >= self._at_most:
            raise TooManyStreams
        if key and self._by_address[key] >= self._at_most_per_address:
            raise TooManyStreamsFromAddress
        if user and self._by_user[user] >= self._at_most_per_user:
            raise TooManyStreamsOfUser
        self._total += 1
        if key:
            self._by_address[key] += 1
        if user:
            self._by_user[user] += 1

    def release(self, address: str, user: str = "") -> None:
        """Undo one `admit`."""
        key, user = self._keys(address, user)
        self._total -= 1
        _take_one(self._by_address, key)
        _take_one(self._by_user, user)

    def _keys(self, address: str, user: str) -> tuple[str, str]:
        """What is counted of them; empty where there is no limit."""
        return (
            address_key(address) if self._at_most_per_address else "",
            user if self._at_most_per_user else "",
        )


def _take_one(counter: Counter[str], key: str) -> None:
    """Count one less; who has none left is forgotten, as there may be millions."""
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
