"""The key store of a running service, and what other processes do to its table meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from pipeline import Database, Unauthenticated
from pipeline.testing import NopHost
from plugins.extensions.api_keys import extension
from plugins.extensions.api_keys.extension import ApiKeys
from plugins.extensions.api_keys.keys import new_key
from plugins.extensions.api_keys.store import KeyRow, KeyTable
from tests.plugins.extensions.api_keys.running import key_store, make_key, make_key_elsewhere, query

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.db"


class CountingTable(KeyTable):
    """Counts how often it is read."""

    reads = 0

    async def rows(self) -> list[KeyRow]:
        self.reads += 1
        return await super().rows()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(10):
        while not await condition():  # noqa: ASYNC110 - what another connection does gives no event
            await anyio.sleep(0.001)


async def run(task: Callable[[], Awaitable[None]]) -> None:
    await task()


async def is_good(store: ApiKeys, key: str) -> bool:
    try:
        await store.authenticate(key)
    except Unauthenticated:
        return False
    return True


async def test_a_key_that_another_process_makes_works_at_once(path: Path) -> None:
    async with key_store(path) as store:
        _, key = await make_key_elsewhere(path)

        assert await is_good(store, key)


async def test_a_key_that_another_process_revokes_is_refused_after_the_next_reading(path: Path) -> None:
    async with key_store(path) as store:
        number, key = await make_key(store)
        assert await is_good(store, key)
        async with key_store(path, is_service=False) as other:
            await other.revoke(number)

        await store.refresh()

        assert not await is_good(store, key)


@pytest.mark.parametrize("was_read", [True, False])
async def test_a_key_that_was_deleted_is_unknown_after_the_next_reading(path: Path, was_read: bool) -> None:
    async with key_store(path) as store:
        _, key = await make_key(store)
        await store.authenticate(key)
        if was_read:
            await store.refresh()
        query(path, "DELETE FROM api_keys")

        await store.refresh()

        with pytest.raises(Unauthenticated, match="Invalid API key"):
            await store.authenticate(key)


async def test_a_changed_limit_scope_or_service_changes_the_caller_and_keeps_what_was_used(path: Path) -> None:
    async with key_store(path) as store:
        _, key = await make_key(store, rate_limit=100)
        caller = await store.authenticate(key)
        caller.bucket.take(100)
        query(path, "UPDATE api_keys SET rate_limit = 150, scopes = 'ingest admin', service_name = 'other'")

        await store.refresh()

        assert await store.authenticate(key) is caller
        assert (caller.service, caller.scopes, caller.bucket.limit) == ("other", frozenset({"ingest", "admin"}), 150)
        assert 50 <= caller.bucket.available() < 60


async def test_made_up_keys_cannot_keep_the_database_busy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "LOOKUPS_BETWEEN_READS", 3)
    async with key_store(path) as store:
        for _ in range(3):
            assert not await is_good(store, new_key())
        _, key = await make_key_elsewhere(path)

        assert not await is_good(store, key), "it is not looked up"
        await store.refresh()
        assert await is_good(store, key)
        _, another = await make_key_elsewhere(path)
        assert await is_good(store, another), "lookups are allowed again"


async def test_one_wrong_key_that_comes_again_and_again_takes_one_lookup(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension, "LOOKUPS_BETWEEN_READS", 2)
    wrong = new_key()
    async with key_store(path) as store:
        for _ in range(10):
            assert not await is_good(store, wrong)
        _, key = await make_key_elsewhere(path)

        assert await is_good(store, key)


async def test_the_tasks_of_the_service_read_and_write_by_themselves(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension, "SECONDS_BETWEEN_READS", 0.001)
    monkeypatch.setattr(extension, "SECONDS_BETWEEN_WRITES", 0.001)
    async with key_store(path) as store, anyio.create_task_group() as tasks:
        assert isinstance(store.host, NopHost)
        number, key = await make_key(store)
        assert await is_good(store, key)
        for task in store.host.spawned:
            tasks.start_soon(run, task)
        async with key_store(path, is_service=False) as other:
            await other.revoke(number)

        async def is_refused() -> bool:
            return not await is_good(store, key)

        async def is_written() -> bool:
            return bool(query(path, "SELECT 1 FROM api_key_usage_log WHERE event = 'refused'"))

        await until(is_refused)
        await until(is_written)
        tasks.cancel_scope.cancel()


async def test_a_table_that_cannot_be_read_for_a_while_is_reported_once_and_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(extension, "SECONDS_BETWEEN_READS", 0.001)
    async with key_store(path) as store, anyio.create_task_group() as tasks:
        assert isinstance(store.host, NopHost)
        _, key = await make_key(store)
        assert await is_good(store, key)
        store.table = counting = CountingTable(store.host.extension(Database))
        query(path, "ALTER TABLE api_keys RENAME TO away")
        tasks.start_soon(run, store.host.spawned[1])  # behind the database's own

        async def is_reported() -> bool:
            return "cannot read the API keys" in caplog.text

        async def is_refused() -> bool:
            return not await is_good(store, key)

        await until(is_reported)
        reads = counting.reads

        async def was_read_again() -> bool:
            return counting.reads > reads + 1

        await until(was_read_again)
        assert await is_good(store, key)
        query(path, "UPDATE away SET is_active = 0")
        query(path, "ALTER TABLE away RENAME TO api_keys")
        await until(is_refused)
        tasks.cancel_scope.cancel()
    assert caplog.text.count("cannot read the API keys") == 1
