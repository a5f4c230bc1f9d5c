"""Rows of a known age, and calls of the extension's routes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline import Caller, Context, Database, Request, TokenBucket
from plugins.extensions.retention.extension import RetentionExtension

NOW = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)
HOUR = 3600.0
DAYS = timedelta(days=1)
ADMIN = Caller("operations", "0badcafe", frozenset({"admin"}), TokenBucket(1000))


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
    """The body of the answer to a call of one of the extension's routes, by `ADMIN`, as the request `req_1`."""
    context = Context("req_1")
    context.caller = ADMIN
    (route,) = [route for route in retention.routes() if (route.method, route.path) == (method, f"/admin/{path}")]
    return (await route.handler(Request(parameters, body, context))).body
