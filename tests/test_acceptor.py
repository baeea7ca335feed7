"""A listening socket: who serves its connections, and its end, at which nobody is reset."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent.event import Event
from gevent.pool import Pool

from service.acceptor import Acceptor
from tests.live_server import until

WAITING = 5

Handle = Callable[[Any, socket.socket, object], None]
Make = Callable[..., tuple[Acceptor, tuple[str, int]]]


@pytest.fixture
def names() -> list[Any]:
    """Where connections came in."""
    return []


@pytest.fixture
def make(names: list[Any]) -> Iterator[Make]:
    """Makes one that answers its clients, but does not look at its queue; with its address."""
    made: list[Acceptor] = []

    def answer(address: Any, client: socket.socket, peer: object) -> None:
        names.append(address.getsockname())
        client.sendall(b"served")

    def one(
        pool: Pool | None = None, handle: Handle = answer, **more: Any
    ) -> tuple[Acceptor, tuple[str, int]]:
        listener = socket.create_server(("127.0.0.1", 0))
        room = Pool() if pool is None else pool
        acceptor = Acceptor(handle, listener, alone=True, spawn=room, **more)
        acceptor.start()
        acceptor.stop_accepting()
        made.append(acceptor)
        return acceptor, listener.getsockname()

    yield one
    for acceptor in made:
        acceptor.stop(timeout=0)


def connect(address: tuple[str, int], count: int = WAITING) -> list[socket.socket]:
    """Open so many connections without letting others run; reading of them times out."""
    clients = []
    for _ in range(count):
        client = monkey.get_original("socket", "socket")()
        client.connect(address)
        clients.append(socket.socket(fileno=client.detach()))
        clients[-1].settimeout(2)
    return clients


def answers(clients: list[socket.socket]) -> list[bytes]:
    """What each of them is told; closes them."""
    told = [client.recv(100) for client in clients]
    for client in clients:
        client.close()
    return told


class Tls:
    """What gevent needs of an ssl.SSLContext."""

    def wrap_socket(self, client: socket.socket, *, server_side: bool) -> socket.socket:
        """A socket for the same connection."""
        return socket.socket(fileno=client.detach())


@pytest.mark.parametrize("more", [{}, {"ssl_context": Tls()}], ids=["plain", "tls"])
def test_who_waits_at_the_end_is_served(make: Make, names: list[Any], more: dict[str, Any]) -> None:
    """Closing takes all that are in the queue first, and they learn where they have come in."""
    acceptor, address = make(**more)
    clients = connect(address)
    acceptor.close()
    assert acceptor.closed
    assert answers(clients) == [b"served"] * WAITING
    assert names == [address] * WAITING
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
    assert (acceptor.closed, names) == (True, [])


def test_a_greenlet_serves_those_who_come_together(make: Make) -> None:
    """Making one for each takes 15 µs of the 180 that opening a stream does."""
    greenlets = set()

    def handle(_: object, client: socket.socket, peer: object) -> None:
        greenlets.add(gevent.getcurrent())
        client.sendall(b"served")

    acceptor, address = make(handle=handle)
    clients = connect(address)
    acceptor.start_accepting()
    assert answers(clients) == [b"served"] * WAITING
    assert len(greenlets) == 1


@pytest.mark.parametrize("room", [1, 2, 3, None])
def test_who_waits_holds_up_nobody(make: Make, room: int | None) -> None:
    """The next ones are served while one waits; where there is no room for them, when it is done.

    Until then they stay in the kernel's queue, where other workers may find them.
    """
    go_on, begun = Event(), []

    def handle(_: object, client: socket.socket, peer: object) -> None:
        begun.append(client)
        if len(begun) <= 2:
            go_on.wait(5)
        client.sendall(b"served")

    acceptor, address = make(Pool(room), handle)
    clients = connect(address)
    acceptor.start_accepting()
    at_once = WAITING if room is None or room > 2 else room
    until(lambda: len(begun) == at_once, 2, "those for whom there is room are served")
    gevent.sleep(0.05)
    assert len(begun) == at_once
    assert not acceptor._accepted
    go_on.set()
    assert answers(clients) == [b"served"] * WAITING


def test_a_stop_waits_for_all(make: Make) -> None:
    """Each connection that is taken at the end is in the pool, which gunicorn waits for."""
    go_on, pool = Event(), Pool(WAITING)

    def handle(_: object, client: socket.socket, peer: object) -> None:
        go_on.wait(5)
        client.sendall(b"served")

    acceptor, address = make(pool, handle)
    clients = connect(address)
    acceptor.close()
    assert pool.free_count() < WAITING
    until(pool.full, 2, "each has a greenlet")
    go_on.set()
    pool.join()
    assert answers(clients) == [b"served"] * WAITING


def test_an_error_is_its_own_connections(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are served, and its client is not left waiting."""
    begun = []

    def handle(_: object, client: socket.socket, peer: object) -> None:
        begun.append(client)
        if len(begun) == 2:
            raise ZeroDivisionError
        client.sendall(b"served")

    acceptor, address = make(handle=handle)
    clients = connect(address)
    acceptor.start_accepting()
    assert sorted(answers(clients)) == [b""] + [b"served"] * (WAITING - 1)
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("waiters", [0, 10])
def test_others_run_while_many_are_served(make: Make, waiters: int) -> None:
    """Connections none of which waits for anything don't have the worker to themselves for over a
    slice, or for two if it is those of one accept and the next; nor do greenlets that have waited.
    """
    begun, order = [], []

    def handle(_: object, client: socket.socket, peer: object) -> None:
        begun.append(client)
        if len(begun) <= waiters:
            gevent.sleep(0.02)
        order.append("served")
        enough = time.thread_time() + 0.003
        while time.thread_time() < enough:
            pass
        client.sendall(b"served")

    def tick() -> None:
        while True:
            order.append("other")
            gevent.sleep(0.0001)

    acceptor, address = make(handle=handle)
    acceptor.max_accept = 100 if waiters else 10
    clients = connect(address, 20 * WAITING)
    other = gevent.spawn(tick)
    try:
        acceptor.start_accepting()
        assert answers(clients) == [b"served"] * 20 * WAITING
    finally:
        other.kill()
    print(order)
    runs = [len(list(run)) for one, run in groupby(order) if one == "served"]
    # Each waiter has its own 3 ms when all of them wake up, but no slice of the others' after it.
    assert max(runs) <= max(2 * 3, waiters + 3)
