"""A cursor never goes back, whichever way it comes into the file, and however late."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.books import Account, Cursor
from pipeline.cursors import MovedCursors
from pipeline.dead_letters import Refused
from tests.pipeline.test_journal import append, batch_of, opened

pytestmark = pytest.mark.anyio

EXPORTER = "exporter.test"


def at(position: int, **items: int) -> Cursor:
    """A cursor there."""
    return Cursor(position, Account(**items))


async def test_a_cursor_that_waits_to_be_saved_does_not_undo_the_one_of_dead_letters(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        for value in range(3):
            await append(journal, batch_of(value))
        journal.advance(EXPORTER, at(1, sent=1))
        refused = [Refused(2, batch_of(1), "no")]
        await journal.call(lambda file: file.bury(EXPORTER, at(2, sent=1, dead_lettered=1), refused, 2**20))
        await append(journal, batch_of(3))  # its commit saves what waits
        assert (await journal.call(lambda file: file.cursors()))[EXPORTER] == at(2, sent=1, dead_lettered=1)
        journal.advance(EXPORTER, at(3, sent=2, dead_lettered=1))
        await append(journal, batch_of(4))
        assert (await journal.call(lambda file: file.cursors()))[EXPORTER] == at(3, sent=2, dead_lettered=1)


async def test_an_exporter_may_be_placed_behind_its_cursor(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await journal.call(lambda file: file.place(EXPORTER, at(7)))
        await journal.call(lambda file: file.place(EXPORTER, at(3)))
        assert (await journal.call(lambda file: file.cursors()))[EXPORTER] == at(3)


def test_what_could_not_be_saved_does_not_undo_what_was_noted_meanwhile() -> None:
    moved = MovedCursors()
    moved.note("a", at(1))
    moved.note("b", at(1))
    taken = moved.take()
    assert not moved
    moved.note("a", at(2))
    moved.put_back(taken)
    moved.note("b", at(0))
    assert moved.take() == {"a": at(2), "b": at(1)}


def test_an_account_may_change_where_the_cursor_is() -> None:
    moved = MovedCursors()
    moved.note("a", at(1))
    moved.note("a", at(1, missing=3))
    assert moved.take() == {"a": at(1, missing=3)}


def test_one_that_is_gone_does_not_come_back_with_a_commit_that_failed() -> None:
    moved = MovedCursors()
    moved.note("a", at(1))
    taken = moved.take()
    moved.forget("a")
    moved.put_back(taken)
    assert moved.take() == {}
    moved.note("a", at(0))  # it is configured again
    assert moved.take() == {"a": at(0)}
