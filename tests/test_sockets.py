"""Handed-over sockets, real ones: who is noticed, who is written to, and when a number is free."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from gevent import monkey

from service.batch import LAST_CHUNK, Batch
from service.settings import raise_file_limit
from service.sockets import EVENTS_PER_POLL, SEND_BUFFER_BYTES, SUPPORTED, Sockets
from service.subscriber import GONE, Ending, Subscriber
from service.view import Selection
from tests.encodings import CHUNKED, framing
from tests.live_server import until

if not SUPPORTED:
    pytest.skip("only Linux has epoll", allow_module_level=True)

OUTBOX_BYTES = 10_000_000
SEND_TIMEOUT_SECONDS = 2.5

Pair = tuple[socket.socket, socket.socket]

really_close = monkey.get_original("os", "close")  # gevent's own waits for its loop


class Bench:
    """A `Sockets` with a record of who ended, and the client ends of its streams."""

    def __init__(self) -> None:
        self.ended: list[Subscriber] = []
        self.slow: set[Subscriber] = set()
        self.on_end: Callable[[Subscriber], None] = lambda _: None
        self.sockets = Sockets(
            self._note,
            self.slow,
            outbox_bytes=OUTBOX_BYTES,
            send_timeout_seconds=SEND_TIMEOUT_SECONDS,
        )
        self.clients: list[socket.socket] = []
        self.polls = 0

    def _note(self, subscriber: Subscriber) -> None:
        self.ended.append(subscriber)
        self.on_end(subscriber)

    def adopt(self, server: socket.socket, *, chunked: bool = False) -> Subscriber:
        """Take a connection over and watch it."""
        fd = self.sockets.take_over(server)
        subscriber = Subscriber(self.sockets, fd, Selection(("a",)), "", encoding=framing(chunked))
        self.sockets.watch(subscriber)
        return subscriber

    def stream(self, connected: Callable[[], Pair] | None = None) -> Subscriber:
        """Open a stream whose client end is the last of `clients`."""
        server, client = (connected or socket.socketpair)()
        self.clients.append(client)
        return self.adopt(server)

    def interest(self, fd: int) -> int:
        """The events that the kernel was asked to report for `fd`."""
        epoll = self.sockets._epoll.fileno()
        text = Path(f"/proc/self/fdinfo/{epoll}").read_text()
        match = re.search(rf"tfd:\s+{fd} events:\s+([0-9a-f]+)", text)
        assert match is not None, f"{fd} is not watched"
        return int(match[1], 16)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve in a greenlet, as the worker does, and count the polls."""
        poll = self.sockets.poll

        def counted() -> None:
            self.polls += 1
            poll()

        self.sockets.poll = counted  # type: ignore[method-assign]
        greenlet = gevent.spawn(self.sockets.run)
        gevent.sleep(0)
        try:
            yield
        finally:
            greenlet.kill()

    def close(self) -> None:
        """End every stream and close what the tests hold."""
        for subscriber in list(self.sockets._subscribers.values()):
            subscriber.end(Ending.CLIENT_LEFT)
        for client in self.clients:
            client.close()
        self.sockets._epoll.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A bench that is emptied at the end."""
    bench = Bench()
    yield bench
    bench.close()


def tcp_pair(prepare: Callable[[socket.socket], None] = lambda _: None) -> Pair:
    """A connection over loopback: the server's end and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        prepare(listener)
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return server, client


def reset(client: socket.socket) -> None:
    """Leave with RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def read_to_end(client: socket.socket) -> bytes:
    """All that comes until the server closes; a reset is an error."""
    client.settimeout(5)
    data = b""
    while part := client.recv(1_000_000):
        data += part
    return data


# -------------------------------------------------------------------------------------- taking over


def test_a_taken_socket_belongs_to_the_service(bench: Bench) -> None:
    """The descriptor is detached, not duplicated: what its owner closes later is nothing, and the
    stream goes on.
    """
    server, client = tcp_pair(bench.sockets.prepare)
    bench.clients.append(client)
    number = server.fileno()

    subscriber = bench.adopt(server)
    server.close()

    assert subscriber.fd == number
    assert server.fileno() == -1
    subscriber.send(b"still here")
    assert client.recv(100) == b"still here"


def settings_of_another_time(listener: socket.socket) -> None:
    """What a listener that outlives a restart may still have."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 90_000)


@pytest.mark.parametrize("prepared", ["now", "never", "otherwise"])
def test_a_taken_tcp_socket_is_bounded(bench: Bench, prepared: str) -> None:
    """A stopped reader holds at most a small kernel buffer, a half-open connection ends by itself,
    events are sent at once, and no write blocks; also for who has connected before the start.
    """
    prepare = {
        "now": bench.sockets.prepare,
        "never": lambda _: None,
        "otherwise": settings_of_another_time,
    }
    server, client = tcp_pair(prepare[prepared])
    bench.clients.append(client)
    fd = bench.adopt(server).fd
    assert not os.get_blocking(fd)
    with socket.socket(fileno=os.dup(fd)) as taken:
        # The kernel doubles what it is asked for.
        assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * SEND_BUFFER_BYTES
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7500


def test_a_unix_socket_can_be_taken(bench: Bench) -> None:
    """Behind a proxy on a unix socket, streams are handed over as over TCP."""
    subscriber = bench.stream()
    subscriber.send(b"x")
    assert bench.clients[-1].recv(10) == b"x"


# ------------------------------------------------------------------------------ clients that vanish


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
@pytest.mark.parametrize("connected", [tcp_pair, socket.socketpair])
def test_a_vanished_client_is_noticed_without_traffic(
    bench: Bench, connected: Callable[[], Pair], leave: Callable[[socket.socket], None]
) -> None:
    """A client that leaves, with FIN or with RST, is released at once; nothing need be written."""
    subscriber = bench.stream(connected)
    number = subscriber.fd
    with bench.running():
        leave(bench.clients[-1])
        until(lambda: bench.ended, 1, "the client is noticed")
    assert bench.ended == [subscriber]
    assert (subscriber.ending, subscriber.fd) == (Ending.CLIENT_LEFT, GONE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_client_that_left_before_it_is_watched(bench: Bench) -> None:
    """A client that left while its stream was being opened is noticed as well."""
    server, client = tcp_pair(bench.sockets.prepare)
    client.close()
    gevent.sleep(0.01)
    subscriber = bench.adopt(server)
    bench.sockets.poll()
    assert bench.ended == [subscriber]


def test_very_many_vanish_at_once(bench: Bench) -> None:
    """More clients than one poll reports are all released, in several polls."""
    raise_file_limit()
    count = EVENTS_PER_POLL + 100
    subscribers = [bench.stream() for _ in range(count)]
    for client in bench.clients:
        client.close()

    bench.sockets.poll()
    assert len(bench.ended) == EVENTS_PER_POLL
    bench.sockets.poll()

    assert set(bench.ended) == set(subscribers)


def test_a_write_to_a_vanished_client_ends_its_stream(bench: Bench) -> None:
    """A client whose end was not yet seen is found by the write, and ends only once."""
    subscriber = bench.stream()
    bench.clients[-1].close()
    subscriber.send(b"x")
    bench.sockets.poll()
    assert bench.ended == [subscriber]
    assert subscriber.ending is Ending.CLIENT_LEFT


def test_an_unread_byte_does_not_spin(bench: Bench) -> None:
    """What a client sends after its request is never read, and never wakes the worker."""
    bench.stream(tcp_pair)
    with bench.running():
        bench.clients[-1].sendall(b"GET / HTTP/1.1\r\n")
        gevent.sleep(0.05)
        polls, used = bench.polls, time.process_time()
        gevent.sleep(0.5)
        assert bench.polls - polls <= 1
        assert time.process_time() - used < 0.1
    assert bench.ended == []


# ----------------------------------------------------------------------------------------- backlogs


def test_the_kernel_is_asked_for_room_only_with_a_backlog(bench: Bench) -> None:
    """Watched is the hang-up alone, room only while something is unsent, input never."""
    subscriber = bench.stream()
    asked = select.EPOLLRDHUP | select.EPOLLOUT | select.EPOLLIN
    assert bench.interest(subscriber.fd) & asked == select.EPOLLRDHUP
    subscriber.send(b"fits")
    assert bench.interest(subscriber.fd) & asked == select.EPOLLRDHUP

    subscriber.send(b"x" * 1_000_000)
    assert bench.interest(subscriber.fd) & asked == select.EPOLLRDHUP | select.EPOLLOUT
    assert bench.slow == {subscriber}

    with bench.running():
        received = 0
        while received < 1_000_004:
            received += len(bench.clients[-1].recv(1_000_000))
        until(lambda: not bench.slow, 1, "the backlog is gone")
        assert bench.interest(subscriber.fd) & asked == select.EPOLLRDHUP
        polls = bench.polls
        gevent.sleep(0.1)
        assert bench.polls - polls <= 1


def test_a_backlog_arrives_whole_and_in_order(bench: Bench) -> None:
    """A client that reads late gets every byte in order, and the clean end."""
    server, client = tcp_pair(bench.sockets.prepare)
    bench.clients.append(client)
    subscriber = bench.adopt(server, chunked=True)
    batches = [Batch(bytes([n]) * 50_000) for n in range(40)]
    for batch in batches:
        subscriber.offer(batch)
    subscriber.finish(Ending.DRAINED)
    assert bench.slow == {subscriber}
    with bench.running():
        assert read_to_end(client) == b"".join(map(CHUNKED.encode, batches)) + LAST_CHUNK
    assert bench.ended == [subscriber]
    assert subscriber.ending is Ending.DRAINED
    assert bench.slow == set()


def test_a_slow_client_that_leaves_is_forgotten(bench: Bench) -> None:
    """A stream that ends with a backlog is no longer among the slow ones."""
    subscriber = bench.stream(tcp_pair)
    subscriber.send(b"x" * 5_000_000)
    reset(bench.clients[-1])
    with bench.running():
        until(lambda: bench.ended, 1, "the client is noticed")
    assert subscriber.ending is Ending.CLIENT_LEFT
    assert bench.slow == set()


def test_a_stopped_reader_holds_little_in_the_kernel(bench: Bench) -> None:
    """What a client doesn't read stays in the outbox, but for a bounded kernel buffer."""
    server, client = tcp_pair(bench.sockets.prepare)
    bench.clients.append(client)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    subscriber = bench.adopt(server)
    for _ in range(40):
        subscriber.send(b"x" * 65_536)
        bench.sockets.poll()
    taken = 40 * 65_536 - subscriber.unsent
    assert taken < 8 * SEND_BUFFER_BYTES


def test_the_last_bytes_are_not_lost_to_a_reset(bench: Bench) -> None:
    """A client that has sent something nobody read still gets the stream's last bytes."""
    server, client = tcp_pair(bench.sockets.prepare)
    bench.clients.append(client)
    subscriber = bench.adopt(server, chunked=True)
    client.sendall(b"unread")
    gevent.sleep(0.01)
    subscriber.finish(Ending.DRAINED, b"bye")
    assert read_to_end(client) == b"3\r\nbye\r\n0\r\n\r\n"


def test_the_end_is_told_at_once(bench: Bench) -> None:
    """A stream that ends is closed there and then, not when the event loop next wakes up."""
    subscriber = bench.stream()
    number = subscriber.fd
    subscriber.end(Ending.DRAINED)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


# ----------------------------------------------------------------------------------- reused numbers


def lowest_free() -> int:
    """The number that the next descriptor will get."""
    fd = os.open(os.devnull, os.O_RDONLY)
    really_close(fd)
    return fd


def test_a_number_is_free_only_when_nobody_holds(bench: Bench) -> None:
    """While somebody holds, a released descriptor stays taken, so nobody else gets its number;
    its client sees the end right after.
    """
    subscriber = bench.stream()
    number = subscriber.fd
    with bench.sockets.holding():
        with bench.sockets.holding():
            subscriber.end(Ending.TOO_SLOW)
            assert bench.ended == [subscriber]
            assert os.fstat(number)
        assert os.fstat(number), "the inner holder doesn't free what the outer one needs"
        assert lowest_free() != number
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    assert bench.clients[0].recv(10) == b""


def test_a_stranger_never_gets_the_bytes_of_another(bench: Bench) -> None:
    """A connection accepted while a batch is written gets none of it, although streams that the
    batch was meant for have just ended.
    """
    leaving, staying = bench.stream(), bench.stream()
    number = leaving.fd
    with bench.sockets.holding():
        receivers = (leaving, staying)
        leaving.end(Ending.CLIENT_LEFT)
        stranger = bench.stream()
        assert stranger.fd != number
        for subscriber in receivers:
            subscriber.offer(Batch(b"private"))
    bench.clients[2].settimeout(0.05)
    with pytest.raises(TimeoutError):
        bench.clients[2].recv(100)
    assert bench.clients[1].recv(100) == b"private"


def test_a_stranger_is_not_ended_by_an_old_poll_result(bench: Bench) -> None:
    """When the list of poll results still names a descriptor that was released meanwhile, no new
    connection has its number, and none is ended for it.
    """
    first, second = bench.stream(), bench.stream()
    strangers: list[Subscriber] = []
    fillers: list[int] = []

    def end_the_other(subscriber: Subscriber) -> None:
        bench.on_end = lambda _: None
        other = second if subscriber is first else first
        number = other.fd
        other.end(Ending.DRAINED)
        while lowest_free() < number:
            fillers.append(os.open(os.devnull, os.O_RDONLY))
        strangers.append(bench.stream())

    bench.on_end = end_the_other
    bench.clients[0].close()
    bench.clients[1].close()

    bench.sockets.poll()

    assert set(bench.ended) == {first, second}
    (stranger,) = strangers
    assert stranger.ending is None
    stranger.send(b"hello")
    assert bench.clients[2].recv(10) == b"hello"
    for filler in fillers:
        really_close(filler)


def test_the_hold_is_over_when_something_fails(bench: Bench) -> None:
    """An error inside a hold doesn't keep descriptors for ever."""
    subscriber = bench.stream()
    number = subscriber.fd

    def fail() -> None:
        with bench.sockets.holding():
            subscriber.end(Ending.TOO_SLOW)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
