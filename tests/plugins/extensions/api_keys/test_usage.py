"""How often keys were used: counted in memory, written now and then."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline import Unauthenticated
from tests.leaks import secret
from tests.plugins.extensions.api_keys.running import key_store, make_key, query

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.db"


async def test_what_was_used_is_written_with_the_log_of_the_hour(path: Path) -> None:
    now = datetime(2026, 11, 23, 12, 34, 56, tzinfo=UTC)
    async with key_store(path) as store:
        number, key = await make_key(store)
        store.wall_clock = now.timestamp
        for _ in range(3):
            await store.authenticate(key)
        await store.write_usage()
        await store.authenticate(key)
        await store.write_usage()
        store.wall_clock = (now + timedelta(hours=1)).timestamp
        await store.authenticate(key)
        await store.revoke(number)
        with pytest.raises(Unauthenticated):
            await store.authenticate(key)
        await store.write_usage()

    assert query(path, "SELECT usage_count, last_used_at FROM api_keys") == [(5, "2026-11-23T13:34:56Z")]
    log = query(path, "SELECT event, hour, count, service_name FROM api_key_usage_log WHERE event <> 'created'")
    assert sorted(log) == [
        ("refused", "2026-11-23T13:00:00Z", 1, "auth-server"),
        ("revoked", "2026-11-23T13:00:00Z", 1, "auth-server"),
        ("used", "2026-11-23T12:00:00Z", 4, "auth-server"),
        ("used", "2026-11-23T13:00:00Z", 1, "auth-server"),
    ]


async def test_a_key_from_outside_is_in_no_table(path: Path) -> None:
    key = secret("a-key-from-outside-that-is-long-enough")
    async with key_store(path, environ={"METRICS_API_KEY_GATEWAY": key}) as store:
        assert (await store.authenticate(key)).service == "gateway"
    assert query(path, "SELECT count(*) FROM api_key_usage_log") == [(0,)]


async def test_a_stop_writes_what_was_used(path: Path) -> None:
    async with key_store(path) as store:
        _, key = await make_key(store)
        await store.authenticate(key)

    assert query(path, "SELECT usage_count FROM api_keys") == [(1,)]


async def test_usage_that_cannot_be_written_is_written_later(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with key_store(path, connection_timeout=0) as store:
        _, key = await make_key(store)
        await store.authenticate(key)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError):
                await store.write_usage()
            await store.stop()
            other.execute("ROLLBACK")
        assert "cannot write how often API keys were used" in caplog.text
        assert query(path, "SELECT usage_count FROM api_keys") == [(0,)]

        await store.write_usage()

        assert query(path, "SELECT usage_count FROM api_keys") == [(1,)]
