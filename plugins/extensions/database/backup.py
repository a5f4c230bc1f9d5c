"""A copy of the database that is whole or not there.

`VACUUM INTO` reads one moment's state in one go; SQLite's backup API starts again with every write of another connection and may
never end (docs/decisions/0007-one-connection-writes.md).
"""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiosqlite

from pipeline import FileLock, StartError, make_private_folder
from plugins.extensions.database.connection import CANNOT_CREATE, named, read_only

_TIME = "%Y%m%d_%H%M%S"
"""As in the deployment guide, but in UTC, in which no hour comes twice."""


async def back_up(connection: aiosqlite.Connection, path: Path, version: int) -> Path:
    """Copy the database beside itself, as `<path>.backup-<version>-<time>`, and wait until the copy is on the disk.

    Raises `StartError` if the copy cannot be made.
    """
    backup = path.with_name(f"{path.name}.backup-{version}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
    with _whole_or_not_there(backup) as unfinished:
        with named(unfinished):
            await connection.execute("VACUUM INTO ?", (str(unfinished),))
        _synchronise(unfinished)
    return backup


def back_up_to(folder: Path, path: Path, now: datetime) -> Path:
    """A checked and compressed copy as `<folder>/<name>_<time>.db.gz`, on the disk when this returns.

    The service may write meanwhile. Raises `StartError` if it cannot be made, another is being made there, or the copy is damaged, in
    which case so is the database.
    """
    make_private_folder(folder)
    lock = FileLock(folder / f".{path.stem}.lock")
    lock.acquire()
    try:
        for left in folder.glob(f".{path.stem}_*.unfinished"):
            left.unlink()  # by one that was killed
        backup = folder / f"{path.stem}_{now.astimezone(UTC):{_TIME}}.db.gz"
        copy = folder / f".{backup.stem}.unfinished"
        with _whole_or_not_there(backup) as compressed, _temporary(copy):
            _copy(path, copy)
            _compress(copy, compressed)
        return backup
    finally:
        lock.release()


def backups(folder: Path, path: Path) -> list[tuple[Path, datetime]]:
    """Those of that database, with when they were made, the oldest first. Raises `OSError`."""
    found = []
    for each in folder.iterdir():
        name, _, time = each.name.removesuffix(".db.gz").partition(f"{path.stem}_")
        try:
            if not name and each.name.endswith(".db.gz"):
                found.append((each, datetime.strptime(time, _TIME).replace(tzinfo=UTC)))
        except ValueError:
            continue  # somebody else's
    return sorted(found, key=lambda one: one[1])


def prune(folder: Path, path: Path, keep: timedelta, now: datetime) -> list[Path]:
    """Delete the backups of that database that are older, but never the newest. Gives those that were deleted. Raises `OSError`."""
    old = [each for each, made in backups(folder, path)[:-1] if now - made > keep]
    for each in old:
        each.unlink()
    return old


def _copy(path: Path, copy: Path) -> None:
    try:
        with closing(sqlite3.connect(read_only(path), uri=True, timeout=30)) as connection:
            connection.execute("VACUUM INTO ?", (str(copy),))
        with closing(sqlite3.connect(copy)) as connection:
            ((verdict,), *_) = connection.execute("PRAGMA integrity_check(1)")
    except sqlite3.Error as error:
        raise StartError(f"cannot copy the database {path}: {error}", CANNOT_CREATE) from None
    if verdict != "ok":
        raise StartError(f"the database {path} is damaged: {verdict} (restore a backup)", CANNOT_CREATE)


def _compress(copy: Path, compressed: Path) -> None:
    with copy.open("rb") as plain, gzip.open(compressed, "wb", compresslevel=6) as packed:
        shutil.copyfileobj(plain, packed, 2**20)
    _synchronise(compressed)
    with gzip.open(compressed) as packed:  # its checksum is looked at as it is read
        while packed.read(2**20):
            pass


@contextmanager
def _whole_or_not_there(backup: Path) -> Iterator[Path]:
    """A new file, 0640, that gets the backup's name at the end of the block. Raises `StartError` for what the system refuses."""
    unfinished = backup.with_name(f".{backup.name}.unfinished")
    try:
        with _temporary(unfinished):
            yield unfinished
            unfinished.rename(backup)
        _synchronise(backup.parent)
    except OSError as error:
        raise StartError(f"cannot make the backup {backup}: {error.strerror or error}", CANNOT_CREATE) from None


@contextmanager
def _temporary(path: Path) -> Iterator[None]:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
