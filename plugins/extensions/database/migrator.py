"""Bringing a schema up and down. What was applied is recorded in the table `schema_migrations` of the same file."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import aiosqlite

from pipeline import StartError
from plugins.extensions.database.connection import CONFIGURATION, immediate, named
from plugins.extensions.database.migration_files import Migration

_RECORDS = """CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    checksum TEXT NOT NULL,
    applied_at TEXT NOT NULL
) STRICT"""


class Applied(NamedTuple):
    """One row of `schema_migrations`."""

    version: int
    name: str
    checksum: str
    applied_at: str


class Migrator:
    """Applies migrations to one database and takes them back, each in one transaction together with its record.

    Each transaction holds the write lock and looks again at what was applied, so several programs may try at once.
    """

    def __init__(self, connection: aiosqlite.Connection, path: Path, migrations: Sequence[Migration]) -> None:
        self._connection = connection
        self._path = path
        self.migrations = {migration.version: migration for migration in migrations}

    async def applied(self) -> dict[int, Applied]:
        """What was applied so far, by number; empty for a new file."""
        with named(self._path):
            found = await self._connection.execute_fetchall(
                "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'schema_migrations'"
            )
            if list(found) == [(0,)]:
                return {}
            rows = await self._connection.execute_fetchall(
                "SELECT version, name, checksum, applied_at FROM schema_migrations ORDER BY version"
            )
        return {row[0]: Applied(*row) for row in rows}

    async def pending(self) -> list[Migration]:
        """What is still to be applied, in order.

        Raises `StartError` if the database holds a migration that this program does not know, or one whose file was
        edited after it had been applied.
        """
        applied = await self.applied()
        self._check(applied)
        return [migration for version, migration in self.migrations.items() if version not in applied]

    def _check(self, applied: dict[int, Applied]) -> None:
        unknown = [record for version, record in applied.items() if version not in self.migrations]
        if unknown:
            newest = unknown[-1]
            raise StartError(
                f"the database {self._path} has schema version {newest.version} ({newest.name}) and this program knows"
                f" versions up to {max(self.migrations, default=0)}: it was written by a newer program",
                CONFIGURATION,
            )
        for version, record in applied.items():
            if record.checksum != self.migrations[version].checksum:
                raise StartError(
                    f"migration {self.migrations[version]} was edited after it had been applied to {self._path}"
                    " (write a new one instead)",
                    CONFIGURATION,
                )

    async def up(self, to: int | None = None) -> list[Migration]:
        """Apply what is pending, up to the version `to` and with it. Gives what was applied.

        Raises `StartError` as `pending` does, or if a statement fails; then that migration has left no trace.
        """
        wanted = [migration for migration in await self.pending() if to is None or migration.version <= to]
        return [migration for migration in wanted if await self._apply(migration)]

    async def down(self, count: int) -> list[Migration]:
        """Take back the last `count` migrations, newest first. Gives what was taken back. Raises `StartError`."""
        applied = await self.applied()
        self._check(applied)
        wanted = [self.migrations[version] for version in sorted(applied, reverse=True)[:count]]
        return [migration for migration in wanted if await self._revert(migration)]

    async def _apply(self, migration: Migration) -> bool:
        with named(self._path):
            async with immediate(self._connection):
                if migration.version in await self.applied():
                    return False
                await self._connection.execute(_RECORDS)
                await self._execute(migration, migration.up)
                record = (migration.version, migration.name, migration.checksum, datetime.now(UTC).isoformat())
                await self._connection.execute("INSERT INTO schema_migrations VALUES (?, ?, ?, ?)", record)
        return True

    async def _revert(self, migration: Migration) -> bool:
        with named(self._path):
            async with immediate(self._connection):
                if migration.version not in await self.applied():
                    return False
                await self._execute(migration, migration.down)
                await self._connection.execute("DELETE FROM schema_migrations WHERE version = ?", (migration.version,))
        return True

    async def _execute(self, migration: Migration, statements: Sequence[str]) -> None:
        for statement in statements:
            try:
                await self._connection.execute(statement)
            except sqlite3.Error as error:
                raise StartError(f"migration {migration} failed on {self._path}: {error}") from None
