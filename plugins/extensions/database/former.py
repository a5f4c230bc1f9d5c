"""Finds the owner of an earlier version's journals: that version kept them in one folder beside the databases, without an owner."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline import StartError, looking_at
from plugins.extensions.database.connection import CONFIGURATION

_MAGIC = b"SQLite format 3\0"
_ALL = "SELECT exporter, pipeline, position FROM exporter_cursors"
_HOLDERS = "SELECT holder FROM stores WHERE holder <> '' AND store = (SELECT store FROM stores WHERE holder = '')"
_UNOWNED = f"{_ALL} WHERE journal = ''"


@dataclass(frozen=True)
class _Journal:
    """One journal's file: where it ends, the position and the sent items of each exporter, the stores that it is known to belong to,
    and the exporters whose cursors are in these stores."""

    name: str
    last: int
    cursors: Mapping[str, tuple[int, int]]
    stores: frozenset[str]
    holders: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Database:
    """One database's file: its identity, and the positions that it keeps for journals without an identity, by exporter and journal."""

    path: Path
    id: str | None
    positions: Mapping[tuple[str, str], int]


def owns_journals(path: Path, folder: Path) -> bool:
    """See `Database.owns_journals`."""
    journals = list(_journals(folder))
    if not journals:
        return False
    ours = _database(path) or _Database(path, None, {})
    if known := frozenset[str]().union(*(journal.stores for journal in journals)):
        return ours.id in known
    others = [
        other for other in _databases(path.parent) if other.path != path and other.positions and other.id != ours.id
    ]
    if not others:
        return True
    relevant = {key for each in (ours, *others) for key in each.positions}
    fitting = [each for each in (ours, *others) if _fits(each, journals, relevant)]
    if fitting == [ours]:
        return True
    if ours not in fitting and fitting and not ours.positions:
        return False
    names = ", ".join(str(other.path) for other in others)
    raise StartError(
        f"{folder}: it is not certain whether these journals belong to {path} or to {names}"
        f" (if they belong to {path}, rename the folder to {path.stem}-journal, else start the service of the other database first;"
        " both must be stopped)",
        CONFIGURATION,
    )


def refuse_journals(path: Path, former: Path, folder: Path) -> None:
    """See `Database.refuse_journals`.

    This version records its journal with a cursor of the database; an earlier one, after `migrate down`, does not.
    """
    ours, journals = _database(path), {journal.name: journal for journal in _journals(former)}
    if ours is None:
        return
    for ended in _journals(folder):
        used = journals.get(ended.name)
        if used is None or used.stores:
            continue
        for holder in ended.holders & used.cursors.keys():
            position, _ = used.cursors[holder]
            if position <= ours.positions.get((holder, ended.name), -1) <= used.last:
                raise StartError(
                    f"{former} and {folder} both hold journals of {path}, and an earlier version has used {former} last"
                    f" (move {folder} away, and start again; what waits in it is not stored)",
                    CONFIGURATION,
                )


def _fits(database: _Database, journals: list[_Journal], relevant: set[tuple[str, str]]) -> bool:
    """Whether the journals' cursors can be those of this database: it is never behind them, nor beyond their end."""
    for journal in journals:
        for exporter, (position, sent) in journal.cursors.items():
            key = (exporter, journal.name)
            if key in database.positions:
                if not position <= database.positions[key] <= journal.last:
                    return False
            elif key in relevant and sent:
                return False
    return True


def _journals(folder: Path) -> Iterator[_Journal]:
    for path in sorted(folder.glob("*.db")):
        try:
            with looking_at(path) as connection:
                ((last,),) = connection.execute("SELECT last FROM state")
                columns = {row[1] for row in connection.execute("PRAGMA table_info(cursors)")}
                sent = "sent" if "sent" in columns else "position"
                cursors = connection.execute(f"SELECT exporter, position, {sent} FROM cursors").fetchall()  # noqa: S608
                known = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'stores'").fetchone()
                stores = connection.execute("SELECT store FROM stores WHERE holder = ''").fetchall() if known else []
                holders = connection.execute(_HOLDERS).fetchall() if known else []
        except (sqlite3.Error, OSError, UnicodeDecodeError, ValueError):
            # A damaged journal does not tell its owner; the start repairs it where it belongs.
            yield _Journal(path.stem, 0, {}, frozenset())
        else:
            by_name = {name: (position, passed) for name, position, passed in cursors}
            yield _Journal(
                path.stem,
                last,
                by_name,
                frozenset(store for (store,) in stores),
                frozenset(holder for (holder,) in holders),
            )


def _databases(folder: Path) -> Iterator[_Database]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and (found := _database(path)) is not None:
            yield found


def _database(path: Path) -> _Database | None:
    """The database in a file; None if it is not a database of this service."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
        with looking_at(path) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
            if not {"schema_migrations", "exporter_cursors"} <= tables:
                return None
            id = _identity(connection, tables)
            columns = {row[1] for row in connection.execute("PRAGMA table_info(exporter_cursors)")}
            rows = connection.execute(_UNOWNED if "journal" in columns else _ALL).fetchall()
    except (sqlite3.Error, OSError, UnicodeDecodeError):
        return None
    names = ((exporter if exporter.startswith("connector.") else f"exporter.{exporter}") for exporter, *_ in rows)
    keys = zip(names, (pipeline.replace("/", "-") for _, pipeline, _ in rows), strict=True)
    return _Database(path, id, {key: row[2] for key, row in zip(keys, rows, strict=True)})


def _identity(connection: sqlite3.Connection, tables: set[str]) -> str | None:
    """Its identity, or what the migration 0008 makes of it: the time of its first migration, which its copies share and no other has."""
    if "store_identity" in tables:
        row = connection.execute("SELECT store FROM store_identity").fetchone()
        return row and str(row[0])
    row = connection.execute("SELECT applied_at FROM schema_migrations WHERE version = 1").fetchone()
    return row and re.sub(r"\D", "", str(row[0])).zfill(32)[-32:]
