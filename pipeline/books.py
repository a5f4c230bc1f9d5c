"""The books: what became of every item, kept where the cursor is kept, in the same transaction, so that they hold across restarts.

    journaled since it was placed = sent + dead-lettered + dropped + missing + pending        for every exporter

The left side is counted by the journal when it stores, `pending` by its rows; the rest by whoever moves the exporter. What came before
the journal is counted in memory, since the start of the process:

    received + generated = filtered + refused + repeated + journaled                          for every pipeline

A difference is a bug by definition.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec

from pipeline.journal_format import decode_group

TABLES = """
CREATE TABLE IF NOT EXISTS cursors (
    exporter TEXT PRIMARY KEY, position INTEGER NOT NULL, journaled_before INTEGER NOT NULL DEFAULT 0,
    sent INTEGER NOT NULL DEFAULT 0, dead_lettered INTEGER NOT NULL DEFAULT 0, dropped INTEGER NOT NULL DEFAULT 0,
    missing INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE IF NOT EXISTS journaled (id INTEGER PRIMARY KEY CHECK (id = 1), items INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO journaled SELECT 1, coalesce(sum(items), 0) FROM journal;
CREATE TRIGGER IF NOT EXISTS journal_counts AFTER INSERT ON journal BEGIN
    UPDATE journaled SET items = items + new.items;
END;
"""

EVERYBODY = "*"
"""The name of a cursor for every exporter without one, since its own may have been what was damaged: better twice than never."""
_COLUMNS = ("journaled_before", "sent", "dead_lettered", "dropped", "missing")
_SAVE = f"""
INSERT INTO cursors (exporter, position, {", ".join(_COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET position = excluded.position, {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)}
WHERE excluded.position >= position
"""  # noqa: S608 - constants only


@dataclass(frozen=True)
class Account:
    """What became of the items that an exporter has passed, since it was placed in its journal. In items."""

    journaled_before: int = 0
    """What the journal had stored before the exporter was placed: none of its business."""
    sent: int = 0
    """Taken by the exporter."""
    dead_lettered: int = 0
    """Refused for good, and kept."""
    dropped: int = 0
    """Given up since the journal was full, as the configuration says."""
    missing: int = 0
    """Damaged, or gone from the journal."""

    @property
    def passed(self) -> int:
        """All that it has passed."""
        return self.sent + self.dead_lettered + self.dropped + self.missing

    def plus(self, **items: int) -> Account:
        """The account with these items added to its columns."""
        return replace(self, **{name: getattr(self, name) + count for name, count in items.items()})


class Cursor(NamedTuple):
    """How far an exporter has got in its journal, and what became of what it has passed."""

    position: int
    account: Account


class Line(NamedTuple):
    """The books of one exporter of a pipeline: `journaled` since it was placed, and what became of it."""

    exporter: str
    journaled: int
    account: Account
    pending: int

    @property
    def difference(self) -> int:
        """What is not accounted for; 0 unless there is a bug."""
        return self.journaled - self.account.passed - self.pending


class Intake(NamedTuple):
    """The books of what came into a pipeline since the start, in items.

    What cannot be read holds nobody knows how many items, and is counted in requests only.
    """

    received: int
    """From its receivers, good or bad."""
    generated: int
    """Made by connectors, by receivers that listen to nobody outside, and by processors."""
    filtered: int
    """Left out by processors on purpose."""
    refused: int
    """Not accepted, for whatever reason."""
    repeated: int
    """Stored before, under the same idempotency key."""
    journaled: int
    """Made durable, as the journal counts it."""

    @property
    def difference(self) -> int:
        """What is not accounted for; 0 unless there is a bug."""
        return self.received + self.generated - self.filtered - self.refused - self.repeated - self.journaled


def is_outdated(connection: sqlite3.Connection) -> bool:
    """Whether the file is of a version that kept no books."""
    columns = [row[1] for row in connection.execute("PRAGMA table_info(cursors)")]
    return bool(columns) and "sent" not in columns


def update(connection: sqlite3.Connection) -> None:
    """Bring the cursors of an earlier version to the form above: their accounts begin where they are."""
    if is_outdated(connection):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "CREATE TABLE journaled (id INTEGER PRIMARY KEY CHECK (id = 1), items INTEGER NOT NULL) STRICT"
        )
        connection.execute("INSERT INTO journaled SELECT 1, coalesce(sum(items), 0) FROM journal")
        for name in _COLUMNS:
            connection.execute(f"ALTER TABLE cursors ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0")
        total = journaled(connection)
        for exporter, position in connection.execute("SELECT exporter, position FROM cursors").fetchall():
            save(connection, exporter, Cursor(position, Account(total - items_after(connection, position))))
        connection.execute("COMMIT")


def journaled(connection: sqlite3.Connection) -> int:
    """How many items the journal has ever stored."""
    ((items,),) = connection.execute("SELECT items FROM journaled")
    return int(items)


def items_after(connection: sqlite3.Connection, position: int) -> int:
    """How many items that the journal still holds follow that position."""
    ((items,),) = connection.execute("SELECT coalesce(sum(items), 0) FROM journal WHERE first > ?", (position,))
    within = connection.execute(
        "SELECT first, count, items, payload FROM journal WHERE first <= ? AND first + count - 1 > ?",
        (position, position),
    ).fetchone()
    if within is None:
        return int(items)
    first, count, held, payload = within
    try:
        return int(items) + sum(map(len, decode_group(payload, held)[position + 1 - first :]))
    except msgspec.MsgspecError:
        return int(items + held * (first + count - 1 - position) // count)  # about: nobody knows how many were in which


def bytes_after(connection: sqlite3.Connection, position: int) -> int:
    """How many bytes the rows have that hold what follows that position."""
    query = "SELECT coalesce(sum(length(payload)), 0) FROM journal WHERE first + count - 1 > ?"
    ((size,),) = connection.execute(query, (position,))
    return int(size)


def place(connection: sqlite3.Connection, exporter: str, cursor: Cursor) -> None:
    """Put a cursor with its account where the exporter begins, which may be behind the one that is there."""
    connection.execute("DELETE FROM cursors WHERE exporter = ?", (exporter,))
    save(connection, exporter, cursor)


def save(connection: sqlite3.Connection, exporter: str, cursor: Cursor) -> None:
    """Save one cursor with its account, unless one that is further is saved already: what comes late must not undo that."""
    account = cursor.account
    connection.execute(_SAVE, (exporter, cursor.position, *(getattr(account, name) for name in _COLUMNS)))


def saved(connection: sqlite3.Connection) -> dict[str, Cursor]:
    """All cursors, by exporter."""
    rows: Iterable[tuple[Any, ...]] = connection.execute(
        f"SELECT exporter, position, {', '.join(_COLUMNS)} FROM cursors"  # noqa: S608 - constants only
    )
    return {exporter: Cursor(position, Account(*account)) for exporter, position, *account in rows}


def lines(connection: sqlite3.Connection) -> list[Line]:
    """The books of a journal's exporters, as they are in the file. The caller holds a transaction, so that they belong to one moment."""
    total = journaled(connection)
    return [
        Line(exporter, total - account.journaled_before, account, items_after(connection, position))
        for exporter, (position, account) in sorted(saved(connection).items())
        if exporter != EVERYBODY
    ]
