"""Who asks: the credentials, address and origin of a request, and what they allow."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from werkzeug.wrappers import Request

from service.access import Access, Credentials
from service.addresses import Network, address_key, client_address
from service.errors import NotGranted, Unauthorized
from service.grants import Grant
from service.overload import TooManyConnects
from service.publishing import Publishing, check_publish
from service.rates import RateLimit
from service.routes.headers import header, parameter
from service.routes.items import Publish
from service.routes.origins import Origins

FORWARDED = ("Authorization", "Cookie", "Origin", "Referer", "User-Agent", "Accept-Language")
"""Headers that AUTHORIZE_URL gets to see."""

ADDRESS = "pushline.address"
"""In a request's environ: the client's address, once it is known."""


class Gate:
    """Lets requests in, or raises why not: Unauthorized, NotGranted, ForeignOrigin and so on."""

    def __init__(
        self,
        access: Access,
        publishing: Publishing,
        origins: Origins,
        connects: RateLimit,
        trusted_proxies: Sequence[Network],
        cookie_name: str,
    ) -> None:
        self.access = access
        self._publishing = publishing
        self.origins = origins
        self._connects = connects
        self._trusted_proxies = trusted_proxies
        self._cookie_name = cookie_name

    def address(self, request: Request) -> str:
        """The client's address; empty on unix sockets."""
        environ = request.environ
        if ADDRESS not in environ:
            forwarded_for = header(request, "X-Forwarded-For") or ""
            peer = environ.get("REMOTE_ADDR", "")
            environ[ADDRESS] = client_address(peer, forwarded_for, self._trusted_proxies)
        address: str = environ[ADDRESS]
        return address

    def publisher(self, request: Request) -> Grant:
        """The grant to publish; only the Authorization header counts, never a cookie."""
        grant = self.access.publisher(header(request, "Authorization") or "")
        if grant.credential:
            return grant
        # Who shows no credential pays by address: else one of them could use up what all have.
        return dataclasses.replace(grant, payer=address_key(self.address(request)))

    def publish_to(self, request: Request, *channels: str) -> Publish:
        """What publishes for `request`, which may publish to all of `channels`."""
        grant = self.publisher(request)
        check_publish(grant, channels)
        return functools.partial(self._publishing.publish, grant)

    def admin(self, request: Request) -> Grant:
        """The grant to administrate."""
        grant = self.publisher(request)
        if not grant.admin:
            if not grant.credential:
                raise Unauthorized("this wants a token with the claim admin")
            raise NotGranted("this wants a token with the claim admin")
        return grant

    def subscriber(self, request: Request, channels: Sequence[str]) -> Grant:
        """The grant to stream all of `channels`, which each address may ask for so often."""
        return self.access.subscriber(self._admitted(request), channels)

    def reader(self, request: Request, channel: str) -> Grant:
        """The grant to read the numbers of `channel`, which each address may ask for so often."""
        return self.access.reader(self._admitted(request), [channel])

    def lister(self, request: Request) -> Callable[[str], bool]:
        """Which channels `request` may see listed; each address may ask for that so often."""
        return self.access.lister(self._admitted(request))

    def _admitted(self, request: Request) -> Credentials:
        """What `request` shows, unless its address asks too often, or another site's page asks."""
        address = self.address(request)
        wait = self._connects.take(address_key(address)) if address else 0.0
        if wait:
            error = TooManyConnects()
            error.retry_after_seconds = math.ceil(wait)
            raise error
        shown = self._shown(request)
        if shown.by_cookie or self.access.asks_by_cookie(shown):
            self.origins.check_page(request)  # a cookie says nothing of which page has asked
        return shown

    def _shown(self, request: Request) -> Credentials:
        return Credentials(
            authorization=header(request, "Authorization") or "",
            ticket=parameter(request, "ticket"),
            cookie=request.cookies.get(self._cookie_name, "") if header(request, "Cookie") else "",
            headers=self._forwarded(request) if self.access.asks else {},
        )

    def _forwarded(self, request: Request) -> dict[str, str]:
        headers = {name: value for name in FORWARDED if (value := header(request, name))}
        return {**headers, "X-Forwarded-For": self.address(request)}
