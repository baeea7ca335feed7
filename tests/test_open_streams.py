"""The register of open streams: found by user and name, ended in time, and forgotten for good."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import gevent
import pytest

import service.open_streams
from service.control import Close
from service.event import EventId
from service.open_streams import ENDS, LATE_SECONDS, SKEW_SECONDS, OpenStreams
from service.subscriber import Ending, Subscriber
from service.view import Selection
from tests.encodings import PLAIN
from tests.live_server import until
from tests.readers import Reader

NOON = 1_700_000_000
"""A time of these tests, in whole seconds since 1970."""


class Ender:
    """Ends what has expired, as the service does: an ended stream is taken from the register."""

    def __init__(self) -> None:
        self.expired: list[Subscriber] = []
        self.also_ends: dict[Subscriber, Subscriber] = {}
        self.streams = OpenStreams(self.end, lambda moment: moment + NOON)

    def end(self, subscriber: Subscriber) -> None:
        """Note whose time is over; another stream may end because of it."""
        self.expired.append(subscriber)
        for one in (subscriber, self.also_ends.get(subscriber)):
            if one is not None:
                one.end(Ending.EXPIRED)
                self.streams.remove(one)

    def open(
        self,
        expires_at: float | None = None,
        user: str = "",
        as_of: EventId | None = None,
        opened_at: float = 0.0,
    ) -> Subscriber:
        """Open a stream, so many seconds after noon by Redis's clock."""
        number = self.streams.next_number()
        subscriber = Subscriber(
            Reader(), 5, Selection(("a",)), "", encoding=PLAIN,
            user=user, number=number, expires_at=expires_at, as_of=as_of,
        )  # fmt: skip
        subscriber.opened_at = opened_at
        self.streams.add(subscriber)
        return subscriber

    def nothing_left(self) -> bool:
        """Whether nothing at all is remembered."""
        return not (len(self.streams) or self.streams._streams or self.streams._by_second)


@pytest.fixture
def ender() -> Iterator[Ender]:
    """A register without streams; what a test has opened ends without a trace."""
    ender = Ender()
    yield ender
    for subscriber in tuple(ender.streams._streams):
        ender.streams.remove(subscriber)
    assert ender.nothing_left()


# --------------------------------------------------------------------------------------- expiry


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.999])
def test_no_stream_ends_before_its_time(ender: Ender, fraction: float) -> None:
    """A stream ends never before its time, whatever the fraction, and within a second after it."""
    stream = ender.open(NOON + fraction)
    for now in (0.0, NOON - 1, NOON - 0.001, NOON + fraction - 0.0001):
        ender.streams.end_expired(now)
        assert ender.expired == []
    ender.streams.end_expired(NOON + (1 if fraction else 0))
    assert ender.expired == [stream]
    assert stream.ending is Ending.EXPIRED
    ender.streams.end_expired(NOON + 100)
    assert ender.expired == [stream], "it ends once"


def test_streams_end_in_the_order_of_their_times(ender: Ender) -> None:
    """However they were opened, each ends at its second, and the others go on."""
    late, early, never = ender.open(NOON + 10), ender.open(NOON + 2.5), ender.open()
    middle = ender.open(NOON + 5)
    for now, ended in [(2.9, []), (3.0, [early]), (9.9, [early, middle])]:
        ender.streams.end_expired(NOON + now)
        assert ender.expired == ended
    assert len(ender.streams) == 2
    ender.streams.end_expired(NOON + 1e9)
    assert ender.expired == [early, middle, late]
    assert never.ending is None


def test_a_pause_ends_all_that_came_due(ender: Ender) -> None:
    """After a stall of the worker, or a jump of its clock, all that is over ends, oldest first."""
    streams = [ender.open(NOON + number) for number in (3, 1, 2)]
    ender.streams.end_expired(NOON + 1000)
    assert ender.expired == [streams[1], streams[2], streams[0]]


def test_many_streams_of_one_second(ender: Ender, monkeypatch: pytest.MonkeyPatch) -> None:
    """All streams of a second end, while others run; those of the next one stay."""
    turns: list[int] = []
    monkeypatch.setattr("service.open_streams.give_way", lambda: turns.append(1))
    streams = {ender.open(NOON - number / 5000) for number in range(4000)}
    stays = ender.open(NOON + 0.0001)
    ender.streams.end_expired(NOON)
    assert len(ender.expired) == 4000
    assert len(turns) == 4000 // ENDS
    assert set(ender.expired) == streams
    assert len(ender.streams) == 1
    assert stays.ending is None


@pytest.mark.parametrize("expires_at", [0.0, -5.5, NOON - 0.5])
def test_a_time_in_the_past_is_over_at_once(ender: Ender, expires_at: float) -> None:
    """A stream whose time was over before it opened, however long, ends with the next look."""
    ender.streams.end_expired(NOON)
    stream = ender.open(expires_at)
    ender.streams.end_expired(NOON)
    assert ender.expired == [stream]


def test_an_ended_stream_does_not_expire(ender: Ender) -> None:
    """A stream that has left before its time isn't ended again; others of its second are."""
    gone, there = ender.open(NOON), ender.open(NOON)
    ender.streams.remove(gone)
    ender.streams.remove(gone)
    ender.streams.end_expired(NOON)
    assert ender.expired == [there]


def test_removing_what_was_never_there_is_harmless(ender: Ender) -> None:
    """A stream that failed before it was added can be removed, whatever its time."""
    other = ender.open(NOON)
    for expires_at in (None, NOON, NOON + 5):
        stranger = Subscriber(
            Reader(), 5, Selection(("a",)), "", encoding=PLAIN, expires_at=expires_at
        )
        ender.streams.remove(stranger)
    ender.streams.end_expired(NOON + 10)
    assert ender.expired == [other]


def test_an_end_may_end_others(ender: Ender) -> None:
    """While expired streams are ended, others of the same second and of later ones may be
    removed: every stream ends once, and none is forgotten.
    """
    streams = [ender.open(NOON) for _ in range(50)]
    later, last = ender.open(NOON + 1), ender.open(NOON + 2)
    ender.also_ends = {streams[n]: streams[49 - n] for n in range(25)} | {streams[7]: later}
    ender.streams.end_expired(NOON + 2)
    assert {stream.ending for stream in [*streams, later, last]} == {Ending.EXPIRED}
    assert later not in ender.expired
    assert ender.nothing_left()


def test_a_stream_may_open_while_others_end(ender: Ender) -> None:
    """A client that comes right back with the old time is ended with the next look."""
    opened: list[Subscriber] = []
    first = ender.open(NOON)
    end = ender.streams._expired

    def reopen(subscriber: Subscriber) -> None:
        end(subscriber)
        if not opened:
            opened.append(ender.open(NOON))

    ender.streams._expired = reopen
    ender.streams.end_expired(NOON)
    ender.streams.end_expired(NOON)
    assert ender.expired == [first, *opened]


def test_expired_streams_end_by_themselves(ender: Ender, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs, a stream ends soon after its time, and not before."""
    monkeypatch.setattr(service.open_streams, "TICK_SECONDS", 0.02)
    runner = gevent.spawn(ender.streams.run)
    at = time.time() + 0.3
    stream, never = ender.open(at), ender.open()
    until(lambda: stream.ending is not None, 5, "the stream expires")
    assert time.time() >= at
    assert never.ending is None
    runner.kill()


# --------------------------------------------------------------------------------- names and users


def test_numbers_never_repeat(ender: Ender) -> None:
    """Each stream has a number of its own, also when others have ended."""
    numbers = []
    for _ in range(1000):
        numbers.append(ender.streams.next_number())
        ender.streams.remove(ender.open())
    assert len(set(numbers)) == 1000


def test_names_tell_workers_apart(ender: Ender) -> None:
    """A stream is found by its name, by no other stream's, and by none of another worker."""
    stream, other = ender.open(), ender.open()
    name = ender.streams.name_of(stream.number)
    assert ender.streams.named(name) == [stream]
    assert name != ender.streams.name_of(other.number)
    elsewhere = Ender()
    twin = elsewhere.open()
    assert twin.number == stream.number
    assert elsewhere.streams.named(name) == []
    assert elsewhere.streams.named("") == elsewhere.streams.named(str(twin.number)) == []
    ender.streams.remove(stream)
    assert ender.streams.named(name) == []


def test_streams_of_a_user(ender: Ender) -> None:
    """A user's streams are found, and the list stays as it is while they are ended."""
    anns = {ender.open(user="ann"), ender.open(NOON, user="ann")}
    bobs = ender.open(user="bob")
    found = ender.streams.of_user("ann")
    assert set(found) == anns
    for stream in found:
        ender.streams.remove(stream)
    assert len(found) == 2
    assert ender.streams.of_user("ann") == []
    assert ender.streams.of_user("bob") == [bobs]
    assert ender.streams.of_user("an") == []


def test_nobody_has_no_streams(ender: Ender) -> None:
    """The streams of all who have not said who they are can't be had under the empty name: a
    command that names only a stream would close them all.
    """
    ender.open()
    assert ender.streams.of_user("") == []


# ---------------------------------------------------------------------------------------- memory


def test_removed_streams_leave_nothing(ender: Ender) -> None:
    """Nothing is left of streams that have left before their time, not even of their second:
    tokens that last for days would fill the memory with them.
    """
    for number in range(5000):
        ender.streams.remove(ender.open(NOON + number))
    assert ender.nothing_left()


def test_one_token_may_open_again_and_again(ender: Ender) -> None:
    """A client that reconnects with the same time is remembered once, however often it does."""
    keeper = ender.open(NOON)
    for _ in range(1000):
        ender.streams.remove(ender.open(NOON))
    assert len(ender.streams._by_second) == 1
    ender.streams.end_expired(NOON)
    assert ender.expired == [keeper]
    assert ender.nothing_left()


# -------------------------------------------------------------------------------------- commands

COMMAND = EventId(NOON * 1000, 5)
"""Given at noon, by Redis's clock."""


def test_a_command_closes_what_was_there(ender: Ender) -> None:
    """A user's streams from before are meant, by whatever they were opened; also those of which it
    isn't certain that they are later.
    """
    meant = {ender.open(user="ana", opened_at=at) for at in (-3600, 0, SKEW_SECONDS)}
    meant.add(ender.open(user="ana", as_of=EventId(NOON * 1000, 4), opened_at=-1))
    ender.open(user="bob")
    ender.open()
    assert set(ender.streams.meant_by(Close(user="ana"), COMMAND)) == meant


def test_a_late_command_spares_later_streams(ender: Ender) -> None:
    """What was opened or granted after it stays; a grant from before opens nothing that stays."""
    ender.open(user="ana", opened_at=SKEW_SECONDS + 0.01)
    ender.open(user="ana", as_of=COMMAND, opened_at=-1)
    ender.open(user="ana", as_of=EventId(NOON * 1000 + 1, 0), opened_at=100)
    old = ender.open(user="ana", as_of=EventId(NOON * 1000, 4), opened_at=100)
    assert ender.streams.meant_by(Close(user="ana"), COMMAND) == [old]


def test_a_name_is_of_one_stream(ender: Ender) -> None:
    """A command that names a stream closes it, as it has seen it."""
    stream = ender.open(user="ana", opened_at=100)
    name = ender.streams.name_of(stream.number)
    assert ender.streams.meant_by(Close(stream=name), COMMAND) == [stream]


def test_without_knowing_a_time_everything_is_meant(ender: Ender) -> None:
    """A stream whose grant is of no known time, and a Redis whose clock isn't known, save none."""
    unsaid = Subscriber(Reader(), 5, Selection(("a",)), "", encoding=PLAIN, user="ana")
    ender.streams.add(unsaid)
    assert ender.streams.meant_by(Close(user="ana"), COMMAND) == [unsaid]
    unsaid.as_of, ender.streams._redis_seconds_at = None, lambda moment: moment - math.inf
    assert ender.streams.meant_by(Close(user="ana"), COMMAND) == [unsaid]


def test_a_command_on_time_closes_all(ender: Ender, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stream can have been opened since one that is seconds old, whatever a clock says."""
    stream = ender.open(user="ana", opened_at=SKEW_SECONDS + 1)
    granted = ender.open(user="ana", as_of=COMMAND)
    for age, meant in ((LATE_SECONDS - 0.1, [stream]), (LATE_SECONDS + 0.1, [])):
        monkeypatch.setattr(time, "monotonic", lambda age=age: age)
        assert ender.streams.meant_by(Close(user="ana"), COMMAND) == meant
    assert granted.ending is None


def test_a_clock_that_was_set_saves_nobody(ender: Ender) -> None:
    """A stream is later only if that was so when it opened, and is so by what is known now."""
    before = ender.open(user="ana", opened_at=-60)
    ender.streams._redis_seconds_at = lambda moment: moment + NOON + 120
    assert ender.streams.meant_by(Close(user="ana"), COMMAND) == [before]
    after = ender.open(user="ana", opened_at=60)
    ender.streams._redis_seconds_at = lambda moment: moment + NOON - 120
    assert set(ender.streams.meant_by(Close(user="ana"), COMMAND)) == {before, after}
