"""A copy of the database that is whole or not there."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import aiosqlite

from pipeline import StartError
from plugins.extensions.database.connection import CANNOT_CREATE, named


async def back_up(connection: aiosqlite.Connection, path: Path, version: int) -> Path:
    """Copy the database beside itself, as `<path>.backup-<version>-<time>`, and wait until the copy is on the disk.

    `VACUUM INTO` reads one moment's state in one go; SQLite's backup API starts again with every write of another
    connection and may never end (docs/decisions/0007-one-connection-writes.md). Raises `StartError` if the copy cannot be
    made.
    """
    backup = path.with_name(f"{path.name}.backup-{version}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
    unfinished = backup.with_name(f"{backup.name}.unfinished")
    try:
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640))
        try:
            with named(unfinished):
                await connection.execute("VACUUM INTO ?", (str(unfinished),))
            _synchronise(unfinished)
            unfinished.rename(backup)
        finally:
            unfinished.unlink(missing_ok=True)
        _synchronise(backup.parent)
    except OSError as error:
        raise StartError(f"cannot make the backup {backup}: {error.strerror}", CANNOT_CREATE) from None
    return backup


def _synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
