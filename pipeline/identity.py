"""Which stores a journal belongs to, recorded in its file, and the accounting after an older store was restored.

Each exporter that keeps its own cursor names its store (`Exporter.store`); the journal records it under the exporter's name. The store
of the first extension that has one is recorded as the owner. A start compares both directions: the store with the record, and the
journal of the store's cursor with this one.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.data import Position, Store

if TYPE_CHECKING:
    from pipeline.books import Account

TABLES = """
CREATE TABLE IF NOT EXISTS stores (holder TEXT PRIMARY KEY, store TEXT NOT NULL, name TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS rewound (
    exporter TEXT NOT NULL, after_items INTEGER NOT NULL, missing INTEGER NOT NULL, PRIMARY KEY (exporter, after_items)) STRICT;
"""

OWNER = ""
"""The holder's name for the store that owns the journal as a whole."""
CONFLICT = 78
"""EX_CONFIG of sysexits.h: a person must decide."""


def recorded(connection: sqlite3.Connection) -> dict[str, Store]:
    """The stores that the journal belongs to, by holder."""
    rows = connection.execute("SELECT holder, store, name FROM stores").fetchall()
    return {holder: Store(store, name) for holder, store, name in rows}


def has_records(connection: sqlite3.Connection) -> bool:
    """Whether the file is of a version that records stores."""
    return connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'stores'").fetchone() is not None


def record(connection: sqlite3.Connection, holder: str, store: Store) -> None:
    """Record the store of a holder."""
    connection.execute("REPLACE INTO stores VALUES (?, ?, ?)", (holder, *store))


def rewind(
    connection: sqlite3.Connection, exporter: str, account: Account, own: Position, trimmed: int, here: int
) -> Account:
    """The account of an exporter whose store is an older copy, and then its dead letters that come again are deleted.

    The store ends at `own`, whose `items` is known. The journal holds what follows `trimmed`, if that is later, and had stored `here` items
    up to the later of both. What lies between them is missing. What the journal still holds comes again, and is not accounted for yet.
    """
    before = min(account.journaled_before, here)
    stored = min(max(own.items or 0, before), here)
    # A part of what is missing was lost behind the position that the store is back at: by restorations before this one.
    lost_later = _sum(
        connection, "SELECT sum(missing) FROM rewound WHERE exporter = ? AND after_items >= ?", exporter, stored
    )
    buried = "SELECT sum(items) FROM dead_letters WHERE exporter = ? AND position > ?"
    buried_later = _sum(connection, buried, exporter, own.upto)
    buried_again = _sum(connection, buried, exporter, max(own.upto, trimmed))
    connection.execute(
        "DELETE FROM dead_letters WHERE exporter = ? AND position > ?", (exporter, max(own.upto, trimmed))
    )
    left = stored - before
    missing = min(max(0, account.missing - lost_later), left)
    dead_lettered = min(max(0, account.dead_lettered - buried_later), left - missing)
    dropped = min(account.dropped, left - missing - dead_lettered)
    kept_letters = min(buried_later - buried_again, here - stored)
    lost = here - stored - kept_letters
    connection.execute("DELETE FROM rewound WHERE exporter = ? AND after_items >= ?", (exporter, stored))
    if lost:
        connection.execute("INSERT INTO rewound VALUES (?, ?, ?)", (exporter, stored, lost))
    return replace(
        account,
        journaled_before=before,
        sent=left - missing - dead_lettered - dropped,
        dead_lettered=dead_lettered + kept_letters,
        dropped=dropped,
        missing=missing + lost,
    )


def _sum(connection: sqlite3.Connection, query: str, *parameters: object) -> int:
    ((items,),) = connection.execute(query, parameters)
    return int(items or 0)
