"""Who asks: the credentials, address and origin of a request, and what they allow."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

from flask import request

from service.access import Access, Credentials
from service.addresses import Network, address_key, client_address
from service.errors import NotGranted, Unauthorized
from service.grants import Grant
from service.overload import TooManyConnects
from service.publishing import Publishing, check_publish
from service.rates import RateLimit
from service.routes.items import Publish
from service.routes.origins import Origins

FORWARDED = ("Authorization", "Cookie", "Origin", "Referer", "User-Agent", "Accept-Language")
"""Headers that AUTHORIZE_URL gets to see."""


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

    def address(self) -> str:
        """The client's address; empty on unix sockets."""
        forwarded_for = request.headers.get("X-Forwarded-For", "")
        return client_address(request.remote_addr or "", forwarded_for, self._trusted_proxies)

    def publisher(self) -> Grant:
        """The grant to publish; only the Authorization header counts, never a cookie."""
        grant = self.access.publisher(request.headers.get("Authorization", ""))
        # Who shows no credential pays by address: else one of them could use up what all have.
        return dataclasses.replace(grant, payer=grant.credential or address_key(self.address()))

    def publish_to(self, *channels: str) -> Publish:
        """What publishes for this request, which may publish to all of `channels`."""
        grant = self.publisher()
        check_publish(grant, channels)
        return functools.partial(self._publishing.publish, grant)

    def admin(self) -> Grant:
        """The grant to administrate."""
        grant = self.publisher()
        if not grant.admin:
            if not grant.credential:
                raise Unauthorized("this wants a token with the claim admin")
            raise NotGranted("this wants a token with the claim admin")
        return grant

    def subscriber(self, channels: Sequence[str]) -> Grant:
        """The grant to stream all of `channels`, which each address may ask for so often."""
        address = self.address()
        wait = self._connects.take(address_key(address)) if address else 0.0
        if wait:
            error = TooManyConnects()
            error.retry_after_seconds = math.ceil(wait)
            raise error
        shown = self._shown()
        if shown.by_cookie or self.access.asks_by_cookie(shown):
            self.origins.check_page()  # a cookie says nothing of which page has asked
        return self.access.subscriber(shown, channels)

    def _shown(self) -> Credentials:
        headers = {name: request.headers[name] for name in FORWARDED if name in request.headers}
        return Credentials(
            authorization=request.headers.get("Authorization", ""),
            ticket=request.args.get("ticket", ""),
            cookie=request.cookies.get(self._cookie_name, ""),
            headers={**headers, "X-Forwarded-For": self.address()},
        )
