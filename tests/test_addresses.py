"""Whose connection it is, and how many each may have."""

from __future__ import annotations

import ipaddress

import pytest

from service.addresses import StreamLimits, address_key, client_address
from service.errors import (
    Overloaded,
    TooManyStreams,
    TooManyStreamsFromAddress,
    TooManyStreamsOfUser,
)

TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "expected"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("10.1.1.1", "", "10.1.1.1"),
        ("10.1.1.1", "198.51.100.7", "198.51.100.7"),
        ("10.1.1.1", "6.6.6.6, 198.51.100.7", "198.51.100.7"),
        ("10.1.1.1", "198.51.100.7, 10.2.2.2", "198.51.100.7"),
        ("10.1.1.1", "6.6.6.6,198.51.100.7 ,10.2.2.2,10.3.3.3", "198.51.100.7"),
        ("10.1.1.1", "10.2.2.2", "10.2.2.2"),
        ("10.1.1.1", "nonsense", "10.1.1.1"),
        ("10.1.1.1", "198.51.100.7, nonsense", "10.1.1.1"),
        ("10.1.1.1", "198.51.100.7:1234", "198.51.100.7"),
        ("10.1.1.1", "[2001:db8::7]:1234", "2001:db8::7"),
        ("10.1.1.1", ",", "10.1.1.1"),
        ("fd00::1", "2001:db8::7", "2001:db8::7"),
        ("::ffff:10.1.1.1", "::ffff:198.51.100.7", "198.51.100.7"),
        ("", "198.51.100.7", ""),
    ],
)
def test_the_clients_address(peer: str, forwarded_for: str, expected: str) -> None:
    """It is the rightmost address that no trusted proxy added: what stands left of it, the client
    may have written itself.
    """
    assert client_address(peer, forwarded_for, TRUSTED) == expected


def test_nobody_is_trusted_by_default() -> None:
    """Without trusted proxies X-Forwarded-For means nothing."""
    assert client_address("127.0.0.1", "198.51.100.7", []) == "127.0.0.1"


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("2001:DB8:0:1:ffff:ffff:ffff:ffff", "2001:db8:0:1::/64"),
        ("2001:db8:0:2::1", "2001:db8:0:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("localhost", "localhost"),
        ("", ""),
    ],
)
def test_what_counts_as_one_client(address: str, key: str) -> None:
    """An IPv4 address, however it is written, or a /64 of IPv6; what is none, as it stands."""
    assert address_key(address) == key


def test_the_total_is_limited() -> None:
    """Over the limit of all streams nobody gets in, until one leaves."""
    limits = StreamLimits(2, 10)
    limits.admit("a")
    limits.admit("b")
    with pytest.raises(TooManyStreams):
        limits.admit("c")
    limits.release("a")
    limits.admit("c")


def test_an_address_is_limited() -> None:
    """Over its limit an address is refused, others aren't; a refusal takes nothing."""
    limits = StreamLimits(10, 2)
    for _ in range(2):
        limits.admit("192.0.2.1")
    for _ in range(3):
        with pytest.raises(TooManyStreamsFromAddress):
            limits.admit("192.0.2.1")
    limits.admit("192.0.2.2")
    limits.release("192.0.2.1")
    limits.admit("192.0.2.1")


def test_an_ipv6_network_is_one_address() -> None:
    """A client owns a whole /64 of IPv6, so it counts as one."""
    limits = StreamLimits(10, 1)
    limits.admit("2001:db8:0:1::1")
    with pytest.raises(TooManyStreamsFromAddress):
        limits.admit("2001:db8:0:1:ffff::2")
    limits.admit("2001:db8:0:2::1")
    limits.release("2001:db8:0:1:5::5")
    limits.admit("2001:db8:0:1::3")


@pytest.mark.parametrize(("per_address", "address"), [(0, "192.0.2.1"), (1, "")])
def test_no_limit_per_address(per_address: int, address: str) -> None:
    """Zero is no limit, and on a unix socket there is no address to count."""
    limits = StreamLimits(5, per_address)
    for _ in range(5):
        limits.admit(address)
    with pytest.raises(TooManyStreams):
        limits.admit(address)
    limits.release(address)
    limits.admit(address)


@pytest.mark.parametrize("limit", [1, 2, 20])
def test_a_user_is_limited(limit: int) -> None:
    """Over its limit a user is refused from any address, until one of its streams ends; others
    aren't.
    """
    limits = StreamLimits(1000, 0, limit)
    for number in range(limit):
        limits.admit(f"192.0.2.{number}", "ann")
    for _ in range(3):
        with pytest.raises(TooManyStreamsOfUser):
            limits.admit("192.0.2.99", "ann")
    limits.admit("192.0.2.0", "bob")
    limits.release("192.0.2.0", "ann")
    limits.admit("192.0.2.99", "ann")
    with pytest.raises(TooManyStreamsOfUser):
        limits.admit("192.0.2.0", "ann")


@pytest.mark.parametrize(("per_user", "user"), [(0, "ann"), (1, "")])
def test_no_limit_per_user(per_user: int, user: str) -> None:
    """Zero is no limit, and a stream of nobody in particular counts for nobody."""
    limits = StreamLimits(5, 0, per_user)
    for _ in range(5):
        limits.admit("192.0.2.1", user)
    with pytest.raises(TooManyStreams):
        limits.admit("192.0.2.1", user)
    limits.release("192.0.2.1", user)
    limits.admit("192.0.2.1", user)


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (StreamLimits(1, 2, 2), TooManyStreams),
        (StreamLimits(2, 1, 2), TooManyStreamsFromAddress),
        (StreamLimits(2, 2, 1), TooManyStreamsOfUser),
    ],
)
def test_a_refusal_counts_nothing(limits: StreamLimits, error: type[Overloaded]) -> None:
    """Whichever limit refuses a stream, the other two don't count it."""
    limits.admit("192.0.2.1", "ann")
    for _ in range(3):
        with pytest.raises(error):
            limits.admit("192.0.2.1", "ann")
    limits.release("192.0.2.1", "ann")
    assert limits._total == 0
    assert not limits._by_address
    assert not limits._by_user
    limits.admit("192.0.2.1", "ann")


def test_nothing_is_kept_of_those_who_left() -> None:
    """Addresses and users that hold no stream are forgotten: there may be millions."""
    limits = StreamLimits(1000, 5, 5)
    for number in range(500):
        limits.admit(f"192.0.2.{number}", f"user {number}")
        limits.admit("", "")
        limits.release(f"192.0.2.{number}", f"user {number}")
        limits.release("", "")
    assert len(limits._by_address) == len(limits._by_user) == 0
    assert limits._total == 0
