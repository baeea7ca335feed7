"""AUTHORIZE_URL itself: one question, one answer over HTTP, and no more of it than is allowed."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import urlencode

from service.errors import CannotAuthorize, ConfigError
from service.setting_rules import split_url

MAX_ANSWER_BYTES = 65_536
"""Size of an answer's body."""


class Endpoint:
    """An http:// or https:// URL, asked over a new connection each time."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError; its message doesn't repeat the URL, which may hold a secret."""
        try:
            parts = split_url(url, "https", "http")
        except ValueError:
            raise ConfigError(
                "AUTHORIZE_URL must be a URL with http:// or https:// and a host,"
                " without user and password"
            ) from None
        self.host = parts.netloc
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address = parts.hostname or "", parts.port or (443 if self._tls else 80)
        self._path, self._query = parts.path or "/", parts.query

    def target(self, channels: Sequence[str]) -> str:
        """The path, and the query with `channels` added."""
        added = urlencode([("channel", channel) for channel in channels])
        return f"{self._path}?{self._query}&{added}" if self._query else f"{self._path}?{added}"

    def get(self, target: str, headers: Sequence[tuple[str, str]]) -> tuple[int, bytes]:
        """The answer's status, and the body of a 200; neither redirects nor proxies are followed.

        Raises OSError, HTTPException or CannotAuthorize.
        """
        own = {"Accept": "application/json", "Connection": "close"}
        connection = (
            _TlsConnection(*self._address, self._tls)
            if self._tls
            else HTTPConnection(*self._address)
        )
        with closing(connection):
            connection.request("GET", target, headers={**dict(headers), **own})
            with connection.getresponse() as response:
                return response.status, _body(response) if response.status == 200 else b""


def _body(response: HTTPResponse) -> bytes:
    """All of the body. As an empty one allows, it must be sure that this is all."""
    sized = response.chunked or response.length is not None
    buffer = bytearray(MAX_ANSWER_BYTES + 1)  # read() would trust a chunk of a negative size
    body = bytes(buffer[: response.readinto(buffer)])
    if len(body) > MAX_ANSWER_BYTES:
        raise CannotAuthorize(f"AUTHORIZE_URL answered with over {MAX_ANSWER_BYTES} bytes")
    if response.length or not (sized or body.strip()):
        raise HTTPException("the body may have been cut off")
    return body


class _TlsConnection(HTTPConnection):
    """What HTTPSConnection is, but a handshake that a timeout ends leaves no open socket behind."""

    default_port = 443

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(host, port)
        self._tls = context

    def connect(self) -> None:
        """Connect and shake hands."""
        super().connect()
        self.sock = wrapped = self._tls.wrap_socket(
            self.sock, server_hostname=self.host, do_handshake_on_connect=False
        )
        wrapped.do_handshake()
