"""What a view selects, and who gets its batches."""

from __future__ import annotations

import pytest

from service.batch import MAX_BATCH_BYTES, Batch
from service.event import FIRST_ID, EventId
from service.frame import Frame
from service.subscriber import Subscriber
from service.view import Selection, View
from tests.encodings import PLAIN


class Recorder:
    """An outlet that keeps what it is given."""

    outbox_bytes = 1_000_000

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def write(self, fd: int, data: bytes | memoryview, /) -> int:
        """Take everything."""
        self.taken.append(bytes(data))
        return len(data)

    def want_room(self, subscriber: Subscriber) -> None:
        """Never called, as everything is taken."""
        raise AssertionError

    def release(self, subscriber: Subscriber) -> None:
        """Note the end."""
        subscriber.fd = -1


def frame(number: int, data: bytes = b"", name: str = "message") -> Frame:
    """A frame whose id is `number`."""
    return Frame(EventId(number, 0), name, data or b"%d " % number)


def foreign(data: bytes) -> Frame:
    """A frame without an id."""
    return Frame(None, "message", data)


def subscriber_of(view: View) -> tuple[Subscriber, Recorder]:
    """A subscriber that may join `view`, and what it gets."""
    outlet = Recorder()
    return Subscriber(outlet, 5, view.selection, "", encoding=PLAIN), outlet


def deliver(view: View) -> None:
    """Write what is pending, as the hub does."""
    for batch, receivers, _ in view.take():
        for subscriber in receivers:
            subscriber.offer(batch)


@pytest.fixture
def view() -> View:
    """A view of one channel, of all names."""
    return View(Selection(("a",)))


def test_equal_selections_are_one() -> None:
    """Streams that ask for the same channels and names share a view, so selections are values."""
    one = Selection(("a", "b"), frozenset({"x", "y"}))
    assert one == Selection(("a", "b"), frozenset({"y", "x"}))
    assert hash(one) == hash(Selection(("a", "b"), frozenset({"y", "x"})))
    assert one != Selection(("a", "b"))
    assert one != Selection(("a", "b"), frozenset({"x", "y"}), visible_pings=True)
    assert one != Selection(("a", "b"), frozenset({"x", "y"}), granted=frozenset("a"))


def test_frames_are_joined_for_all(view: View) -> None:
    """What was collected goes out as one batch, in order, to every subscriber, the same object."""
    first, got_first = subscriber_of(view)
    second, got_second = subscriber_of(view)
    view.join(first, FIRST_ID)
    view.join(second, FIRST_ID)
    assert view.collect(frame(1))
    assert view.collect(foreign(b"f "))
    assert view.collect(frame(2))

    ((batch, receivers, _),) = view.take()

    assert batch.plain == b"1 f 2 "
    assert set(receivers) == {first, second}
    assert list(view.take()) == []
    assert got_first.taken == got_second.taken == []


def test_an_event_comes_once_and_never_backwards(view: View) -> None:
    """A frame whose id is not above the last is dropped: one event of two channels comes once."""
    assert view.collect(frame(5))
    assert not view.collect(frame(5))
    assert not view.collect(frame(4))
    assert view.collect(foreign(b"x"))
    assert view.collect(frame(6))


def test_names_are_filtered() -> None:
    """Only listed names pass, `message` for none, but the service's own pass every filter."""
    view = View(Selection(("a",), frozenset({"tick", "message"})))
    assert view.collect(frame(1, name="tick"))
    assert view.collect(frame(2, name="message"))
    assert not view.collect(frame(3, name="other"))
    assert view.collect(frame(4, name="$reset"))
    assert not view.collect(Frame(None, "other", b"x"))
    assert view.last_id == EventId(4, 0)


def test_a_filtered_frame_moves_the_position() -> None:
    """What a view doesn't select counts as delivered: it must not come back later."""
    view = View(Selection(("a",), frozenset({"tick"})))
    assert not view.collect(frame(3, name="other"))
    assert view.last_id == EventId(3, 0)


def private(number: int, *channels: str, name: str = "message") -> Frame:
    """A frame that is private to `channels`."""
    made = frame(number, name=name)
    made.private = frozenset(channels)
    return made


@pytest.mark.parametrize(
    ("granted", "channels", "selected"),
    [
        ("", "a", False),
        ("a", "a", True),
        ("a", "b", False),
        ("b", "ab", True),
        ("ab", "a", True),
        ("ab", "c", False),
        ("", "abc", False),
    ],
)
def test_private_frames_want_a_grant(granted: str, channels: str, selected: bool) -> None:
    """A private frame passes when one of its channels is among those granted; a public one does
    always, whatever is granted.
    """
    selection = Selection(("a", "b"), granted=frozenset(granted))
    assert selection.selects(private(1, *channels)) is selected
    assert selection.selects(frame(1))
    assert selection.selects(foreign(b"x"))


def test_a_private_frame_has_to_pass_the_filter_too() -> None:
    """A grant is no wish: of granted events only the wanted names come; and a wish is no grant,
    not even for names of the service's own.
    """
    selection = Selection(("a",), frozenset({"tick"}), granted=frozenset("a"))
    assert selection.selects(private(1, "a", name="tick"))
    assert not selection.selects(private(1, "a"))
    assert not Selection(("a",), frozenset({"tick"})).selects(private(1, "a", name="tick"))
    assert not Selection(("a",)).selects(private(1, "a", name="$end"))


def test_a_private_frame_moves_the_position_of_all() -> None:
    """Who may not see an event counts it as past all the same: a later grant for a channel of a
    second copy doesn't bring it back out of order.
    """
    view = View(Selection(("a", "b"), granted=frozenset("b")))
    assert not view.collect(private(3, "a"))
    assert view.last_id == EventId(3, 0)
    assert not view.collect(frame(3))
    assert view.collect(private(4, "a", "b"))
    assert not view.collect(private(4, "a", "b"))


def test_who_joins_gets_no_private_frame_that_waits() -> None:
    """Of the frames that are pending when it joins, a subscriber gets what its view may see."""
    view = View(Selection(("a",)))
    view.collect(frame(1))
    view.collect(private(2, "a"))
    view.collect(frame(3))
    subscriber, got = subscriber_of(view)
    view.join(subscriber, FIRST_ID)
    deliver(view)
    assert b"".join(got.taken) == b"1 3 "
    assert subscriber.events == 2


def test_a_subscriber_joins_at_a_batch_boundary(view: View) -> None:
    """Of the frames that are pending when it joins, a subscriber gets those above its position,
    and only those; it gets none of the batches they are in, and everything later.
    """
    early, got_early = subscriber_of(view)
    view.join(early, FIRST_ID)
    for number in (1, 2, 3):
        view.collect(frame(number))
    late, got_late = subscriber_of(view)

    view.join(late, EventId(1, 0))

    assert got_late.taken == [b"2 3 "]
    view.collect(frame(4))
    deliver(view)
    assert got_early.taken == [b"1 2 3 ", b"4 "]
    assert got_late.taken == [b"2 3 ", b"4 "]


def test_a_foreign_frame_before_the_join_is_not_for_it(view: View) -> None:
    """What has no id is live only: pending when a stream joins, it is from before the stream."""
    view.collect(foreign(b"x"))
    late, got = subscriber_of(view)
    view.join(late, FIRST_ID)
    deliver(view)
    assert got.taken == []


def test_joining_while_batches_are_written(view: View) -> None:
    """A subscriber that joins between two slices gets nothing of the batches being written."""
    early, got_early = subscriber_of(view)
    view.join(early, FIRST_ID)
    view.collect(frame(1, b"a" * MAX_BATCH_BYTES))
    view.collect(frame(2, b"b" * MAX_BATCH_BYTES))
    late, got_late = subscriber_of(view)

    for number, (batch, receivers, _) in enumerate(view.take()):
        if number == 0:
            view.join(late, EventId(2, 0))
            view.collect(frame(3, b"c"))
        for subscriber in receivers:
            subscriber.offer(batch)
    deliver(view)

    assert [data[:1] for data in got_early.taken] == [b"a", b"b", b"c"]
    assert got_late.taken == [b"c"]


def test_several_joins_with_frames_between(view: View) -> None:
    """Each subscriber gets every frame above its position exactly once, whenever it joins."""
    got = []
    for number in range(1, 6):
        view.collect(frame(number))
        subscriber, recorder = subscriber_of(view)
        view.join(subscriber, EventId(number - 1, 0))
        got.append(recorder)
    deliver(view)
    assert [b"".join(one.taken) for one in got] == [
        b"1 2 3 4 5 ",
        b"2 3 4 5 ",
        b"3 4 5 ",
        b"4 5 ",
        b"5 ",
    ]


def test_a_heartbeat_follows_what_is_pending(view: View) -> None:
    """A batch without events has its place between those before and after it, for those who were
    there then; it doesn't count as an event.
    """
    early, got_early = subscriber_of(view)
    view.join(early, FIRST_ID)
    view.collect(frame(1))
    view.append(Batch(b": "))
    late, got_late = subscriber_of(view)
    view.join(late, EventId(1, 0))
    view.collect(frame(2))
    deliver(view)
    assert b"".join(got_early.taken) == b"1 : 2 "
    assert got_late.taken == [b"2 "]
    assert (early.events, late.events) == (2, 1)
    assert not view.has_work


def test_leaving_twice_is_harmless(view: View) -> None:
    """A subscriber that left gets nothing more; leaving again changes nothing."""
    gone, got = subscriber_of(view)
    view.join(gone, FIRST_ID)
    view.leave(gone)
    view.leave(gone)
    view.collect(frame(1))
    deliver(view)
    assert got.taken == []


def test_a_subscriber_counts_what_it_was_offered(view: View) -> None:
    """The access line of a stream tells its own events and bytes, not those of the view's life."""
    first, _ = subscriber_of(view)
    assert (first.events, first.sent_bytes) == (0, 0)
    view.join(first, FIRST_ID)
    view.collect(frame(1, b"123"))
    deliver(view)
    view.collect(frame(2, b"1234"))
    late, _ = subscriber_of(view)
    view.join(late, EventId(1, 0))
    view.collect(frame(3, b"12345"))
    deliver(view)

    assert (first.events, first.sent_bytes) == (3, 12)
    assert (late.events, late.sent_bytes) == (2, 9)
