"""Applying migrations and taking them back, on real files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from pipeline import StartError
from plugins.extensions.database.backup import back_up
from plugins.extensions.database.connection import open_reader, open_writer, use_wal
from plugins.extensions.database.migration_files import Migration, load_migrations, parse_migration
from plugins.extensions.database.migrator import Migrator

pytestmark = pytest.mark.anyio

COLOURS = parse_migration("0001_colours.sql", "-- up\nCREATE TABLE colours (name);\n-- down\nDROP TABLE colours;")
SIZES = parse_migration("0002_sizes.sql", "-- up\nCREATE TABLE sizes (name);\n-- down\nDROP TABLE sizes;")
BROKEN = parse_migration("0002_broken.sql", "-- up\nCREATE TABLE a (b);\nCREATE TABLE colours (c);\n-- down\n")


@asynccontextmanager
async def migrator(path: Path, migrations: Sequence[Migration]) -> AsyncIterator[Migrator]:
    connection = await open_writer(path, 30)
    try:
        await use_wal(connection, path, 30)
        yield Migrator(connection, path, migrations)
    finally:
        await connection.close()


async def schema(path: Path) -> list[tuple[str, ...]]:
    connection = await open_reader(path, 1)
    try:
        rows = await connection.execute_fetchall("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2")
        return [tuple(row) for row in rows]
    finally:
        await connection.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def tables(path: Path) -> list[str]:
    return [name for kind, name, *_ in await schema(path) if kind == "table"]


async def test_up_applies_what_is_pending_in_order_and_records_it(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with migrator(path, [COLOURS]) as first:
        assert await first.up() == [COLOURS]
    async with migrator(path, [COLOURS, SIZES]) as second:
        assert await second.up() == [SIZES]
        assert await second.up() == []
        assert [record.name for record in (await second.applied()).values()] == ["colours", "sizes"]


async def test_up_stops_after_the_version_that_was_asked_for(tmp_path: Path) -> None:
    async with migrator(tmp_path / "a.db", [COLOURS, SIZES]) as both:
        assert await both.up(to=1) == [COLOURS]
        assert await both.pending() == [SIZES]


async def test_a_migration_that_fails_leaves_no_trace_and_those_before_it_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with migrator(path, [COLOURS, BROKEN]) as both:
        with pytest.raises(StartError, match=r"migration 0002_broken failed on .*: table colours already exists"):
            await both.up()
        assert list(await both.applied()) == [1]
    assert await tables(path) == ["colours", "schema_migrations"]


async def test_an_applied_migration_that_was_edited_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with migrator(path, [COLOURS]) as before:
        await before.up()
    edited = parse_migration("0001_colours.sql", "-- up\nCREATE TABLE colors (name);\n-- down\n")
    async with migrator(path, [edited, SIZES]) as after:
        for attempt in (after.up(), after.down(1), after.pending()):
            with pytest.raises(
                StartError, match=r"^migration 0001_colours was edited after it had been applied"
            ) as caught:
                await attempt
            assert caught.value.exit_code == 78
    assert await tables(path) == ["colours", "schema_migrations"]


async def test_a_newer_schema_is_refused_naming_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with migrator(path, [COLOURS, SIZES]) as newer:
        await newer.up()
    async with migrator(path, [COLOURS]) as older:
        with pytest.raises(StartError, match=r"has schema version 2 \(sizes\) and this program knows versions up to 1"):
            await older.up()


async def test_down_takes_back_the_last_ones_newest_first(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with migrator(path, [COLOURS, SIZES]) as both:
        await both.up()
        assert await both.down(1) == [SIZES]
        assert list(await both.applied()) == [1]
        assert await both.up() == [SIZES]
        assert await both.down(9) == [SIZES, COLOURS]
    assert await tables(path) == ["schema_migrations"]


async def test_the_shipped_schema_after_up_down_up_is_that_of_a_new_file(tmp_path: Path) -> None:
    shipped = load_migrations()
    async with migrator(tmp_path / "new.db", shipped) as new:
        await new.up()
    async with migrator(tmp_path / "used.db", shipped) as used:
        await used.up()
        await used.down(len(shipped))
        left = [name for name in await tables(tmp_path / "used.db") if not name.startswith("sqlite_")]
        assert left == ["schema_migrations", "store_identity"]
        await used.up()
    assert await schema(tmp_path / "used.db") == await schema(tmp_path / "new.db")


@pytest.mark.parametrize("version", range(1, len(load_migrations()) + 1))
async def test_each_shipped_migration_can_be_taken_back_alone(tmp_path: Path, version: int) -> None:
    path = tmp_path / "a.db"
    async with migrator(path, load_migrations()) as shipped:
        await shipped.up(to=version - 1)
        before = set(await schema(path))
        await shipped.up(to=version)
        await shipped.down(1)
    # The table that SQLite makes for itself with the first AUTOINCREMENT, our records, and the identity stay.
    stay = ("sqlite_sequence", "schema_migrations", "store_identity", "sqlite_autoindex_store_identity_1")
    assert {row for row in set(await schema(path)) ^ before if row[1] not in stay} == set()


@pytest.mark.parametrize("attempt", range(10))
async def test_programs_that_migrate_at_the_same_time_apply_everything_once(tmp_path: Path, attempt: int) -> None:
    applied: list[Migration] = []

    async def one() -> None:
        async with migrator(tmp_path / "a.db", load_migrations()) as each:
            applied.extend(await each.up())

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(one)
    assert sorted(map(str, applied)) == list(map(str, load_migrations()))


async def test_a_backup_holds_everything_and_has_the_file_mode_of_the_guide(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    connection = await open_writer(path, 1)
    try:
        await use_wal(connection, path, 30)
        await connection.execute("CREATE TABLE a AS SELECT 7 AS b")
        backup = await back_up(connection, path, version=3)
    finally:
        await connection.close()
    assert backup.name.startswith("a.db.backup-3-")
    assert mode(backup) == 0o640
    assert names(tmp_path) == [path.name, backup.name]
    reader = await open_reader(backup, 1)
    try:
        assert list(await reader.execute_fetchall("SELECT b FROM a")) == [(7,)]
    finally:
        await reader.close()


async def test_a_backup_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    connection = await open_writer(path, 1)
    try:
        await connection.execute("BEGIN")  # VACUUM refuses to run inside a transaction
        with pytest.raises(StartError, match=r"cannot use the database .*unfinished"):
            await back_up(connection, path, version=3)
    finally:
        await connection.close()
    assert names(tmp_path) == [path.name]
