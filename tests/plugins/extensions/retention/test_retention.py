"""What is deleted and what is kept, in the background and by request."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from pipeline import Access, Context, Database, Invalid, Malformed, Overloaded, Request
from plugins.extensions import retention as plugin
from plugins.extensions.database.extension import DatabaseExtension
from plugins.extensions.retention import tables
from plugins.extensions.retention.extension import RetentionConfig, RetentionExtension
from tests.doubles import NopHost
from tests.plugins.extensions.databases import started_database

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)
HOUR = 3600.0


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[DatabaseExtension]:
    async with started_database(tmp_path / "a.db", connection_timeout=0.2) as database:
        yield database


@pytest.fixture
async def retention(database: DatabaseExtension) -> RetentionExtension:
    """Started, at `NOW`, by a clock that stands still."""
    retention = RetentionExtension("retention", RetentionConfig(), database.host)
    retention.wall_clock = NOW.timestamp
    retention.monotonic = lambda: 100.0
    await retention.start()
    return retention


def text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def add_events(database: Database, *ages: timedelta) -> None:
    rows = [(text(NOW - age),) for age in ages]
    async with database.transaction() as connection:
        await connection.executemany(
            "INSERT INTO metrics (request_id, service, metric_type, value, created_at, timestamp)"
            " VALUES ('r', 's', 'custom', 1, '', ?)",
            rows,
        )


async def add_sums(database: Database, table: str, *times: str) -> None:
    column = "date" if table == "metrics_daily" else "hour"
    async with database.transaction() as connection:
        await connection.executemany(
            f"INSERT INTO {table} (service, metric_type, count, sum, min, max, duration_count, duration_sum, {column})"
            " VALUES ('s', 'custom', 1, 1, 1, 1, 0, 0, ?)",
            [(time,) for time in times],
        )


async def column(database: Database, table: str, name: str) -> list[Any]:
    return [value for (value,) in await database.read(f"SELECT {name} FROM {table} ORDER BY {name}")]


async def call(retention: RetentionExtension, method: str, path: str, body: bytes = b"", **parameters: str) -> Any:
    """The body of the answer to a call of one of the extension's routes."""
    (route,) = [route for route in retention.routes() if (route.method, route.path) == (method, f"/admin/{path}")]
    return (await route.handler(Request(parameters, body, Context()))).body


DAYS = timedelta(days=1)
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


async def test_the_background_cleans_up_each_interval(database: DatabaseExtension) -> None:
    assert isinstance(database.host, NopHost)
    retention = RetentionExtension("retention", RetentionConfig(interval=0.01), database.host)
    await retention.start()
    (background,) = database.host.spawned
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(background)
        for _ in range(2):
            await add_events(database, timedelta(days=10_000))
            with anyio.fail_after(10):
                while await column(database, "metrics", "id"):
                    await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()


async def test_a_command_has_no_background(tmp_path: Path) -> None:
    async with started_database(tmp_path / "a.db", is_service=False) as database:
        assert isinstance(database.host, NopHost)
        retention = RetentionExtension("retention", RetentionConfig(), database.host)
        await retention.start()
        await retention.stop()
        assert database.host.spawned == []


async def test_a_preview_says_what_a_cleanup_would_delete(
    database: DatabaseExtension, retention: RetentionExtension
) -> None:
    await add_events(database, 200 * DAYS, 91 * DAYS, 1 * DAYS)
    previews = await call(retention, "GET", "retention/preview")
    assert list(previews) == ["api_key_usage_log", "metrics", "metrics_daily", "metrics_hourly"]
    assert await call(retention, "GET", "retention/preview", table_name="metrics") == {"metrics": previews["metrics"]}
    assert previews["metrics"] == {
        "retention_days": 90,
        "records_to_delete": 2,
        "total_records": 3,
        "oldest_record_to_delete": text(NOW - 200 * DAYS),
        "newest_record_to_delete": text(NOW - 91 * DAYS),
        "cutoff_date": text(NOW - 90 * DAYS),
        "percentage_to_delete": 66.67,
    }
    assert previews["metrics_daily"]["oldest_record_to_delete"] is None
    assert previews["metrics_daily"]["percentage_to_delete"] == 0


async def test_a_cleanup_is_dry_unless_it_is_told_otherwise(
    database: DatabaseExtension, retention: RetentionExtension
) -> None:
    await add_events(database, 200 * DAYS, 1 * DAYS)
    everything = await call(retention, "POST", "retention/cleanup")
    assert everything["total_records_processed"] == 1
    assert everything["tables"]["metrics"]["status"] == "dry_run"
    assert len(await column(database, "metrics", "id")) == 2
    assert await call(retention, "POST", "retention/cleanup", b'{"dry_run": false, "table_name": "metrics"}') == {
        "table": "metrics",
        "status": "completed",
        "records_deleted": 1,
        "duration_seconds": 0,
        "retention_days": 90,
    }
    assert len(await column(database, "metrics", "id")) == 1


async def test_a_policy_can_be_changed_and_put_back_to_the_default(retention: RetentionExtension) -> None:
    changed = await call(retention, "PUT", "retention/policies/{table}", table="metrics", retention_days="7")
    assert changed == {
        "table_name": "metrics",
        "retention_days": 7,
        "is_active": True,
        "timestamp_column": "timestamp",
    }
    off = await call(retention, "PUT", "retention/policies/{table}", table="metrics", is_active="no")
    assert (off["retention_days"], off["is_active"]) == (7, False)
    policies = await call(retention, "GET", "retention/policies")
    assert policies["metrics"] == off
    assert policies["metrics_daily"]["retention_days"] == 1095
    back = await call(retention, "PUT", "retention/policies/{table}", b'{"retention_days": null}', table="metrics")
    assert (back["retention_days"], back["is_active"]) == (90, False)


@pytest.mark.parametrize(
    ("body", "parameters", "problem"),
    [
        (b"", {"retention_days": "0"}, "retention_days: input should be greater than or equal to 1"),
        (b"", {"retention_days": "100000"}, "retention_days: input should be less than or equal to 36500"),
        (b"", {"retention_days": "soon"}, "retention_days: input should be a valid integer"),
        (b"", {"retention_days": "1.5"}, "retention_days: input should be a valid integer"),
        (b'{"retention_days": true}', {}, "retention_days: must be a whole number of days"),
        (b"", {"is_active": "perhaps"}, "is_active: must be a boolean, got 'perhaps'"),
        (b'{"is_active": null}', {}, "is_active: must be a boolean, got None"),
        (b"", {}, "retention_days, is_active: at least one must be given"),
        (b"", {"days": "5"}, "days: is unknown (known: table, retention_days, is_active)"),
        (b"[]", {}, "body: must be a JSON object"),
        (b"{", {}, "body: must be JSON"),
        (b'{"retention_days": 9}', {"table": "api_keys"}, "table_name: 'api_keys' has no retention policy"),
    ],
)
async def test_a_change_that_makes_no_sense_is_refused_with_what_is_wrong_and_changes_nothing(
    retention: RetentionExtension, body: bytes, parameters: dict[str, str], problem: str
) -> None:
    before = await call(retention, "GET", "retention/policies")
    with pytest.raises((Invalid, Malformed)) as caught:
        await call(retention, "PUT", "retention/policies/{table}", body, **{"table": "metrics", **parameters})
    assert str(caught.value).startswith(problem)
    assert await call(retention, "GET", "retention/policies") == before


async def test_the_statistics_count_rows_and_rows_a_day(
    database: DatabaseExtension, retention: RetentionExtension
) -> None:
    await add_events(database, *[days * DAYS for days in range(5)], 0 * DAYS)
    stats = await call(retention, "GET", "database/stats")
    assert stats["metrics"] == {
        "rows": 6,
        "oldest": text(NOW - 4 * DAYS),
        "newest": text(NOW),
        "rows_per_day": 1.5,
    }
    assert stats["metrics_hourly"] == {"rows": 0, "oldest": None, "newest": None, "rows_per_day": 0}


async def test_the_size_is_that_of_the_files(database: DatabaseExtension, retention: RetentionExtension) -> None:
    assert await call(retention, "GET", "database/size") == {
        "file_bytes": database.path.stat().st_size,
        "wal_bytes": Path(f"{database.path}-wal").stat().st_size,
        "free_pages": 0,
        "page_size": 4096,
    }


async def test_a_query_that_takes_too_long_is_answered_with_try_again(
    database: DatabaseExtension, retention: RetentionExtension
) -> None:
    async with database.transaction() as connection:
        await connection.execute("DROP TABLE metrics_daily")
        await connection.execute(
            "CREATE TABLE metrics_daily AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000)"
            " SELECT 'x' || i AS date FROM n"
        )
    database.read_seconds = 0.001
    with pytest.raises(Overloaded, match="took longer than"):
        await call(retention, "GET", "retention/preview", table_name="metrics_daily")


async def test_all_routes_are_for_admins(retention: RetentionExtension) -> None:
    assert {route.access for route in retention.routes()} == {Access.ADMIN}


async def test_table_and_column_names_are_quoted(database: DatabaseExtension, retention: RetentionExtension) -> None:
    async with database.transaction() as connection:
        await connection.execute('CREATE TABLE "odd "" name" ("group by" TEXT PRIMARY KEY) STRICT')
        await connection.execute("""INSERT INTO "odd "" name" VALUES ('1999-01-01')""")
        await connection.execute("""INSERT INTO retention_policies VALUES ('odd " name', 1, 1, 'group by', '')""")
    await retention.clean_up()
    assert await database.read('SELECT count(*) FROM "odd "" name"') == [(0,)]


def test_the_plugin_declares_an_extension_that_needs_the_database() -> None:
    (declaration,) = plugin.declare_components()
    assert (declaration.type, declaration.component.requires) == ("retention", (Database,))
    with pytest.raises(ValueError, match="interval"):
        declaration.config.model_validate({"interval": 0})
    with pytest.raises(ValueError, match="days"):
        declaration.config.model_validate({"days": 0})
