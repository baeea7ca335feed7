"""Where Redis is: URLs, and the master that Sentinels name."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import gevent
import pytest

from service.redis_address import LinkLost, RedisAddress
from tests.valkey import free_port

READABLE = [
    ("redis://h:1234/0", RedisAddress((("h", 1234),)), "h:1234"),
    ("redis://h/3", RedisAddress((("h", 6379),), database=3), "h:6379"),
    ("rediss://:p%40ss@h", RedisAddress((("h", 6379),), tls=True, password="p@ss"), "h:6379"),
    (
        "redis://us%3Aer:pw@[::1]:7",
        RedisAddress((("::1", 7),), username="us:er", password="pw"),
        "::1:7",
    ),
    ("unix:///tmp/a%20b.sock", RedisAddress((), "/tmp/a b.sock"), "/tmp/a b.sock"),
    (
        "redis+sentinel://:pw@a:1,b/mymaster/2",
        RedisAddress((("a", 1), ("b", 26379)), master="mymaster", password="pw", database=2),
        "a:1,b:26379",
    ),
    ("rediss+sentinel://a/m", RedisAddress((("a", 26379),), master="m", tls=True), "a:26379"),
]


@pytest.mark.parametrize(("url", "expected", "shown"), READABLE)
def test_urls_are_read(url: str, expected: RedisAddress, shown: str) -> None:
    """URLs are read as redis-py reads them; what goes to logs holds no password."""
    assert RedisAddress.parse(url) == expected
    assert str(RedisAddress.parse(url)) == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://h",
        "redis://",
        "redis://h:99999",
        "redis://h:port",
        "redis://h/name",
        "redis://a,b",
        "redis+sentinel://a:1",
        "redis://h?decode_responses=true",
        "unix:///tmp/x?db=1",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    """What can't be read whole is refused; a query would mean one thing here and another there."""
    with pytest.raises(ValueError, match=r"."):
        RedisAddress.parse(url)


@pytest.fixture
def sentinels() -> Iterator[ExitStack]:
    """Closes what a test has opened."""
    with ExitStack() as opened:
        yield opened


def sentinel(opened: ExitStack, *parts: bytes) -> int:
    """A Sentinel that answers with `parts`, one after the other; returns its port."""
    listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            with client:
                client.recv(1000)
                for part in parts:
                    client.sendall(part)
                    gevent.sleep(0.02)

    greenlet = gevent.spawn(serve)
    opened.callback(greenlet.kill)
    return int(listener.getsockname()[1])


def asked(*ports: int) -> tuple[str, int]:
    """Where the Sentinels on `ports` say that the master is."""
    return RedisAddress(tuple(("127.0.0.1", port) for port in ports), master="m").locate()


def test_a_sentinel_names_the_master(sentinels: ExitStack) -> None:
    """The answer may come in parts."""
    port = sentinel(sentinels, b"*2\r\n$9\r\n10.0.", b"0.12\r\n$4\r\n6380\r\n")
    assert asked(port) == ("10.0.0.12", 6380)


def test_the_next_sentinel_is_asked(sentinels: ExitStack) -> None:
    """One that is down, or doesn't know the master, is passed over."""
    unknowing = sentinel(sentinels, b"*-1\r\n")
    knowing = sentinel(sentinels, b"*2\r\n$1\r\nh\r\n$1\r\n1\r\n")
    assert asked(free_port(), unknowing, knowing) == ("h", 1)


def test_no_sentinel_knows(sentinels: ExitStack) -> None:
    """When none knows, the error says so."""
    with pytest.raises(LinkLost, match="no Sentinel names the master m"):
        asked(free_port(), sentinel(sentinels, b"-ERR no\r\n"))
