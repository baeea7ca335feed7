"""Channel names, and what they are called in Redis."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.channels import ChannelPattern, RedisNames, check_channel, check_channels
from service.errors import BadChannel, BadParameter


@pytest.mark.parametrize("name", ["a", "A.b-c_d:e", "0", "-", "x" * 128, "news.sport:live"])
def test_names_that_are_channels(name: str) -> None:
    """A channel is 1 to 128 of A-Z a-z 0-9 _ . : -"""
    assert check_channel(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "a\n", "\na", "a/b", "é", "\u0661", "*", "a*", "$sys", "x" * 129, "a\0", "%"],
)  # fmt: skip
def test_names_that_are_not(name: str) -> None:
    """All of the name must fit, and the message shows it safely and not at length."""
    with pytest.raises(BadChannel) as raised:
        check_channel(name)
    assert raised.value.detail.isprintable()
    assert len(raised.value.detail) < 200


def test_several_channels_are_sorted_and_single() -> None:
    """The order and repeats of a query don't make another view."""
    assert check_channels(["b", "a", "b", "C"], 3) == ("C", "a", "b")
    assert check_channels(iter(["a"] * 100), 1) == ("a",)


def test_bad_lists_of_channels() -> None:
    """None at all, one bad one, or too many are told apart."""
    with pytest.raises(BadChannel, match="no channel"):
        check_channels([], 5)
    with pytest.raises(BadChannel):
        check_channels(["a", "b c"], 5)
    with pytest.raises(BadParameter, match="3 channels") as raised:
        check_channels(["a", "b", "c"], 2)
    assert "at most 2" in raised.value.fix


@pytest.mark.parametrize(
    ("prefix", "pubsub", "clock"),
    [
        ("pushline:", "pushline:a", "pushline:clock"),
        ("", "a", "pushline:clock"),
        ("x", "xa", "xclock"),
    ],
)
def test_names_in_redis(prefix: str, pubsub: str, clock: str) -> None:
    """Channels and keys carry the prefix; without one, keys still don't stand bare in Redis."""
    names = RedisNames(prefix)
    assert names.pubsub("a") == pubsub
    assert names.channel(pubsub) == "a"
    assert names.clock == clock


@pytest.mark.parametrize("text", ["*-*-*-*-*-*x", "*.*.*.*.*.*.*.*x", "*" * 127 + "x"])
def test_no_pattern_takes_long(text: str) -> None:
    """Whatever a token or a setting says, matching never holds a worker up."""
    pattern = ChannelPattern(text)
    started = time.thread_time()
    for channel in ("-" * 128, "." * 128, "a.-" * 42):
        assert not pattern.matches(channel)
    assert time.thread_time() - started < 0.05


@given(
    st.text("ab*", min_size=1, max_size=8),
    st.text("ab", min_size=1, max_size=10),
)
def test_patterns_match_as_expressions_do(text: str, channel: str) -> None:
    """A star stands for any text, also for none."""
    expected = re.fullmatch(re.escape(text).replace(r"\*", ".*"), channel) is not None
    assert ChannelPattern(text).matches(channel) == expected
