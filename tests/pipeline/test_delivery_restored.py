"""An exporter whose store is an older copy: what the journal no longer holds is missing, counted once; the rest is delivered again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline import Delivery, Position, Retryable, StartError, Store
from pipeline.books import Account
from pipeline.journal import Journal
from pipeline.journal_settings import JournalSettings
from pipeline.worker import Worker
from tests.books import lines
from tests.pipeline.test_delivery import KeepingSink, Sink, delivering
from tests.pipeline.test_journal import append, batch_of

pytestmark = pytest.mark.anyio


class StoringSink(KeepingSink):
    """A store with an identity, which keeps all that the engine offers with its cursor."""

    def __init__(self, cursor: Position | None = None, id: str = "s" * 32) -> None:
        super().__init__("storing")
        self.cursor = cursor
        self.id_of_store = id
        self.seen: list[Delivery] = []

    async def store(self) -> Store | None:
        return Store(self.id_of_store, "the store")

    async def export(self, delivery: Delivery) -> None:
        await super().export(delivery)
        self.seen.append(delivery)
        if delivery.upto > delivery.after:
            self.cursor = Position(delivery.upto, delivery.items_upto, delivery.journal_id)

    async def position(self, pipeline: str, journal_id: str = "") -> Position | None:  # type: ignore[override]
        return self.cursor


async def trimmed(journal: Journal) -> None:
    """Have the journal delete what every exporter has passed, as it does after more commits than a test makes."""
    last = journal.last
    await journal.call(lambda file: file.trim(last))


async def filled(folder: Path, sink: StoringSink, *batches: tuple[float, ...], trim: bool = True) -> list[Position]:
    """Have these batches stored and trimmed. Returns the cursor after each."""
    cursors = []
    async with delivering(folder, sink) as (journal, delivery):
        for values in batches:
            await append(journal, batch_of(*values))
            await delivery.flush()
            assert sink.cursor is not None
            cursors.append(sink.cursor)
        if trim:
            await trimmed(journal)
    return cursors


def account(folder: Path) -> Account:
    (line,) = [each for each in lines(folder / "events.db") if each.exporter == "exporter.storing"]
    assert line.difference == 0
    return line.account


BATCHES = [(1.0,), (2.0, 3.0, 4.0, 5.0), *((float(value),) for value in range(6, 51))]


async def test_an_item_is_identified_and_the_number_of_items_is_offered(tmp_path: Path) -> None:
    sink = StoringSink()
    cursors = await filled(tmp_path, sink, *BATCHES[:3])
    assert [(each.upto, each.items) for each in cursors] == [(1, 1), (2, 5), (3, 6)]
    (id,) = {each.journal_id for each in sink.seen}
    assert len(bytes.fromhex(id)) == 16


@pytest.mark.parametrize("forgets_items", [False, True], ids=["items kept", "items not kept"])
async def test_what_is_gone_is_missing_once_and_the_log_says_how_many(
    tmp_path: Path, forgets_items: bool, caplog: pytest.LogCaptureFixture
) -> None:
    sink = StoringSink()
    cursors = await filled(tmp_path, sink, *BATCHES)
    assert account(tmp_path) == Account(sent=50)
    old = cursors[1]._replace(items=None) if forgets_items else cursors[1]
    restored = StoringSink(old)
    async with delivering(tmp_path, restored) as (journal, delivery):
        (worker,) = delivery.workers
        missing = worker.account.missing
        assert worker.missing_at_start == missing
        if forgets_items:
            assert "about " in caplog.text
            assert 45 <= missing < 50
        else:
            assert missing == 45
            assert "45 items that it had stored are missing, and 0 are delivered again" in caplog.text
        await append(journal, batch_of(60))
        await delivery.flush()
        cursor = restored.cursor
        assert restored.values == [60]
        assert cursor is not None
        assert (cursor.upto, cursor.items) == (len(BATCHES) + 1, 51)
    assert account(tmp_path) == Account(sent=51 - missing, missing=missing)
    caplog.clear()
    async with delivering(tmp_path, StoringSink(cursor)) as (_, delivery):
        assert delivery.workers[0].missing_at_start == 0
    assert account(tmp_path) == Account(sent=51 - missing, missing=missing), "counted again"
    assert "missing" not in caplog.text


async def test_a_start_that_is_killed_before_it_delivers_counts_nothing_again(tmp_path: Path) -> None:
    cursors = await filled(tmp_path, StoringSink(), *BATCHES)
    for found in (45, 0, 0):
        journal = Journal("events", JournalSettings(tmp_path, 1, 60, 2**30))
        await journal.open()
        worker = Worker(journal, StoringSink(cursors[1]), lambda: None)
        await worker.ask()
        await worker.begin(await journal.call(lambda file: file.cursors()), accept_reset=False)
        assert (worker.missing_at_start, worker.account) == (found, Account(sent=5, missing=45))
        await journal.close()


async def test_the_same_backup_a_second_time_counts_only_what_was_stored_since(tmp_path: Path) -> None:
    cursors = await filled(tmp_path, StoringSink(), *BATCHES)
    sink = StoringSink(cursors[1])
    await filled(tmp_path, sink, *((float(value),) for value in range(10)))
    assert account(tmp_path) == Account(sent=15, missing=45)
    async with delivering(tmp_path, StoringSink(cursors[1])) as (_, delivery):
        assert delivery.workers[0].missing_at_start == 10
    assert account(tmp_path) == Account(sent=5, missing=55)


async def test_a_backup_from_before_the_first_delivery_has_nothing(tmp_path: Path) -> None:
    await filled(tmp_path, StoringSink(), *BATCHES)
    sink = StoringSink()
    await filled(tmp_path, sink, (7.0,), trim=False)
    assert sink.values == [7]
    assert account(tmp_path) == Account(sent=1, missing=50)


async def test_what_the_journal_still_holds_is_delivered_again_and_not_missing(tmp_path: Path) -> None:
    sink, other = StoringSink(), Sink("other", lambda _: _down())
    async with delivering(tmp_path, sink, other) as (journal, delivery):
        for values in BATCHES[:10]:
            await append(journal, batch_of(*values))
            await delivery.flush()
        assert sink.cursor is not None
    again = StoringSink(Position(2, 5, sink.cursor.journal_id))
    async with delivering(tmp_path, again, Sink("other", lambda _: _down())) as (journal, delivery):
        await delivery.flush()
        assert again.values == [float(value) for value in range(6, 14)]
    assert account(tmp_path) == Account(sent=13)


def _down() -> None:
    raise Retryable("down")


async def test_an_older_journal_with_the_newer_store_is_refused(tmp_path: Path) -> None:
    """The other direction: the store has passed the journal's end."""
    sink = StoringSink()
    cursors = await filled(tmp_path, sink, *BATCHES[:3])
    beyond = StoringSink(cursors[-1]._replace(upto=9, items=12))
    with pytest.raises(ExceptionGroup) as group:
        async with delivering(tmp_path, beyond):
            pytest.fail("it has started")
    assert group.group_contains(StartError, match="has taken up to 9, but the journal .* ends at 3")


@pytest.mark.parametrize(
    ("sink", "reason"),
    [
        (StoringSink(Position(3, 6, "0" * 32)), None),
        (StoringSink(Position(3, 6, "0" * 32), id="t" * 32), "was replaced by another one"),
        (StoringSink(None, id="t" * 32), "has no cursor for the journal"),
    ],
    ids=["cursor of another journal in the same store", "another store", "new store"],
)
async def test_a_store_that_is_another_one_is_refused(
    tmp_path: Path, sink: StoringSink, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    await filled(tmp_path, StoringSink(), *BATCHES[:3])
    if reason is None:  # a backup of this store from before it knew this journal
        with caplog.at_level(logging.ERROR):
            async with delivering(tmp_path, sink):
                pass
        assert account(tmp_path) == Account(missing=6)
        return
    with pytest.raises(ExceptionGroup) as group:
        async with delivering(tmp_path, sink):
            pytest.fail("it has started")
    assert group.group_contains(StartError)
    assert account(tmp_path) == Account(sent=6), "the accounts went back"
