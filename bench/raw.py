"""Reference (b): a bare loop that decodes the same JSON with msgspec and inserts it into the same tables, hourly and daily sums
included, by sqlite3. Prints rows a second."""

from __future__ import annotations

import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from bench.samples import body
from plugins.exporters import sqlite as store

PUSHES_A_TRANSACTION = 50


class _Metric(msgspec.Struct):
    type: str
    value: float
    duration_ms: float | None = None
    timestamp: str | None = None
    dimensions: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class _Document(msgspec.Struct):
    service: str
    version: str
    metrics: list[_Metric]


def main(database: Path, seconds: float, size: int) -> None:
    """Insert for that long into a database that the service has migrated."""
    decode = msgspec.json.Decoder(_Document).decode
    encode = msgspec.json.Encoder().encode
    document = body(size)
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    started = time.perf_counter()
    rows = 0
    while time.perf_counter() - started < seconds:
        connection.execute("BEGIN IMMEDIATE")
        ((newest,),) = connection.execute("SELECT coalesce(max(id), 0) FROM metrics").fetchall()
        values: list[Any] = []
        for _ in range(PUSHES_A_TRANSACTION):
            pushed = decode(document)
            now = "2026-11-23T12:00:00.000000Z"
            for each in pushed.metrics:
                dimensions, metadata = encode(each.dimensions).decode(), encode(each.metadata).decode()
                values += ("req", pushed.service, pushed.version, None, each.type, now, each.value, each.duration_ms)
                values += (dimensions, metadata, now, "bench")
                if len(values) == store.ROWS * 12:
                    connection.execute(store.INSERT_FULL, values)
                    values = []
            rows += len(pushed.metrics)
        if values:
            connection.execute(store.insert_statement(len(values) // 12), values)
        connection.execute(store.SUM_UP_HOURS, (newest,))
        connection.execute(store.SUM_UP_DAYS, (newest,))
        connection.execute("COMMIT")
    sys.stdout.write(f"{rows / (time.perf_counter() - started):.0f}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
