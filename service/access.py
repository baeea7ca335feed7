"""Who may publish and stream what: keys, tokens, tickets, cookies, or somebody who is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from service.authorizer import Authorizer
from service.channels import SYS
from service.errors import BadCredential, ExpiredCredential, NotGranted, Unauthorized
from service.event import EventId
from service.grants import Grant, selector, selects
from service.keys import PublishKeys
from service.revocations import Revocations
from service.tickets import Tickets
from service.tokens import TokenVerifier

NOBODY = Grant()
"""The grant of who shows no credential."""


@dataclass(frozen=True, slots=True, repr=False)  # no message may show one
class Credentials:
    """What a request shows: the Authorization header, a ticket, a cookie's value; or nothing.

    `headers` are those that AUTHORIZE_URL is to see.
    """

    authorization: str = ""
    ticket: str = ""
    cookie: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def by_cookie(self) -> bool:
        """Whether the cookie is what counts: browsers send it from any page."""
        return bool(self.cookie) and not self.authorization and not self.ticket


class Access:
    """Turns credentials into grants. The first one that is shown counts: header, ticket, cookie.

    `public` are patterns of channels that anybody may stream, `anybody` is the grant of who
    publishes without a credential, or None.
    """

    def __init__(
        self,
        *,
        keys: PublishKeys,
        verifier: TokenVerifier | None,
        tickets: Tickets,
        authorizer: Authorizer | None,
        public: Sequence[str],
        anybody: Grant | None,
        revocations: Revocations,
    ) -> None:
        self.tickets = tickets
        self._revocations = revocations
        self._keys = keys
        self._verifier = verifier
        self._authorizer = authorizer
        self._public = tuple(public)
        self._anybody = anybody

    def publisher(self, authorization: str) -> Grant:
        """The grant to publish, end and administrate; only the Authorization header counts.

        Raises Unauthorized, BadCredential or ExpiredCredential, and CannotAuthorize when the
        issuer's keys can't be had.
        """
        if authorization and (self._keys or self._verifier):
            return self._bearer(authorization)
        if self._anybody is None:
            raise Unauthorized
        return self._anybody

    def subscriber(self, shown: Credentials, channels: Sequence[str]) -> Grant:
        """The grant to stream all of `channels`; public ones need none.

        Nobody else is asked about `$sys`. Raises as `publisher` does, and NotGranted when a channel
        is not covered.
        """
        return self._covering(self._shown(shown), shown, channels)

    def reader(self, shown: Credentials, channels: Sequence[str]) -> Grant:
        """The grant to read the numbers of `channels`: to stream or publish to all of them, or
        to administrate. Raises as `subscriber` does.
        """
        grant = self._reading(shown)
        if grant.admin or all(map(grant.may_publish, channels)):
            return grant
        return self._covering(grant, shown, channels)

    def lister(self, shown: Credentials) -> Callable[[str], bool]:
        """Which channels may be listed: those that a grant has itself, or all to administrate.

        What is public isn't listed for that: a name that can't be guessed may be all that keeps it.
        Nobody is asked. Raises as `publisher` does.
        """
        grant = self._reading(shown)
        if grant.admin:
            return lambda _: True
        if grant == NOBODY:
            raise Unauthorized("a list of channels wants a credential")
        return selector((*grant.publish, *grant.subscribe))

    def _reading(self, shown: Credentials) -> Grant:
        """The grant of what is shown; in local mode everybody administrates."""
        grant = self._shown(shown)
        if grant == NOBODY and self._anybody is not None and self._anybody.admin:
            return self._anybody
        return grant

    def _covering(self, grant: Grant, shown: Credentials, channels: Sequence[str]) -> Grant:
        wanted = [one for one in channels if not self._is_open(one, grant)]
        asks = SYS not in channels and (wanted or grant == NOBODY)
        if self._authorizer is not None and asks:
            return self._ask(self._authorizer, shown, channels, wanted)
        if wanted:
            if grant == NOBODY:
                raise Unauthorized(f"{wanted[0]} is not public")
            raise NotGranted(f"the credential does not cover {wanted[0]}")
        return grant

    def _ask(
        self,
        authorizer: Authorizer,
        shown: Credentials,
        channels: Sequence[str],
        wanted: Sequence[str],
    ) -> Grant:
        """The authorizer's answer; for public channels only, it may refuse, and needn't be asked.

        It is asked for those too if it could know the client: of private events, of whose stream
        this is, and of how long.
        """
        if not wanted and not {"Authorization", "Cookie"} & shown.headers.keys():
            return NOBODY
        try:
            grant = authorizer.ask(shown.headers, channels)
        except (Unauthorized, NotGranted):
            if wanted:
                raise
            return NOBODY
        refused = [one for one in channels if not self._is_open(one, grant)]
        if refused:  # an answer is no lack of a credential, even if it names no channel
            raise NotGranted(f"AUTHORIZE_URL does not allow {refused[0]}")
        return grant

    @property
    def asks(self) -> bool:
        """Whether somebody else may decide, and is to see the headers of requests."""
        return self._authorizer is not None

    def asks_by_cookie(self, shown: Credentials) -> bool:
        """Whether somebody else may decide by a cookie, whatever it is called."""
        return self.asks and "Cookie" in shown.headers

    def revoke(self, user: str, command: EventId) -> None:
        """What `user` was granted before `command` opens no stream any more, but for tokens."""
        self._revocations.note(user, command, time.monotonic())
        if self._authorizer is not None:
            self._authorizer.forget(user)

    def check_current(self, grant: Grant) -> None:
        """Raise ExpiredCredential when `grant` was revoked since it was asked for."""
        if self._revocations.cover(grant):
            raise ExpiredCredential("the streams of this user were closed", fix="Ask once more")

    def _is_open(self, channel: str, grant: Grant) -> bool:
        if channel == SYS:
            return grant.may_subscribe(SYS) or (self._anybody is not None and self._anybody.admin)
        return selects(self._public, channel) or grant.may_subscribe(channel)

    def _shown(self, shown: Credentials) -> Grant:
        try:
            if shown.ticket and not shown.authorization:
                return _current(self.tickets.redeem(shown.ticket))
            if self._verifier is None and not self._keys:
                return NOBODY
            if shown.authorization:
                return self._bearer(shown.authorization)
            return self._token(shown.cookie) if shown.cookie else NOBODY
        except BadCredential:
            if self._authorizer is None:
                raise
            return NOBODY  # it may be one that only the one who is asked can read

    def _bearer(self, authorization: str) -> Grant:
        scheme, _, credential = authorization.partition(" ")
        credential = credential.strip()
        if scheme.lower() != "bearer" or not credential:
            raise BadCredential("the Authorization header isn't Bearer and a token")
        return self._keys.grant_of(credential) or self._token(credential)

    def _token(self, token: str) -> Grant:
        if self._verifier is None:
            raise BadCredential
        return self._verifier.verify(token)


def _current(grant: Grant) -> Grant:
    if grant.expires_at is not None and grant.expires_at <= time.time():
        raise ExpiredCredential
    return grant
