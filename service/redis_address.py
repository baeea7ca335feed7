"""Where Redis is: the URL, the master that Sentinels name, and how to connect to it."""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import unquote

CONNECT_SECONDS = 5.0
"""How long connecting may take, name look-up and TLS included."""

SENTINEL_SECONDS = 1.0
"""How long one Sentinel may take to name the master; then the next one is asked."""

_URL = re.compile(
    r"(?P<scheme>rediss?|rediss?\+sentinel)://"
    r"(?:(?P<username>[^:@/]*)(?::(?P<password>[^@/]*))?@)?"
    r"(?P<hosts>[^/?@]+)(?:/(?P<path>[^?]*))?"
)
_UNIX = re.compile(r"unix://(?:(?P<username>[^:@/]*)(?::(?P<password>[^@/]*))?@)?(?P<path>/[^?]+)")
_HOST = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]+)(?::(?P<port>\d{1,5}))?")
_MASTER = re.compile(rb"\*2\r\n\$\d+\r\n(?P<host>[^\r\n]+)\r\n\$\d+\r\n(?P<port>\d+)\r\n")


class LinkLost(OSError):
    """A connection to Redis is unusable, or can't be had; the message says why.

    `reason` is one of LOST_REASONS (counts.py).
    """

    def __init__(self, why: str = "", *, reason: str = "error") -> None:
        super().__init__(why)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a Redis is and how to log in, read from its URL.

    `hosts` has one (host, port), or those of the Sentinels that know `master`.
    """

    hosts: tuple[tuple[str, int], ...]
    path: str | None = None
    master: str | None = None
    tls: bool = False
    username: str | None = None
    password: str | None = None
    database: int = 0

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Read a URL: redis://, rediss:// or unix://, or with Sentinels
        redis+sentinel://host:port,host:port/master/database. Raises ValueError.
        """
        if match := _UNIX.fullmatch(url):
            return cls(
                (),
                unquote(match["path"]),
                username=_given(match, "username"),
                password=_given(match, "password"),
            )
        match = _URL.fullmatch(url)
        if match is None:
            raise ValueError(f"not a Redis URL: {url.split('://')[0]}://")
        sentinel = match["scheme"].endswith("+sentinel")
        port = 26379 if sentinel else 6379
        hosts = tuple(_host(text, port) for text in match["hosts"].split(","))
        *names, database = f"/{match['path'] or ''}".rsplit("/", 1)
        master = None
        if sentinel:
            name = names[0].strip("/")
            master, database = (name, database) if name else (database, "")
        if (len(hosts) > 1 or sentinel) and not master:
            raise ValueError("with Sentinels the URL's path is /master or /master/database")
        return cls(
            hosts,
            master=master,
            tls=match["scheme"].startswith("rediss"),
            database=int(database or 0),
            username=_given(match, "username"),
            password=_given(match, "password"),
        )

    def __str__(self) -> str:
        """The address for logs, without credentials."""
        return self.path or ",".join(f"{host}:{port}" for host, port in self.hosts)

    def locate(self) -> tuple[str, int]:
        """Where the master is now; raises LinkLost when no Sentinel knows."""
        if self.master is None:
            return self.hosts[0]
        for sentinel in self.hosts:
            try:
                return _ask_for_master(sentinel, self.master)
            except OSError as error:
                why = error
        raise LinkLost(f"no Sentinel names the master {self.master}: {why}")

    def connect(self, tls_verify: bool) -> socket.socket:
        """Open a connection to the master; raises OSError."""
        if self.path is not None:
            return _connect_unix(self.path)
        host, port = self.locate()
        plain = socket.create_connection((host, port), CONNECT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if not self.tls:
            return plain
        try:
            return tls_context(tls_verify).wrap_socket(plain, server_hostname=host)
        except OSError:
            plain.close()
            raise


def _given(match: re.Match[str], name: str) -> str | None:
    return unquote(match[name]) if match[name] else None


def _host(text: str, default_port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None or int(match["port"] or 1) > 65535:
        raise ValueError(f"not a host and port: {text}")
    return match["host"].strip("[]"), int(match["port"] or default_port)


def _connect_unix(path: str) -> socket.socket:
    plain = socket.socket(socket.AF_UNIX)
    plain.settimeout(CONNECT_SECONDS)
    try:
        plain.connect(path)
    except OSError:
        plain.close()
        raise
    return plain


def _ask_for_master(sentinel: tuple[str, int], master: str) -> tuple[str, int]:
    with socket.create_connection(sentinel, SENTINEL_SECONDS) as asked:
        asked.sendall(f"SENTINEL get-master-addr-by-name {master}\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n") or (
            answer.startswith(b"*2") and answer.count(b"\n") < 5
        ):
            data = asked.recv(4096)
            if not data:
                break
            answer += data
    match = _MASTER.fullmatch(answer)
    if match is None:
        raise LinkLost(f"a Sentinel does not know {master}")
    return match["host"].decode(), int(match["port"])


def tls_context(verify: bool) -> ssl.SSLContext:
    """How rediss:// is checked; Heroku's servers have self-signed certificates."""
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
