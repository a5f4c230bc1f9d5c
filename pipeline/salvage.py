"""A journal whose file is damaged is set aside, and what can be read of it is put into a new one.

Every row with the right checksum is kept. What is lost has rows of its own, without content: exporters pass over them, and the books count
their items as missing.
"""

from __future__ import annotations

import difflib
import itertools
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec

from pipeline import books, dead_letters
from pipeline.books import EVERYBODY, Account, Cursor
from pipeline.data import Store
from pipeline.high_water import Mark
from pipeline.identity import record
from pipeline.journal_format import TABLES, decode_group, is_right, write_lost

PAGE = 4096
MOST_FAILURES = 5_000
"""Reads of a table that may fail before what is left of it is given up."""
_HEADER = bytes.fromhex("53514c69746520666f726d6174203300 1000 02 02 00 40 20 20")
"""What each of our files begins with: its name, its page size, write-ahead logging."""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_log = logging.getLogger("journal")


class Damaged(sqlite3.DatabaseError):
    """The file is a database, but cannot be right."""


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that a file is not as it was written."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, Damaged) or (
        isinstance(error, sqlite3.Error) and code is not None and code & 0xFF in _DAMAGE
    )


def is_schema_damage(error: BaseException) -> bool:
    """Whether a file that is being opened does not have the tables and columns that ours have."""
    return isinstance(error, UnicodeDecodeError) or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR


def set_aside(path: Path, known: Mark) -> Path:
    """Put a new journal into the place of a damaged one, which is kept as `<name>.corrupt-<time>`: its path is returned.

    `known` is the journal's high-water mark. Nobody may have the file open. Raises `sqlite3.Error` or `OSError`, and then everything is
    as it was.
    """
    copy, new = _beside(path, "damaged"), _beside(path, "salvaged")
    if new.exists() and not path.exists():  # the last time it could not be put into its place
        finish(path)
        return path.with_name(f"{path.name}.corrupt")
    for left in (copy, new):
        _remove(left)
    try:
        for end in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{end}", f"{copy}{end}")
        _mend_header(copy)
        with closing(_created(new)) as target:
            _mend_schema(copy, target)
            with closing(_lenient(copy)) as source:
                _salvage(source, target, known)
        _synchronise(new)
    except BaseException:
        _remove(new)
        raise
    finally:
        _remove(copy)
    aside = path.with_name(f"{path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    _swap(path, new, aside)
    return aside


def finish(path: Path) -> None:
    """Finish what `set_aside` may have been killed in."""
    new = _beside(path, "salvaged")
    if new.exists() and not path.exists():
        _swap(path, new, path.with_name(f"{path.name}.corrupt"))
    for left in (new, _beside(path, "damaged")):
        _remove(left)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")


def _remove(path: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{end}").unlink(missing_ok=True)


def _swap(path: Path, new: Path, aside: Path) -> None:
    with suppress(FileNotFoundError):
        path.rename(aside)
    with suppress(FileNotFoundError):
        Path(f"{path}-wal").rename(f"{aside}-wal")
    Path(f"{path}-shm").unlink(missing_ok=True)
    new.rename(path)
    _synchronise(path.parent)


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mend_header(copy: Path) -> None:
    """Without these bytes SQLite opens nothing. Of an empty file it would delete the write-ahead log."""
    with copy.open("r+b" if copy.exists() else "w+b") as file:
        file.write(_HEADER)
        size = file.seek(0, os.SEEK_END)
        file.truncate(max(PAGE, size - size % PAGE))


def _created(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    path.chmod(0o640)
    connection.executescript(TABLES + books.TABLES + dead_letters.TABLES)
    return connection


def _lenient(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA writable_schema=ON")  # what is wrong in the schema keeps the rest of it from nothing
    return connection


def _mend_schema(copy: Path, target: sqlite3.Connection) -> None:
    """Say again what the tables are, where that is damaged: their rows need not be."""
    tables = target.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'").fetchall()
    with closing(_lenient(copy)) as source, suppress(sqlite3.Error, UnicodeDecodeError):
        source.text_factory = lambda text: text.decode(errors="replace")
        found = {
            str(name): rowid
            for rowid, name in source.execute("SELECT rowid, name FROM sqlite_schema WHERE rootpage > 0")
        }
        for name, sql in tables:
            for like in difflib.get_close_matches(name, found, 1):
                source.execute(
                    "UPDATE sqlite_schema SET type = 'table', name = ?, tbl_name = ?, sql = ? WHERE rowid = ? AND sql IS NOT ?",
                    (name, name, sql, found[like], sql),
                )


def _salvage(source: sqlite3.Connection, target: sqlite3.Connection, known: Mark) -> None:
    target.execute("BEGIN IMMEDIATE")
    single = {name: next(iter(_rows(source, name)), None) for name in ("identity", "state", "journaled")}
    said, items = (
        each[2] if each and isinstance(each[2], int) else 0 for each in (single["state"], single["journaled"])
    )
    found = single["identity"]
    identity = (
        found[2] if found and isinstance(found[2], bytes) and len(found[2]) == len(known.journal) else known.journal
    )
    target.execute("UPDATE identity SET journal = ?", (identity,))
    if known.journal not in (identity, bytes(16)):
        known = Mark()
    if known.last < said < known.last + 2**40:  # after a power cut the mark may be older than the file
        known = Mark(identity, said, max(items, known.items), known.trimmed, known.trimmed_items)
    last, items = _rows_and_gaps(source, target, known)
    target.execute("UPDATE state SET last = ?", (last,))
    target.execute("UPDATE journaled SET items = ?", (items,))
    for _, *row in _rows(source, "dead_letters"):
        _insert(target, "dead_letters", row)
    for use in _rows(source, "idempotency", "*"):
        _insert(target, "idempotency", use)
    for _, *row in _rows(source, "cursors"):
        if isinstance(row[1], int) and 0 <= row[1] <= last:
            _insert(target, "cursors", row)
    for _, *row in _rows(source, "stores"):
        if len(row) == 3 and all(isinstance(each, str) for each in row):
            record(target, row[0], Store(*row[1:]))
    for _, *row in _rows(source, "rewound"):
        _insert(target, "rewound", row)
    place_everybody(target, last)
    target.execute("COMMIT")


def place_everybody(connection: sqlite3.Connection, last: int) -> None:
    """Have an exporter without a cursor begin with the first row that is there: its cursor may be what was lost."""
    ((first,),) = connection.execute("SELECT coalesce(min(first), ?) FROM journal", (last + 1,))
    before = books.journaled(connection) - books.items_after(connection, first - 1)
    books.place(connection, EVERYBODY, Cursor(first - 1, Account(before)))


def _rows_and_gaps(source: sqlite3.Connection, target: sqlite3.Connection, known: Mark) -> tuple[int, int]:
    """Copy the rows that are right, and put others where some are missing. Returns the last position and how many items there were."""
    is_known, position, kept, gaps = known.items > 0, known.trimmed, 0, list[tuple[int, int]]()

    for _, first, count, items, *rest, crc, payload in _rows(source, "journal"):
        if not is_right(first, count, items, crc, payload) or first <= position:
            continue
        try:
            items = sum(map(len, decode_group(payload, items)))
        except msgspec.MsgspecError:
            continue
        if not _insert(target, "journal", (first, count, items, *rest, crc, payload)):
            continue
        if first > position + 1 and (position or is_known):
            gaps.append((position + 1, first - 1))
        position, kept = first + count - 1, kept + items
    if known.last > position:
        gaps.append((position + 1, known.last))
    last, total = max(position, known.last), max(known.items, known.trimmed_items + kept)
    batches, items = sum(upto - first + 1 for first, upto in gaps), total - known.trimmed_items - kept
    _log.error("of the damaged journal, %d items were kept, and %d are missing", kept, items)
    for first, upto in gaps:
        share = items * (upto - first + 1) // batches
        batches, items = batches - (upto - first + 1), items - share
        write_lost(target, first, upto, share)
    return last, total


def _insert(target: sqlite3.Connection, table: str, row: Sequence[Any]) -> bool:
    """Whether it could be one: what was damaged may have too few columns, or what none of them holds."""
    try:
        target.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608 - our own names
    except (sqlite3.IntegrityError, OverflowError):
        return False
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise  # the new file cannot be written now, which says nothing of the row
        return False
    return True


def _rows(source: sqlite3.Connection, table: str, columns: str = "rowid, *") -> Iterator[tuple[Any, ...]]:
    """What can be read of a table, with the number of each row before it, in its order."""
    query = f"SELECT {columns} FROM {table}"  # noqa: S608 - our own names
    if columns == "*":  # it has no numbers: what comes before the damage is all
        with suppress(sqlite3.Error, UnicodeDecodeError):
            yield from source.execute(query)
        return
    ranges, failures = [(0, 2**62)], itertools.count()
    while ranges and next(failures) < MOST_FAILURES:
        low, high = ranges.pop()
        try:
            for row in source.execute(f"{query} WHERE rowid >= ? AND rowid < ? ORDER BY rowid", (low, high)):
                yield row
                low = row[0] + 1
        except (sqlite3.Error, UnicodeDecodeError):
            if high - low > 1:
                middle = (low + high) // 2
                ranges += [(middle, high), (low, middle)]
