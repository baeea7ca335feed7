"""The pub/sub connection, on a real Valkey: following, reading, and noticing that it is gone."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
import trustme
from gevent import monkey
from gevent.server import StreamServer

import service.redis_address
import service.redis_link
from service.channels import RedisNames
from service.redis_address import LinkLost, RedisAddress
from service.redis_link import (
    BACKOFF_SECONDS,
    DEAD_AFTER_TICKS,
    PING_AFTER_TICKS,
    SUBSCRIBE_BATCH,
    TICK_SECONDS,
    Backoff,
    RedisLink,
)
from tests.fault_proxy import FaultProxy
from tests.valkey import Valkey, free_port

NAMES = RedisNames("p:")
SHORT_TICK = 0.1

really_sleep = monkey.get_original("time", "sleep")


@contextlib.contextmanager
def linked(url: str, *, tls_verify: bool = True) -> Iterator[RedisLink]:
    """A link that is closed afterwards."""
    link = RedisLink(RedisAddress.parse(url), NAMES, tls_verify=tls_verify)
    try:
        yield link
    finally:
        link.close()


@pytest.fixture
def link(valkey: Valkey) -> Iterator[RedisLink]:
    """A link to the shared Valkey."""
    with linked(valkey.url) as link:
        yield link


@pytest.fixture
def short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten ticks in a second, so that a silent server is given up after 0.7 s."""
    monkeypatch.setattr(service.redis_link, "TICK_SECONDS", SHORT_TICK)


def confirm(link: RedisLink, *channels: str) -> None:
    """Follow channels and wait until Redis has confirmed them all."""
    link.subscribe(channels)
    missing = set(channels)
    while missing:
        missing.difference_update(link.read()[1])


def read_messages(link: RedisLink, count: int) -> list[tuple[str, bytes]]:
    """The next messages: channel and frame."""
    got: list[tuple[str, bytes]] = []
    while len(got) < count:
        got += [(channel, frame.data) for channel, frame in link.read()[0]]
    return got


def test_backoff_grows_and_is_bounded() -> None:
    """Pauses grow to a longest one, are never equal for all, and start over after a success."""
    first, longest = BACKOFF_SECONDS
    backoff = Backoff()
    pauses = [backoff.next() for _ in range(50)]
    assert first / 2 <= pauses[0] <= first
    assert all(longest / 2 <= pause <= longest for pause in pauses[10:])
    assert len(set(pauses)) > 40
    backoff.reset()
    assert backoff.next() <= first


# -------------------------------------------------------------------------------------- following


def test_channels_are_confirmed_and_followed(link: RedisLink, valkey: Valkey) -> None:
    """A channel is reported once Redis has confirmed it; from then on nothing of it is missed."""
    confirm(link, "a", "b")
    valkey.cli("PUBLISH", "p:a", "one")
    valkey.cli("PUBLISH", "p:b", "two")
    valkey.cli("PUBLISH", "q:a", "another prefix")
    valkey.cli("PUBLISH", "p:a", "three")
    assert read_messages(link, 3) == [
        ("a", b"data: one\n\n"),
        ("b", b"data: two\n\n"),
        ("a", b"data: three\n\n"),
    ]


def test_a_channel_can_be_left(link: RedisLink, valkey: Valkey) -> None:
    """After `unsubscribe` nothing of the channel comes any more."""
    confirm(link, "a", "b")
    link.unsubscribe(["a"])
    link.unsubscribe([])
    confirm(link, "c")
    assert valkey.cli("PUBLISH", "p:a", "x") == 0
    assert valkey.cli("PUBLISH", "p:b", "y") == 1
    assert read_messages(link, 1) == [("b", b"data: y\n\n")]


def test_very_many_channels(link: RedisLink, valkey: Valkey) -> None:
    """Following thousands of channels is several commands, none of them huge."""
    channels = [f"c{number}" for number in range(3 * SUBSCRIBE_BATCH + 7)]
    confirm(link, *channels)
    assert valkey.cli("PUBLISH", "p:" + channels[-1], "x") == 1


def test_a_flood_is_read_in_large_batches(link: RedisLink, valkey: Valkey) -> None:
    """One read takes all that the socket holds: under load batches grow by themselves."""
    confirm(link, "a")
    valkey.cli("EVAL", "for i = 1, 2000 do redis.call('PUBLISH', 'p:a', i) end", 0)
    time.sleep(0.05)
    reads: list[int] = []
    while sum(reads) < 2000:
        reads.append(len(link.read()[0]))
    assert len(reads) <= 4


def test_names_that_no_channel_has(valkey: Valkey) -> None:
    """With an empty prefix any pub/sub name can come by; it is no error."""
    with contextlib.closing(RedisLink(RedisAddress.parse(valkey.url), RedisNames(""))) as link:
        confirm(link, "a")
        valkey.cli("PUBLISH", "a", "x")
        assert read_messages(link, 1) == [("a", b"data: x\n\n")]


def test_several_greenlets_may_subscribe(link: RedisLink) -> None:
    """Commands of several greenlets don't mix on the wire."""
    names = [[f"c{group}-{number}" for number in range(600)] for group in range(5)]
    writers = [gevent.spawn(link.subscribe, group) for group in names]
    missing = {name for group in names for name in group}
    while missing:
        missing.difference_update(link.read()[1])
    gevent.joinall(writers, raise_error=True)


# ------------------------------------------------------------------------------------ logging in


def test_passwords() -> None:
    """A password is sent, alone or with a user's name; a wrong or missing one is one clear line."""
    with Valkey(password="s3cret") as server:
        server.cli("ACL", "SETUSER", "some", "on", ">pw", "~*", "&*", "+@all")
        base = f"127.0.0.1:{server.port}"
        for url in (server.url, f"redis://some:pw@{base}"):
            with linked(url) as link:
                confirm(link, "a")
        for url, message in (
            (f"redis://:wrong@{base}", "refused AUTH"),
            (f"redis://{base}", "refused PING"),
        ):
            with pytest.raises(LinkLost, match=message) as raised, linked(url):
                pass
            assert "wrong" not in str(raised.value)


def test_a_unix_socket() -> None:
    """A unix:// address is connected to; one that nobody listens on is an OSError."""
    with Valkey(unix_socket=True) as server:
        with linked(server.socket_url) as link:
            confirm(link, "a")
        server.kill()
        with pytest.raises(OSError, match=r"refused|No such file"), linked(server.socket_url):
            pass


def test_tls_is_verified_unless_told_otherwise(valkey: Valkey, tmp_path: Path) -> None:
    """A self-signed server is taken only when verification is off, and then all works."""
    certificate = trustme.CA().issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    with FaultProxy(("127.0.0.1", valkey.port), tls=(chain, key)) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}"
        with linked(url, tls_verify=False) as link:
            confirm(link, "a")
            valkey.cli("PUBLISH", "p:a", "x" * 100_000)
            assert len(read_messages(link, 1)[0][1]) > 100_000
        with pytest.raises(OSError, match="certificate verify failed"), linked(url):
            pass


# ------------------------------------------------------------------------------- what is noticed


def test_nobody_listens() -> None:
    """Connecting to nothing is an OSError, at once."""
    with pytest.raises(OSError, match="refused"), linked(f"redis://127.0.0.1:{free_port()}"):
        pass


def test_a_server_that_only_accepts(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen server still accepts connections; the link isn't made until it has answered."""
    monkeypatch.setattr(service.redis_address, "CONNECT_SECONDS", 0.3)
    with FaultProxy(("127.0.0.1", valkey.port)) as proxy:
        proxy.freeze()
        with pytest.raises(TimeoutError), linked(f"redis://127.0.0.1:{proxy.port}"):
            pass


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_lost_connection_is_noticed_at_once(valkey: Valkey, how: str) -> None:
    """When the connection is closed or reset, `read` says so."""
    with (
        FaultProxy(("127.0.0.1", valkey.port)) as proxy,
        linked(f"redis://127.0.0.1:{proxy.port}") as link,
    ):
        confirm(link, "a")
        proxy.cut("fin" if how == "fin" else "rst")
        started = time.monotonic()
        with pytest.raises(OSError, match=r"closed the connection|reset"):
            link.read()
        assert time.monotonic() - started < 0.5


def test_a_frozen_server_is_noticed(own_valkey: Valkey, short_ticks: None) -> None:
    """A server that is silent, also when asked, is given up after seven ticks."""
    with linked(own_valkey.url) as link:
        confirm(link, "a")
        own_valkey.stop_process()
        started = time.monotonic()
        with pytest.raises(LinkLost, match="silent"):
            read_messages(link, 1)
        seconds = time.monotonic() - started
        own_valkey.cont()
    # By the real ticks it would be 7 s.
    assert DEAD_AFTER_TICKS * SHORT_TICK * 0.9 < seconds < 4


def test_ten_seconds_are_enough() -> None:
    """With the real figures a frozen Redis is noticed within 10 s, after it was asked."""
    assert DEAD_AFTER_TICKS * TICK_SECONDS < 10
    assert PING_AFTER_TICKS < DEAD_AFTER_TICKS


def test_a_quiet_link_stays(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link on which nothing is published goes on: the answer to a PING is a sign of life."""
    tick = 0.3  # four of them without an answer, and the server would count as dead
    monkeypatch.setattr(service.redis_link, "TICK_SECONDS", tick)
    with linked(valkey.url) as link:
        confirm(link, "a")
        end = time.monotonic() + 1.5 * DEAD_AFTER_TICKS * tick
        while time.monotonic() < end:
            assert link.read() == ([], [])
        valkey.cli("PUBLISH", "p:a", "still there")
        assert read_messages(link, 1) == [("a", b"data: still there\n\n")]


def test_a_stall_of_this_process_is_not_the_servers(valkey: Valkey, short_ticks: None) -> None:
    """After this process was stopped for long, what has arrived is read before anybody is judged:
    a stall counts as one tick.
    """
    with linked(valkey.url) as link:
        confirm(link, "a")
        link.read()
        really_sleep(1.2 * DEAD_AFTER_TICKS * SHORT_TICK)
        link.read()
        valkey.cli("PUBLISH", "p:a", "waiting")
        really_sleep(1.2 * DEAD_AFTER_TICKS * SHORT_TICK)
        assert read_messages(link, 1) == [("a", b"data: waiting\n\n")]


def test_closing_wakes_the_reader(link: RedisLink) -> None:
    """`close` by another greenlet ends a `read` that waits; closing twice is harmless."""
    confirm(link, "a")
    reader = gevent.spawn(link.read)
    gevent.sleep(0.05)
    link.close()
    link.close()
    with pytest.raises(OSError, match="closed"):
        reader.get(timeout=0.5)


def test_a_refused_subscription_ends_the_link(own_valkey: Valkey) -> None:
    """When Redis refuses a channel the link is lost: nobody may believe that it follows."""
    own_valkey.cli("ACL", "SETUSER", "some", "on", ">pw", "~*", "+@all", "resetchannels", "&p:ok")
    with linked(f"redis://some:pw@127.0.0.1:{own_valkey.port}") as link:
        confirm(link, "ok")
        link.subscribe(["forbidden"])
        with pytest.raises(LinkLost, match="NOPERM"):
            read_messages(link, 1)


def test_a_server_that_is_no_redis() -> None:
    """An answer that isn't Redis's protocol is a lost link, not a crash."""

    def handle(client: socket.socket, _: object) -> None:
        client.recv(1000)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    url = f"redis://127.0.0.1:{server.server_port}"
    with pytest.raises(LinkLost, match="Protocol error"), linked(url):
        pass
    server.stop()
