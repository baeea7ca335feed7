"""Publishing for somebody: only what the grant covers, and no faster than it may."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from service.errors import NotGranted, TooManyPublishes
from service.grants import Grant
from service.publication import Publication, Receipt
from service.rates import RateLimit


class Publishing:
    """Passes on what requests publish. `events` limits each credential's events per second."""

    def __init__(
        self, publish: Callable[[Sequence[Publication]], list[Receipt]], events: RateLimit
    ) -> None:
        self._publish = publish
        self._events = events

    def publish(self, grant: Grant, publications: Sequence[Publication]) -> list[Receipt]:
        """Publish all in order, or nothing when the grant does not cover one of them.

        Raises NotGranted, TooManyPublishes, and as Broker.publish does.
        """
        for publication in publications:
            check_publish(grant, publication.channels)
        wait = self.delay(grant, len(publications))
        if wait:
            error = TooManyPublishes()
            error.retry_after_seconds = math.ceil(wait)
            raise error
        return self.pass_on(grant, publications)

    def delay(self, grant: Grant, count: int) -> float:
        """Let `grant` publish `count` events and return 0.0, or the seconds until it may."""
        return self._events.take(grant.payer or grant.credential, count)

    def pass_on(self, grant: Grant, publications: Sequence[Publication]) -> list[Receipt]:
        """Publish what is granted and let through; raises as Broker.publish does."""
        whose = grant.credential
        if whose:
            publications = [dataclasses.replace(one, credential=whose) for one in publications]
        return self._publish(publications)


def check_publish(grant: Grant, channels: Sequence[str]) -> None:
    """Raise NotGranted unless all of `channels` may be published to."""
    for channel in channels:
        if not grant.may_publish(channel):
            raise NotGranted(f"the credential does not allow publishing to {channel}")
