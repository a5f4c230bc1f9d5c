"""Opening the SQLite file, and one transaction on a connection."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiosqlite
import anyio

from pipeline import StartError, make_private_folder

CANNOT_CREATE = 73
"""EX_CANTCREAT of sysexits.h."""
CONFIGURATION = 78
"""EX_CONFIG of sysexits.h: the program and the data do not belong together."""

WAL_LIMIT = 4 * 2**20
"""The size of the write-ahead log, in bytes, from which it is checkpointed (docs/decisions/0007-one-connection-writes.md)."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into a `StartError` that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise StartError(f"cannot use the database {path}: {error}", CANNOT_CREATE) from None


async def open_writer(path: Path, timeout: float) -> aiosqlite.Connection:
    """A connection that can write, to a file that is made if it is not there, 0640 as in the deployment guide.

    `timeout` is how long to wait for a lock, in seconds. Nothing has been written to a file that was there before. The
    file is in no transaction mode of Python's: who writes says BEGIN. Raises `StartError`.
    """
    _make_file(path)
    refuse_foreign_log(path)
    with named(path):
        connection = await aiosqlite.connect(path, timeout=timeout, isolation_level=None)
        return await _with_pragmas(connection, "synchronous=FULL", "foreign_keys=ON", "wal_autocheckpoint=0")


def real_path(path: Path) -> Path:
    """Where the file is, if the path is a symbolic link: SQLite keeps the write-ahead log beside that."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def refuse_foreign_log(path: Path) -> None:
    """Raise `StartError` with exit code 78 if a write-ahead log lies beside a database that never wrote one, such as a restored backup.

    SQLite would apply the log of the former file and damage the database without an error. A file in WAL mode has 2 in bytes
    18 and 19 of its header, the copy that a backup makes has 1 (https://sqlite.org/fileformat2.html, section 1.3.3). Call it before
    this process has the file open: to close it would drop SQLite's locks.
    """
    real = real_path(path)
    log = Path(f"{real}-wal")
    try:
        if not log.stat().st_size:
            return
        with real.open("rb") as file:
            header = file.read(20)
    except OSError:
        return  # whoever opens the file says so
    if header.startswith(b"SQLite format 3") and header[18:20] == bytes((1, 1)):
        raise StartError(
            f"{log} belongs to another file than the database {path}, which was restored or copied, and would damage it"
            f" (move {log} and {real}-shm away)",
            CONFIGURATION,
        )


def check_created(path: Path) -> None:
    """Raise `StartError` with exit code 78 if the file does not exist, for `create: never`."""
    if not path.exists():
        raise StartError(
            f"extensions.database.create: the database {path} does not exist, and 'never' forbids a new one"
            " (put the file back, restore a backup, or set 'if_missing')",
            CONFIGURATION,
        )


def _make_file(path: Path) -> None:
    make_private_folder(path.parent)
    if path.is_dir():
        raise StartError(f"cannot use the database {path}: it is a directory", CANNOT_CREATE)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    except FileExistsError:
        # SQLite opens a file that it may not write for reading only, and says so at the first write, too late for a start.
        if not os.access(path, os.R_OK | os.W_OK):
            raise StartError(f"cannot use the database {path}: no permission to write to it", CANNOT_CREATE) from None
        return
    except OSError as error:
        raise StartError(f"cannot create the database {path}: {error.strerror}", CANNOT_CREATE) from None
    os.fchmod(descriptor, 0o640)  # whatever the umask is; SQLite gives the WAL the same mode
    os.close(descriptor)


async def open_reader(path: Path, timeout: float) -> aiosqlite.Connection:
    """A connection that cannot write. The file must be there. Raises `StartError`."""
    with named(path):
        connection = await aiosqlite.connect(read_only(path), uri=True, timeout=timeout, isolation_level=None)
        return await _with_pragmas(connection, "query_only=1")


def read_only(path: Path) -> str:
    """The file as an address by which SQLite opens it for reading only."""
    return f"{path.absolute().as_uri()}?mode=ro"


async def _with_pragmas(connection: aiosqlite.Connection, *pragmas: str) -> aiosqlite.Connection:
    try:
        for pragma in pragmas:
            await connection.execute(f"PRAGMA {pragma}")
        await connection.execute_fetchall("SELECT count(*) FROM sqlite_schema")  # the first to read the file
    except BaseException:
        with anyio.CancelScope(shield=True):
            await connection.close()
        raise
    return connection


async def use_wal(connection: aiosqlite.Connection, path: Path, timeout: float) -> None:
    """Switch the file to write-ahead logging and see that it can be locked, within `timeout` seconds. Raises `StartError`.

    Some file systems (NFS, some overlays) have no shared memory; SQLite then says so only in the pragma's answer.
    """
    with named(path):
        if await _switch_to_wal(connection, timeout) != "wal":
            raise StartError(
                f"cannot use the database {path}: its file system does not support write-ahead logging", CANNOT_CREATE
            )
        # The first commit after a full checkpoint cuts the log back to this, so its size on disk says when the next is due.
        await connection.execute(f"PRAGMA journal_size_limit={WAL_LIMIT}")
        async with immediate(connection):
            pass


async def _switch_to_wal(connection: aiosqlite.Connection, timeout: float) -> str:
    """Switch, and give the mode that is used now. Here SQLite itself does not wait for the lock of another that switches."""
    deadline = anyio.current_time() + timeout
    while True:
        try:
            ((mode,),) = await connection.execute_fetchall("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or anyio.current_time() > deadline:
                raise
            await anyio.sleep(0.01)
        else:
            return str(mode)


@asynccontextmanager
async def immediate(connection: aiosqlite.Connection) -> AsyncIterator[None]:
    """A transaction that holds the write lock from the start: committed at the end, rolled back if the block raises or
    is cancelled.

    A cancelled call goes on in aiosqlite's thread. The rollback is queued behind it there, so it ends what that call
    began, and it does nothing where there is no transaction.
    """
    try:
        await connection.execute("BEGIN IMMEDIATE")
        yield
        with anyio.CancelScope(shield=True):
            await connection.execute("COMMIT")
    except BaseException:
        with anyio.CancelScope(shield=True):
            await connection.rollback()
        raise


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Whether this SQLite may lose committed data when two connections write or checkpoint at the same instant.

    Fixed in 3.51.3, and in 3.50.7 and 3.44.6 of their lines.
    """
    return not (version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45))
