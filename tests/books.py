"""The last assertion of every test that runs a service: the books balance, as they are in the journals' files."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

from pipeline import books
from pipeline.graph import Pipeline


def lines(journal: Path) -> list[books.Line]:
    """The books of one journal, by a connection that cannot write; none if it holds no books."""
    with closing(_read_only(journal)) as connection:
        connection.execute("BEGIN")
        return [] if books.is_outdated(connection) else books.lines(connection)


def assert_taken_in(pipelines: Iterable[Pipeline]) -> None:
    """Nothing that came in since the start is unaccounted for, and what was journaled is in the file."""
    for one in pipelines:
        assert one.intake.difference == 0, (one.id, one.intake)
        if one.journal.path.exists():
            with suppress(sqlite3.DatabaseError), closing(_read_only(one.journal.path)) as connection:
                assert books.journaled(connection) == one.journal.items, one.id


def assert_balanced(journals: Iterable[Path]) -> None:
    """Nothing is unaccounted for, in any of these that can be read."""
    for journal in journals:
        if journal.exists():
            with suppress(sqlite3.DatabaseError):  # of a file that a test has damaged, nothing can be said
                assert [line for line in lines(journal) if line.difference] == [], journal


def _read_only(journal: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{journal}?mode=ro", uri=True, isolation_level=None)
