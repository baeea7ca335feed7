"""The fault proxy itself: each fault does what it says, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.fault_proxy import FaultProxy, Target

SHORT = 0.2
"""How long something that must not happen is waited for."""


class Echo:
    """A server that sends everything back, on TCP or a unix socket."""

    def __init__(self, unix: Path | None = None) -> None:
        if unix is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
        else:
            self._listener = socket.create_server(str(unix), family=socket.AF_UNIX)
        self.target: Target = str(unix) if unix else self._listener.getsockname()
        self.ended: list[str] = []
        self._closed = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self._closed:
                sock.close()
                return
            self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65536):
                    sock.sendall(data)
                self.ended.append("fin")
            except ConnectionError:
                self.ended.append("rst")

    def close(self) -> None:
        """Stop; its connections must have ended."""
        self._closed = True
        family = socket.AF_UNIX if isinstance(self.target, str) else socket.AF_INET
        with socket.socket(family) as last:
            last.connect(self.target)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    """Run an echo server."""
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    """Run a proxy before the echo server."""
    with FaultProxy(echo.target) as running:
        yield running


def connect(proxy: FaultProxy) -> socket.socket:
    """Connect to the proxy."""
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def receive(sock: socket.socket, size: int) -> bytes:
    """Return exactly `size` bytes."""
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"closed after {data!r}"
        data += piece
    return data


def echoed(sock: socket.socket, data: bytes = b"hello") -> bool:
    """Send, and say whether the same came back."""
    sock.sendall(data)
    return receive(sock, len(data)) == data


def silent(sock: socket.socket) -> bool:
    """Say whether nothing comes, not even an end."""
    sock.settimeout(SHORT)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(5)
    return False


def within(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_passing(proxy: FaultProxy, echo: Echo) -> None:
    """Without a fault everything passes, in both directions, however much it is."""
    big = bytes(range(256)) * 8192
    with connect(proxy) as one, connect(proxy) as two:
        assert echoed(one)
        assert echoed(two, b"other")
        sender = threading.Thread(target=one.sendall, args=(big,))
        sender.start()
        assert receive(one, len(big)) == big
        sender.join()
        assert (proxy.connections, proxy.open_connections) == (2, 2)
    assert proxy.passed == [len(big) + 10, len(big) + 10]
    assert within(lambda: echo.ended == ["fin", "fin"])
    assert within(lambda: proxy.open_connections == 0)


def test_ends_pass(proxy: FaultProxy, echo: Echo) -> None:
    """A half-closed connection still gets its reply; then both sides end."""
    with connect(proxy) as sock:
        sock.sendall(b"last words")
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock, 10) == b"last words"
        assert sock.recv(1) == b""
    assert within(lambda: echo.ended == ["fin"])


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_cutting(proxy: FaultProxy, echo: Echo, how: str) -> None:
    """Connections are cut with FIN or RST on both sides; new ones work."""
    with connect(proxy) as one, connect(proxy) as two:
        assert echoed(one)
        assert echoed(two)
        assert proxy.cut("fin" if how == "fin" else "rst") == 2
        for sock in (one, two):
            if how == "fin":
                assert sock.recv(1) == b""
            else:
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
    assert within(lambda: echo.ended == [how, how])
    with connect(proxy) as sock:
        assert echoed(sock)


def test_freezing(proxy: FaultProxy, echo: Echo) -> None:
    """Frozen, old and new connections live and get nothing; thawed, they go on without a loss."""
    with connect(proxy) as old:
        assert echoed(old)
        proxy.freeze()
        old.sendall(b"one")
        assert silent(old)
        with connect(proxy) as new:
            new.sendall(b"two")
            assert silent(new)
            proxy.thaw()
            assert receive(old, 3) == b"one"
            assert receive(new, 3) == b"two"


def test_freezing_only_what_is_there(proxy: FaultProxy) -> None:
    """New connections can work while the old ones are frozen, ends included."""
    with connect(proxy) as old:
        assert echoed(old)
        proxy.freeze(new_too=False)
        with connect(proxy) as new:
            assert echoed(new)
        old.shutdown(socket.SHUT_WR)
        assert silent(old)
        assert proxy.open_connections >= 1
        proxy.heal()
        assert old.recv(1) == b""


def test_a_frozen_connection_holds_back(proxy: FaultProxy) -> None:
    """What is sent into a frozen connection fills its buffers, and then blocks."""
    with connect(proxy) as sock:
        proxy.freeze()
        sock.settimeout(SHORT)
        with pytest.raises(TimeoutError):
            sock.sendall(bytes(100_000_000))
        proxy.cut()


def test_refusing(proxy: FaultProxy) -> None:
    """New connections are refused, old ones go on, and the port is the same afterwards."""
    with connect(proxy) as old:
        assert echoed(old)
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert echoed(old)
        proxy.accept()
        with connect(proxy) as new:
            assert echoed(new)


def test_the_target_is_gone() -> None:
    """A target that refuses is a reset for the client, and the proxy survives."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = listener.getsockname()
    with FaultProxy(target) as proxy:
        for _ in range(3):
            with connect(proxy) as sock, pytest.raises(ConnectionResetError):
                sock.recv(1)


def answered(proxy: FaultProxy) -> str:
    """Ask once, and say what happened."""
    with connect(proxy) as sock:
        sock.settimeout(10 * SHORT)  # of which a busy machine may need a lot
        sock.sendall(b"ask")
        try:
            return sock.recv(10).decode() or "fin"
        except TimeoutError:
            return "hang"
        except ConnectionResetError:
            return "rst"


def test_swallowing_replies(echo: Echo) -> None:
    """Some replies are lost, the same with the same seed; every request has arrived."""
    runs = []
    for seed in (1, 1, 2):
        with FaultProxy(echo.target, seed=seed) as proxy:
            proxy.swallow_replies(0.3, "rst")
            runs.append([answered(proxy) for _ in range(100)])
            assert proxy.swallowed == runs[-1].count("rst")
            assert proxy.passed[0] == 300
    assert runs[0] == runs[1] != runs[2]
    assert all(15 <= run.count("rst") <= 45 and set(run) == {"ask", "rst"} for run in runs)


@pytest.mark.parametrize("then", ["hang", "fin", "rst"])
def test_after_a_swallowed_reply(proxy: FaultProxy, then: str) -> None:
    """The connection hangs or ends after it; healed, new ones work."""
    proxy.swallow_replies(1.0, "hang" if then == "hang" else "fin" if then == "fin" else "rst")
    assert answered(proxy) == then
    proxy.heal()
    assert answered(proxy) == "ask"


def test_a_mute_connection_stays_mute(proxy: FaultProxy) -> None:
    """After a lost reply no later one comes through as if it were the first."""
    with connect(proxy) as sock:
        proxy.swallow_replies(1.0)
        sock.sendall(b"one")
        assert within(lambda: proxy.swallowed == 1)
        proxy.heal()
        sock.sendall(b"two")
        assert silent(sock)


def test_dribbling(proxy: FaultProxy) -> None:
    """Bytes pass a few at a time, in order."""
    data = bytes(range(60))
    with connect(proxy) as sock:
        proxy.dribble(2, 0.005)
        started = time.monotonic()
        sock.sendall(data)
        pieces = [b""]
        while sum(len(piece) for piece in pieces) < len(data):
            pieces.append(sock.recv(100))
        assert b"".join(pieces) == data
        assert len(pieces) > 5
        assert 0.14 <= time.monotonic() - started < 5


def test_delaying(proxy: FaultProxy) -> None:
    """Everything comes later by the delay, and ends come after all else."""
    with connect(proxy) as sock:
        proxy.delay(0.1)
        started = time.monotonic()
        sock.sendall(b"slow")
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock, 4) == b"slow"
        assert 0.2 <= time.monotonic() - started < 5
        assert sock.recv(1) == b""


def test_unix_targets() -> None:
    """The target may be a unix socket."""
    with tempfile.TemporaryDirectory() as folder:
        echo = Echo(Path(folder) / "s")
        with FaultProxy(echo.target) as proxy, connect(proxy) as sock:
            assert echoed(sock)
        echo.close()


def test_tls(echo: Echo, tmp_path: Path) -> None:
    """With a certificate the proxy speaks TLS to clients and plain TCP to the target."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    big = bytes(range(256)) * 2048
    with FaultProxy(echo.target, tls=(tmp_path / "cert.pem", tmp_path / "key.pem")) as proxy:
        with context.wrap_socket(connect(proxy), server_hostname="localhost") as sock:
            assert echoed(sock)
            proxy.freeze()
            sock.sendall(big)
            assert silent(sock)
            proxy.thaw()
            assert receive(sock, len(big)) == big
            assert proxy.cut() == 1
            assert ended(sock)
        with connect(proxy) as sock:
            sock.sendall(b"not TLS at all\r\n\r\n")
            assert ended(sock)


def ended(sock: socket.socket) -> bool:
    """Say whether the connection ends, whatever comes before."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def test_many_connections(proxy: FaultProxy) -> None:
    """Hundreds of connections pass and are cut at once."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(proxy)) for _ in range(300)]
        assert all(map(echoed, socks))
        assert proxy.cut() == 300


def test_closing_frees_everything(echo: Echo) -> None:
    """A closed proxy has no thread, no port and no connection left."""
    proxy = FaultProxy(echo.target)
    with connect(proxy) as sock:
        assert echoed(sock)
        proxy.close()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
    proxy.close()
