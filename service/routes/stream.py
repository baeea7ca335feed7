"""GET /stream: from a request to an open stream."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import gevent
from flask import Blueprint, Response, request
from werkzeug.wrappers import Request

from service.addresses import StreamLimits
from service.broker import Broker
from service.channels import check_streamed
from service.encoding import Encoding, Encodings
from service.errors import BadParameter, Draining, NothingToCome
from service.event import check_name
from service.grants import Grant
from service.hub import Hub
from service.iterator import OPEN, IteratorOutlet
from service.lean_http import http_date
from service.logs import LOGGED, REQUEST_ID
from service.open_streams import OpenStreams
from service.overflow import Overflow
from service.resume import Resumer
from service.resumption import Resumption, Start
from service.routes.codings import accepts_gzip, coding_headers, joined_headers
from service.routes.cursors import read_start
from service.routes.gate import Gate
from service.routes.headers import STREAM_TYPE
from service.routes.lazy_request import Args, once_per_query
from service.routes.origins import Origins
from service.routes.request_ids import HEADER
from service.sockets import HAND_OVER, HANDED_OVER, Sockets
from service.sse import encode_opening, encode_ping, encode_retry
from service.subscriber import GONE, Ending, Outlet, Subscriber
from service.view import Selection

STREAM_HEADERS = {
    # Exactly this: UTF-8 goes without saying, and some clients compare the whole value.
    "Content-Type": STREAM_TYPE,
    # No cache may keep a stream, no proxy may compress it and so hold events back.
    "Cache-Control": "no-store, no-transform",
    # nginx would otherwise wait until a buffer is full.
    "X-Accel-Buffering": "no",
    # What publishers send is text, whatever it looks like.
    "X-Content-Type-Options": "nosniff",
}

MAX_NAMES = 64
"""Event names that one stream may list."""

Environ = MutableMapping[str, Any]
"""A request as WSGI has it (PEP 3333)."""


def preflight_routes(origins: Origins) -> Blueprint:
    """The streaming route's OPTIONS; front.py serves the rest of it."""
    routes = Blueprint("stream", __name__)

    @routes.route("/stream", methods=["OPTIONS"])
    def preflight() -> Response:
        """Answer a page's preflight; no stream is opened."""
        return origins.preflight(request, "GET, HEAD, OPTIONS")

    return routes


class StreamRoute:
    """GET /stream: opens a stream; HEAD only checks the request."""

    def __init__(self, opener: StreamOpener, gate: Gate, max_channels: int) -> None:
        self._opener = opener
        self._gate = gate
        self._asked = once_per_query(functools.partial(_asked, max_channels=max_channels))
        self._headers = {
            gzip: joined_headers(STREAM_HEADERS, coding_headers(gzip) if opener.compresses else {})
            for gzip in (False, True)
        }

    def __call__(self, request: Request) -> Response | None:
        """Answer `request`; None when all is said over the socket itself (see front.py)."""
        selection, overflow = self._asked(request)
        start = read_start(request)
        address = self._gate.address(request)
        grant = self._gate.subscriber(request, selection.channels)
        gzip = self._opener.compresses and accepts_gzip(request)
        headers = self._headers[gzip]
        if allowed := self._gate.origins.headers(request):
            headers = joined_headers(headers, allowed)
        if request.environ["REQUEST_METHOD"].upper() == "HEAD":
            answer = Response(headers=headers)
            answer.automatically_set_content_length = False  # a stream has none
            return answer
        if granted := frozenset(filter(grant.may_subscribe, selection.channels)):
            selection = dataclasses.replace(selection, granted=granted)
        request_id = request.environ[REQUEST_ID]
        wanted = StreamRequest(
            selection, start, overflow, headers, gzip, address, grant, request_id
        )
        return self._opener.open(wanted, request.environ)


def _asked(args: Args, max_channels: int) -> tuple[Selection, Overflow]:
    return _selection(args, max_channels), _overflow(args)


def _selection(args: Args, max_channels: int) -> Selection:
    channels = check_streamed(args.getlist("channel"), max_channels)
    names = args.getlist("event")
    if len(names) > MAX_NAMES:
        raise BadParameter(f"{len(names)} event names are listed", fix=f"List at most {MAX_NAMES}")
    for name in names:
        if not name.startswith("$"):  # those pass every filter anyway
            check_name(name)
    ping = args.get("ping", "comment")
    if ping not in ("comment", "event"):
        raise BadParameter(f"ping={ping[:40]!r} is not known", fix="Known are comment and event")
    return Selection(channels, frozenset(names) or None, visible_pings=ping == "event")


def _overflow(args: Args) -> Overflow:
    text = args.get("overflow", Overflow.CLOSE.value)
    try:
        return Overflow(text)
    except ValueError:
        known = ", ".join(policy.value for policy in Overflow)
        raise BadParameter(
            f"overflow={text[:40]!r} is not known", fix=f"Known are {known}"
        ) from None


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """What a client asks for, who it is, and the headers of the answer."""

    selection: Selection
    start: Start | None
    overflow: Overflow
    headers: Mapping[str, str]
    gzip: bool
    address: str
    grant: Grant
    request_id: str


class StreamOpener:
    """Opens streams: admitted, followed, answered, and attached or resumed.

    What a stream takes, `ended` gives back; a step that fails gives back what it took itself.
    """

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        resumer: Resumer,
        limits: StreamLimits,
        streams: OpenStreams,
        check_current: Callable[[Grant], None],
        encodings: Encodings,
        sockets: Sockets | None,
        iterator: Callable[[], IteratorOutlet],
    ) -> None:
        self._hub = hub
        self._broker = broker
        self._resumer = resumer
        self._limits = limits
        self._streams = streams
        self._check_current = check_current
        self._encodings = encodings
        self.compresses = encodings.compresses
        self._sockets = sockets
        self._iterator = iterator

    def open(self, wanted: StreamRequest, environ: Environ) -> Response | None:
        """Answer the request of `environ`; None when that is done over its socket.

        Raises Overloaded when there can be no stream now.
        """
        if self._hub.draining:
            raise Draining
        channels, whose = wanted.selection.channels, (wanted.address, wanted.grant.user)
        self._limits.admit(*whose)
        try:
            self._broker.follow(channels)
        except BaseException:
            self._limits.release(*whose)
            raise
        try:
            resumption = self._prepare(channels, wanted.start)
            self._check_current(wanted.grant)  # nothing yields from here until the stream is known
            subscriber, response = self._answer(wanted, resumption, environ)
        except BaseException:
            self._broker.unfollow(channels)
            self._limits.release(*whose)
            raise
        # From here on the end of the subscriber gives back what was taken.
        self._let_in(subscriber, resumption, environ)
        return response

    def _prepare(self, channels: tuple[str, ...], start: Start | None) -> Resumption | None:
        start, over = self._resumer.check_ended(channels, start)
        if over:
            raise NothingToCome
        resumption = None if start is None else self._resumer.prepare(channels, start)
        if self._hub.draining:
            raise Draining
        return resumption

    def _answer(
        self, wanted: StreamRequest, resumption: Resumption | None, environ: Environ
    ) -> tuple[Subscriber, Response | None]:
        """Send the head and the opening block, over the client's socket if it can be had."""
        number = self._streams.next_number()
        headers = {**wanted.headers, "Pushline-Stream": self._streams.name_of(number)}
        if resumption is None:
            opening = encode_opening(
                self._hub.jittered_retry(), self._hub.position_of(wanted.selection.channels)
            )
            if wanted.selection.visible_pings:  # so that a page learns its position at once
                opening += encode_ping(time.time_ns() // 1_000_000)
        else:  # a client with a cursor keeps it until the first event that it missed
            opening = encode_retry(self._hub.jittered_retry())
            headers["Mercure-Last-Event-ID"] = resumption.answer
        client = environ.get(HAND_OVER)
        if client is None or self._sockets is None:
            environ[LOGGED] = True
            return self._iterate(wanted, number, opening, headers)
        chunked = environ["SERVER_PROTOCOL"] != "HTTP/1.0"
        headers[HEADER] = wanted.request_id
        fd = self._sockets.take_over(client)
        environ[HANDED_OVER] = True
        encoding = self._encodings.of(gzip=wanted.gzip, chunked=chunked)
        subscriber = _subscriber(self._sockets, fd, wanted, number, encoding)
        self._streams.add(subscriber, wanted.grant.info)
        try:
            self._sockets.watch(subscriber)
        except OSError:
            subscriber.end(Ending.CLIENT_LEFT)  # there is no room in epoll
        subscriber.send(_head(headers, chunked) + encoding.start(opening))
        return subscriber, None

    def _iterate(
        self, wanted: StreamRequest, number: int, opening: bytes, headers: Mapping[str, str]
    ) -> tuple[Subscriber, Response]:
        outlet = self._iterator()
        encoding = self._encodings.of(gzip=wanted.gzip, chunked=False)  # the server makes chunks
        subscriber = _subscriber(outlet, OPEN, wanted, number, encoding)
        self._streams.add(subscriber, wanted.grant.info)
        subscriber.send(encoding.start(opening))
        response = Response(outlet.pieces(subscriber), headers=dict(headers))
        # A server that never starts the iterator still closes the response.
        response.call_on_close(lambda: subscriber.end(Ending.CLIENT_LEFT))
        return subscriber, response

    def _let_in(
        self, subscriber: Subscriber, resumption: Resumption | None, environ: Environ
    ) -> None:
        if resumption is None:
            if subscriber.fd != GONE:
                self._hub.attach(subscriber, self._hub.position_of(subscriber.selection.channels))
        elif HANDED_OVER in environ:
            self._resumer.resume(subscriber, resumption)
        else:  # the iterator must run meanwhile
            gevent.spawn(self._resumer.resume, subscriber, resumption)


def _subscriber(
    outlet: Outlet, fd: int, wanted: StreamRequest, number: int, encoding: Encoding
) -> Subscriber:
    return Subscriber(
        outlet,
        fd,
        wanted.selection,
        wanted.address,
        encoding=encoding,
        overflow=wanted.overflow,
        user=wanted.grant.user,
        number=number,
        expires_at=wanted.grant.expires_at,
        as_of=wanted.grant.as_of,
        request_id=wanted.request_id,
    )


def _head(headers: Mapping[str, str], chunked: bool) -> bytes:
    """The response head, which gunicorn would else write: it never sees this socket again."""
    lines = [
        "HTTP/1.1 200 OK" if chunked else "HTTP/1.0 200 OK",
        f"Date: {http_date(int(time.time()))}",
        "Connection: close",
        *(["Transfer-Encoding: chunked"] if chunked else []),
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
