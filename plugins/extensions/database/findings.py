"""What `metrics-service doctor` is told of the database and its backups."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline import Finding, Item, Level, look_at_mode, look_at_place
from plugins.extensions.database.backup import backups
from plugins.extensions.database.connection import has_wal_reset_bug

RECENT = timedelta(hours=26)
"""How old the newest backup may be: one a day, and some time to make it."""


def database_findings(id: str, path: Path, folder: Path | None, *, create: bool = True) -> Iterator[Finding]:
    """Of the file, of SQLite, and of the folder of backups, if there is one. `create` tells whether a start may create the file."""
    where = f"extensions.{id}"
    if not create and not path.exists():
        what, advice = f"{path} does not exist, and the service may not create it", "put it back, or restore a backup"
        yield Finding(Level.PROBLEM, Item.DATA, f"{where}.create", what, advice)
    yield from look_at_place(f"{where}.path", path)
    yield from look_at_mode(f"{where}.path", path.absolute().parent, Item.DATA)
    if has_wal_reset_bug(sqlite3.sqlite_version_info):
        what = f"SQLite {sqlite3.sqlite_version} has the WAL-reset bug (fixed in 3.51.3)"
        advice = "let no other program write to the database while the service runs; its own commands are safe"
        yield Finding(Level.WARNING, Item.DATA, f"{where}.path", what, advice)
    yield from _of_backups(f"{where}.backups", path, folder)


def _of_backups(where: str, path: Path, folder: Path | None) -> Iterator[Finding]:
    if folder is None:
        what, advice = "no folder of backups is set", "METRICS_BACKUP_DIR, and metrics-service backup every day"
        yield Finding(Level.PROBLEM, Item.BACKUPS, where, what, advice)
        return
    yield from look_at_mode(where, folder, Item.BACKUPS)
    try:
        made = backups(folder, path)
    except OSError as error:
        yield Finding(Level.PROBLEM, Item.BACKUPS, where, f"cannot look into {folder}: {error.strerror}")
        return
    if not made:
        yield Finding(Level.PROBLEM, Item.BACKUPS, where, f"there is no backup in {folder}", "metrics-service backup")
        return
    newest, at = made[-1]
    yield from look_at_mode(where, newest, Item.BACKUPS)
    hours = (datetime.now(UTC) - at) / timedelta(hours=1)
    if datetime.now(UTC) - at > RECENT:
        what, advice = f"the newest backup is {hours:.0f} hours old", "look at what should make one every day"
        yield Finding(Level.PROBLEM, Item.BACKUPS, where, what, advice)
    else:
        yield Finding(Level.OK, Item.BACKUPS, where, f"{len(made)} backups, the newest {max(hours, 0):.0f} hours old")
