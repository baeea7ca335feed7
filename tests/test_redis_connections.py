"""The pool of connections to Redis: none is lost, none is shared with a forked process."""

from __future__ import annotations

import queue
import subprocess
import sys
from collections.abc import Iterator

import pytest
import redis

from service.redis_connections import LeanPool, TcpConnection
from tests.valkey import Valkey

SIZE = 2

FORKING = """
import os, sys
from service.redis_connections import LeanPool, TcpConnection

def client_id(one):
    one.send_command("CLIENT", "ID")
    return one.read_response()

options = {"connection_class": TcpConnection, "max_connections": 2, "timeout": 0.1}
pool = LeanPool.from_url(sys.argv[1], protocol=2, **options)
held, free = pool.get_connection(), pool.get_connection()
before = {client_id(held), client_id(free)}
pool.release(free)
if os.fork() == 0:
    pool.release(held)
    mine = {client_id(pool.get_connection()), client_id(pool.get_connection())}
    os._exit(len(mine & before) + 10 * (pool.pool.qsize() != 0))
assert os.wait()[1] == 0
pool.release(held)
assert {client_id(pool.get_connection()), client_id(pool.get_connection())} == before
"""


@pytest.fixture
def pool(valkey: Valkey) -> Iterator[LeanPool]:
    """A pool of SIZE connections."""
    one = make_pool(valkey.url)
    yield one
    one.disconnect()


def make_pool(url: str) -> LeanPool:
    """A pool that waits only for a moment."""
    made: LeanPool = LeanPool.from_url(
        url, connection_class=TcpConnection, max_connections=SIZE, timeout=0.05, protocol=2
    )
    return made


def test_as_many_as_there_may_be(pool: LeanPool) -> None:
    """One more than SIZE is refused after the timeout, by an error that tells it from others."""
    held = [pool.get_connection() for _ in range(SIZE)]
    assert held[0] is not held[1]
    with pytest.raises(redis.ConnectionError) as raised:
        pool.get_connection()
    assert isinstance(raised.value.__context__, queue.Empty)
    pool.release(held[0])
    assert pool.get_connection() is held[0]
    for one in held:
        pool.release(one)


def test_what_can_not_connect_keeps_its_place() -> None:
    """However often nobody answers, as many may be tried as before."""
    pool = make_pool("redis://127.0.0.1:1")
    for _ in range(3 * SIZE):
        with pytest.raises(redis.ConnectionError) as raised:
            pool.get_connection()
        assert not isinstance(raised.value.__context__, queue.Empty)
    assert pool.pool.qsize() == SIZE


@pytest.mark.parametrize("unasked", [False, True], ids=["closed", "unasked"])
def test_what_is_of_no_use_is_replaced(pool: LeanPool, valkey: Valkey, unasked: bool) -> None:
    """A connection that Redis has closed, or on which an answer waits that nobody has asked for."""
    one = pool.get_connection()
    one.send_command("CLIENT", "ID")
    client = one.read_response()
    if unasked:
        one.send_command("PING")  # and nobody reads what comes
    pool.release(one)
    if not unasked:
        valkey.cli("CLIENT", "KILL", "ID", str(client))
    again = pool.get_connection()
    again.send_command("CLIENT", "ID")
    assert again.read_response() != client
    pool.release(again)


def test_a_forked_process_has_its_own(valkey: Valkey) -> None:
    """It uses none of those that it has inherited, and drops the one that was in use."""
    subprocess.run([sys.executable, "-c", FORKING, valkey.url], check=True, timeout=20)
