"""The end of a listening socket: nobody who has connected is reset."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.pool import Pool

from service.acceptor import Acceptor

WAITING = 5

Make = Callable[..., tuple[Acceptor, tuple[str, int]]]


@pytest.fixture
def names() -> list[Any]:
    """Where connections came in."""
    return []


@pytest.fixture
def make(names: list[Any]) -> Iterator[Make]:
    """Makes one that answers its clients, but does not look at its queue; with its address."""
    pool = Pool()

    def handle(address: Any, client: socket.socket, peer: object) -> None:
        names.append(address.getsockname())
        client.sendall(b"served")

    def one(pool: Pool = pool) -> tuple[Acceptor, tuple[str, int]]:
        listener = socket.create_server(("127.0.0.1", 0))
        acceptor = Acceptor(handle, listener, alone=True, spawn=pool)
        acceptor.start()
        acceptor.stop_accepting()
        return acceptor, listener.getsockname()

    yield one
    pool.kill()


def test_who_waits_at_the_end_is_served(make: Make, names: list[Any]) -> None:
    """Closing takes all that are in the queue first, and they learn where they have come in."""
    acceptor, address = make()
    clients = [socket.create_connection(address, timeout=2) for _ in range(WAITING)]
    acceptor.close()
    assert acceptor.closed
    assert [client.recv(100) for client in clients] == [b"served"] * WAITING
    assert names == [address] * WAITING
    for client in clients:
        client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=2)


def test_a_full_worker_takes_nobody(make: Make, names: list[Any]) -> None:
    """Where there is no room for more, closing doesn't wait; and it may come twice."""
    pool = Pool(1)
    acceptor, address = make(pool)
    pool.spawn(gevent.sleep, 60)
    with socket.create_connection(address, timeout=2):
        acceptor.close()
        acceptor.close()
    pool.kill()
    assert (acceptor.closed, names) == (True, [])
