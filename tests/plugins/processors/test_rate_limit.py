"""Holding keys to their limits."""

from __future__ import annotations

import logging

import pytest

from pipeline import Caller, Context, RateLimited, TokenBucket
from pipeline.testing import NopHost
from plugins.processors.rate_limit import RateLimit, RateLimitConfig

pytestmark = pytest.mark.anyio


def context_of(caller: Caller | None, cost: int = 1) -> Context:
    context = Context(cost=cost)
    context.caller = caller
    return context


def caller_with(limit: int, key_id: str = "0123abcd") -> Caller:
    """A caller whose bucket does not refill: its clock stands still."""
    return Caller("mcp-gateway", key_id, frozenset({"ingest"}), TokenBucket(limit, lambda: 0.0))


@pytest.fixture
def rate_limit() -> RateLimit:
    return RateLimit("rate_limit", RateLimitConfig(), NopHost())


async def test_requests_up_to_the_limit_are_let_in_and_the_next_is_refused(rate_limit: RateLimit) -> None:
    caller = caller_with(3)
    for _ in range(3):
        await rate_limit.admit(context_of(caller))

    with pytest.raises(RateLimited, match=r"^Rate limit exceeded. Limit: 3 requests/minute$") as caught:
        await rate_limit.admit(context_of(caller))

    assert caught.value.retry_after == pytest.approx(20)


async def test_a_request_takes_what_it_costs(rate_limit: RateLimit) -> None:
    caller = caller_with(10)

    await rate_limit.admit(context_of(caller, cost=4))

    assert caller.bucket.available() == 6


async def test_a_request_that_costs_nothing_is_let_in_with_an_empty_bucket(rate_limit: RateLimit) -> None:
    caller = caller_with(1)
    caller.bucket.take(1)

    await rate_limit.admit(context_of(caller, cost=0))


async def test_a_request_without_a_caller_has_no_limit(rate_limit: RateLimit) -> None:
    await rate_limit.admit(context_of(None))


async def test_two_pipelines_share_the_limit_of_a_key() -> None:
    first, second = (RateLimit("rate_limit", RateLimitConfig(), NopHost()) for _ in range(2))
    caller = caller_with(1)
    await first.admit(context_of(caller))

    with pytest.raises(RateLimited):
        await second.admit(context_of(caller))


async def test_refusals_are_logged_once_a_key_in_ten_seconds_with_how_many_there_were(
    rate_limit: RateLimit, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    rate_limit.clock = lambda: now
    one, other = caller_with(0, "aaaaaaaa"), caller_with(0, "bbbbbbbb")

    async def refused(caller: Caller, times: int) -> list[str]:
        caplog.clear()
        for _ in range(times):
            with pytest.raises(RateLimited):
                await rate_limit.admit(context_of(caller))
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    (line,) = await refused(one, 5)
    assert line.startswith("rate limit of 0 requests/minute exceeded by key aaaaaaaa of service mcp-gateway")
    assert len(await refused(other, 2)) == 1
    now += 9.9
    assert await refused(one, 3) == []
    now += 0.2
    (line,) = await refused(one, 1)
    assert "7 more refusals" in line
