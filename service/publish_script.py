"""Calls of publish.lua: what they say, and what became of each event."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.channels import RedisNames
from service.errors import OutcomeUnknown, PushlineError
from service.event import FIRST_ID, EventId
from service.publication import Publication, Receipt
from service.redis_replies import id_of, refusal
from service.retention import RetentionRules
from service.sse import encode

CALL_EVENTS = 64
"""Events of one call: Redis does nothing else meanwhile, and needs some 10 µs for each."""

CALL_CHANNELS = 128
"""Channels that the events of one call go to in all, if it is more than one event."""

CALL_BYTES = 1_048_576
"""Data of one call, unless it is one event: Redis holds it all before the script begins."""

Outcome = Receipt | PushlineError
"""What became of one event."""


class PublishScript:
    """Makes the calls of publish.lua, which `sha` names, and reads their replies."""

    def __init__(
        self, sha: str, names: RedisNames, retention: RetentionRules, idempotency_seconds: int
    ) -> None:
        self._sha = sha
        self._names = names
        self._retention = retention
        self._idempotency_seconds = idempotency_seconds
        self._channel = functools.lru_cache(maxsize=10_000)(self._of_channel)

    def call(
        self, publications: Sequence[Publication], floor: EventId, born: EventId
    ) -> tuple[Any, ...]:
        """One call for all of `publications`, with ids above `floor`, in the data set `born`."""
        numbers: dict[str, int] = {}
        for publication in publications:
            for channel in publication.channels:
                numbers.setdefault(channel, len(numbers) + 1)
        keys: list[str] = [self._names.clock]
        arguments: list[str | bytes | int] = [
            str(floor),
            str(born) if born > FIRST_ID else "",
            self._idempotency_seconds,
            len(numbers),
            len(publications),
        ]
        for channel in numbers:
            its_keys, its_arguments = self._channel(channel)
            keys += its_keys
            arguments += its_arguments
        for publication in publications:
            arguments += self._of_event(publication, numbers, keys)
        return ("EVALSHA", self._sha, len(keys), *keys, *arguments)

    def _of_event(
        self, publication: Publication, numbers: Mapping[str, int], keys: list[str]
    ) -> tuple[str | bytes | int, ...]:
        """The arguments of one event; its idempotency record, if any, joins `keys`."""
        event, channels, key = publication.event, publication.channels, publication.key
        if key:
            keys.append(self._names.idempotency(publication.credential, channels, key))
        before, after = encode(event)
        return (
            " ".join([str(numbers[channel]) for channel in channels]),
            "end" if publication.ends else "store" if publication.stored else "live",
            event.name or "",
            before,
            after,
            publication.ttl_seconds or "",
            ",".join(channels) if publication.private else "",
            len(keys) if key else "",
            publication.fingerprint() if key else "",
        )

    def _of_channel(self, channel: str) -> tuple[tuple[str, str], tuple[str, int, int, int]]:
        names, kept = self._names, self._retention.of(channel)
        keys = names.history(channel), names.tail(channel)
        return keys, (names.pubsub(channel), kept.events, kept.seconds, kept.tail_seconds)


def shares(publications: Sequence[Publication]) -> Iterator[Sequence[Publication]]:
    """Cut `publications` into what one call may hold each."""
    start = channels = size = 0
    for place, one in enumerate(publications):
        channels += len(one.channels)
        size += len(one.event.data)
        if place - start == CALL_EVENTS or channels > CALL_CHANNELS or size > CALL_BYTES:
            if place > start:
                yield publications[start:place]
            start, channels, size = place, len(one.channels), len(one.event.data)
    if start < len(publications):
        yield publications[start:]


def outcomes(publications: Sequence[Publication], reply: Any) -> list[Outcome]:
    """What became of each event of a call; `reply` is None when there was none."""
    if reply is None:
        return [OutcomeUnknown() for _ in publications]
    if isinstance(reply, Exception):
        return [refusal(reply) for _ in publications]
    return [_outcome(*one) for one in zip(publications, reply, strict=True)]


def _outcome(publication: Publication, told: bytes) -> Outcome:
    if told[:1].isdigit():
        return Receipt(id_of(told))
    if told.startswith(b"="):
        return Receipt(id_of(told[1:]), replayed=True)
    return refusal(told[1:].decode("utf-8", "replace"), publication)


def receipts(outcomes: Sequence[Outcome]) -> list[Receipt]:
    """All of `outcomes`, or raise the first error, which names what went out all the same."""
    failed = next((one for one in outcomes if isinstance(one, PushlineError)), None)
    if failed is None:
        return [one for one in outcomes if isinstance(one, Receipt)]
    published = [str(one.id) if isinstance(one, Receipt) else None for one in outcomes]
    failed.published = published if any(published) else ()
    raise failed
