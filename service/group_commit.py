"""Single publishes at the same time share one round trip to Redis; one alone goes out at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gevent
from gevent.event import Event

from service.errors import OutcomeUnknown, RedisPoolBusy
from service.publication import Publication
from service.publish_script import Outcome

WAIT_SECONDS = 1.0
"""How long an event waits for the round trip before its own, which may have to connect first."""


class _Call:
    __slots__ = ("leads", "outcome", "publication", "woken")

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self.outcome: Outcome | None = None
        self.leads = False
        self.woken: Event | None = None

    def wake(self) -> None:
        """Let it go on, if it waits."""
        if self.woken is not None:
            self.woken.set()


class GroupCommit:
    """Collects what is published while a round trip is on its way, and sends it with the next.

    `publish_each` makes a round trip: an outcome for each event. The caller that finds none on its
    way makes it; at its end one of those that came meanwhile makes the next, for all of them.
    """

    def __init__(self, publish_each: Callable[[Sequence[Publication]], list[Outcome]]) -> None:
        self._publish_each = publish_each
        self._waiting: list[_Call] = []
        self._busy = False

    def publish(self, publication: Publication) -> Outcome:
        """Publish an event, and tell what became of it. Raises RedisPoolBusy when nothing moves."""
        call = _Call(publication)
        self._waiting.append(call)
        try:
            if self._busy:
                self._wait(call)
            if call.outcome is None:
                self._send_all(call)
        except BaseException:  # a greenlet that is killed, too
            if call in self._waiting:
                self._waiting.remove(call)
            if call.leads:
                self._hand_over()
            raise
        assert call.outcome is not None  # nosec B101 # for mypy
        return call.outcome

    def _wait(self, call: _Call) -> None:
        """Wait until `call` has an outcome, or has to make the round trip."""
        woken = call.woken = Event()
        if not woken.wait(WAIT_SECONDS) and call in self._waiting:
            raise RedisPoolBusy
        woken.wait()

    def _send_all(self, leader: _Call) -> None:
        self._busy, leader.leads = True, False
        calls: list[_Call] = []
        try:
            gevent.sleep(0)  # requests that have arrived already come along
            calls, self._waiting = self._waiting, []
            outcomes = self._publish_each([call.publication for call in calls])
            for call, outcome in zip(calls, outcomes, strict=True):
                call.outcome = outcome
        finally:
            for call in calls:
                call.outcome = call.outcome or OutcomeUnknown()
                call.wake()
            self._hand_over()

    def _hand_over(self) -> None:
        self._busy = bool(self._waiting)
        if self._waiting:
            self._waiting[0].leads = True
            self._waiting[0].wake()
