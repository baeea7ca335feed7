"""The newest events in memory: what is there, what is not, and how much memory it takes."""

from __future__ import annotations

import pytest

from service.event import FIRST_ID, EventId
from service.frame import END, Frame
from service.recent import EVENTS_PER_CHANNEL, FRAME_BYTES, RecentEvents


def stored(number: int, name: str = "message", size: int = 10) -> Frame:
    """A stored event."""
    return Frame(EventId(number, 0), name, b"x" * size, EventId(number - 1, 0))


def numbers(frames: list[Frame] | None) -> list[int] | None:
    """The ids of frames, shortly."""
    return None if frames is None else [frame.id.milliseconds for frame in frames if frame.id]


@pytest.fixture
def recent() -> RecentEvents:
    """Channel a, followed since 10, with the events 11 to 15."""
    recent = RecentEvents()
    recent.begin("a", EventId(10, 0))
    for number in range(11, 16):
        recent.add("a", stored(number))
    return recent


def test_what_came_after_a_cursor(recent: RecentEvents) -> None:
    """From the id since which a channel is followed, every cursor is answered."""
    assert numbers(recent.after(["a"], EventId(10, 0))) == [11, 12, 13, 14, 15]
    assert numbers(recent.after(["a"], EventId(13, 0))) == [14, 15]
    assert numbers(recent.after(["a"], EventId(13, 7))) == [14, 15]
    assert numbers(recent.after(["a"], EventId(15, 0))) == []
    assert numbers(recent.after(["a"], EventId(99, 0))) == []


def test_what_is_not_all_there_is_not_answered(recent: RecentEvents) -> None:
    """Before the first id, and of channels that aren't followed, nothing is claimed."""
    assert recent.after(["a"], EventId(9, 99)) is None
    assert recent.after(["b"], EventId(15, 0)) is None
    assert recent.after(["a", "b"], EventId(15, 0)) is None


def test_channels_are_merged_and_an_event_of_several_comes_once(recent: RecentEvents) -> None:
    """Events of several channels come in the order of ids, each once."""
    recent.begin("b", EventId(12, 0))
    for number in (13, 16):
        recent.add("b", stored(number))
    recent.add("a", stored(17))
    assert numbers(recent.after(["b", "a"], EventId(12, 0))) == [13, 14, 15, 16, 17]
    assert recent.after(["b", "a"], EventId(11, 0)) is None


def test_only_stored_events_of_followed_channels_are_kept(recent: RecentEvents) -> None:
    """What has no id can't be resumed, and a channel that isn't followed has nothing."""
    recent.add("a", Frame(None, "message", b"foreign"))
    recent.add("b", stored(20))
    assert numbers(recent.after(["a"], EventId(10, 0))) == [11, 12, 13, 14, 15]
    recent.begin("b", FIRST_ID)
    assert numbers(recent.after(["b"], FIRST_ID)) == []


def test_a_channel_begins_anew(recent: RecentEvents) -> None:
    """After a gap a channel vouches only for what comes after it; a forgotten one for nothing."""
    recent.begin("a", EventId(20, 0))
    assert recent.after(["a"], EventId(15, 0)) is None
    assert numbers(recent.after(["a"], EventId(20, 0))) == []
    recent.forget("a")
    recent.forget("a")
    assert recent.after(["a"], EventId(20, 0)) is None
    assert recent._size == 0


def test_a_channel_keeps_so_many_events() -> None:
    """Beyond its number the oldest go, and cursors before the last dropped one aren't answered."""
    recent = RecentEvents()
    recent.begin("a", FIRST_ID)
    for number in range(1, EVENTS_PER_CHANNEL + 4):
        recent.add("a", stored(number))
    assert recent.after(["a"], EventId(2, 0)) is None
    frames = recent.after(["a"], EventId(3, 0))
    assert frames is not None
    assert len(frames) == EVENTS_PER_CHANNEL
    assert recent._size == (10 + FRAME_BYTES) * EVENTS_PER_CHANNEL


def test_quiet_channels_give_way() -> None:
    """Memory is bounded over all channels; those that were quiet longest lose events first."""
    recent = RecentEvents(at_most_bytes=10 * (10 + FRAME_BYTES))
    for channel in ("quiet", "busy"):
        recent.begin(channel, FIRST_ID)
    for number in range(1, 6):
        recent.add("quiet", stored(number))
    for number in range(6, 13):
        recent.add("busy", stored(number))
    assert recent._size == 10 * (10 + FRAME_BYTES)
    assert numbers(recent.after(["busy"], FIRST_ID)) == list(range(6, 13))
    assert recent.after(["quiet"], EventId(1, 0)) is None
    assert numbers(recent.after(["quiet"], EventId(2, 0))) == [3, 4, 5]
    recent.add("busy", stored(13, size=10 * (10 + FRAME_BYTES)))
    assert recent._size == 0
    assert numbers(recent.after(["busy"], EventId(13, 0))) == []
    assert recent.after(["busy"], EventId(12, 0)) is None


def test_finished_channels(recent: RecentEvents) -> None:
    """A channel is finished after `$end`, until another event comes; only when all are, all are."""
    assert not recent.all_ended(["a"])
    recent.add("a", stored(16, END))
    assert recent.all_ended(["a"])
    assert not recent.all_ended(["a", "b"])
    recent.begin("b", FIRST_ID)
    assert not recent.all_ended(["a", "b"])
    recent.set_ended("b", EventId(9, 0))
    assert recent.ends(["a", "b", "nobody"]) == [(EventId(9, 0), "b"), (EventId(16, 0), "a")]
    assert recent.lost_ends(["a", "b", "nobody"]) == [(EventId(9, 0), "b")], "only heard of"
    recent.set_ended("a", EventId(16, 0))
    assert recent.lost_ends(["a"]) == [], "heard of again, and it had come"
    assert recent.all_ended(["a", "b"])
    recent.add("a", stored(17))
    assert not recent.all_ended(["a", "b"])
    recent.set_ended("nobody", FIRST_ID)
    assert not recent.all_ended(["nobody"])


def test_what_is_forgotten_is_dropped(recent: RecentEvents) -> None:
    """Dropping takes a channel's events up to an id, and its end with them; who asks for less than
    that gets nothing from here. Other channels, and what comes later, stay.
    """
    recent.begin("b", EventId(10, 0))
    recent.add("b", stored(16, END))
    version = recent.version
    recent.drop("a", EventId(13, 0))
    assert recent.version > version
    recent.drop("a", EventId(12, 0))
    recent.drop("a", FIRST_ID)
    assert recent.after(["a"], EventId(12, 0)) is None
    assert numbers(recent.after(["a"], EventId(13, 0))) == [14, 15]
    assert recent.all_ended(["b"])
    recent.drop("b", EventId(20, 0))
    assert not recent.all_ended(["b"])
    assert recent.after(["b"], EventId(20, 0)) == []
    assert recent.after(["b"], EventId(19, 0)) is None
    recent.drop("unknown", EventId(9, 0))
