"""Which channels a worker follows: counted by streams, kept for a while after the last."""

from __future__ import annotations

import pytest

from service.following import Following


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr("service.following.time.monotonic", lambda: now[0])
    return now


def confirmed(following: Following, *channels: str) -> None:
    """Note that Redis has confirmed channels, and that they are ready."""
    for channel in channels:
        followed = following.get(channel)
        assert followed is not None
        followed.confirmed = True
        followed.ready.set()


def test_channels_are_counted() -> None:
    """Only the first stream of a channel makes it new; every stream counts."""
    following = Following()
    assert following.add(["a", "b"]) == ["a", "b"]
    assert following.add(["b", "c"]) == ["c"]
    assert sorted(following) == ["a", "b", "c"]
    assert len(following) == 3
    assert {name: one.streams for name, one in following.items()} == {"a": 1, "b": 2, "c": 1}
    assert following.get("d") is None


def test_a_channel_lingers(clock: list[float]) -> None:
    """A channel that its last stream has left is kept for a while, then it is done."""
    following = Following()
    following.add(["a", "a", "b"])
    confirmed(following, "a", "b")
    following.remove(["a"])
    clock[0] += 60
    assert following.drop_done() == []
    following.remove(["a"])
    clock[0] += 4.9
    assert following.drop_done() == []
    clock[0] += 0.2
    assert following.drop_done() == ["a"]
    assert following.drop_done() == []
    assert list(following) == ["b"]


def test_who_comes_back_keeps_the_channel(clock: list[float]) -> None:
    """A stream within the linger finds its channel, and the linger begins anew with its end."""
    following = Following()
    following.add(["a"])
    confirmed(following, "a")
    following.remove(["a"])
    clock[0] += 4
    assert following.add(["a"]) == []
    clock[0] += 60
    assert following.drop_done() == []
    following.remove(["a"])
    clock[0] += 4
    assert following.drop_done() == []


def test_a_channel_on_its_way_is_kept(clock: list[float]) -> None:
    """One whose SUBSCRIBE isn't confirmed stays: the answer could be taken for a later one's."""
    following = Following()
    following.add(["a"])
    following.remove(["a"])
    clock[0] += 60
    assert following.drop_done() == []
    confirmed(following, "a")
    assert following.drop_done() == ["a"]


def test_without_a_link_unused_channels_go_at_once(clock: list[float]) -> None:
    """When the link is gone there is nothing to linger for."""
    following = Following()
    following.add(["a", "b"])
    following.remove(["a"])
    assert following.drop_idle() == ["a"]
    assert list(following) == ["b"]


def test_the_list_may_change_while_it_is_walked() -> None:
    """Other greenlets follow channels while the follower waits for Redis."""
    following = Following()
    following.add(["a", "b"])
    for _ in following:
        following.add([f"new{len(following)}"])
    for _ in following.items():
        following.add([f"new{len(following)}"])
    assert len(following) == 8


def test_readiness_overlooks_brand_new_channels(clock: list[float]) -> None:
    """A channel that isn't ready counts against the worker only after a while."""
    following = Following()
    assert following.all_ready()
    following.add(["a"])
    assert following.all_ready()
    clock[0] += 2.1
    assert not following.all_ready()
    confirmed(following, "a")
    assert following.all_ready()
