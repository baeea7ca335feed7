"""A running service as its clients see it: requests and streams over HTTP, by its URL."""

from __future__ import annotations

import json
import socket
import ssl
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from email.message import Message as EmailMessage
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import quote

from service.setting_rules import split_url
from service.sse import Message, Parser

MAX_ANSWER_BYTES = 1_048_576
"""How much of an answer is read; none of ours is nearly as long."""

READ_BYTES = 65_536

AGENT = "pushline"
"""Not one of those to whose decoders gzip isn't given."""

Connect = Callable[[str, int, bool, float], Any]
"""Makes a socket to host and port, with TLS or not, within seconds; raises OSError."""


def connect_plainly(host: str, port: int, tls: bool, seconds: float) -> socket.socket:
    """A socket of the standard library; the seconds hold for each later read too."""
    plain = socket.create_connection((host, port), seconds)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not tls:
        return plain
    try:
        return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


@dataclass(frozen=True, slots=True)
class RemoteAnswer:
    """An answer, read whole."""

    status: int
    headers: EmailMessage[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The object that the body is; an empty one if it is none."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def code(self) -> str:
        """The stable code of a problem, else the status."""
        return str(self.json().get("code", self.status))


class Remote:
    """A service at `url`, asked over a new connection each time. `token` is shown where wanted.

    All of it raises OSError and HTTPException when there is no answer within `seconds`.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        seconds: float = 3.0,
        connect: Connect = connect_plainly,
    ) -> None:
        """Raises ValueError, which doesn't repeat the URL."""
        parts = split_url(url, "https", "http")
        if parts.query or parts.fragment:
            raise ValueError("it has a query")
        self.tls = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.tls else 80)
        self.url = url.rstrip("/")
        self.token = token
        self._netloc = parts.netloc
        self._base = parts.path.rstrip("/")
        self.seconds = seconds
        self._connect = connect

    def connection(self) -> HTTPConnection:
        """A new connection, for several requests: until its `sock` is None, as it is closed."""
        made = HTTPConnection(self.host, self.port, self.seconds)
        made.auto_open = 0  # it would connect anew by itself, in clear text
        made.sock = self._connect(self.host, self.port, self.tls, self.seconds)
        return made

    def request(
        self,
        connection: HTTPConnection,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HTTPResponse:
        """Send a request; returns when the head of the answer has come."""
        own = {"Host": self._netloc, "User-Agent": AGENT, "Accept-Encoding": "identity"}
        connection.request(method, self._base + path, body, {**own, **(headers or {})})
        return connection.getresponse()

    def authorization(self) -> dict[str, str]:
        """The header that shows the token, if there is one."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> RemoteAnswer:
        """Ask once, and read the answer."""
        with closing(self.connection()) as connection:
            response = self.request(connection, method, path, body, headers)
            answer = response.read(MAX_ANSWER_BYTES)
            return RemoteAnswer(response.status, response.headers, answer)

    def publish(self, channel: str, data: bytes, *, show: bool = True) -> RemoteAnswer:
        """Publish one event that is delivered live only; `show` the token with it."""
        shown = self.authorization() if show else {}
        return self.ask("POST", f"/channels/{quote(channel)}?history=0", data, shown)

    def stream(self, channel: str, coding: str = "identity") -> RemoteStream:
        """Open a stream, and show the token; returns when its head has come, whatever it says."""
        connection = self.connection()
        transport = connection.sock  # the connection lets go of it where only one answer may come
        try:
            path = f"/stream?channel={quote(channel)}"
            headers = {"Accept": "text/event-stream", "Accept-Encoding": coding}
            headers |= self.authorization()
            response = self.request(connection, "GET", path, None, headers)
            return RemoteStream(connection, response, transport)
        except BaseException:
            connection.close()
            raise


class RemoteStream:
    """A stream, or the answer that says why there is none. Closed by `close`, or `with`."""

    def __init__(
        self, connection: HTTPConnection, response: HTTPResponse, transport: socket.socket
    ) -> None:
        self._connection = connection
        self._response = response
        self._transport = transport
        self.coding = response.headers.get("Content-Encoding", "identity").lower()
        self._unpack = _unpacker() if self.coding == "gzip" else bytes
        self._parser = Parser()
        self.status = response.status
        self.headers = response.headers

    @property
    def opened(self) -> bool:
        """Whether this is a stream, and no refusal, hard or soft."""
        return self.status == 200 and "Pushline-Stream" in self.headers

    @property
    def overloaded(self) -> bool:
        """Whether this is a soft refusal: a stream that only tells to come back later."""
        kind = self.headers.get_content_type()
        return self.status == 200 and not self.opened and kind == "text/event-stream"

    def read_code(self) -> str:
        """Why there is no stream: the code of a problem, else the status and what came instead."""
        if self.overloaded:
            return "overloaded"
        if self.status == 200:
            return f"an answer of {self.headers.get_content_type()}"
        body = self._response.read(MAX_ANSWER_BYTES)
        return RemoteAnswer(self.status, self.headers, body).code

    def wait_up_to(self, seconds: float) -> None:
        """Let the next reads wait for no longer than `seconds`, which are above 0."""
        self._transport.settimeout(seconds)

    def read(self) -> bytes:
        """The next bytes of text, as soon as there are any; empty at the end.

        Raises OSError, a timeout among it, and HTTPException.
        """
        while data := self._response.read1(READ_BYTES):
            if text := self._unpack(data):
                return text
        return b""

    def messages(self, data: bytes) -> Iterator[Message]:
        """The events that `data`, the next bytes, completes."""
        return self._parser.feed(data)

    def close(self) -> None:
        """Close the connection."""
        self._response.close()
        self._connection.close()

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _unpacker() -> Callable[[bytes], bytes]:
    unpack = zlib.decompressobj(wbits=31).decompress

    def feed(data: bytes) -> bytes:
        try:
            return unpack(data)
        except zlib.error:
            raise HTTPException("it is not gzip") from None

    return feed


def reason_of(error: OSError | HTTPException) -> str:
    """Why there was no answer, in a few words that hold nothing of a request."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "it does not speak TLS as this machine does"
    if isinstance(error, socket.gaierror):
        return "no such host is known"
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, HTTPException):
        return f"it answers no HTTP ({type(error).__name__})"
    return error.strerror or type(error).__name__
