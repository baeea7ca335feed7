"""Tickets: short-lived stand-ins for a credential, safe to stand in a URL (`?ticket=`)."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from collections.abc import Sequence

from service.errors import BadCredential, CannotAuthorize, ExpiredCredential, RedisError
from service.event import FIRST_ID, EventId
from service.grants import Grant
from service.redis_store import RedisStore

_TICKET = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
"""What `secrets.token_urlsafe(32)` makes: 256 bits that nobody guesses."""


PUBLIC_TICKET = "public-channels-are-open-to-all-and-need-no"
"""The ticket of who has shown no credential: it grants nothing, and nothing is kept for it."""


class Tickets:
    """Issues and redeems tickets; any worker knows those of all others.

    A ticket opens any number of streams for `seconds`: an EventSource repeats its URL.
    """

    def __init__(self, store: RedisStore, seconds: int) -> None:
        self.seconds = seconds
        self._store = store

    def issue(self, grant: Grant, channels: Sequence[str]) -> str:
        """A ticket to stream `channels`, patterns too, for whom `grant` is; it grants no more.

        The streams end when the grant does. Raises RedisError.
        """
        if grant == Grant() and not channels:
            return PUBLIC_TICKET
        ticket = secrets.token_urlsafe(32)
        scope = dataclasses.replace(
            grant,
            publish=(),
            subscribe=tuple(channels),
            admin=False,
            as_of=self._store.clock() if grant.as_of is None else grant.as_of,
        )
        self._store.keep_ticket(ticket, json.dumps(dataclasses.asdict(scope)), self.seconds)
        return ticket

    def take_back(self, user: str, command: EventId) -> None:
        """End what `user` has got before `command`, also on workers that start later.

        Raises RedisError.
        """
        self._store.keep_closing(user, command, self.seconds)

    def redeem(self, ticket: str) -> Grant:
        """The grant of a ticket; raises BadCredential for what is none, or none any more.

        Raises ExpiredCredential for one that was taken back, CannotAuthorize when Redis can't tell.
        """
        if ticket == PUBLIC_TICKET:
            return Grant()
        if not _TICKET.fullmatch(ticket):
            raise BadCredential("this is no ticket", fix="Get one with POST /tickets")
        try:
            grant = self._find(ticket)
            closing = self._store.closing(grant.user) if grant.user else FIRST_ID
        except RedisError as error:
            raise CannotAuthorize(error.detail) from error
        if grant.as_of is not None and closing > grant.as_of:
            raise ExpiredCredential("the streams of this user were closed", fix="Get a new ticket")
        return grant

    def _find(self, ticket: str) -> Grant:
        found = self._store.ticket(ticket)
        if found is None:
            raise BadCredential("the ticket is unknown or too old", fix="Get a new one")
        fields = json.loads(found)
        lists = {"publish": (), "subscribe": tuple(fields["subscribe"])}
        try:
            return Grant(**{**fields, **lists, "as_of": EventId(*fields["as_of"])})
        except (TypeError, KeyError) as error:  # while another version is deployed
            raise BadCredential("the ticket is of another version", fix="Get a new one") from error
