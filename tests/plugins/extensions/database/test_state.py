"""What components derive from data is kept together with how far they had got."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.plugins.extensions.databases import started_database

pytestmark = pytest.mark.anyio


async def test_who_never_saved_anything_gets_nothing(tmp_path: Path) -> None:
    async with started_database(tmp_path / "metrics.db") as database:
        assert await database.load("connector.series") == ({}, {})


async def test_what_was_saved_is_there_after_a_restart(tmp_path: Path) -> None:
    records = {f"name {number}": bytes([number % 256]) * 3 for number in range(1001)}
    async with started_database(tmp_path / "metrics.db") as database:
        await database.save("connector.series", {"events": 7, "events/other": 9}, records)
    async with started_database(tmp_path / "metrics.db") as database:
        assert await database.load("connector.series") == ({"events": 7, "events/other": 9}, records)


async def test_a_save_replaces_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    async with started_database(tmp_path / "metrics.db") as database:
        await database.save("one", {"events": 1}, {"a": b"1", "b": b"1"})
        await database.save("other", {"events": 5}, {"a": b"5"})
        await database.save("one", {"events": 2}, {"b": b"2"})
        assert await database.load("one") == ({"events": 2}, {"a": b"1", "b": b"2"})
        assert await database.load("other") == ({"events": 5}, {"a": b"5"})


async def test_a_save_that_fails_changes_nothing(tmp_path: Path) -> None:
    async with started_database(tmp_path / "metrics.db") as database:
        await database.save("one", {"events": 1}, {"a": b"1"})
        with pytest.raises(sqlite3.Error):
            await database.save("one", {"events": None}, {"a": b"2"})  # type: ignore[dict-item]
        assert await database.load("one") == ({"events": 1}, {"a": b"1"})
