"""The shipped tables and views, asked the way that exporters and people ask them."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from plugins.extensions.database.extension import DatabaseExtension
from tests.plugins.extensions.databases import started_database

pytestmark = pytest.mark.anyio

INSERT = (
    "INSERT INTO metrics (request_id, service, metric_type, timestamp, value, duration_ms, dimensions, created_at)"
    " VALUES ('req', ?, ?, ?, ?, ?, ?, '2026-11-23T12:00:00.000000Z')"
)
UPSERT_HOURLY = """
INSERT INTO metrics_hourly (service, metric_type, hour, count, sum, min, max, duration_count, duration_sum)
SELECT service, metric_type, substr(timestamp, 1, 13) || ':00:00Z', count(*), sum(value), min(value), max(value),
    count(duration_ms), total(duration_ms)
FROM metrics WHERE id > ? GROUP BY 1, 2, 3
ON CONFLICT (hour, service, metric_type) DO UPDATE SET count = count + excluded.count, sum = sum + excluded.sum,
    min = min(min, excluded.min), max = max(max, excluded.max),
    duration_count = duration_count + excluded.duration_count, duration_sum = duration_sum + excluded.duration_sum
"""
UPSERT_DAILY = """
INSERT INTO metrics_daily (service, metric_type, date, count, sum, min, max, duration_count, duration_sum)
SELECT service, metric_type, substr(timestamp, 1, 10), count(*), sum(value), min(value), max(value),
    count(duration_ms), total(duration_ms)
FROM metrics WHERE id > ? GROUP BY 1, 2, 3
ON CONFLICT (date, service, metric_type) DO UPDATE SET count = count + excluded.count, sum = sum + excluded.sum,
    min = min(min, excluded.min), max = max(max, excluded.max),
    duration_count = duration_count + excluded.duration_count, duration_sum = duration_sum + excluded.duration_sum
"""
"""How the SQLite exporter keeps the aggregates up: in the transaction of the rows, for the rows that it has just inserted."""

Row = tuple[str, str, str, float, float | None, str | None]

ROWS: list[Row] = [
    ("a", "custom", "2026-11-23T12:00:00.000000Z", 3.0, 10.0, None),
    ("a", "custom", "2026-11-23T12:59:59.999999Z", -5.0, None, None),
    ("a", "custom", "2026-11-23T13:00:00.000000Z", 1.0, None, None),
    ("b", "custom", "2026-11-23T12:30:00.000000Z", 4.0, 7.0, None),
    ("a", "custom", "2026-11-23T12:10:00.000000Z", 8.0, 20.0, None),
    ("a", "auth_request", "2026-11-24T00:00:00.000000Z", 1.0, None, None),
    ("a", "custom", "2026-11-23T23:00:00.000000Z", 2.0, 0.5, None),
]


async def push(database: DatabaseExtension, rows: list[Row]) -> None:
    async with database.transaction() as connection:
        ((last,),) = await connection.execute_fetchall("SELECT coalesce(max(id), 0) FROM metrics")
        await connection.executemany(INSERT, rows)
        await connection.execute(UPSERT_HOURLY, (last,))
        await connection.execute(UPSERT_DAILY, (last,))


@pytest.mark.parametrize(("table", "column", "length"), [("metrics_hourly", "hour", 13), ("metrics_daily", "date", 10)])
async def test_the_aggregates_are_those_of_the_rows_however_these_were_grouped(
    tmp_path: Path, table: str, column: str, length: int
) -> None:
    expected: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in ROWS:
        expected[row[0], row[1], row[2][:length] + (":00:00Z" if column == "hour" else "")].append(row)
    async with started_database(tmp_path / "a.db") as database:
        for some in (ROWS[:3], ROWS[3:4], ROWS[4:]):
            await push(database, some)
        found = await database.read(
            f"SELECT service, metric_type, {column}, count, sum, average, min, max,"
            f" duration_count, duration_sum, duration_average FROM {table}"
        )
    assert len(found) == len(expected)
    for *key, count, total, average, least, most, duration_count, duration_sum, duration_average in found:
        values = [row[3] for row in expected[tuple(key)]]
        durations = [row[4] for row in expected[tuple(key)] if row[4] is not None]
        assert (count, total, average) == (len(values), sum(values), sum(values) / len(values))
        assert (least, most) == (min(values), max(values))
        assert (duration_count, duration_sum) == (len(durations), sum(durations))
        assert duration_average == (sum(durations) / len(durations) if durations else None)


@pytest.mark.parametrize(
    ("view", "metric_type", "dimensions"),
    [
        (
            "auth_metrics",
            "auth_request",
            {"success": True, "method": "jwt", "server": "s", "target_kind": "tool", "user_hash": "u"},
        ),
        (
            "discovery_metrics",
            "tool_discovery",
            {"query": "weather", "results_count": 3, "top_k_services": 5, "top_n_tools": 7},
        ),
        (
            "tool_metrics",
            "tool_execution",
            {
                "method": "call",
                "server_name": "s",
                "server_path": "/s",
                "tool_name": "t",
                "client_name": "c",
                "client_version": "1",
                "success": False,
                "user_hash": "u",
            },
        ),
    ],
)
async def test_a_view_shows_the_events_of_its_type_with_their_dimensions_as_columns(
    tmp_path: Path, view: str, metric_type: str, dimensions: dict[str, object]
) -> None:
    when = "2026-11-23T12:00:00.000000Z"
    async with started_database(tmp_path / "a.db") as database:
        await push(
            database,
            [
                ("a", metric_type, when, 1.0, 2.0, json.dumps(dimensions)),
                ("a", metric_type, when, 1.0, None, None),
                ("a", "custom", when, 1.0, None, json.dumps(dimensions)),
            ],
        )
        columns = ", ".join(["id", "service", "timestamp", "value", "duration_ms", *dimensions])
        rows = await database.read(f"SELECT {columns} FROM {view} ORDER BY id")
    assert rows == [
        (1, "a", when, 1.0, 2.0, *dimensions.values()),
        (2, "a", when, 1.0, None, *[None] * len(dimensions)),
    ]


async def test_a_rows_id_is_never_used_twice(tmp_path: Path) -> None:
    async with started_database(tmp_path / "a.db") as database:
        await push(database, ROWS)
        async with database.transaction() as connection:
            await connection.execute("DELETE FROM metrics")
        await push(database, ROWS[:1])
        assert await database.read("SELECT id FROM metrics") == [(len(ROWS) + 1,)]


async def test_old_rows_are_found_by_an_index(tmp_path: Path) -> None:
    async with started_database(tmp_path / "a.db") as database:
        for table, column in (("metrics", "timestamp"), ("metrics_hourly", "hour"), ("metrics_daily", "date")):
            plan = await database.read(f"EXPLAIN QUERY PLAN SELECT 1 FROM {table} WHERE {column} < '2026' LIMIT 1")
            assert "SEARCH" in plan[0][3]
