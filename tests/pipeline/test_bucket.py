"""The token bucket, on a clock that the test moves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import RateLimited, TokenBucket

LIMITS = [60, 100, 1000, 5000, 60_000]


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def admits(bucket: TokenBucket, tokens: int = 1) -> bool:
    try:
        bucket.take(tokens)
    except RateLimited:
        return False
    return True


def emptied(limit: int) -> tuple[TokenBucket, Clock]:
    clock = Clock()
    bucket = TokenBucket(limit, clock)
    bucket.take(limit)
    return bucket, clock


def admitted(bucket: TokenBucket, clock: Clock, arrivals: Iterable[float]) -> int:
    """How many of the callers that come at these seconds, counted from now, are let in."""
    start = clock.now
    count = 0
    for arrival in arrivals:
        clock.now = start + arrival
        count += admits(bucket)
    return count


def evenly(limit: int) -> Iterator[float]:
    calls = limit * 3
    return (60 * number / calls for number in range(1, calls + 1))


def in_bursts(limit: int) -> Iterator[float]:
    return (5.0 * burst for burst in range(1, 13) for _ in range(limit))


def at_random(limit: int) -> Iterator[float]:
    chance = random.Random(limit)
    return iter(sorted([*(chance.uniform(0, 60) for _ in range(limit * 3)), 60.0]))


@pytest.mark.parametrize("callers", [evenly, in_bursts, at_random])
@pytest.mark.parametrize("limit", LIMITS)
def test_a_minute_after_it_was_emptied_admits_the_rate_within_one_percent(
    limit: int, callers: Callable[[int], Iterable[float]]
) -> None:
    bucket, clock = emptied(limit)

    count = admitted(bucket, clock, callers(limit))

    assert abs(count - limit) <= max(1, limit // 100)


def test_callers_who_keep_exactly_to_the_rate_are_all_admitted_by_a_full_bucket() -> None:
    clock = Clock()
    bucket = TokenBucket(70, clock)

    assert admitted(bucket, clock, (60 * number / 70 for number in range(1, 701))) == 700


def test_a_full_bucket_admits_one_minutes_worth_at_once_and_no_more() -> None:
    bucket = TokenBucket(25, Clock())

    assert sum(admits(bucket) for _ in range(100)) == 25


def test_a_clock_that_stands_still_refills_nothing() -> None:
    bucket, _ = emptied(1000)

    assert not any(admits(bucket) for _ in range(1000))
    assert bucket.available() == 0


def test_it_holds_at_most_one_minutes_worth_however_long_nobody_calls() -> None:
    bucket, clock = emptied(100)
    clock.now += 86_400 * 365

    assert bucket.available() == 100
    assert bucket.seconds_until_full == 0


@given(st.integers(1, 10_000), st.lists(st.tuples(st.floats(0, 90), st.integers(0, 50)), max_size=200))
def test_it_never_admits_more_than_its_capacity_and_what_time_refilled(
    limit: int, calls: list[tuple[float, int]]
) -> None:
    clock = Clock()
    bucket = TokenBucket(limit, clock)
    start, taken = clock.now, 0
    for pause, tokens in calls:
        clock.now += pause
        if admits(bucket, tokens):
            taken += tokens
        assert taken <= limit + (clock.now - start) * limit / 60 + 1e-6


@given(st.integers(1, 10_000), st.floats(0, 59), st.integers(1, 50))
def test_what_was_refused_is_there_after_the_time_that_the_refusal_names(limit: int, pause: float, tokens: int) -> None:
    bucket, clock = emptied(limit)
    clock.now += pause
    tokens = min(tokens, limit)
    try:
        bucket.take(tokens)
    except RateLimited as refusal:
        clock.now += refusal.retry_after * 0.9
        assert not admits(bucket, tokens)
        clock.now += refusal.retry_after * 0.1 + 1e-6
        assert admits(bucket, tokens)


def test_a_refusal_takes_nothing() -> None:
    bucket, clock = emptied(60)
    clock.now += 5

    assert not admits(bucket, 6)
    assert admits(bucket, 5)


def test_another_limit_leaves_used_what_was_used() -> None:
    bucket = TokenBucket(100, Clock())
    bucket.take(30)

    bucket.change_limit(1000)
    assert bucket.available() == 970
    bucket.change_limit(20)
    assert bucket.available() == 0


def test_the_time_until_full_is_the_time_it_takes() -> None:
    bucket, clock = emptied(120)
    clock.now += 15
    wait = bucket.seconds_until_full

    assert wait == pytest.approx(45)
    clock.now += wait
    assert bucket.available() == pytest.approx(120)
