"""What the telemetry shows of the keys' rate limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugins.extensions.api_keys.extension import ApiKeys
from plugins.extensions.api_keys.keys import digest
from plugins.extensions.api_keys.limits import SHOWN_KEYS
from tests.leaks import secret
from tests.plugins.extensions.api_keys.running import key_store, make_key, query
from tests.running import KEY, running
from tests.scrapes import samples, total

pytestmark = pytest.mark.anyio

PRESHARED = secret("a-preshared-key-of-more-than-32-characters")
MANY_KEYS = f"""
INSERT INTO api_keys (key_hash, service_name, created_at)
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {SHOWN_KEYS})
SELECT printf('%08x', n) || hex(zeroblob(28)), 'many', '2026-11-23T00:00:00Z' FROM numbers
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.db"


def readings(store: ApiKeys, name: str) -> dict[tuple[str, str], float]:
    """The values of that instrument by service and key."""
    (instrument,) = [each for each in store.instruments() if each.name == name]
    found = [(labels["service"], labels["key"], value) for labels, value in instrument.read()]
    assert len({(service, key) for service, key, _ in found}) == len(found)
    return {(service, key): value for service, key, value in found if isinstance(value, int | float)}


async def test_a_scrape_shows_what_is_left_of_each_key_and_of_how_much(tmp_path: Path) -> None:
    async with running(tmp_path, METRICS_RATE_LIMIT="50") as service:
        key = await service.make_key(service="other", rate_limit=6000)
        for _ in range(3):
            await service.push({"type": "auth_request", "value": 1})
        await service.client.get("/rate-limit", headers={"X-API-Key": key})
        text = await service.scrape()
        ((mine_id,),) = service.rows(f"SELECT public_id FROM preshared_key_ids WHERE key_hash = '{digest(KEY)}'")
        ((other_id,),) = service.rows(f"SELECT public_id FROM api_keys WHERE key_hash = '{digest(key)}'")
    mine = {"service": "test", "key": mine_id}
    assert total(text, "rate_limit_capacity_tokens", **mine) == 50
    assert 47 <= total(text, "rate_limit_available_tokens", **mine) < 50
    assert total(text, "rate_limit_capacity_tokens", service="other", key=other_id) == 6000
    assert total(text, "rate_limit_available_tokens", service="other") == 6000
    capacities = samples(text, prefix="rate_limit_capacity_tokens")
    assert {dict(labels)["service"] for _, labels in capacities} == {"test", "other", "admin"}


async def test_what_is_taken_is_missing_from_what_is_shown(path: Path) -> None:
    async with key_store(path) as store:
        _, key = await make_key(store, "a", rate_limit=100)
        caller = await store.authenticate(key)
        caller.bucket.take(60)

        ((name, left),) = readings(store, "rate_limit_available_tokens").items()

        assert name == ("a", caller.key_id)
        assert 40 <= left < 100


async def test_a_key_that_is_good_no_more_is_not_shown(path: Path) -> None:
    async with key_store(path, environ={"METRICS_API_KEY_A": PRESHARED}) as store:
        number, _ = await make_key(store, "b")
        await store.refresh()
        assert {service for service, _ in readings(store, "rate_limit_capacity_tokens")} == {"a", "b"}

        await store.revoke(number)

        assert {service for service, _ in readings(store, "rate_limit_capacity_tokens")} == {"a"}


async def test_of_many_keys_those_that_were_used_last_are_shown(path: Path) -> None:
    async with key_store(path) as store:
        query(path, MANY_KEYS)
        _, key = await make_key(store, "used")
        await store.refresh()
        await store.authenticate(key)

        shown = readings(store, "rate_limit_available_tokens")

        assert len(shown) == SHOWN_KEYS
        assert "used" in {service for service, _ in shown}
