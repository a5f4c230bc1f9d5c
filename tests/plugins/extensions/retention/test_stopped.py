"""An automatic cleanup stops before it deletes what a wrong clock or a wrong policy makes look old."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from plugins.extensions.database.extension import DatabaseExtension
from plugins.extensions.retention import tables
from plugins.extensions.retention.extension import RetentionConfig, RetentionExtension
from plugins.extensions.retention.tables import Tables
from tests.plugins.extensions.retention.helpers import DAYS, NOW, add_events, add_sums, call, column, text

pytestmark = pytest.mark.anyio

LARGE = 10
YEAR_2100 = datetime.fromisoformat("2100-01-01T00:00:00Z")


@pytest.fixture(autouse=True)
def _few_rows_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LARGE_CLEANUP", LARGE)


async def started(
    database: DatabaseExtension, now: datetime = NOW, *, days: int = 90, monotonic: float = 100.0
) -> RetentionExtension:
    """As after a start at that time; the clock stands still."""
    retention = RetentionExtension("retention", RetentionConfig(days=days), database.host)
    retention.wall_clock = now.timestamp
    retention.monotonic = lambda: monotonic
    await retention.start()
    return retention


def stopped(retention: RetentionExtension) -> set[tuple[str, str]]:
    """The tables that the metric shows as stopped, with the reasons."""
    (instrument,) = retention.instruments()
    assert instrument.name == "retention_stopped"
    return {(labels["table"], labels["reason"]) for labels, value in instrument.read() if value == 1.0}


async def count(database: DatabaseExtension, table: str = "metrics") -> int:
    ((rows,),) = await database.read(f"SELECT count(*) FROM {table}")
    return int(rows)


async def add_usage(database: DatabaseExtension, *ages: timedelta) -> None:
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO api_keys (key_hash, service_name, created_at) VALUES (hex(randomblob(32)), 's', '')"
        )
        for age in ages:
            await connection.execute(
                "INSERT INTO api_key_usage_log (api_key_id, service_name, event, hour, count) VALUES (1, 's', 'used', ?, 1)",
                (text(NOW - age),),
            )


async def test_a_start_with_a_clock_in_2100_deletes_nothing_of_any_table(
    database: DatabaseExtension, caplog: pytest.LogCaptureFixture
) -> None:
    await add_events(database, *[number * DAYS for number in range(3)])
    await add_sums(database, "metrics_hourly", "2026-11-22T11:00:00Z")
    await add_sums(database, "metrics_daily", "2026-11-22")
    await add_usage(database, 1 * DAYS)
    everything = {("metrics", 3), ("metrics_hourly", 1), ("metrics_daily", 1), ("api_key_usage_log", 1)}
    for start in range(3):  # rows that a service with the wrong clock stores do not make the clock right
        retention = await started(database, YEAR_2100 + start * DAYS)
        async with database.transaction() as connection:
            await connection.execute("DELETE FROM metrics WHERE timestamp > '2099'")
            await connection.execute(
                "INSERT INTO metrics (request_id, service, metric_type, value, created_at, timestamp)"
                " VALUES ('r', 's', 'custom', 1, '', '2100-01-01T00:00:01.000000Z')"
            )
        caplog.clear()
        for _ in range(2):
            await retention.clean_up()
        assert caplog.text.count("nothing is deleted from metrics: ") == 1
        assert {(table, await count(database, table) - (table == "metrics")) for table, _ in everything} == everything
        assert stopped(retention) == {(table, "clock") for table, _ in everything}
    retention = await started(database)
    await retention.clean_up()
    assert stopped(retention) == set()


async def test_a_clock_that_is_put_right_after_such_a_start_needs_no_second_one(database: DatabaseExtension) -> None:
    await add_events(database, 1 * DAYS, 91 * DAYS)
    retention = await started(database, YEAR_2100)
    await retention.clean_up()
    retention.wall_clock = NOW.timestamp
    await retention.clean_up()
    assert stopped(retention) == set()
    assert await column(database, "metrics", "timestamp") == [text(NOW - 1 * DAYS)]


async def test_more_than_half_of_many_rows_are_not_deleted_and_the_log_says_so_once(
    database: DatabaseExtension, caplog: pytest.LogCaptureFixture
) -> None:
    await add_events(database, *[91 * DAYS] * (LARGE + 1), *[1 * DAYS] * LARGE)
    retention = await started(database)
    for _ in range(2):
        await retention.clean_up()
        assert await count(database) == 2 * LARGE + 1
        assert stopped(retention) == {("metrics", "share")}
    assert caplog.text.count("nothing is deleted from metrics: more than half of its rows") == 1


@pytest.mark.parametrize(("old", "new"), [(LARGE, 0), (LARGE + 5, LARGE + 5)])
async def test_a_small_or_a_normal_share_is_deleted(database: DatabaseExtension, old: int, new: int) -> None:
    await add_events(database, 0 * DAYS, *[91 * DAYS] * old, *[1 * DAYS] * new)
    retention = await started(database)
    await retention.clean_up()
    assert await count(database) == new + 1
    assert stopped(retention) == set()


async def test_the_cleanup_continues_once_the_share_is_normal(
    database: DatabaseExtension, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await add_events(database, *[91 * DAYS] * (LARGE + 1))
    await add_events(database, 0 * DAYS)
    retention = await started(database)
    await retention.clean_up()
    assert stopped(retention) == {("metrics", "share")}
    await add_events(database, *[1 * DAYS] * (LARGE + 1))
    await retention.clean_up()
    assert (stopped(retention), await count(database)) == (set(), LARGE + 2)
    assert "the cleanup of metrics runs again" in caplog.text


async def test_a_policy_that_was_lowered_since_the_last_cleanup_may_delete_any_share(
    database: DatabaseExtension,
) -> None:
    await add_events(database, *[30 * DAYS] * (3 * LARGE), 1 * DAYS)
    retention = await started(database)
    await retention.clean_up()
    await call(retention, "PUT", "retention/policies/{table}", b'{"retention_days": 7}', table="metrics")
    await retention.clean_up()
    assert (stopped(retention), await count(database)) == (set(), 1)
    # That was for one time.
    await add_events(database, *[30 * DAYS] * (3 * LARGE))
    await retention.clean_up()
    assert stopped(retention) == {("metrics", "share")}


async def test_a_default_that_was_lowered_before_a_start_may_delete_any_share(database: DatabaseExtension) -> None:
    await add_events(database, *[30 * DAYS] * (3 * LARGE), 1 * DAYS)
    await (await started(database)).clean_up()
    retention = await started(database, days=7)
    await retention.clean_up()
    assert (stopped(retention), await count(database)) == (set(), 1)


async def test_a_policy_that_was_made_active_may_delete_any_share(database: DatabaseExtension) -> None:
    retention = await started(database)
    await call(retention, "PUT", "retention/policies/{table}", b'{"is_active": false}', table="metrics")
    await add_events(database, *[91 * DAYS] * (3 * LARGE), 1 * DAYS)
    await retention.clean_up()
    assert await count(database) == 3 * LARGE + 1
    await call(retention, "PUT", "retention/policies/{table}", b'{"is_active": true}', table="metrics")
    await retention.clean_up()
    assert (stopped(retention), await count(database)) == (set(), 1)


async def test_a_lower_policy_does_not_make_a_wrong_clock_right(database: DatabaseExtension) -> None:
    await add_events(database, 1 * DAYS)
    await (await started(database)).clean_up()
    retention = await started(database, YEAR_2100, days=7)
    await retention.clean_up()
    assert (stopped(retention), await count(database)) == ({("metrics", "clock")}, 1)


async def test_after_a_year_without_the_service_a_person_decides(database: DatabaseExtension) -> None:
    await add_events(database, *[1 * DAYS] * (3 * LARGE))
    await (await started(database)).clean_up()
    retention = await started(database, NOW + 365 * DAYS)
    await retention.clean_up()
    assert (stopped(retention), await count(database)) == ({("metrics", "clock")}, 3 * LARGE)
    dry = await call(retention, "POST", "retention/cleanup", table_name="metrics")
    assert (dry["records_deleted"], stopped(retention)) == (3 * LARGE, {("metrics", "clock")})
    done = await call(retention, "POST", "retention/cleanup", table_name="metrics", dry_run="false")
    assert (done["records_deleted"], stopped(retention)) == (3 * LARGE, set())
    await add_events(database, 1 * DAYS - 365 * DAYS, 91 * DAYS - 365 * DAYS)
    await retention.clean_up()
    assert (stopped(retention), await count(database)) == (set(), 1)


async def test_a_service_that_runs_and_gets_no_data_deletes_its_last_rows(database: DatabaseExtension) -> None:
    await add_events(database, *[1 * DAYS] * 3)
    retention = await started(database)
    for days in range(0, 100, 10):
        retention.wall_clock = (NOW + days * DAYS).timestamp
        retention.monotonic = lambda days=days: 100.0 + days * 86_400.0  # type: ignore[misc]
        await retention.clean_up()
        assert stopped(retention) == set()
    assert await count(database) == 0


def _never_large(self: Tables, policy: object, now: float) -> object:
    async def answer() -> bool:
        return False

    return answer()


@pytest.mark.parametrize("start", [YEAR_2100, NOW])
async def test_control_without_the_stops_the_rows_are_gone(
    database: DatabaseExtension, monkeypatch: pytest.MonkeyPatch, start: datetime
) -> None:
    never: Callable[..., object] = _never_large
    monkeypatch.setattr(Tables, "is_large", never)
    monkeypatch.setattr("plugins.extensions.retention.extension.CLOCK", None)
    await add_events(database, *[91 * DAYS] * (LARGE + 1))
    retention = await started(database, start)
    await retention.clean_up()
    assert await count(database) == 0
