"""How often is often enough: token buckets, with a clock that tests set."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import service.rates
from service.rates import SLACK_SECONDS, RateLimit

START = 1_234_567.891
"""A monotonic clock after two weeks: floats are coarser there."""

numbers = st.floats(0.01, 1000)
pauses = st.lists(
    st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 0.01)), min_size=1, max_size=60
)


def taken(limit: RateLimit, key: str, now: float, tries: int = 1000) -> int:
    """How many single tokens can be had at one moment."""
    return sum(limit.take(key, now=now) == 0 for _ in range(tries))


# ------------------------------------------------------------------------------------- single ones


@pytest.mark.parametrize(
    ("per_second", "burst", "at_once"), [(20, None, 40), (20, 5, 5), (1, None, 2), (3, 1, 1),
                                         (7.5, None, 15), (0.1, 1, 1), (1 / 3, 2, 2)],
)  # fmt: skip
def test_a_full_bucket(per_second: float, burst: float | None, at_once: int) -> None:
    """As many as the burst go through at once, one more does not; by default twice the rate."""
    limit = RateLimit(per_second, burst)
    waits = [limit.take("a", now=START) for _ in range(at_once + 1)]
    assert waits[:-1] == [0] * at_once
    assert waits[-1] == pytest.approx(1 / per_second, abs=2 * SLACK_SECONDS)


@pytest.mark.parametrize("per_second", [0.1, 1, 3, 7, 20, 999.9])
def test_the_wait_is_neither_too_long_nor_too_short(per_second: float) -> None:
    """Who has waited as told gets one token, and not two; who comes earlier gets none."""
    limit = RateLimit(per_second, 4)
    now = START
    assert taken(limit, "a", now) == 4
    for _ in range(50):
        wait = limit.take("a", now=now)
        assert limit.take("a", now=now + wait * 0.99) > 0
        now += wait
        assert taken(limit, "a", now) == 1


@pytest.mark.parametrize(
    ("seconds", "count"), [(0.049, 0), (0.051, 1), (0.099, 1), (0.101, 2), (1.951, 39),
                           (1.999, 39), (2.001, 40), (1e6, 40)],
)  # fmt: skip
def test_a_bucket_fills_again(seconds: float, count: int) -> None:
    """It fills at the rate, up to the burst and no further."""
    limit = RateLimit(20)
    assert taken(limit, "a", START) == 40
    assert taken(limit, "a", START + seconds) == count


def test_refusals_cost_nothing() -> None:
    """Who keeps asking gets its token as soon as who waits."""
    limit = RateLimit(1, 1)
    limit.take("a", now=START)
    for number in range(99):
        assert limit.take("a", now=START + number / 100) > 0
    assert limit.take("a", now=START + 1) == 0


@pytest.mark.parametrize("count", [1, 10**9])
def test_zero_is_no_limit(count: int) -> None:
    """A rate of 0 lets everything through and remembers nothing."""
    limit = RateLimit(0)
    assert all(limit.take("a", count, now=START) == 0 for _ in range(1000))
    assert len(limit._full_at) == 0


def test_less_than_one_token() -> None:
    """A rate below one a second works with its default burst of less than one token."""
    limit = RateLimit(0.1)
    assert limit.take("a", now=START) == 0
    assert limit.take("a", now=START) == pytest.approx(10, abs=1e-3)
    assert limit.take("a", now=START + 9.99) > 0
    assert limit.take("a", now=START + 10) == 0


def test_a_clock_that_stands_or_goes_back() -> None:
    """Nobody gains from a clock that doesn't go on, and nothing breaks."""
    limit = RateLimit(1, 2)
    assert taken(limit, "a", START) == 2
    assert taken(limit, "a", START - 100) == 0
    assert taken(limit, "a", START + 1) == 1


def test_the_clock_is_the_systems() -> None:
    """Without a time given, it is now."""
    limit = RateLimit(20, 1)
    assert limit.take("a") == 0
    wait = limit.take("a")
    assert 0 < wait <= 0.05
    time.sleep(wait)
    assert limit.take("a") == 0


@pytest.mark.parametrize(
    ("per_second", "burst"),
    [(-1, None), (math.nan, None), (math.inf, None), (1, -1), (1, math.nan), (1, math.inf)],
)
def test_bad_numbers_are_refused(per_second: float, burst: float | None) -> None:
    """A rate and a burst are numbers from 0 on."""
    with pytest.raises(ValueError, match="not a rate"):
        RateLimit(per_second, burst)


def test_tokens_are_not_given_back() -> None:
    """A count below 0 would fill the bucket."""
    with pytest.raises(ValueError, match="-1"):
        RateLimit(1).take("a", -1, now=START)


@settings(deadline=None)
@given(numbers, st.one_of(st.none(), st.floats(1, 100)), pauses)
def test_no_window_has_too_many(
    per_second: float, burst: float | None, pauses: Sequence[float]
) -> None:
    """However the tries are spread, any t seconds have at most burst + rate * t."""
    limit = RateLimit(per_second, burst)
    at_once = max(1.0, 2 * per_second) if burst is None else burst
    now, times = START, []
    for pause in pauses:
        now += pause
        times += [now] * taken(limit, "a", now, 20)
    check_windows([(moment, 1) for moment in times], per_second, at_once, 0)


def check_windows(
    events: Sequence[tuple[float, int]], per_second: float, burst: float, more: float
) -> None:
    """Between any two events, both counted, there is not more than is allowed."""
    sums = [0, *itertools.accumulate(count for _, count in events)]
    for first, (begin, _) in enumerate(events):
        for last in range(first, len(events)):
            seconds = events[last][0] - begin + 2 * SLACK_SECONDS
            allowed = burst + per_second * seconds + more
            assert sums[last + 1] - sums[first] <= allowed + 1e-6


# ----------------------------------------------------------------------------------------- batches


def test_a_batch_may_be_larger_than_the_burst() -> None:
    """It goes through as soon as there is a token; what it took too much is waited for after it."""
    limit = RateLimit(10, 20)
    assert limit.take("a", 100, now=START) == 0
    assert limit.take("a", now=START) == pytest.approx(8.1)
    assert limit.take("a", 100, now=START) == pytest.approx(8.1)
    assert limit.take("a", now=START + 8.09) > 0
    assert limit.take("a", now=START + 8.1) == 0


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 1000])
def test_one_token_is_enough(count: int) -> None:
    """A batch of any size is refused without a token and taken with one."""
    limit = RateLimit(10, 20)
    assert taken(limit, "a", START, 20) == 20
    assert limit.take("a", count, now=START + 0.099) == pytest.approx(0.001, abs=1e-5)
    assert limit.take("a", count, now=START + 0.1) == 0
    assert limit.take("a", now=START + 0.1) == pytest.approx(count / 10, abs=1e-5)


def test_an_empty_batch() -> None:
    """Taking nothing is always possible, but for a key in debt, and costs nothing."""
    limit = RateLimit(10, 20)
    assert limit.take("a", 0, now=START) == 0
    assert taken(limit, "a", START) == 20
    assert limit.take("a", 0, now=START) == 0
    limit.take("b", 30, now=START)
    assert limit.take("b", 0, now=START) == pytest.approx(1)


@pytest.mark.parametrize("size", [2, 15, 50, 500])
def test_batches_and_single_ones_of_a_key_share(size: int) -> None:
    """Of two who come back when told, or a little later, neither starves: each has its quarter, of
    turns or of tokens.
    """
    chance = random.Random(5)
    limit = RateLimit(10, 20)
    due, got = {size: START, 1: START}, {size: 0, 1: 0}
    while (now := min(due.values())) < START + 10_000:
        who = min(due, key=lambda one: due[one])
        wait = limit.take("a", who, now=now)
        got[who] += not wait
        due[who] = now + (wait or 0.01) * chance.uniform(1, 1.1)
    turns, tokens = sum(got.values()), sum(who * count for who, count in got.items())
    assert all(count > turns / 4 or who * count > tokens / 4 for who, count in got.items()), got


@settings(deadline=None)
@given(
    numbers,
    st.floats(0.01, 100),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 300)), min_size=1, max_size=50),
)
def test_batches_keep_the_average(
    per_second: float, burst: float, tries: Sequence[tuple[float, int]]
) -> None:
    """Any window has at most what single ones might have, and what the last batch had beyond its
    first token.
    """
    limit = RateLimit(per_second, burst)
    now, got = START, []
    for pause, count in tries:
        now += pause
        if limit.take("a", count, now=now) == 0 and count:
            got.append((now, count))
    largest = max((count for _, count in got), default=0)
    check_windows(got, per_second, burst, largest - min(1, burst))


# -------------------------------------------------------------------------------------------- keys


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1), st.integers(1, 9)), max_size=80))
def test_keys_do_not_know_each_other(tries: Sequence[tuple[str, float, int]]) -> None:
    """What a key gets is what it would get alone, whatever the others do."""
    shared = RateLimit(2, 3)
    alone = {key: RateLimit(2, 3) for key in "abc"}
    now = START
    for key, pause, count in tries:
        now += pause
        expected = alone[key].take(key, count, now=now)
        assert shared.take(key, count, now=now) == expected


def test_full_buckets_are_forgotten() -> None:
    """Of a million addresses that came once, only those of the last moments are known."""
    limit = RateLimit(20)
    most = 0
    for number in range(20_000):
        limit.take(str(number), now=START + number / 1000)  # each is full again after 50 ms
        most = max(most, len(limit._full_at))
    assert most < 110
    for _ in range(200):
        limit.take("a", now=START + 1000)
    assert list(limit._full_at) == ["a"]


def test_a_rush_is_forgotten() -> None:
    """After a moment with very many keys their buckets go, even while new ones keep coming."""
    limit = RateLimit(20)
    for number in range(5_000):
        limit.take(str(number), now=START)
    for number in range(6_000):
        limit.take(f"later {number}", now=START + 10 + number / 1000)
    assert len(limit._full_at) < 110


def test_a_key_that_is_not_full_is_kept() -> None:
    """Others' coming and going never gives a key a fresh bucket."""
    limit = RateLimit(1, 10)
    assert taken(limit, "a", START) == 10
    for number in range(10_000):
        limit.take(str(number), now=START + 0.5)
    assert limit.take("a", now=START + 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("distinct", [9, 10, 11, 500])
def test_keys_are_bounded(monkeypatch: pytest.MonkeyPatch, distinct: int) -> None:
    """Memory holds so many keys and no more; up to there all limits hold."""
    monkeypatch.setattr(service.rates, "MAX_KEYS", 10)
    limit = RateLimit(1, 1)
    for number in range(distinct):
        assert limit.take(str(number), now=START) == 0
        assert len(limit._full_at) <= 10
    if distinct <= 9:
        assert all(limit.take(str(number), now=START) > 0 for number in range(distinct))
    assert limit.take("new", now=START) == 0


def test_taking_is_fast_with_many_keys() -> None:
    """The sweep looks at a few buckets each time, never at all of them."""
    limit = RateLimit(1)
    for number in range(50_000):
        limit.take(str(number), now=START)
    began = time.process_time()
    for number in range(2_000):
        limit.take(str(number), now=START)
    assert time.process_time() - began < 1  # looking at all of them takes minutes
