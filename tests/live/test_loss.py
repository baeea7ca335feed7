"""The loss oracle: what Redis has lost, each affected stream says with `$reset`, and no other one.

Every fault is a real one: servers are killed, emptied, promoted, trimmed. Streams that were open
and streams that come back later are both looked at, over both workers.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from tests.fault_proxy import FaultProxy
from tests.live_server import LiveService, until
from tests.sse_client import ParsedEvent, SseClient, event_data
from tests.valkey import Valkey

pytestmark = [pytest.mark.live, pytest.mark.long]

OPEN_STREAMS = 6
"""Enough for both workers to have some."""

RESET_SECONDS = 10.0
"""Within this a `$reset` must come after Redis is back."""

IDLE_SECONDS = 40.0
"""Within this it must come in silence: CHECK_SECONDS of follower.py, and the above."""

SETTINGS = {"WEB_CONCURRENCY": 2, "HEARTBEAT_SECONDS": 1}


class World:
    """One service, its streams, and every id that was ever given out."""

    def __init__(self, service: LiveService, stack: ExitStack) -> None:
        self.service = service
        self.ids: list[str] = []
        self._stack = stack

    def stream(
        self, cursor: str = "", *, channel: str = "news", service: LiveService | None = None
    ) -> SseClient:
        """A stream of a channel; with a cursor it resumes."""
        headers = {"Last-Event-ID": cursor} if cursor else {}
        url = f"{(service or self.service).url}/stream?channel={channel}"
        return self._stack.enter_context(SseClient.connect(url, headers=headers))

    def streams(self, channel: str = "news") -> list[SseClient]:
        """Open streams on both workers."""
        return [self.stream(channel=channel) for _ in range(OPEN_STREAMS)]

    def publish(self, *data: str, channel: str = "news") -> list[str]:
        """Publish, as soon as Redis takes it; no id is ever given out twice, none goes back."""
        new = []
        for text in data:

            def attempt(text: str = text) -> str | None:
                status, body, _ = self.service.post(f"/channels/{channel}", text.encode())
                assert status in (200, 503), body
                return str(json.loads(body)["id"]) if status == 200 else None

            event_id = until(attempt, 10, "Redis takes events again")
            assert all(number(event_id) > number(old) for old in self.ids), "an id was reused"
            self.ids.append(event_id)
            new.append(event_id)
        return new

    def check_goes_on(self, streams: Sequence[SseClient], channel: str = "news") -> None:
        """What is published now comes to all, and nothing else."""
        event_id, second = self.publish("goes on", "and on", channel=channel)
        for client in streams:
            events = client.events(2, 10)
            assert event_data(events) == ["goes on", "and on"]
            assert [event.last_event_id for event in events] == [event_id, second]

    def check_told_once(self, told: ParsedEvent, channel: str = "news") -> None:
        """Who goes on from the id of a `$reset` isn't told again."""
        assert told.last_event_id
        client = self.stream(told.last_event_id, channel=channel)
        assert [one for one in client.events_within(0.5) if one.type == "$reset"] == []
        client.close()


def number(event_id: str) -> tuple[int, ...]:
    """An id as numbers that can be compared."""
    return tuple(map(int, event_id.split("-")))


@contextmanager
def world(redis_url: str, **settings: object) -> Iterator[World]:
    """A service with two workers."""
    with ExitStack() as stack:
        service = stack.enter_context(LiveService(redis_url, **{**SETTINGS, **settings}))
        yield World(service.wait_workers(), stack)


def check_reset(
    client: SseClient, reason: str, *, within: float = RESET_SECONDS, channel: str = "news"
) -> ParsedEvent:
    """The next event is the `$reset`."""
    event = client.next_event(within)
    assert event.type == "$reset", event
    told = json.loads(event.data)
    assert (told["channels"], told["reason"]) == ([channel], reason)
    return event


def check_all_reset(streams: Sequence[SseClient], reason: str, within: float) -> ParsedEvent:
    """Each stream gets one `$reset` within so many seconds in all."""
    deadline = time.monotonic() + within
    told = [
        check_reset(client, reason, within=max(0.01, deadline - time.monotonic()))
        for client in streams
    ]
    return told[0]


def test_restarted_empty(own_valkey: Valkey) -> None:
    """A Redis that comes back without its data: every stream is told, also who comes back later."""
    with world(own_valkey.url) as here:
        streams = here.streams()
        here.publish("1", "2", "3")
        for client in streams:
            assert event_data(client.events(3, 5)) == ["1", "2", "3"]
        own_valkey.kill()
        own_valkey.start()
        told = check_all_reset(streams, "lost", RESET_SECONDS)
        later = here.stream(here.ids[0])
        check_reset(later, "lost")
        here.check_goes_on([*streams, later])
        here.check_told_once(told)


def test_crash_loses_the_last_second() -> None:
    """A Redis that lost what it had not written yet: told to all, and no lost id is given again."""
    options = {"appendonly": "yes", "appendfsync": "everysec"}
    with Valkey(options=options) as valkey, world(valkey.url) as here:
        streams = here.streams()
        here.publish("1", "2", "3")
        time.sleep(1.5)  # by now they are on disk
        kept = valkey.directory / "kept"
        shutil.copytree(valkey.directory / "appendonlydir", kept)
        here.publish("4", "5")
        for client in streams:
            assert event_data(client.events(5, 5)) == ["1", "2", "3", "4", "5"]
        valkey.kill()
        shutil.rmtree(valkey.directory / "appendonlydir")
        kept.rename(valkey.directory / "appendonlydir")
        valkey.start()
        assert valkey.cli("XLEN", "pushline:s:news") == 3
        told = check_all_reset(streams, "lost", RESET_SECONDS)
        later = [here.stream(cursor) for cursor in (here.ids[1], here.ids[4])]
        for client in later:
            check_reset(client, "lost")
        here.check_goes_on([*streams, *later])
        here.check_told_once(told)


@pytest.mark.parametrize("aof", [False, True], ids=["memory", "on disk"])
def test_lagging_replica_is_promoted(aof: bool) -> None:
    """A replica that lacks the last events becomes the master: told to all, wherever they were.

    Also if both write each event to disk before they answer: a replica lags all the same.
    """
    with (
        Valkey(aof=aof) as master,
        Valkey(aof=aof) as replica,
        FaultProxy(("127.0.0.1", master.port)) as proxy,
        world(f"redis://127.0.0.1:{proxy.port}/0") as here,
    ):
        replica.cli("REPLICAOF", "127.0.0.1", master.port)
        streams = here.streams()
        here.publish("1", "2", "3")
        until(lambda: replica.cli("XLEN", "pushline:s:news") == 3, 10, "the replica has it all")
        replica.stop_process()
        master.cli("CLIENT", "KILL", "TYPE", "replica")
        here.publish("4", "5")
        for client in streams:
            assert event_data(client.events(5, 5)) == ["1", "2", "3", "4", "5"]
        master.kill()
        replica.cont()
        replica.cli("REPLICAOF", "NO", "ONE")
        assert replica.cli("XLEN", "pushline:s:news") == 3
        proxy.lead_to(("127.0.0.1", replica.port))
        told = check_all_reset(streams, "lost", RESET_SECONDS)
        later = [here.stream(cursor) for cursor in (here.ids[1], here.ids[4])]
        for client in later:
            check_reset(client, "lost")
        here.check_goes_on([*streams, *later])
        here.check_told_once(told)


def test_emptied_under_traffic(own_valkey: Valkey) -> None:
    """FLUSHALL: the next event makes every stream say so, those of other channels too."""
    with world(own_valkey.url) as here:
        streams = here.streams()
        quiet = here.streams("quiet")
        here.publish("1", "2", "3")
        here.publish("q", channel="quiet")
        for client in streams:
            client.events(3, 5)
        for client in quiet:
            client.next_event(5)
        own_valkey.cli("FLUSHALL")
        here.publish("4")
        told = check_all_reset(streams, "lost", RESET_SECONDS)
        later = here.stream(here.ids[0])
        check_reset(later, "lost")
        here.check_goes_on([*streams, later])
        here.check_told_once(told)
        # Both workers know by now, as both have streams of the busy channel.
        for client in quiet:
            check_reset(client, "lost", channel="quiet")
        here.check_goes_on(quiet, "quiet")


def test_emptied_in_silence(own_valkey: Valkey) -> None:
    """FLUSHALL, and nothing is published: the idle check tells. Who comes back is told at once."""
    with world(own_valkey.url) as here:
        here.publish("1", "2", "3", channel="gone")
        streams = here.streams()
        here.publish("1", "2", "3")
        for client in streams:
            client.events(3, 5)
        own_valkey.cli("FLUSHALL")
        away = here.stream(here.ids[0], channel="gone")  # which no worker follows
        check_reset(away, "lost", channel="gone")
        told = check_all_reset(streams, "lost", IDLE_SECONDS)
        here.check_goes_on(streams)
        here.check_told_once(told)


def test_tail_is_deleted(own_valkey: Valkey) -> None:
    """Without its tail a channel's history still proves that nothing is missing: no `$reset`."""
    with world(own_valkey.url) as here, LiveService(own_valkey.url) as other:
        streams = here.streams()
        here.publish("1", "2", "3")
        for client in streams:
            client.events(3, 5)
        assert own_valkey.cli("DEL", "pushline:t:news") == 1
        later = here.stream(here.ids[0], service=other)
        assert event_data(later.events(2, 5)) == ["2", "3"]
        here.check_goes_on([*streams, later])
        own_valkey.cli("DEL", "pushline:t:news")
        here.check_goes_on([*streams, later])
        latest = here.stream(here.ids[2], service=other)
        assert event_data(latest.events(4, 5)) == ["goes on", "and on"] * 2


def test_history_is_deleted(own_valkey: Valkey) -> None:
    """Without its history a channel's tail tells those who miss something that they do."""
    with world(own_valkey.url) as here, LiveService(own_valkey.url) as other:
        streams = here.streams()
        here.publish("1", "2", "3")
        for client in streams:
            client.events(3, 5)
        assert own_valkey.cli("DEL", "pushline:s:news") == 1
        later = here.stream(here.ids[0], service=other)
        told = check_reset(later, "expired")
        complete = here.stream(here.ids[2], service=other)
        here.check_goes_on([*streams, later, complete])
        here.check_told_once(told)


def test_trimmed_while_away(own_valkey: Valkey) -> None:
    """Trimmed events are missed by those who had not got them, and by nobody else."""
    with world(own_valkey.url) as here:
        streams, bystanders = here.streams(), here.streams("other")
        here.publish("1", "2", "3", "4", "5")
        for client in streams:
            client.events(5, 5)
        own_valkey.cli("XTRIM", "pushline:s:news", "MAXLEN", 2)
        # A worker that was there remembers what Redis has forgotten.
        remembered = here.stream(here.ids[0])
        assert event_data(remembered.events(4, 5)) == ["2", "3", "4", "5"]
        with LiveService(own_valkey.url) as other:
            later = here.stream(here.ids[0], service=other)
            told = check_reset(later, "trimmed")
            assert json.loads(told.data)["oldest"] == here.ids[3]
            complete = here.stream(here.ids[2], service=other)
            assert event_data(complete.events(2, 5)) == ["4", "5"]
            here.check_goes_on([*streams, remembered, later, complete])
            here.check_goes_on(bystanders, "other")
            here.check_told_once(told)


@pytest.mark.parametrize("reason", ["trimmed", "expired"])
def test_gone_while_redis_was_out_of_reach(own_valkey: Valkey, reason: str) -> None:
    """What a worker itself missed and can't read any more: its open streams are told why."""
    with (
        FaultProxy(("127.0.0.1", own_valkey.port)) as proxy,
        world(f"redis://127.0.0.1:{proxy.port}/0") as here,
        LiveService(own_valkey.url) as publishing,
    ):
        streams, bystanders = here.streams(), here.streams("other")
        here.publish("1", "2")
        for client in streams:
            client.events(2, 5)
        proxy.refuse()
        proxy.cut()
        here.ids += [publishing.publish("news", text) for text in ("3", "4", "5")]
        if reason == "trimmed":
            own_valkey.cli("XTRIM", "pushline:s:news", "MAXLEN", 2)
        else:
            own_valkey.cli("PEXPIRE", "pushline:s:news", 1)
            time.sleep(0.1)
        proxy.accept()
        told = check_all_reset(streams, reason, RESET_SECONDS)
        here.check_goes_on(streams)
        here.check_goes_on(bystanders, "other")
        here.check_told_once(told)


def test_history_expired_while_away(own_valkey: Valkey) -> None:
    """History ends HISTORY_SECONDS after its last event: who missed it is told."""
    with world(own_valkey.url, HISTORY_SECONDS=1) as here:
        streams = here.streams()
        here.publish("1", "2", "3")
        for client in streams:
            client.events(3, 5)
        until(lambda: not own_valkey.cli("EXISTS", "pushline:s:news"), 5, "the history expires")
        with LiveService(own_valkey.url, HISTORY_SECONDS=1) as other:
            later = here.stream(here.ids[0], service=other)
            told = check_reset(later, "expired")
            complete = here.stream(here.ids[2], service=other)
            here.check_goes_on([*streams, later, complete])
            here.check_told_once(told)


def test_killed_with_everything_on_disk_affects_nobody() -> None:
    """With `appendfsync always` a crash loses nothing, so nobody is told anything."""
    with Valkey(aof=True) as valkey, world(valkey.url) as here:
        streams = here.streams()
        expected: list[str] = []
        for crash in range(3):
            texts = [f"{crash}-{n}" for n in range(20)]
            here.publish(*texts)
            expected += texts
            valkey.kill()
            valkey.start()
        here.publish("last")
        for client in streams:
            assert event_data(client.events(61, 15)) == [*expected, "last"]
        later = here.stream(here.ids[0])
        assert event_data(later.events(60, 5)) == [*expected[1:], "last"]
        here.check_goes_on([*streams, later])
