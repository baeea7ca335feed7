"""Publishing for somebody: all or nothing, under his name, and no faster than he may."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from service.errors import NotGranted, TooManyPublishes
from service.event import Event, EventId
from service.grants import Grant
from service.publication import Publication, Receipt
from service.publishing import Publishing, check_publish
from service.rates import RateLimit

ANA = Grant(publish=("mine.*", "log"), credential="jwt:ana")


class Redis:
    """Stands in for the broker; notes what it gets."""

    def __init__(self) -> None:
        self.published: list[Publication] = []

    def publish(self, publications: Sequence[Publication]) -> list[Receipt]:
        """Take all of them."""
        self.published += publications
        return [Receipt(EventId(1, 0)) for _ in publications]


def events(*channels: str) -> list[Publication]:
    """One event for each channel, or for several with commas between."""
    return [Publication(Event("x"), tuple(one.split(",")), key="k") for one in channels]


def test_what_is_granted_is_published() -> None:
    """In order, under the name of the credential, which keeps idempotency keys apart."""
    redis = Redis()
    publishing = Publishing(redis.publish, RateLimit(0))
    assert len(publishing.publish(ANA, events("mine.a", "log,mine.b"))) == 2
    assert [one.channels for one in redis.published] == [("mine.a",), ("log", "mine.b")]
    assert {one.credential for one in redis.published} == {"jwt:ana"}
    publishing.publish(Grant(publish=("*",)), events("theirs"))
    assert redis.published[-1].credential == ""


@pytest.mark.parametrize("channels", [["theirs"], ["mine.a", "log2"], ["mine.a,theirs"]])
def test_one_channel_too_many_refuses_all(channels: list[str]) -> None:
    """Nothing is published when one of the channels is not granted, and no token is taken."""
    redis = Redis()
    publishing = Publishing(redis.publish, RateLimit(1, burst=1))
    for _ in range(3):
        with pytest.raises(NotGranted, match=r"theirs|log2"):
            publishing.publish(ANA, events(*channels))
    assert redis.published == []
    publishing.publish(ANA, events("log"))
    with pytest.raises(NotGranted):
        check_publish(ANA, channels[-1].split(","))
    check_publish(ANA, [])


def test_who_is_too_fast_is_told_when_to_come_back() -> None:
    """Whole seconds, never too few; others are not held up."""
    redis = Redis()
    publishing = Publishing(redis.publish, RateLimit(1, burst=1))
    publishing.publish(ANA, events("log", "log"))
    for _ in range(2):
        with pytest.raises(TooManyPublishes) as raised:
            publishing.publish(ANA, events("log"))
        assert raised.value.retry_after_seconds == 2
    assert len(redis.published) == 2
    publishing.publish(Grant(publish=("*",), credential="jwt:bob"), events("log"))
    assert TooManyPublishes.retry_after_seconds == 1, "each refusal has a number of its own"


def test_uploads_ask_first() -> None:
    """`delay` takes tokens or says how long to wait; `pass_on` takes none."""
    redis = Redis()
    publishing = Publishing(redis.publish, RateLimit(1, burst=1))
    assert publishing.delay(ANA, 3) == 0
    assert 2 < publishing.delay(ANA, 1) <= 3
    assert len(publishing.pass_on(ANA, events("log"))) == 1
