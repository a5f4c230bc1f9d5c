"""The admin routes: answers as in docs/api.md, and what they refuse."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline import Access, Invalid, Malformed, Overloaded
from plugins.extensions.database.extension import DatabaseExtension
from plugins.extensions.retention.extension import RetentionExtension
from tests.plugins.extensions.retention.helpers import DAYS, NOW, add_events, call, column, text

pytestmark = pytest.mark.anyio


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


async def test_who_deletes_or_changes_a_policy_is_in_the_log(
    database: DatabaseExtension, retention: RetentionExtension, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await add_events(database, 200 * DAYS)
    await call(retention, "GET", "retention/policies")
    await call(retention, "GET", "retention/preview")
    await call(retention, "POST", "retention/cleanup")
    assert caplog.messages == [], "nothing was changed"
    await call(
        retention,
        "PUT",
        "retention/policies/{table}",
        b'{"is_active": false, "retention_days": 7}',
        table="metrics_daily",
    )
    await call(retention, "POST", "retention/cleanup", dry_run="no")
    assert caplog.messages == [
        "changed the policy of metrics_daily by request: retention_days 1095 -> 7, is_active True -> False",
        "cleaned up api_key_usage_log by request: completed, 0 old rows deleted",
        "cleaned up metrics by request: completed, 1 old rows deleted",
        "cleaned up metrics_daily by request: skipped, 0 old rows deleted",
        "cleaned up metrics_hourly by request: completed, 0 old rows deleted",
    ]
    for record in caplog.records:
        assert vars(record).items() >= {"request_id": "req_1", "service": "operations", "key_id": "0badcafe"}.items()


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
        (b"", {"days": "5"}, "days: is unknown (known: retention_days, is_active)"),
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


def size_of(path: str) -> int:
    return Path(path).stat().st_size


async def test_the_size_is_that_of_the_files(database: DatabaseExtension, retention: RetentionExtension) -> None:
    free, page = (await database.read("SELECT freelist_count, page_size FROM pragma_freelist_count, pragma_page_size"))[
        0
    ]
    assert await call(retention, "GET", "database/size") == {
        "file_bytes": size_of(str(database.path)),
        "wal_bytes": size_of(f"{database.path}-wal"),
        "free_pages": free,
        "page_size": page,
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
