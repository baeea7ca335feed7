"""Whose connection it is: the client's address behind trusted proxies, and the key for limits."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Sequence

from service.errors import TooManyStreams, TooManyStreamsFromAddress

_HOP = re.compile(r"(?:([0-9.]+)|\[([^\]]+)\])(?::\d{1,5})?")
"""An IPv4 address, or an IPv6 address in brackets, with the port that some proxies add."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def client_address(peer: str, forwarded_for: str, trusted: Sequence[Network]) -> str:
    """The rightmost address of `forwarded_for` that no trusted proxy added, or the peer's own.

    `peer` is empty on unix sockets. What isn't an address ends the search: it proves nothing.
    """
    address = peer
    for hop in reversed(forwarded_for.split(",")):
        if not _is_trusted(address, trusted):
            break
        match = _HOP.fullmatch(hop.strip())
        parsed = _parsed(match[1] or match[2] if match else hop.strip())
        if parsed is None:
            break
        address = str(parsed)
    return address


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    parsed = _parsed(address)
    return parsed is not None and any(parsed in network for network in trusted)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


class StreamLimits:
    """Counts this worker's streams, in all and for each address.

    An address is an IPv4 address or an IPv6 /64; none is known on unix sockets.
    `at_most_per_address` of 0 means no limit.
    """

    def __init__(self, at_most: int, at_most_per_address: int) -> None:
        self._at_most = at_most
        self._at_most_per_address = at_most_per_address
        self._total = 0
        self._by_address: Counter[str] = Counter()

    def admit(self, address: str) -> None:
        """Count one stream, or raise TooManyStreams or TooManyStreamsFromAddress."""
        key = self._key(address)
        if self._total >= self._at_most:
            raise TooManyStreams
        if key and self._by_address[key] >= self._at_most_per_address:
            raise TooManyStreamsFromAddress
        self._total += 1
        if key:
            self._by_address[key] += 1

    def release(self, address: str) -> None:
        """Undo one `admit`."""
        key = self._key(address)
        self._total -= 1
        if key:
            self._by_address[key] -= 1
            if self._by_address[key] <= 0:
                del self._by_address[key]

    def _key(self, address: str) -> str:
        if not self._at_most_per_address:
            return ""
        parsed = _parsed(address)
        if isinstance(parsed, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((parsed, 64), strict=False))
        return address
