"""What is deleted in the background, and what is kept."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

from pipeline import Database, Invalid, Overloaded
from pipeline.testing import NopHost
from plugins.extensions import retention as plugin
from plugins.extensions.database.extension import DatabaseExtension
from plugins.extensions.retention import tables
from plugins.extensions.retention.extension import RetentionConfig, RetentionExtension
from tests.plugins.extensions.databases import started_database
from tests.plugins.extensions.retention.helpers import DAYS, HOUR, NOW, add_events, add_sums, call, column, text

pytestmark = pytest.mark.anyio

TICK = timedelta(microseconds=1)


async def test_rows_older_than_the_default_are_deleted_and_the_rest_kept(
    database: DatabaseExtension, retention: RetentionExtension
) -> None:
    await add_events(database, 200 * DAYS, 90 * DAYS + TICK, 90 * DAYS, 0 * DAYS)
    await retention.clean_up()
    assert await column(database, "metrics", "timestamp") == [text(NOW - 90 * DAYS), text(NOW)]


async def test_a_sum_is_deleted_only_when_all_of_its_time_is_old(
    database: DatabaseExtension, retention: RetentionExtension
) -> None:
    await call(retention, "PUT", "retention/policies/{table}", table="metrics_hourly", retention_days="1")
    await call(retention, "PUT", "retention/policies/{table}", table="metrics_daily", retention_days="1")
    await add_sums(database, "metrics_hourly", "2026-11-22T11:00:00Z", "2026-11-22T12:00:00Z", "2026-11-23T12:00:00Z")
    await add_sums(database, "metrics_daily", "2026-11-21", "2026-11-22", "2026-11-23")
    await retention.clean_up()
    assert await column(database, "metrics_hourly", "hour") == ["2026-11-22T12:00:00Z", "2026-11-23T12:00:00Z"]
    assert await column(database, "metrics_daily", "date") == ["2026-11-22", "2026-11-23"]


async def test_sums_outlive_their_events_by_default(database: DatabaseExtension, retention: RetentionExtension) -> None:
    await add_sums(database, "metrics_hourly", "2024-11-22T12:00:00Z", "2026-01-01T00:00:00Z")
    await add_sums(database, "metrics_daily", "2020-01-01", "2024-11-22")
    await retention.clean_up()
    assert await column(database, "metrics_hourly", "hour") == ["2026-01-01T00:00:00Z"]
    assert await column(database, "metrics_daily", "date") == ["2024-11-22"]


async def test_a_policy_that_is_not_active_deletes_nothing_and_says_so(
    database: DatabaseExtension, retention: RetentionExtension
) -> None:
    await add_events(database, 200 * DAYS)
    await call(retention, "PUT", "retention/policies/{table}", b'{"is_active": false}', table="metrics")
    await retention.clean_up()
    result = await call(retention, "POST", "retention/cleanup", table_name="metrics", dry_run="false")
    assert (result["status"], result["records_deleted"]) == ("skipped", 0)
    assert (await call(retention, "GET", "retention/preview"))["metrics"]["records_to_delete"] == 0
    assert len(await column(database, "metrics", "id")) == 1


async def test_others_write_between_the_chunks_of_a_cleanup(
    database: DatabaseExtension, retention: RetentionExtension, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CHUNK", 10)
    await add_events(database, *[200 * DAYS] * 95)
    left: list[int] = []

    async def write_when_let_in() -> None:
        async with database.transaction() as connection:
            ((count,),) = await connection.execute_fetchall("SELECT count(*) FROM metrics")
            left.append(count)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(retention.clean_up)
        while not left or left[-1]:
            await write_when_let_in()
    assert len({count for count in left if 0 < count < 95}) >= 3


async def test_a_table_without_a_policy_is_never_touched(
    database: DatabaseExtension, retention: RetentionExtension
) -> None:
    async with database.transaction() as connection:
        await connection.execute("CREATE TABLE notes AS SELECT '1999-01-01' AS timestamp")
    await retention.clean_up()
    await call(retention, "POST", "retention/cleanup", dry_run="false")
    for path, method in (("retention/preview", "GET"), ("retention/cleanup", "POST")):
        with pytest.raises(Invalid, match=r"^table_name: 'notes' has no retention policy \(tables: .*metrics, "):
            await call(retention, method, path, table_name="notes")
    assert len(await column(database, "notes", "timestamp")) == 1


async def test_a_policy_for_a_table_that_is_not_there_is_passed_over(
    database: DatabaseExtension, retention: RetentionExtension
) -> None:
    async with database.transaction() as connection:
        await connection.execute("INSERT INTO retention_policies VALUES ('later', 1, 1, 'timestamp', '')")
    await add_events(database, 200 * DAYS)
    await retention.clean_up()
    assert await column(database, "metrics", "id") == []


@pytest.mark.parametrize("moved", [100 * 24 * HOUR, -2 * HOUR])
async def test_nothing_is_deleted_after_the_clock_was_moved_until_it_is_right_again(
    database: DatabaseExtension, retention: RetentionExtension, caplog: pytest.LogCaptureFixture, moved: float
) -> None:
    await add_events(database, 1 * DAYS, 91 * DAYS)
    retention.wall_clock = lambda: NOW.timestamp() + moved
    for _ in range(2):
        await retention.clean_up()
        assert len(await column(database, "metrics", "id")) == 2
        assert f"the clock was moved by {moved / 3600:.1f} hours" in caplog.text
    retention.wall_clock = lambda: NOW.timestamp() + HOUR
    retention.monotonic = lambda: 100.0 + HOUR
    await retention.clean_up()
    assert await column(database, "metrics", "timestamp") == [text(NOW - 1 * DAYS)]


async def test_a_clock_that_is_moved_while_it_is_looked_at_deletes_nothing(
    database: DatabaseExtension, retention: RetentionExtension
) -> None:
    await add_events(database, 1 * DAYS)
    looks = iter([NOW.timestamp()])
    retention.wall_clock = lambda: next(looks, NOW.timestamp() + 365 * 24 * HOUR)
    await retention.clean_up()
    assert len(await column(database, "metrics", "id")) == 1


async def test_a_cleanup_by_hand_makes_a_moved_clock_the_right_one(
    database: DatabaseExtension, retention: RetentionExtension
) -> None:
    retention.wall_clock = lambda: NOW.timestamp() + 30 * 24 * HOUR
    await call(retention, "POST", "retention/cleanup", dry_run="false")
    await add_events(database, 61 * DAYS)
    await retention.clean_up()
    assert await column(database, "metrics", "id") == []


async def test_a_clock_that_drifts_slowly_stops_nothing(
    database: DatabaseExtension, retention: RetentionExtension
) -> None:
    for hours in range(1, 6):
        retention.wall_clock = lambda hours=hours: NOW.timestamp() + hours * 0.9 * HOUR  # type: ignore[misc]
        await add_events(database, 91 * DAYS)
        await retention.clean_up()
        assert await column(database, "metrics", "id") == []


async def test_a_cleanup_that_fails_is_logged_and_does_not_end_the_background(
    database: DatabaseExtension, retention: RetentionExtension, caplog: pytest.LogCaptureFixture
) -> None:
    await add_events(database, 91 * DAYS)
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await retention.clean_up()
    assert "cleanup failed, and is tried again in 3600 seconds: database is locked" in caplog.text
    with pytest.raises(Overloaded, match="the database cannot answer now: database is locked"):
        await call(retention, "POST", "retention/cleanup", dry_run="false")
    other.close()
    await retention.clean_up()
    assert await column(database, "metrics", "id") == []


class Watched(RetentionExtension):
    """Tells when it has cleaned up."""

    done: anyio.Event

    async def clean_up(self) -> None:
        await super().clean_up()
        self.done.set()


async def test_the_background_cleans_up_each_interval(database: DatabaseExtension) -> None:
    assert isinstance(database.host, NopHost)
    retention = Watched("retention", RetentionConfig(interval=0.01), database.host)
    retention.done = anyio.Event()
    await retention.start()

    *_, task = database.host.spawned  # the database has one of its own

    async def background() -> None:
        await task()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(background)
        for _ in range(2):
            await add_events(database, 10_000 * DAYS)
            retention.done = anyio.Event()
            await retention.done.wait()  # for one that may have begun before the event was there
            retention.done = anyio.Event()
            await retention.done.wait()
            assert await column(database, "metrics", "id") == []
        tasks.cancel_scope.cancel()


async def test_a_command_has_no_background(tmp_path: Path) -> None:
    async with started_database(tmp_path / "a.db", is_service=False) as database:
        assert isinstance(database.host, NopHost)
        retention = RetentionExtension("retention", RetentionConfig(), database.host)
        await retention.start()
        await retention.stop()
        assert database.host.spawned == []


def test_the_plugin_declares_an_extension_that_needs_the_database() -> None:
    (declaration,) = plugin.declare_components()
    assert (declaration.type, declaration.component.requires) == ("retention", (Database,))
    with pytest.raises(ValueError, match="interval"):
        declaration.config.model_validate({"interval": 0})
    with pytest.raises(ValueError, match="days"):
        declaration.config.model_validate({"days": 0})
