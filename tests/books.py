"""The last assertion of every test that runs a service: the books balance, as they are in the journals' files, and as the service says."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx

from pipeline import books
from pipeline.graph import Pipeline
from pipeline.salvage import is_damage
from tests.scrapes import Sample, samples

DIFFERENCE = "books_intake_difference_items"
PATIENCE = 5.0
"""Seconds until all that is in hand when nobody pushes any more has been answered."""


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
            with _but_for_damage(), closing(_read_only(one.journal.path)) as connection:
                assert books.journaled(connection) == one.journal.items, one.id


def assert_shown_as_taken_in(scraped: str) -> None:
    """The same of a process, as Prometheus sees it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = httpx.get(scraped, verify=False, timeout=30)  # noqa: S501
        found = _differences(answer)
        if answer.status_code != 503 and not any(found.values()):
            assert found, f"{answer.status_code}: no {DIFFERENCE}"
            return
        assert time.monotonic() < deadline, found or answer.text
        time.sleep(0.05)


def assert_balanced(journals: Iterable[Path]) -> int:
    """Nothing is unaccounted for, in any of these that can be read. Returns how many can."""
    count = 0
    for journal in journals:
        if journal.exists() and journal.name != "state.db":
            with _but_for_damage():
                assert [line for line in lines(journal) if line.difference] == [], journal
                count += 1
    return count


def _differences(answer: httpx.Response) -> dict[Sample, float]:
    shown = "".join(f"{line}\n" for line in answer.text.splitlines() if line.startswith(DIFFERENCE))
    return samples(shown, prefix=DIFFERENCE)


@contextmanager
def _but_for_damage() -> Iterator[None]:
    """Of a file that a test has damaged, nothing can be said."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise


def _read_only(journal: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{journal}?mode=ro", uri=True, isolation_level=None)
