"""The last assertion of every test that runs a service: the books balance, as they are in the journals' files."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

from pipeline import books


def lines(journal: Path) -> list[books.Line]:
    """The books of one journal, by a connection that cannot write; none if it holds no books."""
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        return [] if books.is_outdated(connection) else books.lines(connection)


def assert_balanced(journals: Iterable[Path]) -> None:
    """Nothing is unaccounted for, in any of these that can be read."""
    for journal in journals:
        if journal.exists():
            with suppress(sqlite3.DatabaseError):  # of a file that a test has damaged, nothing can be said
                assert [line for line in lines(journal) if line.difference] == [], journal
