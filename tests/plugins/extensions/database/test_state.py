"""Saved state of earlier versions is read from the database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import Position, StateError
from tests.plugins.extensions.databases import started_database

pytestmark = pytest.mark.anyio


async def test_an_unknown_owner_has_no_state(tmp_path: Path) -> None:
    async with started_database(tmp_path / "metrics.db") as database:
        assert await database.load("connector.series") == ({}, {})


async def test_what_an_earlier_version_saved_is_read(tmp_path: Path) -> None:
    async with started_database(tmp_path / "metrics.db") as database:
        async with database.transaction() as connection:
            await connection.execute(
                "INSERT INTO exporter_cursors (exporter, pipeline, position) VALUES ('connector.series', 'events', 7)"
            )
            await connection.execute("INSERT INTO component_records VALUES ('connector.series', 'a', x'01')")
            await connection.execute("INSERT INTO component_records VALUES ('connector.other', 'b', x'02')")
        assert await database.load("connector.series") == ({"events": Position(7)}, {"a": b"\x01"})


async def test_a_database_that_cannot_be_read_is_a_state_error(tmp_path: Path) -> None:
    async with started_database(tmp_path / "metrics.db") as database:
        with closing(sqlite3.connect(tmp_path / "metrics.db")) as other:
            other.execute("DROP TABLE component_records")
        with pytest.raises(StateError, match=r"metrics\.db: no such table: component_records"):
            await database.load("connector.series")
