"""Unknown keys from one address: how many, until when, and whom it does not concern."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import Unauthenticated
from pipeline.failures import ADDRESSES, Failures, TooManyFailures
from plugins.extensions.api_keys.extension import ApiKeys
from plugins.extensions.api_keys.keys import new_key
from tests.plugins.extensions.api_keys.running import key_store, make_key

pytestmark = pytest.mark.anyio


class Clock:
    """A clock that is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def allowed(failures: Failures, address: str, most: int = 100) -> int:
    """How many unknown keys may come from there now."""
    for count in range(most):
        try:
            failures.take(address)
        except TooManyFailures:
            return count
    return most


def test_twenty_in_a_minute_are_too_many_and_time_makes_it_good() -> None:
    clock = Clock()
    failures = Failures(20, clock)
    assert allowed(failures, "192.0.2.1") == 20
    assert allowed(failures, "192.0.2.2") == 20
    with pytest.raises(TooManyFailures, match=r"^Too many unknown API keys from this address$") as caught:
        failures.take("192.0.2.1")
    assert 0 < caught.value.retry_after <= 3
    clock.now += 30
    assert allowed(failures, "192.0.2.1") == 10
    clock.now += 3600
    assert allowed(failures, "192.0.2.1") == 20


def test_an_ipv6_network_is_one_address() -> None:
    failures = Failures(20, Clock())
    assert allowed(failures, "2001:db8::1", 10) == 10
    assert allowed(failures, "2001:db8::ffff:2") == 10
    assert allowed(failures, "2001:db8:0:1::1") == 20
    assert allowed(failures, "::ffff:192.0.2.1") == 20
    assert allowed(failures, "::ffff:192.0.2.2") == 20


def test_of_many_addresses_the_last_are_remembered() -> None:
    failures = Failures(1, Clock())
    for number in range(ADDRESSES + 1):
        failures.take(str(number))
    assert len(failures._buckets) == ADDRESSES
    assert allowed(failures, str(ADDRESSES)) == 0
    assert allowed(failures, "0") == 1


def test_the_limit_can_be_turned_off_and_concerns_no_unknown_address() -> None:
    assert allowed(Failures(0, Clock()), "192.0.2.1") == 100
    assert allowed(Failures(1, Clock()), "") == 100


async def failing(store: ApiKeys, address: str, count: int) -> list[str]:
    """What so many unknown keys are answered."""
    refusals = []
    for _ in range(count):
        with pytest.raises((Unauthenticated, TooManyFailures)) as caught:
            await store.authenticate(new_key(), address)
        refusals.append(type(caught.value).__name__)
    return refusals


async def test_good_keys_pass_where_unknown_ones_are_too_many(tmp_path: Path) -> None:
    async with key_store(tmp_path / "metrics.db") as store:
        _, key = await make_key(store)
        await store.refresh()
        expected = ["Unauthenticated"] * 20 + ["TooManyFailures"] * 5
        assert await failing(store, "192.0.2.1", 25) == expected
        assert (await store.authenticate(key, "192.0.2.1")).service == "auth-server"
        assert await failing(store, "192.0.2.2", 1) == ["Unauthenticated"]


async def test_a_revoked_key_is_no_guess(tmp_path: Path) -> None:
    async with key_store(tmp_path / "metrics.db", max_failures=1) as store:
        id, key = await make_key(store)
        await store.refresh()
        await store.revoke(id)
        for _ in range(3):
            with pytest.raises(Unauthenticated, match="inactive"):
                await store.authenticate(key, "192.0.2.1")


async def test_whoever_fails_too_often_costs_no_reading_of_the_database(tmp_path: Path) -> None:
    async with key_store(tmp_path / "metrics.db", max_failures=1) as store:
        await failing(store, "192.0.2.1", 1)
        async with store._reading:  # whoever looked a key up would wait for it
            assert await failing(store, "192.0.2.1", 3) == ["TooManyFailures"] * 3
