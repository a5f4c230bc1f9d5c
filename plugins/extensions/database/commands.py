"""`metrics-service migrate`: the schema of the database, by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite
import anyio
import click

from pipeline import FileLock, Invocation, StartError, check_exists
from plugins.extensions.database.backup import back_up
from plugins.extensions.database.connection import open_reader, open_writer, real_path, use_wal
from plugins.extensions.database.extension import DatabaseConfig, DatabaseExtension
from plugins.extensions.database.migration_files import FOLDER, Migration, load_migrations, parse_migration
from plugins.extensions.database.migrator import Migrator

_TEMPLATE = "-- What it is for.\n\n-- up\n\n\n-- down\n\n"
_USER_MISTAKE = 2


@click.group()
def migrate() -> None:
    """Show or change the schema of the database."""


@migrate.command()
@click.pass_obj
def status(invocation: Invocation) -> None:
    """Show which version the schema has and what is to be applied."""
    anyio.run(_status, _config(invocation))


@migrate.command("list")
@click.pass_obj
def list_(invocation: Invocation) -> None:
    """List all migrations, with when they were applied."""
    anyio.run(_list, _config(invocation))


@migrate.command()
@click.option("--to", type=click.IntRange(min=1), metavar="N", help="Stop after migration number N.")
@click.pass_obj
def up(invocation: Invocation, to: int | None) -> None:
    """Apply the migrations that are to be applied. The service may run meanwhile."""
    anyio.run(_up, _config(invocation), to)


@migrate.command()
@click.argument("count", type=click.IntRange(min=1), metavar="N")
@click.pass_obj
def down(invocation: Invocation, count: int) -> None:
    """Take back the last N migrations, and with them the data in what they made.

    Makes a backup beside the database first. The service must not run.
    """
    anyio.run(_down, _config(invocation), count)


@migrate.command()
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=FOLDER,
    help="Where the migrations are. Default: those of this program.",
)
@click.argument("name")
def create(folder: Path, name: str) -> None:
    """Write an empty migration called NAME, with the next number."""
    number = max((migration.version for migration in load_migrations(folder)), default=0) + 1
    path = folder / f"{number:04}_{name}.sql"
    parse_migration(path.name, "-- up\nSELECT 1;\n-- down\n")  # refuses a name that could not be read back
    path.write_text(_TEMPLATE)
    click.echo(f"wrote {path}")


def _config(invocation: Invocation) -> DatabaseConfig:
    config = invocation.config_of(DatabaseExtension)
    assert isinstance(config, DatabaseConfig)
    return config


@asynccontextmanager
async def _looking(config: DatabaseConfig) -> AsyncIterator[Migrator]:
    """A migrator that changes nothing: a file that is not there stays so."""
    if config.path.exists():
        connection = await open_reader(config.path, config.connection_timeout)
    else:
        connection = await aiosqlite.connect(":memory:")
    try:
        yield Migrator(connection, config.path, load_migrations())
    finally:
        await connection.close()


@asynccontextmanager
async def _changing(config: DatabaseConfig) -> AsyncIterator[tuple[Migrator, aiosqlite.Connection]]:
    connection = await open_writer(config.path, config.connection_timeout)
    try:
        migrator = Migrator(connection, config.path, load_migrations())
        await migrator.pending()  # refuses a newer schema before anything is written
        await use_wal(connection, config.path, config.connection_timeout)
        yield migrator, connection
    finally:
        await connection.close()


async def _status(config: DatabaseConfig) -> None:
    async with _looking(config) as migrator:
        pending = await migrator.pending()
        applied = await migrator.applied()
    click.echo(f"database: {config.path}{'' if config.path.exists() else ' (not there yet)'}")
    click.echo(f"schema version: {max(applied, default=0)} of {max(migrator.migrations, default=0)}")
    click.echo(f"to be applied: {', '.join(map(str, pending)) or 'nothing'}")


async def _list(config: DatabaseConfig) -> None:
    async with _looking(config) as migrator:
        await migrator.pending()
        applied = await migrator.applied()
    for version, migration in migrator.migrations.items():
        click.echo(f"{migration}  {applied[version].applied_at if version in applied else 'to be applied'}")


async def _up(config: DatabaseConfig, to: int | None) -> None:
    last = max((migration.version for migration in load_migrations()), default=0)
    if to is not None and to > last:
        raise StartError(f"there is no migration {to}: the last one is {last}", _USER_MISTAKE)
    async with _changing(config) as (migrator, _):
        _tell("applied", await migrator.up(to))


async def _down(config: DatabaseConfig, count: int) -> None:
    check_exists("database", config.path)
    lock = FileLock(Path(f"{real_path(config.path)}.lock"))
    async with _changing(config) as (migrator, connection):
        try:
            lock.acquire()
        except StartError as error:
            raise StartError(f"{error} (stop it first)", error.exit_code) from None
        try:
            applied = await migrator.applied()
            if count > len(applied):
                raise StartError(f"cannot take back {count} (applied migrations: {len(applied)})", _USER_MISTAKE)
            click.echo(f"wrote the backup {await back_up(connection, config.path, max(applied))}")
            _tell("took back", await migrator.down(count))
        finally:
            lock.release()


def _tell(what: str, migrations: list[Migration]) -> None:
    for migration in migrations:
        click.echo(f"{what} {migration}")
    if not migrations:
        click.echo("nothing to do")
