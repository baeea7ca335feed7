"""The hub: who gets what and when, that nothing yields half-way, heartbeats and the drain."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Iterator

import gevent
import greenlet
import pytest

import service.fan_out
from service.batch import MAX_BATCH_BYTES
from service.channels import SYS
from service.control import CONTROL
from service.event import FIRST_ID, EventId
from service.frame import Frame
from service.heartbeat import JITTER, POSITION_SECONDS
from service.hub import FLUSH_SECONDS, TICK_SECONDS, Hub
from service.reset import Loss
from service.sockets import Sockets
from service.subscriber import GONE, Ending, Subscriber
from service.view import Selection
from tests.deliveries import beat, deliver, reset
from tests.encodings import CHUNKED, PLAIN, framing
from tests.live_server import until
from tests.sse_client import EventStreamParser, ParsedEvent, event_data, parse_stream

HEARTBEAT_SECONDS = 15.0
SEND_TIMEOUT_SECONDS = 10.0
RETRY_MILLISECONDS = 2000


class Client:
    """A stream and its outlet: what came, when, and in what mood the client takes it."""

    outbox_bytes = 1_000_000

    def __init__(
        self,
        hub: Hub,
        *channels: str,
        names: frozenset[str] | None = None,
        visible_pings: bool = False,
        chunked: bool = False,
        position: EventId = FIRST_ID,
        granted: frozenset[str] = frozenset(),
        on_write: Callable[[], None] = lambda: None,
    ) -> None:
        self.hub = hub
        self.on_write = on_write
        self.stuck = False
        self.writes: list[bytes | memoryview] = []
        self.ended_at = 0.0
        selection = Selection(channels or ("a",), names, visible_pings, granted)
        self.subscriber = Subscriber(self, 5, selection, "", encoding=framing(chunked))
        hub.attach(self.subscriber, position)

    def write(self, fd: int, data: bytes | memoryview, /) -> int:
        """Take everything, or nothing."""
        assert fd != GONE
        self.on_write()
        if self.stuck:
            raise BlockingIOError
        self.writes.append(data)
        return len(data)

    def want_room(self, subscriber: Subscriber) -> None:
        """Tell the hub, as the real outlets do."""
        self.hub.slow.add(subscriber)

    def release(self, subscriber: Subscriber) -> None:
        """End, as the real outlets do."""
        subscriber.fd = GONE
        self.ended_at = time.monotonic()
        self.hub.slow.discard(subscriber)
        self.hub.detach(subscriber)

    @property
    def data(self) -> bytes:
        """All that came."""
        return b"".join(self.writes)

    @property
    def events(self) -> list[str]:
        """The data of all events that came."""
        return event_data(parse_stream(self.data))


def test_what_of_the_events_is_nobodys(hub: Hub) -> None:
    """The service's own count as they are written: not for who wants other names, or has left."""
    counts = hub._counts
    stays, leaves = Client(hub, SYS), Client(hub, SYS)
    Client(hub, SYS, names=frozenset({"x"}))
    Client(hub, "a")
    for channel in (SYS, SYS, "a"):
        hub.collect([(channel, Frame(None, "message", b"data: x\n\n"))])
    leaves.subscriber.end(Ending.CLIENT_LEFT)
    Client(hub, SYS)
    hub.fan_out.write()
    assert len(stays.events) == 2
    assert (counts.sys_events, counts.events) == (2, 3)
    assert (counts.sys_received, counts.received) == (2, 3)


def make_hub(obey: Callable[[Frame], None] = lambda _: None, **changes: float) -> Hub:
    """A hub with the default settings, or with `changes`."""
    return Hub(
        obey=obey,
        heartbeat_seconds=changes.get("heartbeat_seconds", HEARTBEAT_SECONDS),
        send_timeout_seconds=changes.get("send_timeout_seconds", SEND_TIMEOUT_SECONDS),
        retry_milliseconds=RETRY_MILLISECONDS,
    )


@pytest.fixture
def hub() -> Hub:
    """A hub without streams."""
    return make_hub()


def frame(number: int, data: str = "", name: str = "message") -> Frame:
    """A frame whose id and data are `number`."""
    event_id = EventId(number, 0)
    return Frame(event_id, name, f"id: {event_id}\ndata: {data or number}\n\n".encode())


@pytest.fixture
def tiny_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let others run after every single write."""
    monkeypatch.setattr(service.fan_out, "SLICE_SECONDS", -1.0)
    monkeypatch.setattr(service.fan_out, "SLICE_WRITES", 1)


# ------------------------------------------------------------------------------- who gets what


def test_each_channel_has_its_streams(hub: Hub) -> None:
    """A stream gets what is published to its channels, in order, and nothing else."""
    a, b, both = Client(hub, "a"), Client(hub, "b"), Client(hub, "a", "b")
    deliver(hub, [("a", frame(1)), ("b", frame(2)), ("c", frame(3)), ("a", frame(4))])
    assert a.events == ["1", "4"]
    assert b.events == ["2"]
    assert both.events == ["1", "2", "4"]
    assert hub.position == EventId(4, 0)


def test_a_channel_without_streams_moves_the_position(hub: Hub) -> None:
    """The position is the highest id that reached this worker, whoever it was for."""
    deliver(hub, [("nobody", frame(7)), ("nobody", frame(6))])
    deliver(hub, [("nobody", Frame(None, "message", b"data: foreign\n\n"))])
    assert hub.position == EventId(7, 0)


def test_an_event_of_several_channels_comes_once(hub: Hub) -> None:
    """A stream of several channels gets an event that went to all of them once."""
    both = Client(hub, "a", "b")
    deliver(hub, [("a", frame(1)), ("b", frame(1))])
    deliver(hub, [("b", frame(1))])
    assert both.events == ["1"]


def test_half_of_an_event_of_several_channels(hub: Hub) -> None:
    """While one of an event's copies is on its way, no stream of that channel is past the event."""
    first, second = frame(2), frame(2)
    first.more = True
    deliver(hub, [("a", frame(1)), ("b", frame(1)), ("a", first)])
    assert hub.position_of(["a"]) == hub.position_of(["a", "b"]) == EventId(2, 0)
    assert hub.position_of(["b"]) == hub.position == EventId(1, 0)
    late = Client(hub, "b", position=hub.position_of(["b"]))
    both = Client(hub, "a", "b", position=hub.position_of(["a", "b"]))
    reset(hub, ["b"], Loss.LOST, None, FIRST_ID)
    beat(hub, time.monotonic() + HEARTBEAT_SECONDS)
    assert [event.last_event_id for event in parse_stream(late.data)] == ["1-0"]
    assert late.data.count(b"id: 1-0\n") == 2, "with $reset and with the heartbeat"
    deliver(hub, [("b", second)])
    assert late.events[1:] == ["2"]
    assert both.events[1:] == [], "it came with the other channel"
    assert hub.position == EventId(2, 0)


def test_a_copy_that_nobody_here_follows(hub: Hub) -> None:
    """What comes next, or a mark, proves that no more copies of an event will come."""
    first, second = frame(2), frame(4)
    first.more = second.more = True
    deliver(hub, [("a", frame(1)), ("a", first)])
    assert hub.position == EventId(1, 0)
    deliver(hub, [("a", frame(3))])
    assert hub.position == EventId(3, 0)
    deliver(hub, [("a", second)])
    hub.advance(EventId(4, 0))
    assert hub.position == hub.position_of(["b"]) == EventId(4, 0)


def test_filtered_streams(hub: Hub) -> None:
    """Each view gets the names it selected, the service's own always."""
    ticks = Client(hub, "a", names=frozenset({"tick"}))
    everything = Client(hub, "a")
    deliver(hub, [("a", frame(1, name="tick")), ("a", frame(2)), ("a", frame(3, name="$reset"))])
    assert ticks.events == ["1", "3"]
    assert everything.events == ["1", "2", "3"]


def stored(number: int, *private: str) -> Frame:
    """A stored event, private to these channels if any."""
    made = frame(number)
    made.prev = FIRST_ID
    made.private = frozenset(private) or None
    return made


def test_private_events_go_to_those_with_a_grant(hub: Hub) -> None:
    """Streams of the same channels with different rights get different events; one grant among
    an event's channels is enough, and a stream that doesn't follow that channel has none.
    """
    nobody, granted_b = Client(hub, "a", "b"), Client(hub, "a", "b", granted=frozenset("b"))
    only_a, only_b = Client(hub, "a"), Client(hub, "b", granted=frozenset("b"))
    deliver(hub, [("a", stored(1)), ("a", stored(2, "a")), ("b", stored(3, "b"))])
    deliver(hub, [("a", stored(4, "a", "b")), ("b", stored(4, "a", "b")), ("b", stored(5))])
    assert nobody.events == ["1", "5"]
    assert granted_b.events == ["1", "3", "4", "5"]
    assert only_a.events == ["1"]
    assert only_b.events == ["3", "4", "5"]
    assert hub.position == EventId(5, 0), "it is the same for all"


def test_a_late_private_event_is_no_loss_for_others(hub: Hub) -> None:
    """An event that comes out of order is told with `$reset`, but only to streams that would have
    got it: of a private one the others hear nothing, and of a filtered one neither.
    """
    granted, other = Client(hub, granted=frozenset("a")), Client(hub)
    ticks = Client(hub, names=frozenset({"tick"}), granted=frozenset("a"))
    deliver(hub, [("a", stored(5)), ("a", stored(3, "a"))])
    deliver(hub, [("a", stored(2, "a"))])
    assert [event.type for event in parse_stream(granted.data)] == ["message", "$reset", "$reset"]
    assert other.events == ["5"]
    assert ticks.events == []
    deliver(hub, [("a", stored(4))])
    assert [event.type for event in parse_stream(other.data)] == ["message", "$reset"]


def test_losses_are_told_to_all_of_a_channel(hub: Hub) -> None:
    """A gap may have held anything, so streams without a grant are told as well."""
    clients = [Client(hub), Client(hub, granted=frozenset("a"))]
    reset(hub, ["a"], Loss.LOST, None, FIRST_ID)
    for client in clients:
        assert [event.type for event in parse_stream(client.data)] == ["$reset"]


def test_streams_of_a_view_share_their_bytes(hub: Hub) -> None:
    """Whatever the number of streams, a batch is joined once and framed once for each framing."""
    plain = [Client(hub, "a", "b") for _ in range(3)]
    chunked = [Client(hub, "a", "b", chunked=True) for _ in range(3)]
    deliver(hub, [("a", frame(1)), ("b", frame(2))])
    assert [len(one.writes) for one in plain + chunked] == [1] * 6
    assert len({id(one.writes[0]) for one in plain}) == 1
    assert len({id(one.writes[0]) for one in chunked}) == 1


def test_a_flood_is_written_in_bounded_batches(hub: Hub) -> None:
    """Frames that arrive together are joined, up to 64 KiB for one write."""
    client = Client(hub)
    frames = [("a", frame(number, "x" * 1000)) for number in range(1, 301)]
    deliver(hub, frames)
    assert 5 <= len(client.writes) <= 6
    assert max(map(len, client.writes)) <= MAX_BATCH_BYTES
    assert len(client.events) == 300


def test_nothing_is_left_of_streams_that_ended(hub: Hub) -> None:
    """When its last stream ends, a view and its channels are forgotten; others stay."""
    first, second = Client(hub, "a", "b"), Client(hub, "a", "b")
    other = Client(hub, "b")
    assert hub.streams == 3
    first.subscriber.end(Ending.CLIENT_LEFT)
    deliver(hub, [("a", frame(1))])
    assert (first.events, second.events) == ([], ["1"])
    second.subscriber.end(Ending.CLIENT_LEFT)
    assert hub.streams == 1
    assert set(hub._views_of) == {"b"}

    other.subscriber.end(Ending.CLIENT_LEFT)

    assert (hub.streams, hub.views, hub._views_of) == (0, {}, {})


def test_a_stream_that_never_attached_can_be_detached(hub: Hub) -> None:
    """A client that left before its stream was attached changes no count."""
    outlet = Client(hub)
    never = Subscriber(outlet, 6, Selection(("z",)), "", encoding=PLAIN)
    never.end(Ending.CLIENT_LEFT)
    assert hub.streams == 1


def test_a_stream_that_ends_in_the_fan_out_hurts_nobody(hub: Hub) -> None:
    """A view whose only stream ends while it is written to, and one that starts right then, are
    two views: the new stream goes on.
    """
    started: list[Client] = []

    def leave() -> None:
        if not started:
            leaving.subscriber.end(Ending.CLIENT_LEFT)
            started.append(Client(hub, "a", position=hub.position))

    leaving = Client(hub, "a", on_write=leave)
    deliver(hub, [("a", frame(1, "x" * MAX_BATCH_BYTES)), ("a", frame(2))])
    deliver(hub, [("a", frame(3))])
    assert started[0].events == ["3"]
    assert hub.streams == 1


# ---------------------------------------------------------------------------------- commands


def test_commands_are_obeyed_in_their_order() -> None:
    """What comes on the control channel, and nothing else, is obeyed, once and in order."""
    obeyed: list[Frame] = []
    hub = make_hub(obeyed.append)
    client = Client(hub)
    commands = [stored(2), stored(4), frame(6)]
    deliver(hub, [("a", frame(1)), (CONTROL, commands[0]), ("a", stored(3))])
    deliver(hub, [(CONTROL, commands[1]), ("$other", frame(5)), (CONTROL, commands[2])])
    assert obeyed == commands
    assert client.events == ["1", "3"]
    assert hub.position == EventId(6, 0)


def test_a_command_may_end_streams_of_its_batch() -> None:
    """A stream that a command ends gets nothing more, with whatever it had in the same batch; the
    others of its view, and those of other views, get everything.
    """
    obeyed: list[Frame] = []

    def obey(command: Frame) -> None:
        obeyed.append(command)
        for one in (closed, alone):
            one.subscriber.finish(Ending.REVOKED)

    hub = make_hub(obey)
    closed, stays, alone = Client(hub, "a"), Client(hub, "a"), Client(hub, "a", "b")
    other = Client(hub, "b")
    deliver(hub, [("a", stored(1)), (CONTROL, stored(2)), ("a", stored(3)), ("b", stored(4))])
    deliver(hub, [(CONTROL, stored(5)), ("a", stored(6))])
    assert len(obeyed) == 2
    assert closed.events == alone.events == []
    assert closed.subscriber.ending is alone.subscriber.ending is Ending.REVOKED
    assert stays.events == ["1", "3", "6"]
    assert other.events == ["4"]
    assert hub.streams == 2


# ---------------------------------------------------------------- nothing yields in the middle


@contextlib.contextmanager
def no_switch() -> Iterator[None]:
    """Fail when any other greenlet runs meanwhile."""
    switches: list[str] = []
    before = greenlet.settrace(lambda event, _: switches.append(event))
    try:
        yield
    finally:
        greenlet.settrace(before)
    assert switches == []


def test_registry_changes_never_yield(hub: Hub) -> None:
    """Attaching, collecting, joining batches and detaching happen in one go: no other greenlet
    sees a registry that is half changed.
    """
    with no_switch():
        clients = [Client(hub, "a", f"c{n}", position=FIRST_ID) for n in range(1000)]
    with no_switch():
        hub.collect([("a", frame(number)) for number in range(1, 100)])
    with no_switch():
        late = Client(hub, "a", "c0")
    with no_switch():
        batches = [list(view.take()) for view in hub.views.values()]
    assert sum(map(bool, batches)) == 1000
    with no_switch():
        for client in clients:
            client.subscriber.end(Ending.CLIENT_LEFT)
    assert hub.streams == 1
    assert len(late.events) == 99


def test_taking_a_socket_over_never_yields(hub: Hub) -> None:
    """From the hand-over of a socket to its attachment, and at its end, nothing else runs: with a
    stream's position read before, no event can fall between.
    """
    sockets = Sockets(hub.detach, hub.slow, outbox_bytes=1000, send_timeout_seconds=10)
    server, client = socket.socketpair()
    with no_switch():
        fd = sockets.take_over(server)
        subscriber = Subscriber(sockets, fd, Selection(("a",)), "", encoding=CHUNKED)
        sockets.watch(subscriber)
        subscriber.send(b"head")
        hub.attach(subscriber, FIRST_ID)
        subscriber.send(b"x" * 5_000_000)
        subscriber.end(Ending.TOO_SLOW)
    client.close()
    assert hub.streams == 0


def test_a_stream_that_opens_during_a_fan_out(hub: Hub, tiny_slices: None) -> None:
    """Between two slices streams come and go: who joins gets nothing of the batch that is being
    written, nor of those collected below its position, and everything after it.
    """
    receivers = [Client(hub, "a") for _ in range(5)]
    others = [Client(hub, "b") for _ in range(5)]
    delivery = gevent.spawn(deliver, hub, [("a", frame(1)), ("b", frame(2))])
    while not any(one.writes for one in receivers):
        gevent.sleep(0)

    late_a = Client(hub, "a", position=hub.position)
    late_b = Client(hub, "b", position=hub.position)
    receivers[0].subscriber.end(Ending.CLIENT_LEFT)
    delivery.join()
    deliver(hub, [("a", frame(3)), ("b", frame(4))])

    assert late_a.events == ["3"]
    assert late_b.events == ["4"]
    assert [one.events for one in receivers[1:]] == [["1", "3"]] * 4
    assert [one.events for one in others] == [["2", "4"]] * 5


def test_deliveries_of_a_view_are_not_mixed(hub: Hub, tiny_slices: None) -> None:
    """What is collected while a pass is written waits for the view's next one."""
    clients = [Client(hub, "a") for _ in range(10)]
    hub.collect([("a", frame(1)), ("a", frame(2))])
    writer = gevent.spawn(hub.fan_out.write)
    while not any(one.writes for one in clients):
        gevent.sleep(0)
    hub.collect([("a", frame(3))])
    assert not all(one.writes for one in clients)
    writer.join()
    assert [one.events for one in clients] == [["1", "2", "3"]] * 10


def test_a_stranger_gets_nothing_of_a_fan_out(hub: Hub, tiny_slices: None) -> None:
    """A stream that ends between two slices may leave its number to a connection that is accepted
    meanwhile; that one gets nothing of what the fan-out still has for the other.
    """
    sockets = Sockets(hub.detach, hub.slow, outbox_bytes=1000, send_timeout_seconds=10)
    ends: list[socket.socket] = []

    def accept(channel: str) -> Subscriber:
        server, client = socket.socketpair()
        ends.append(client)
        fd = sockets.take_over(server)
        subscriber = Subscriber(sockets, fd, Selection((channel,)), "", encoding=PLAIN)
        sockets.watch(subscriber)
        hub.attach(subscriber, FIRST_ID)
        return subscriber

    streams = [accept("a") for _ in range(4)]
    numbers = {stream.fd for stream in streams}
    hub.collect([("a", frame(1))])
    writer = gevent.spawn(hub.fan_out.write)
    gevent.sleep(0)
    assert not writer.ready()
    for stream in streams:
        stream.end(Ending.CLIENT_LEFT)
    strangers = [accept("private") for _ in range(4)]
    assert not numbers.isdisjoint(stranger.fd for stranger in strangers), "no number came back"
    writer.join()

    for stranger, end in zip(strangers, ends[4:], strict=True):
        stranger.send(b"hello")
        assert end.recv(1000) == b"hello"
        stranger.end(Ending.CLIENT_LEFT)
    for end in ends:
        end.close()


# ------------------------------------------------------------------- heartbeats, slow streams


def test_a_heartbeat_is_a_bare_comment(hub: Hub) -> None:
    """A quiet stream gets `:` and a newline: a blank line would be an event to some clients."""
    client = Client(hub)
    beat(hub, time.monotonic())
    assert client.data == b""
    beat(hub, time.monotonic() + HEARTBEAT_SECONDS)
    assert client.data == b":\n"


def test_heartbeats_come_in_time_and_not_together(hub: Hub) -> None:
    """A heartbeat comes before the longest silence is over, up to a fifth earlier, so that views
    don't beat all at once.
    """
    began = time.monotonic()
    for number in range(200):
        Client(hub, f"channel{number}")
    due = [view.heartbeat_at for view in hub.views.values()]
    latest = HEARTBEAT_SECONDS - TICK_SECONDS
    assert max(due) <= time.monotonic() + latest
    assert min(due) >= began + latest - JITTER * HEARTBEAT_SECONDS
    assert max(due) - min(due) > 0.5 * JITTER * HEARTBEAT_SECONDS


def test_an_event_is_a_sign_of_life(hub: Hub) -> None:
    """A view that has just got an event needs no heartbeat; the other views do."""
    busy, quiet = Client(hub, "a"), Client(hub, "b")
    for view in hub.views.values():
        view.heartbeat_at = 0.0
    deliver(hub, [("a", frame(1))])
    beat(hub, time.monotonic())
    assert busy.events == ["1"]
    assert b":\n\n" not in busy.data
    assert not busy.data.endswith(b":\n")
    assert quiet.data.startswith(b":\n")


def test_the_position_is_told_about_once_a_minute(hub: Hub) -> None:
    """Once a minute a heartbeat carries the position that was delivered, so that the cursor of a
    quiet or filtered stream stays fresh; it dispatches nothing.
    """
    client = Client(hub, "a", names=frozenset({"never"}))
    deliver(hub, [("a", frame(5)), ("elsewhere", frame(9))])
    start = time.monotonic() + HEARTBEAT_SECONDS
    for seconds in range(0, 3 * POSITION_SECONDS, 15):
        hub.views[client.subscriber.selection].heartbeat_at = 0.0
        beat(hub, start + seconds)

    parser = EventStreamParser()
    assert parser.feed(client.data) == []
    assert parser.last_event_id == "9-0"
    assert client.data.count(b"id: 9-0\n\n") == 3
    assert parser.comments == [""] * 12
    assert parser.stray_blank_lines == 0


def test_no_position_is_told_before_there_is_one(hub: Hub) -> None:
    """A worker that has delivered nothing yet doesn't set cursors back to the beginning."""
    client = Client(hub)
    beat(hub, time.monotonic() + POSITION_SECONDS)
    assert client.data == b":\n"


def test_the_position_is_never_ahead_of_what_was_written(hub: Hub, tiny_slices: None) -> None:
    """A heartbeat that falls into a fan-out comes after the frames that still wait: its position
    would make a client that reconnects skip them.
    """
    ahead = [Client(hub, "a") for _ in range(5)]
    behind = Client(hub, "b")
    delivery = gevent.spawn(deliver, hub, [("a", frame(1)), ("b", frame(2))])
    while not ahead[0].writes and not ahead[1].writes:
        gevent.sleep(0)
    assert hub.position == EventId(2, 0)
    hub.views[behind.subscriber.selection].heartbeat_at = 0.0

    heartbeat = gevent.spawn(beat, hub, time.monotonic())
    delivery.join()
    heartbeat.join()

    assert behind.data in (
        b"id: 2-0\ndata: 2\n\n",
        b"id: 2-0\ndata: 2\n\n:\nid: 2-0\n\n",
    )


def test_visible_pings_are_events(hub: Hub) -> None:
    """With `ping=event` a heartbeat is `$ping` with the time, and without an id."""
    client = Client(hub, visible_pings=True)
    beat(hub, time.monotonic() + HEARTBEAT_SECONDS)
    (event,) = parse_stream(client.data)
    assert (event.type, event.last_event_id) == ("$ping", "")
    match = re.fullmatch(r'\{"time": (\d+)\}', event.data)
    assert match is not None
    assert abs(int(match[1]) - time.time() * 1000) < 60_000


def test_stalled_streams_are_ended(hub: Hub) -> None:
    """A stream with a backlog that took nothing for the send timeout ends as stalled; one that
    took something, or has no backlog, stays.
    """
    stalled, moving, idle = Client(hub), Client(hub), Client(hub)
    stalled.stuck = moving.stuck = True
    deliver(hub, [("a", frame(1))])
    now = time.monotonic()
    moving.subscriber.moved_at = now + 5
    hub.end_stalled(now + SEND_TIMEOUT_SECONDS - 1)
    assert hub.streams == 3

    hub.end_stalled(now + SEND_TIMEOUT_SECONDS + 1)

    assert stalled.subscriber.ending is Ending.STALLED
    assert moving.subscriber.ending is None
    assert idle.subscriber.ending is None
    assert hub.slow == {moving.subscriber}


def test_a_slow_stream_never_delays_another(hub: Hub) -> None:
    """A stuck reader costs its own outbox; the others get everything, at once."""
    stuck, good = Client(hub), Client(hub)
    stuck.stuck = True
    for number in range(1, 200):
        deliver(hub, [("a", frame(number, "x" * 10_000))])
    assert stuck.subscriber.ending is Ending.TOO_SLOW
    assert len(good.events) == 199


def test_the_hub_beats_by_itself() -> None:
    """While it runs, a quiet stream hears something at least every heartbeat, and a stalled one is
    ended without any event.
    """
    hub = make_hub(heartbeat_seconds=0.5, send_timeout_seconds=0.5)
    quiet, stuck = Client(hub, "a"), Client(hub, "b")
    stuck.stuck = True
    greenlets = [gevent.spawn(hub.run), gevent.spawn(hub.fan_out.run)]
    until(lambda: quiet.data.startswith(b":\n"), 3, "a heartbeat")
    until(lambda: stuck.subscriber.ending is Ending.STALLED, 2, "the stalled stream is ended")
    until(lambda: quiet.data.startswith(b":\n:\n:\n"), 3, "more heartbeats")
    gevent.killall(greenlets)


# ---------------------------------------------------------------------------------- the drain


def test_a_drain_ends_every_stream_cleanly(hub: Hub) -> None:
    """Each stream gets what was delivered, a reconnection time of its own, and a whole end."""
    plain = [Client(hub) for _ in range(20)]
    chunked = [Client(hub, chunked=True) for _ in range(20)]
    deliver(hub, [("a", frame(1))])
    hub.drain(0)

    assert hub.draining
    assert hub.streams == 0
    retries = set()
    for client in plain:
        parser = EventStreamParser()
        assert parser.feed(client.data) == [ParsedEvent("message", "1", "1-0")]
        assert parser.retry is not None
        retries.add(parser.retry)
    assert min(retries) >= 0.5 * RETRY_MILLISECONDS
    assert max(retries) <= 1.5 * RETRY_MILLISECONDS
    assert len(retries) > 10, "all would come back together"
    assert all(client.data.endswith(b"\r\n0\r\n\r\n") for client in chunked)
    endings = {client.subscriber.ending for client in plain + chunked}
    assert endings == {Ending.DRAINED}


def test_a_drain_is_spread_over_its_window(hub: Hub) -> None:
    """Streams end evenly over the window, so that their clients don't storm the next worker."""
    clients = [Client(hub) for _ in range(50)]
    started = time.monotonic()
    hub.drain(0.5)
    times = sorted(client.ended_at - started for client in clients)
    assert times[-1] < 3
    for number, ended in enumerate(times):
        assert ended >= 0.5 * number / 50 - 0.01
    order = [client.ended_at for client in clients]
    assert order != sorted(order), "those that came first are not always the first to go"


def begin_drain(hub: Hub, window_seconds: float) -> gevent.Greenlet[..., None]:
    """A drain that has begun: it has ended those streams whose time is now."""
    drain = gevent.spawn(hub.drain, window_seconds)
    for _ in range(3):
        gevent.sleep(0)  # by the clock, a pause of this process could be the end of all
    return drain


def test_streams_may_leave_and_get_events_during_a_drain(hub: Hub) -> None:
    """A drain goes on when streams end by themselves, and delivers until each one's turn."""
    clients = [Client(hub) for _ in range(20)]
    drain = begin_drain(hub, 0.3)
    assert 10 < hub.streams < 20
    for client in clients[:10]:
        client.subscriber.end(Ending.CLIENT_LEFT)
    deliver(hub, [("a", frame(1))])
    drain.get(timeout=5)
    assert hub.streams == 0
    assert sum("1" in client.events for client in clients) >= 5


def test_a_drain_waits_shortly_for_what_is_unsent(hub: Hub) -> None:
    """A stream with a backlog may take a second for the rest; a stuck one doesn't hold up."""
    slow, stuck = Client(hub), Client(hub)
    slow.stuck = stuck.stuck = True
    deliver(hub, [("a", frame(1))])
    drain = begin_drain(hub, 0)
    assert slow.subscriber.ending is Ending.DRAINED
    slow.stuck = False
    slow.subscriber.flush()
    assert slow.events == ["1"]
    assert EventStreamParser().feed(slow.data)[0].data == "1"
    assert b"retry:" in slow.data

    started = time.monotonic()
    drain.get(timeout=FLUSH_SECONDS + 5)
    assert time.monotonic() - started < FLUSH_SECONDS + 4
    assert stuck.data == b""
    assert hub.streams == 0


def test_a_drain_without_streams_is_over_at_once(hub: Hub) -> None:
    """An idle worker stops without waiting for the window."""
    started = time.monotonic()
    hub.drain(10)
    assert time.monotonic() - started < 0.5
    assert hub.draining
