"""Publishing for somebody: only what the grant covers, and no faster than it may."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from service.counts import Counts
from service.errors import NotGranted, PushlineError, TooManyPublishes
from service.grants import Grant
from service.publication import Publication, Receipt
from service.rates import RateLimit


class Publishing:
    """Passes on what requests publish. `events` limits each credential's events per second."""

    def __init__(
        self,
        publish: Callable[[Sequence[Publication]], list[Receipt]],
        events: RateLimit,
        counts: Counts | None = None,
    ) -> None:
        self._publish = publish
        self._events = events
        self._counts = counts or Counts()

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
        return self.pass_on(grant, publications, "http")

    def delay(self, grant: Grant, count: int) -> float:
        """Let `grant` publish `count` events and return 0.0, or the seconds until it may."""
        return self._events.take(grant.payer or grant.credential, count)

    def pass_on(
        self, grant: Grant, publications: Sequence[Publication], via: str = "upload"
    ) -> list[Receipt]:
        """Publish what is granted and let through; raises as Broker.publish does.

        `via` is one of PUBLISH_WAYS (counts.py).
        """
        whose = grant.credential
        if whose and any(one.key for one in publications):
            publications = [dataclasses.replace(one, credential=whose) for one in publications]
        started = time.perf_counter()
        out: Sequence[object] = ()
        replayed = 0
        try:
            out = receipts = self._publish(publications)
            replayed = sum(one.replayed for one in receipts)
        except PushlineError as error:
            out = [one for one in error.published if one is not None]
            raise
        finally:
            self._counts.publish_seconds.note(time.perf_counter() - started)
            self._counts.publishes[via, "published"] += len(out) - replayed
            self._counts.publishes[via, "replayed"] += replayed
            self._counts.publishes[via, "failed"] += len(publications) - len(out)
        return receipts


def check_publish(grant: Grant, channels: Sequence[str]) -> None:
    """Raise NotGranted unless all of `channels` may be published to."""
    for channel in channels:
        if not grant.may_publish(channel):
            raise NotGranted(f"the credential does not allow publishing to {channel}")
