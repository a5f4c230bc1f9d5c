"""Storing events: rows, sums and cursor in one transaction, on the real database."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from pipeline import Batch, Delivery, Event, EventBatch, MetricBatch, Permanent, Retryable
from pipeline.testing import NopHost
from plugins.exporters.sqlite import ROWS, SUM_UP_DAYS, SUM_UP_HOURS, SqliteConfig, SqliteExporter
from plugins.extensions.database.extension import DatabaseExtension
from tests.plugins.extensions.databases import started_database

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


def make_exporter(database: DatabaseExtension, id: str = "sqlite") -> SqliteExporter:
    return SqliteExporter(id, SqliteConfig(), NopHost(database))


def batch_of(*values: float, service: str = "s") -> EventBatch:
    return EventBatch(service, [Event("custom", value, NOON) for value in values], NOON, "req_1")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[DatabaseExtension]:
    async with started_database(tmp_path / "metrics.db") as database:
        yield database


async def export(database: DatabaseExtension, after: int, upto: int, *batches: Batch, pipeline: str = "events") -> None:
    await make_exporter(database).export(Delivery(pipeline, after, upto, batches))


async def values_in(database: DatabaseExtension) -> list[float]:
    return [value for (value,) in await database.read("SELECT value FROM metrics ORDER BY id")]


async def refuse_the_value(database: DatabaseExtension, value: float) -> None:
    """Let SQLite refuse a row with that value, once the rows before it are in."""
    async with database.transaction() as connection:
        await connection.execute(
            f"CREATE TRIGGER refuse_{int(value)} AFTER INSERT ON metrics WHEN NEW.value = {value}"
            " BEGIN SELECT RAISE(FAIL, 'no such value'); END"
        )


async def leave_pages(database: DatabaseExtension, pages: int) -> None:
    """Let the file grow by that many pages and no further, as on a disk that is nearly full."""
    async with database.transaction() as connection:
        ((used,),) = await connection.execute_fetchall("PRAGMA page_count")
        await connection.execute_fetchall(f"PRAGMA max_page_count = {used + pages}")


async def test_a_row_holds_all_that_an_event_and_its_batch_say(database: DatabaseExtension) -> None:
    event = Event(
        "tool_execution",
        1.5,
        datetime(2026, 6, 30, 23, 59, 59, 999999, tzinfo=UTC),
        12.5,
        {"method": "tools/call", "success": True, "size": 2**63 - 1, "none": None, "odd": 'ü\0"\n'},
        {"a": [1, {"b": None}]},
    )
    batch = EventBatch("auth-server", [event], NOON + timedelta(microseconds=5), "req_1", "1.2.3", "i-1", "gateway")

    await export(database, 0, 1, batch)

    cursor = sqlite3.connect(database.path).execute("SELECT * FROM metrics")
    (row,) = [dict(zip([column[0] for column in cursor.description], row, strict=True)) for row in cursor]
    cursor.connection.close()
    assert json.loads(row.pop("dimensions")) == event.dimensions
    assert json.loads(row.pop("metadata")) == event.metadata
    assert row == {
        "id": 1,
        "request_id": "req_1",
        "service": "auth-server",
        "service_version": "1.2.3",
        "instance_id": "i-1",
        "metric_type": "tool_execution",
        "timestamp": "2026-06-30T23:59:59.999999Z",
        "value": 1.5,
        "duration_ms": 12.5,
        "created_at": "2026-07-01T12:00:00.000005Z",
        "key_service": "gateway",
    }


async def test_what_an_event_does_not_have_is_null_or_an_empty_object(database: DatabaseExtension) -> None:
    await export(database, 0, 1, batch_of(1))
    columns = "service_version, instance_id, duration_ms, key_service, dimensions, metadata, timestamp = created_at"
    assert await database.read(f"SELECT {columns} FROM metrics") == [(None, None, None, None, "{}", "{}", 1)]


async def test_times_sort_as_text_as_they_do_as_times(database: DatabaseExtension) -> None:
    times = [datetime.min.replace(tzinfo=UTC), NOON - timedelta(microseconds=1), NOON, NOON + timedelta(microseconds=1)]
    times += [datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
    shuffled = random.Random(1).sample(list(enumerate(times)), len(times))
    await export(database, 0, 1, EventBatch("s", [Event("custom", index, time) for index, time in shuffled], NOON))
    assert await database.read("SELECT value FROM metrics ORDER BY timestamp") == [
        (index,) for index in range(len(times))
    ]


@pytest.mark.parametrize("count", [1, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS, 2 * ROWS + 7])
async def test_a_delivery_of_any_size_is_stored_in_order(database: DatabaseExtension, count: int) -> None:
    await export(database, 0, 2, batch_of(*range(count // 2)), batch_of(*range(count // 2, count)))
    assert await values_in(database) == list(range(count))


def random_batches(random: random.Random) -> list[EventBatch]:
    """Events that are spread over days, services and types; their numbers add up exactly, in any order."""

    def event() -> Event:
        time = NOON - timedelta(minutes=random.randrange(3 * 24 * 60))
        duration = random.choice([None, random.randrange(1000) / 4])
        return Event(random.choice(["custom", "auth_request"]), random.randrange(-4000, 4000) / 4, time, duration)

    services = ["a", "b", "ä\0"]
    return [
        EventBatch(random.choice(services), [event() for _ in range(random.randrange(1, 40))], NOON)
        for _ in range(random.randrange(1, 6))
    ]


async def test_the_sums_by_hour_and_day_are_those_of_the_rows_after_many_deliveries(
    database: DatabaseExtension,
) -> None:
    source = random.Random(2026)
    position = 0
    for _ in range(40):
        batches = random_batches(source)
        await export(database, position, position + len(batches), *batches)
        position += len(batches)
    for table, column, period in (
        ("metrics_hourly", "hour", "strftime('%Y-%m-%dT%H:00:00Z', timestamp)"),
        ("metrics_daily", "date", "date(timestamp)"),
    ):
        kept = await database.read(
            f"SELECT {column}, service, metric_type, count, sum, min, max, average, duration_count, duration_sum,"
            f" duration_average FROM {table} ORDER BY 1, 2, 3"
        )
        assert kept == await database.read(
            f"SELECT {period}, service, metric_type, count(*), total(value), min(value), max(value), avg(value),"
            " count(duration_ms), total(duration_ms), avg(duration_ms) FROM metrics GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        )
        assert sum(row[3] for row in kept) == len(await values_in(database)) > 1000
        assert any(row[8] == 0 for row in kept) == (table == "metrics_hourly"), "some have no durations at all"


async def test_the_cursor_is_stored_with_the_rows_and_found_after_a_restart(tmp_path: Path) -> None:
    async with started_database(tmp_path / "metrics.db") as database:
        assert await make_exporter(database).position("events") is None
        await export(database, 0, 3, batch_of(1, 2), batch_of(3), batch_of(4))
    async with started_database(tmp_path / "metrics.db") as database:
        assert await upto(database) == 3
        await export(database, 3, 4, batch_of(5))
        assert await upto(database) == 4
        assert await values_in(database) == [1, 2, 3, 4, 5]


async def test_a_first_delivery_starts_wherever_the_journal_is(database: DatabaseExtension) -> None:
    await export(database, 7, 8, batch_of(1))
    assert await upto(database) == 8


@pytest.mark.parametrize("bad", [0, ROWS + 1, 2 * ROWS])
async def test_a_delivery_with_a_row_that_is_refused_leaves_nothing_and_is_refused_for_good(
    database: DatabaseExtension, bad: int
) -> None:
    await export(database, 0, 1, batch_of(-1))
    before = await everything(database)
    await refuse_the_value(database, bad)

    with pytest.raises(Permanent, match="SQLite refuses it: no such value"):
        await export(database, 1, 2, batch_of(*range(2 * ROWS + 1)))

    assert await everything(database) == before


@pytest.mark.parametrize("bad", [[0], [ROWS - 1, ROWS], [2 * ROWS], list(range(5))], ids=str)
async def test_the_rows_that_sqlite_refuses_are_named_and_nothing_is_stored(
    database: DatabaseExtension, bad: list[int]
) -> None:
    await export(database, 0, 1, batch_of(-1))
    for value in bad:
        await refuse_the_value(database, value)
    before = await everything(database)

    with pytest.raises(Permanent) as caught:
        await export(database, 1, 3, batch_of(*range(ROWS)), batch_of(*range(ROWS, 2 * ROWS + 1)))

    assert caught.value.items == tuple(
        (2 + value // ROWS, value % ROWS) if value < 2 * ROWS else (3, ROWS) for value in bad
    )
    assert await everything(database) == before
    rest = [value for value in range(2 * ROWS + 1) if value not in bad]
    await export(database, 1, 3, batch_of(*rest))
    assert await values_in(database) == [-1, *rest]


async def test_a_delivery_that_fails_half_way_leaves_neither_rows_nor_sums_nor_cursor_and_is_stored_later(
    database: DatabaseExtension,
) -> None:
    await export(database, 0, 1, batch_of(-1))
    before = await everything(database)
    await leave_pages(database, 30)

    with pytest.raises(sqlite3.OperationalError, match="database or disk is full"):
        await export(database, 1, 2, batch_of(*range(3 * ROWS)))

    assert await everything(database) == before
    await leave_pages(database, 1000)
    await export(database, 1, 2, batch_of(*range(3 * ROWS)))
    assert await values_in(database) == [-1, *range(3 * ROWS)]
    assert await upto(database) == 2


async def upto(database: DatabaseExtension, id: str = "sqlite", pipeline: str = "events") -> int:
    """The position of its cursor."""
    position = await make_exporter(database, id).position(pipeline)
    assert position is not None
    return position.upto


async def everything(database: DatabaseExtension) -> Sequence[Any]:
    """All that an exporter writes."""
    tables = ("metrics", "metrics_hourly", "metrics_daily", "exporter_cursors")
    return [await database.read(f"SELECT * FROM {table}") for table in tables]


@pytest.mark.parametrize("after", [0, 1, 3, 4])
@pytest.mark.parametrize("batches", [(), (batch_of(9),)])
async def test_a_delivery_from_another_place_than_the_cursor_stores_nothing_and_may_come_again(
    database: DatabaseExtension, after: int, batches: tuple[EventBatch, ...]
) -> None:
    await export(database, 0, 2, batch_of(1))
    before = await everything(database)
    with pytest.raises(Retryable, match=r"^the cursor of sqlite is at 2: "):
        await export(database, after, 5, *batches)
    assert await everything(database) == before


async def test_a_delivery_that_comes_again_after_a_commit_that_only_seemed_to_fail_is_taken_and_stored_once(
    database: DatabaseExtension,
) -> None:
    await export(database, 0, 2, batch_of(1, 2))
    before = await everything(database)
    await export(database, 0, 2, batch_of(1, 2))
    assert await everything(database) == before


async def test_the_same_delivery_by_several_at_once_is_stored_once(database: DatabaseExtension) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(export, database, 0, 1, batch_of(1, 2))
    assert await values_in(database) == [1, 2]
    assert await upto(database) == 1


async def test_an_empty_delivery_moves_the_cursor_and_nothing_else(database: DatabaseExtension) -> None:
    await export(database, 0, 1, batch_of(1))
    before = await everything(database)
    await export(database, 1, 9)
    assert await upto(database) == 9
    assert (await everything(database))[:-1] == before[:-1]


async def test_pipelines_and_exporters_each_have_a_cursor_of_their_own(database: DatabaseExtension) -> None:
    await export(database, 0, 2, batch_of(1), batch_of(2))
    await export(database, 0, 1, batch_of(3), pipeline="events/second")
    await make_exporter(database, "sqlite/copy").export(Delivery("events", 5, 6, [batch_of(4)]))

    positions = [
        await upto(database, id, pipeline)
        for id, pipeline in [("sqlite", "events"), ("sqlite", "events/second"), ("sqlite/copy", "events")]
    ]

    assert positions == [2, 1, 6]
    assert await make_exporter(database, "sqlite/copy").position("events/second") is None
    assert await values_in(database) == [1, 2, 3, 4]
    assert await database.read("SELECT count, sum FROM metrics_hourly") == [(4, 10.0)]


async def test_rows_that_were_deleted_are_not_summed_up_again(database: DatabaseExtension) -> None:
    await export(database, 0, 1, batch_of(1, 2))
    async with database.transaction() as connection:
        await connection.execute("DELETE FROM metrics")
    await export(database, 1, 2, batch_of(4))
    assert await database.read("SELECT count, sum FROM metrics_hourly") == [(3, 7.0)]
    assert await database.read("SELECT count, sum FROM metrics_daily") == [(3, 7.0)]


@pytest.mark.parametrize("statement", [SUM_UP_HOURS, SUM_UP_DAYS])
async def test_summing_up_reads_the_new_rows_only(database: DatabaseExtension, statement: str) -> None:
    plan = await database.read(f"EXPLAIN QUERY PLAN {statement}", (0,))
    assert any("USING INTEGER PRIMARY KEY" in step[3] for step in plan), plan


async def test_a_batch_of_another_signal_is_passed_over(database: DatabaseExtension) -> None:
    await export(database, 0, 2, MetricBatch(b"", 3, NOON), batch_of(1))
    assert await values_in(database) == [1]
