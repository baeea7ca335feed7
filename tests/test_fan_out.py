"""The fan-out: views in turns, slices, rests, and what may wait."""

from __future__ import annotations

import itertools
import math
import os
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace

import gevent
import pytest

import service.fan_out
from service.batch import MAX_BATCH_BYTES
from service.event import FIRST_ID, EventId
from service.fan_out import (
    GIVE_WAY_SECONDS,
    LONGEST_REST_SECONDS,
    SLICE_SECONDS,
    SLICE_WRITES,
    WAITING_BYTES,
)
from service.hub import BEATS, Hub
from service.reset import Loss
from service.subscriber import Ending
from tests.deliveries import deliver
from tests.live_server import until
from tests.sse_client import parse_stream
from tests.stalls import burn, stalls
from tests.test_hub import HEARTBEAT_SECONDS, Client, frame, make_hub

WRITE_SECONDS = 1.5 * SLICE_SECONDS / SLICE_WRITES
"""With this price of a write a slice ends when the clock is looked at."""


@pytest.fixture
def hub() -> Hub:
    """A hub without streams."""
    return make_hub()


class Clock:
    """Stands in for the fan-out's `time` and its naps: `now` moves as the test says.

    `on_nap` is what others do meanwhile.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []
        self.on_nap: Callable[[], None] = lambda: None

    def nap(self, seconds: float) -> None:
        """Note a nap, which is when others run."""
        self.naps.append(seconds)
        self.now += seconds
        self.on_nap()

    def at_nap(self, number: int, action: Callable[[], None]) -> None:
        """Let others do this in one of the naps."""

        def act() -> None:
            if len(self.naps) == number:
                action()

        self.on_nap = act

    def cost(self, seconds: float) -> Callable[[], None]:
        """What a write that costs `seconds` does."""

        def spend() -> None:
            self.now += seconds

        return spend


@pytest.fixture
def clock(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that only the test moves; the fan-out's naps and rests return at once."""
    clock = Clock()
    monkeypatch.setattr(service.fan_out, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(service.fan_out, "gevent", SimpleNamespace(sleep=clock.nap))
    wakeup = SimpleNamespace(wait=clock.nap, set=lambda: None, clear=lambda: None)
    monkeypatch.setattr(hub.fan_out, "_wakeup", wakeup)
    return clock


def flooded(hub: Hub, clock: Clock, streams: int = 4 * SLICE_WRITES) -> list[Client]:
    """The streams of channel `flood`, whose passes take a slice for each SLICE_WRITES of them."""
    return [Client(hub, "flood", on_write=clock.cost(WRITE_SECONDS)) for _ in range(streams)]


# ------------------------------------------------------------------------------------- slices


def test_a_cheap_pass_is_followed_by_nothing(hub: Hub, clock: Clock) -> None:
    """At ordinary rates there is no added delay."""
    Client(hub, on_write=clock.cost(0.0009))
    deliver(hub, [("a", frame(1))])
    assert clock.naps == []


def test_cheap_passes_share_a_slice(hub: Hub, clock: Clock) -> None:
    """Passes of many views let other greenlets run every 5 ms or so, without a delay."""
    for number in range(40):
        Client(hub, f"c{number}", on_write=clock.cost(0.0009))
    deliver(hub, [(f"c{number}", frame(number + 1)) for number in range(40)])
    assert set(clock.naps) == {GIVE_WAY_SECONDS}
    assert 5 <= len(clock.naps) <= 7


def test_slices_of_others_are_not_counted(hub: Hub, clock: Clock) -> None:
    """Between slices others run; what they cost neither ends a slice nor makes the rest longer."""
    clients = flooded(hub, clock)
    clock.on_nap = clock.cost(0.002)
    deliver(hub, [("flood", frame(1))])
    assert clock.naps == [GIVE_WAY_SECONDS] * 4
    (view,) = hub.views.values()
    own_seconds = len(clients) * WRITE_SECONDS
    assert view.rests_until - clock.now == pytest.approx(own_seconds - 4 * 0.002, abs=1e-6)


def test_a_busy_worker_leaves_the_writer_half(hub: Hub, clock: Clock) -> None:
    """After others have had a long time it gets as much, in slices that let greenlets run between,
    before they have their next turn.
    """
    flooded(hub, clock, 16 * SLICE_WRITES)

    def others() -> None:
        if clock.naps[-1]:  # a sleep(0) lets only those run that wait for nothing
            clock.now += 0.020

    clock.on_nap = others
    deliver(hub, [("flood", frame(1))])
    slice_seconds = SLICE_WRITES * WRITE_SECONDS
    assert clock.naps[0] == GIVE_WAY_SECONDS
    turns = [place for place, nap in enumerate(clock.naps) if nap]
    apart = {later - earlier for earlier, later in itertools.pairwise(turns)}
    assert apart == {math.ceil(0.020 / slice_seconds)}


def test_others_run_every_few_milliseconds(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fan-out to thousands of streams lets other greenlets run every 5 ms or so, and among them
    those that wait for a socket.
    """
    # A wait for a core counts as the time of others, of which the writer gets as much.
    monkeypatch.setattr(service.fan_out, "LONGEST_REST_SECONDS", 0.005)
    for _ in range(2000):
        Client(hub, on_write=lambda: burn(0.00003))
    ids = itertools.count(1)
    found = stalls(lambda: deliver(hub, [("a", frame(next(ids)))]))
    assert max(found) < 0.020
    assert sum(stall > 0.001 for stall in found) >= 5, "the fan-out was too cheap to be sliced"


def test_sockets_are_served_between_slices(hub: Hub) -> None:
    """Who waits for a socket is served after a slice: gevent may run the same greenlets 50 times
    before it looks at sockets.
    """
    here, there = socket.socketpair()
    started: list[int] = []
    written: list[int] = []

    def spend() -> None:
        if not started:
            started.append(os.write(there.fileno(), b"x"))
        burn(0.00003)

    def read() -> None:
        here.recv(1)
        written.append(sum(len(one.writes) for one in clients))

    clients = [Client(hub, on_write=spend) for _ in range(2000)]
    reader = gevent.spawn(read)
    gevent.sleep(0)
    deliver(hub, [("a", frame(1))])
    reader.join()
    assert written[0] < 1500
    here.close()
    there.close()


# -------------------------------------------------------------------------------------- turns


def test_a_quiet_view_waits_for_one_slice(hub: Hub, clock: Clock) -> None:
    """While a flooded view is written, what comes for another is written after the slice that is
    under way, though the flooded one has many to go.
    """
    busy, quiet = flooded(hub, clock, 10 * SLICE_WRITES), Client(hub, "quiet")
    written: list[int] = []
    quiet.on_write = lambda: written.append(sum(len(one.writes) for one in busy))
    clock.at_nap(3, lambda: hub.collect([("quiet", frame(9))]))
    deliver(hub, [("flood", frame(1))])
    assert written == [3 * SLICE_WRITES]
    assert [one.events for one in busy] == [["1"]] * len(busy)


def test_flooded_views_take_turns(hub: Hub, clock: Clock) -> None:
    """Two expensive views are written slice by slice in turn; each keeps its own order."""
    order: list[str] = []
    for name in "ab" * 3 * SLICE_WRITES:
        client = Client(hub, name)

        def write(name: str = name) -> None:
            clock.now += WRITE_SECONDS
            if not order or order[-1] != name:
                order.append(name)

        client.on_write = write
    deliver(hub, [("a", frame(1)), ("b", frame(2))])
    assert order == ["a", "b"] * 3


def test_order_holds_in_a_flood(hub: Hub, clock: Clock) -> None:
    """What is collected during a pass is written in the next one, in order, to every stream."""
    clients = flooded(hub, clock)
    numbers = iter(range(2, 40))

    def collect() -> None:
        if (number := next(numbers, None)) is not None:
            hub.collect([("flood", frame(number))])

    clock.on_nap = collect
    deliver(hub, [("flood", frame(1))])
    assert [one.events for one in clients] == [[str(n) for n in range(1, 40)]] * len(clients)
    assert len(clients[0].writes) < 20, "batches grow"


def test_streams_end_with_the_channel_after_its_last_events(hub: Hub, clock: Clock) -> None:
    """A channel that ends while its events are written ends its streams after them all."""
    hub._recent.begin("flood", FIRST_ID)
    clients = flooded(hub, clock)
    end = frame(3, name="$end")
    end.prev = FIRST_ID
    clock.at_nap(1, lambda: hub.collect([("flood", frame(2)), ("flood", end)]))
    deliver(hub, [("flood", frame(1))])
    assert [one.events for one in clients] == [["1", "2", "3"]] * len(clients)
    assert {one.subscriber.ending for one in clients} == {Ending.CHANNEL_ENDED}


def test_the_end_of_many_streams_lets_others_run(
    hub: Hub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel of thousands that ends doesn't hold the worker up."""
    turns: list[int] = []
    hub._recent.begin("flood", FIRST_ID)
    flooded(hub, clock, 4 * BEATS)
    monkeypatch.setattr("service.hub.give_way", lambda: turns.append(hub.streams))
    hub._recent.set_ended("flood", EventId(9, 0))
    (view,) = hub.views.values()
    view.heartbeat_at = 0.0
    hub.beat(clock.now)
    assert len(turns) >= 4


def test_a_lost_end_is_told(hub: Hub, clock: Clock) -> None:
    """Streams of a channel whose `$end` was lost get one, also when a `$reset` is written later
    than it was heard that the channel is finished.
    """
    hub._recent.begin("flood", FIRST_ID)
    (client,) = flooded(hub, clock, 1)
    hub.reset(["flood"], Loss.LOST, None, FIRST_ID)
    hub._recent.set_ended("flood", EventId(9, 0))
    hub.fan_out.write()
    assert [one.type for one in parse_stream(client.data)] == ["$reset", "$end"]
    assert client.subscriber.ending == Ending.CHANNEL_ENDED


def test_heartbeats_keep_their_place(hub: Hub, clock: Clock) -> None:
    """A heartbeat tells the position, so none comes to a view with events on their way, and those
    that are collected while it is written come after it; a `$reset` keeps its place too.
    """
    clients = flooded(hub, clock)
    (view,) = hub.views.values()

    def meanwhile() -> None:
        view.heartbeat_at = view.position_at = 0.0
        if len(clock.naps) == 1:
            hub.collect([("flood", frame(2))])
        hub.beat(clock.now)
        if len(clock.naps) == 2:
            hub.reset(["flood"], Loss.LOST, None, FIRST_ID)
            hub.collect([("flood", frame(3))])

    clock.on_nap = meanwhile
    deliver(hub, [("flood", frame(1))])
    expected = ["1", "2", "$reset", "3"]
    told = [[one.type if one.type == "$reset" else one.data for one in parse_stream(client.data)]
            for client in clients]  # fmt: skip
    assert told == [expected] * len(clients)
    assert not any(b":\n\n" in one.data or b"\n:\n" in one.data for one in clients)

    clock.on_nap = lambda: hub.collect([("flood", frame(4))])
    view.heartbeat_at = view.position_at = 0.0
    hub.beat(clock.now + HEARTBEAT_SECONDS)
    assert view.has_turn
    hub.fan_out.write()
    for client in clients:
        assert client.data.endswith(b":\nid: 3-0\n\n" + frame(4).data)


# -------------------------------------------------------------------------------------- rests


@pytest.mark.parametrize(
    ("seconds", "rest"), [(0.002, 0.002), (0.030, 0.030), (0.200, LONGEST_REST_SECONDS)]
)
def test_half_of_the_time_is_for_others(
    hub: Hub, clock: Clock, seconds: float, rest: float
) -> None:
    """After a pass that cost some time, its view waits for as long before the next one, at most
    50 ms: batches grow, and fan-out takes at most half of a worker that one channel floods.
    """
    clients = [Client(hub, on_write=clock.cost(seconds / 10)) for _ in range(10)]
    deliver(hub, [("a", frame(1))])
    ended = clock.now
    started: list[float] = []
    clients[0].on_write = lambda: started.append(clock.now)
    deliver(hub, [("a", frame(2)), ("a", frame(3))])
    assert ended + rest <= started[0] + 1e-9 <= ended + rest + seconds
    assert len(clients[0].writes) == 2
    assert clients[0].events == ["1", "2", "3"]


def test_the_rest_of_one_view_is_none_for_others(hub: Hub, clock: Clock) -> None:
    """While a flooded view rests with more to write, others are written at once."""
    busy, quiet = flooded(hub, clock), Client(hub, "quiet")
    deliver(hub, [("flood", frame(1))])
    ended = clock.now
    written: list[float] = []
    quiet.on_write = lambda: written.append(clock.now)
    busy[0].on_write = lambda: written.append(clock.now)
    deliver(hub, [("flood", frame(2)), ("quiet", frame(3))])
    assert written[0] == ended
    assert written[1] + 1e-9 >= ended + len(busy) * WRITE_SECONDS


def test_a_rest_is_broken_off_for_other_views(hub: Hub) -> None:
    """The writer that waits for the end of a rest is woken by what comes for another view."""
    busy, quiet = Client(hub, "busy"), Client(hub, "quiet")
    writer = gevent.spawn(hub.fan_out.run)
    gevent.sleep(0)
    for view in hub.views.values():
        if view.selection.channels == ("busy",):
            view.rests_until = time.perf_counter() + 2
    hub.collect([("busy", frame(1))])
    gevent.sleep(0.05)
    hub.collect([("quiet", frame(2))])
    gevent.sleep(0.05)
    assert (busy.events, quiet.events) == ([], ["2"])
    until(lambda: busy.events == ["1"], 10, "the rest is over")
    writer.kill()


def test_the_first_event_is_never_delayed(hub: Hub, clock: Clock) -> None:
    """The rest comes after the writing, never before it."""
    client = Client(hub, on_write=clock.cost(0.020))
    before = clock.now
    client.on_write = lambda: started.append(clock.now)
    started: list[float] = []
    deliver(hub, [("a", frame(1))])
    assert started == [before]
    assert clock.naps == []


def test_a_heartbeat_makes_no_rest(hub: Hub, clock: Clock) -> None:
    """Heartbeats of many streams don't delay the event that comes next."""
    client = Client(hub, on_write=clock.cost(0.020))
    hub.beat(time.monotonic() + HEARTBEAT_SECONDS)
    hub.fan_out.write()
    assert client.data == b":\n"
    assert next(iter(hub.views.values())).rests_until == 0.0


# ------------------------------------------------------------------------------ back-pressure


def test_not_too_much_waits(hub: Hub) -> None:
    """When many bytes wait for the writer, nothing more is collected: Redis keeps it. What several
    views share counts once, and what waits for a stream that left doesn't count for ever.
    """
    clients = [Client(hub, "a"), Client(hub, "a", "b"), Client(hub, "gone")]
    size = WAITING_BYTES // 4
    hub.deliver([("gone", frame(1, "x" * size))])
    clients[2].subscriber.end(Ending.CLIENT_LEFT)
    hub.deliver([("a", frame(2, "x" * size))])
    hub.deliver([("a", frame(3, "x" * size))])
    reader = gevent.spawn(hub.deliver, [("a", frame(4, "x" * size))])
    gevent.sleep(0.05)
    assert not reader.ready()
    hub.fan_out.write()
    reader.join(1)
    assert reader.ready()
    assert hub.fan_out._waiting_bytes == 0
    assert [len(one.events) for one in clients] == [3, 3, 0]


def test_collecting_lets_others_run(hub: Hub) -> None:
    """Who has collected for a millisecond gives way, so that a flood that never lets its reader
    wait doesn't keep the writer from writing.
    """
    client = Client(hub)
    writer = gevent.spawn(hub.fan_out.run)
    for number in range(1, 20_000):
        hub.deliver([("a", frame(number))])
        if client.writes:
            break
    assert client.writes
    writer.kill()


# ----------------------------------------------------------------------------------- failures


def test_a_batch_that_fails_costs_its_view(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is wrong with one batch, the writer goes on: the streams of that view end, whose
    clients come back with their cursors; others hear nothing of it.
    """

    def fail() -> None:
        raise RuntimeError("a mistake")

    broken, other = [Client(hub, "a", on_write=fail) for _ in range(2)], Client(hub, "b")
    deliver(hub, [("a", frame(1, "x" * MAX_BATCH_BYTES)), ("a", frame(2)), ("b", frame(3))])
    assert {one.subscriber.ending for one in broken} == {Ending.NOT_RESUMED}
    assert "could not be written" in caplog.text
    assert other.events == ["3"]
    assert hub.fan_out._waiting_bytes == 0
    after = Client(hub, "a", position=EventId(3, 0))
    deliver(hub, [("a", frame(4))])
    assert after.events == ["4"]
