"""Publishes and streams under gunicorn without WSGI, which takes it as long as all their rest.

A request is read by gunicorn; its environ and the answer's bytes are made here, as by gunicorn.
"""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Sequence
from email.utils import formatdate
from typing import Any, NamedTuple

from gunicorn import SERVER

from service.settings import process_environ

CHANNEL = "/channels/"
STREAM = "/stream"


class Answer(NamedTuple):
    """A whole answer: its status such as `200 OK`, its headers and its body."""

    status: str
    headers: Sequence[tuple[str, str]]
    body: bytes


def hot_channel(method: str, path: str) -> str | None:
    """The channel that a request publishes a text to; None when it does anything else."""
    if method != "POST" or not path.startswith(CHANNEL):
        return None
    channel = path[len(CHANNEL) :]
    return channel if channel and "/" not in channel else None


def is_hot(method: str, path: str) -> bool:
    """Whether a request is one of those that come most often."""
    return hot_channel(method, path) is not None or (method == "GET" and path == STREAM)


def environ_of(request: Any, address: Any) -> dict[str, Any] | None:
    """The environ (PEP 3333) of a plain request, as gunicorn has read it, from `address`.

    None for one with which gunicorn has more to do.
    """
    if (
        request.version != (1, 1)
        or "%" in request.path
        or request._expected_100_continue
        or request.proxy_protocol_info
        or isinstance(address, bytes)
        or _is_mounted()
    ):
        return None
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": address if isinstance(address, str) else address[0],
        "wsgi.url_scheme": request.scheme,
        "wsgi.input": request.body,
        "wsgi.input_terminated": True,
    }
    for name, value in request.headers:
        key = "HTTP_" + name.replace("-", "_")
        if key in environ or "_" in name:  # what comes twice is joined; trusted proxies set paths
            return None
        environ[key] = value
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if "HTTP_" + name in environ:
            environ[name] = environ.pop("HTTP_" + name)
    return environ if "HTTP_HOST" in environ else None


@functools.cache
def _is_mounted() -> bool:
    """Whether gunicorn takes the beginning of each path away."""
    return "SCRIPT_NAME" in process_environ()


def send(client: socket.socket, answer: Answer, *, closes: bool) -> None:
    """Send an answer in one packet; `closes` tells the client that it is the last."""
    lines = [
        f"HTTP/1.1 {answer.status}",
        f"Server: {SERVER}",
        f"Date: {http_date(int(time.time()))}",
        f"Connection: {'close' if closes else 'keep-alive'}",
        *[f"{name}: {value}" for name, value in answer.headers],
        "\r\n",
    ]
    send_whole(client, "\r\n".join(lines).encode("latin-1") + answer.body)


def send_whole(client: socket.socket, packet: bytes) -> None:
    """Send all of `packet`; gevent's own sendall begins with a look at the size of the buffer."""
    sent = client.send(packet)
    if sent < len(packet):
        client.sendall(packet[sent:])


@functools.lru_cache(maxsize=1)
def http_date(second: int) -> str:
    """A time in seconds since 1970 as HTTP writes it (RFC 9110, section 5.6.7)."""
    return formatdate(second, usegmt=True)
