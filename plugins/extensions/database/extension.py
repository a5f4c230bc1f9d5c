"""The component: one SQLite file with one writing connection and a few that read."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import aiosqlite
import anyio

from pipeline import (
    ComponentConfig,
    Duration,
    Extension,
    FileLock,
    Finding,
    Host,
    StartError,
    Store,
    WatchedFiles,
    copy_database,
    end_process,
    is_failed_sync,
    make_private_folder,
    refuse_rescued,
    write_again,
)
from plugins.extensions.database.connection import (
    CANNOT_CREATE,
    CONFIGURATION,
    WAL_LIMIT,
    check_created,
    has_wal_reset_bug,
    immediate,
    open_reader,
    open_writer,
    real_path,
    use_wal,
)
from plugins.extensions.database.findings import database_findings
from plugins.extensions.database.former import owns_journals, refuse_journals
from plugins.extensions.database.migration_files import load_migrations
from plugins.extensions.database.migrator import Migrator
from plugins.extensions.database.state import StateTable

READERS = 3
"""Connections that read: a slow query of an operator must not hold up the look at the keys."""


LONG_LOG = 256 * 2**20
"""Bytes of the write-ahead log, after a checkpoint, from which it is said that somebody keeps it from being emptied."""
LOOK_EVERY = 0.5
"""Seconds between two looks at whether the connections' threads live."""
FAULT = 70
"""EX_SOFTWARE of sysexits.h."""


class DatabaseConfig(ComponentConfig):
    """The SQLite file and how it is opened."""

    path: Path = Path("/var/lib/sqlite/metrics.db")
    """The file. It and its folder are made if they are not there. Must be on a local file system."""
    connection_timeout: Duration = 30
    """How long to wait for a lock that another program holds, in seconds."""
    backups: Path | None = None
    """The folder of the backups that `metrics-service backup` makes, where `metrics-service doctor` looks for a recent one. Not made by the
    service, and never read by it."""
    migrate: Literal["auto", "check"] = "auto"
    """What to do about a schema that is behind: apply the migrations at start, or refuse to start."""
    create: Literal["if_missing", "never"] = "if_missing"
    """Whether to create the file if it does not exist. With `never`, a start without the file is refused (78)."""


class DatabaseExtension(Extension[DatabaseConfig], StateTable):
    """Owns the SQLite file: its only writing connection, its schema, its lock, its checkpoints.

    Inside a service it is the only one that checkpoints. Outside of it, in a command that may run beside the service, it
    takes no lock and leaves the write-ahead log to the service.
    """

    read_seconds = 5.0
    """How long one query may take. A reader pins the write-ahead log, which grows meanwhile
    (docs/decisions/0007-one-connection-writes.md)."""

    def __init__(self, id: str, config: DatabaseConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self.path = config.path
        self._real = real_path(self.path)
        self._lock = FileLock(Path(f"{self._real}.lock"))
        self._wal = Path(f"{self._real}-wal")
        self._writing = anyio.Lock()
        self._reading = anyio.Semaphore(READERS)
        self._opened = AsyncExitStack()
        self._writer: aiosqlite.Connection | None = None
        self._readers: list[aiosqlite.Connection] = []
        self._log_is_long = False
        self._files = WatchedFiles(self._real, {self._lock.path: 0}, copy=self._copy, checkpoint=self._checkpoint_all)

    # A migration that is cut off would begin again with every start.
    starts_slowly = True

    async def start(self) -> None:
        """Take the lock, open the file and bring its schema up to date.

        Raises `StartError` if another service holds the lock, the file is not a database that can be written, or its
        schema is newer than the program (exit code 78) or behind while `migrate` is `check`.
        """
        await anyio.to_thread.run_sync(refuse_rescued, {self.path, self._real})
        if self.config.create == "never":
            check_created(self.path)
        if self.host.is_service:
            self._take_lock()
        self._writer = await open_writer(self.path, self.config.connection_timeout)
        self._opened.push_async_callback(self._close_writer, self._writer)
        await self._prepare_schema(self._writer)
        self._readers.clear()
        for _ in range(READERS):
            reader = await open_reader(self.path, self.config.connection_timeout)
            self._opened.push_async_callback(reader.close)
            self._readers.append(reader)
        if self.host.is_service:
            self.host.spawn(self, partial(self._watch_threads, [self._writer, *self._readers]))
            await anyio.to_thread.run_sync(self._files.begin)
            self.host.watch(self, self._files)

    async def _watch_threads(self, connections: Sequence[aiosqlite.Connection]) -> None:
        """What waits for a thread that has ended waits for ever: the process ends, and is started anew."""
        while all(connection._thread.is_alive() for connection in connections):  # noqa: ASYNC110 - threads tell nobody
            await anyio.sleep(LOOK_EVERY)
        await anyio.to_thread.run_sync(end_process, f"a thread of the database {self.path} has ended", FAULT)

    async def _copy(self, target: Path) -> None:
        async with self._reading:
            reader = self._readers.pop()
            try:
                await reader._execute(copy_database, reader._conn, target)  # type: ignore[no-untyped-call]
            finally:
                self._readers.append(reader)

    async def _checkpoint_all(self) -> bool:
        assert self._writer is not None, "the database has not been started"
        async with self._writing:
            ((busy, log, moved),) = await self._writer.execute_fetchall("PRAGMA wal_checkpoint(FULL)")
        return not busy and bool(log == moved)

    async def stop(self) -> None:
        """Checkpoint, close the connections, give the lock back."""
        self._files.pause()
        await self._opened.aclose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[aiosqlite.Connection]:
        """The writing connection inside BEGIN IMMEDIATE, for one user at a time; who waits is served in turn.

        Commits at the end of the block, which no cancellation interrupts; rolls back if the block raises or is cancelled.
        Raises `sqlite3.OperationalError` if another program holds the lock for longer than `connection_timeout`.
        """
        assert self._writer is not None, "the database has not been started"
        async with self._writing:
            async with immediate(self._writer):
                yield self._writer
            if self.host.is_service and self._wal_size() > WAL_LIMIT:
                await self._checkpoint(self._writer, "PASSIVE")
                self._look_at_log()

    async def store(self) -> Store:
        """See `Extension.store`."""
        ((id,),) = await self.read("SELECT store FROM store_identity")
        return Store(id, f"the database {self.path}")

    def owns_journals(self, folder: Path) -> bool:
        """See `Database.owns_journals`."""
        return owns_journals(self.path, folder)

    def refuse_journals(self, former: Path, folder: Path) -> None:
        """See `Database.refuse_journals`."""
        refuse_journals(self.path, former, folder)

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query, by a connection that cannot write.

        Raises `TimeoutError` if it takes longer than `read_seconds`.
        """
        assert self._writer is not None, "the database has not been started"
        async with self._reading:
            reader = self._readers.pop()
            try:
                with anyio.fail_after(self.read_seconds):
                    return [tuple(row) for row in await reader.execute_fetchall(sql, parameters)]
            except (TimeoutError, anyio.get_cancelled_exc_class()) as error:
                with anyio.CancelScope(shield=True):
                    await _interrupt(reader)
                if isinstance(error, TimeoutError):
                    raise TimeoutError(f"the query took longer than {self.read_seconds:g} seconds") from None
                raise
            finally:
                self._readers.append(reader)

    def findings(self) -> Iterable[Finding]:
        """Where the file is and who may read it, whether there is a backup, and whether this SQLite can be trusted."""
        create = self.config.create == "if_missing"
        return database_findings(self.id, self.path, self.config.backups, create=create)

    def _take_lock(self) -> None:
        make_private_folder(self._real.parent)
        self._lock.acquire()
        self._opened.callback(self._lock.release)
        if has_wal_reset_bug(sqlite3.sqlite_version_info):
            self.log.warning(
                "SQLite %s has the WAL-reset bug (fixed in 3.51.3): let no other program write to %s or checkpoint it"
                " while the service runs (its own commands are safe: they never checkpoint)",
                sqlite3.sqlite_version,
                self.path,
            )

    async def _prepare_schema(self, writer: aiosqlite.Connection) -> None:
        migrator = Migrator(writer, self.path, load_migrations())
        pending = await migrator.pending()  # refuses a newer schema before anything is written
        if pending and self.config.migrate == "check":
            raise StartError(
                f"the schema of {self.path} is behind: {len(pending)} migrations are to be applied, from {pending[0]}"
                " (run migrate up)",
                CONFIGURATION,
            )
        await use_wal(writer, self.path, self.config.connection_timeout)
        if self.host.is_service:
            await self._write_log_again(writer)
        for migration in await migrator.up():
            self.log.info("applied migration %s", migration)

    async def _write_log_again(self, writer: aiosqlite.Connection) -> None:
        try:
            async with immediate(writer):
                await anyio.to_thread.run_sync(write_again, self._wal)
        except (OSError, sqlite3.Error) as error:
            raise StartError(f"cannot write {self._wal}: {error}", CANNOT_CREATE) from None

    def _look_at_log(self) -> None:
        """Our own queries are interrupted; of what another program reads, one can only tell a person."""
        was_long, self._log_is_long = self._log_is_long, self._wal_size() > LONG_LOG
        if self._log_is_long and not was_long:
            self.log.error(
                "%s has grown to %d bytes: another program has been reading %s in one long transaction, until whose end it grows",
                *(self._wal, self._wal_size(), self.path),
            )

    def _wal_size(self) -> int:
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0

    async def _checkpoint(self, writer: aiosqlite.Connection, mode: str) -> None:
        """Copy the write-ahead log into the file. What fails here is only put off: the log holds what was committed."""
        if not await anyio.to_thread.run_sync(self._files.allows_checkpoint):
            return  # a damaged log would damage the database
        with anyio.CancelScope(shield=True):
            try:
                await writer.execute_fetchall(f"PRAGMA wal_checkpoint({mode})")
            except sqlite3.Error as error:
                if is_failed_sync(error):
                    await anyio.to_thread.run_sync(end_process, f"cannot synchronise {self.path}: {error}")
                self.log.warning("checkpoint of %s failed: %s", self.path, error)

    async def _close_writer(self, writer: aiosqlite.Connection) -> None:
        with anyio.CancelScope(shield=True):  # aiosqlite's thread keeps the process alive until it is told to end
            try:
                if self.host.is_service:
                    await writer.execute("PRAGMA busy_timeout=1000")  # no reader elsewhere holds up the stop for longer
                    await self._checkpoint(writer, "TRUNCATE")
            finally:
                await writer.close()


async def _interrupt(connection: aiosqlite.Connection) -> None:
    """End the query that runs in the connection's thread, or is about to: SQLite forgets an interrupt that comes before it."""

    async def repeat() -> None:
        while True:
            await connection.interrupt()
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(repeat)
        await connection.rollback()  # waits its turn behind the query
        tasks.cancel_scope.cancel()
