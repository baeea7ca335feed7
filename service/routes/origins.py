"""Which web pages may stream and publish: CORS with an allow-list (Fetch, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from flask import Blueprint, Response, request
from werkzeug.wrappers import Request

from service.errors import ForeignHost, ForeignOrigin
from service.routes.headers import header
from service.settings import LOOPBACK_HOSTS

ALLOWED_HEADERS = "authorization, cache-control, content-type, idempotency-key, last-event-id"
EXPOSED_HEADERS = "mercure-last-event-id, pushline-stream, retry-after, x-request-id"
PREFLIGHT_SECONDS = 600


class Origins:
    """The allow-list, and what follows from it. `*` lets any page stream, without credentials."""

    def __init__(self, allowed: Sequence[str], *, local: bool) -> None:
        self._allowed = frozenset(allowed)
        self._local = local

    def guard(self, routes: Blueprint) -> Blueprint:
        """Keep foreign pages from `routes`, all of which change something; return them."""
        routes.before_request(lambda: self.check_origin(request))
        routes.after_request(lambda response: self.allow(request, response))
        return routes

    def check_host(self, request: Request) -> None:
        """Raise ForeignHost in local mode for a host that isn't this machine.

        A web page whose own name leads to 127.0.0.1 would else read and publish everything.
        """
        if self._local:
            try:
                host = urlsplit(f"//{request.host}").hostname
            except ValueError:
                host = None
            if host not in LOOPBACK_HOSTS:
                raise ForeignHost(f"the host is {request.host[:200]!r}")

    def check_change(self, request: Request) -> None:
        """As `check_origin`, but anyone may look."""
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            self.check_origin(request)

    def check_origin(self, request: Request) -> None:
        """Raise ForeignOrigin when a page that is neither ours nor listed sends `request`.

        Any web page can reach 127.0.0.1, so this holds in local mode too.
        """
        origin = header(request, "Origin")
        if (
            origin is not None
            and not _is_own(origin, request)
            and origin.lower() not in self._allowed
        ):
            raise ForeignOrigin(f"the page's origin is {origin[:200]!r}")

    def check_page(self, request: Request) -> None:
        """As `check_origin`, also for what a page embeds, which has no Origin (Fetch Metadata)."""
        self.check_origin(request)
        embedded = header(request, "Sec-Fetch-Site") == "cross-site"
        if embedded and header(request, "Origin") is None:
            raise ForeignOrigin("a page of another site embeds this")

    def allow(self, request: Request, response: Response) -> Response:
        """Add the CORS headers that the request's origin is granted."""
        headers = self.headers(request)
        if "Vary" in headers:
            response.vary.add(headers.pop("Vary"))
        response.headers.update(headers)
        return response

    def headers(self, request: Request) -> dict[str, str]:
        """The CORS headers of an answer to `request`; caches must keep origins apart."""
        origin = header(request, "Origin") or ""
        if origin.lower() in self._allowed:
            granted = {
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Allow-Credentials": "true",
            }
        elif origin and "*" in self._allowed:
            granted = {"Access-Control-Allow-Origin": "*"}
        else:
            granted = {}
        if granted:
            granted["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
        return {"Vary": "Origin", **granted} if self._allowed else granted

    def preflight(self, request: Request, methods: str) -> Response:
        """Answer OPTIONS."""
        response = Response(status=204)
        response.headers["Allow"] = methods
        self.allow(request, response)
        if "Access-Control-Allow-Origin" in response.headers:
            response.headers["Access-Control-Allow-Methods"] = methods
            response.headers["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
            response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
        return response


def _is_own(origin: str, request: Request) -> bool:
    try:
        page = urlsplit(origin)
    except ValueError:
        return False
    return page.netloc != "" and page.netloc.lower() == request.host.lower()
