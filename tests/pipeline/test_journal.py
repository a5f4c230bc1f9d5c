"""The journal: what is acknowledged is in the file, in order, once."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from pipeline import Context, EventBatch, Idempotency, Overloaded, StartError
from pipeline.books import Account, Cursor
from pipeline.data import Batch, Event
from pipeline.journal import Journal
from pipeline.journal_format import Durability, decode_group
from pipeline.journal_settings import JournalSettings
from pipeline.reserve import Reserve

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def batch_of(*values: float, service: str = "test") -> EventBatch:
    return EventBatch(service, [Event("custom", value, NOW) for value in values], NOW)


def context_of(batch: Batch, key: str | None = None, digest: bytes = b"") -> Context:
    context = Context()
    context.received = len(batch)
    if key is not None:
        context.idempotency = Idempotency("owner", key, digest)
    return context


@asynccontextmanager
async def opened(folder: Path, **settings: object) -> AsyncIterator[Journal]:
    chosen = {"size": 100, "flush_interval": 1.0, "max_bytes": 2**30, **settings}
    journal = Journal("events", JournalSettings(folder, **chosen))  # type: ignore[arg-type]
    try:
        await journal.open()
        yield journal
    finally:
        await journal.close()


async def append(journal: Journal, batch: Batch) -> None:
    await journal.append(batch, context_of(batch))


async def test_what_is_acknowledged_is_in_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await append(journal, batch_of(1.0, 2.0))
        with sqlite3.connect(tmp_path / "events.db") as other:
            ((payload,),) = other.execute("SELECT payload FROM journal")
        other.close()
        assert decode_group(payload) == [batch_of(1.0, 2.0)]


async def test_batches_come_back_in_order_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        for value in range(5):
            await append(journal, batch_of(value))
    async with opened(tmp_path) as journal:
        delivery = await journal.read(after=1)
        assert delivery.after == 1
        assert delivery.upto == 5
        assert [batch.events[0].value for batch in delivery.batches if isinstance(batch, EventBatch)] == [1, 2, 3, 4]


async def test_concurrent_appends_share_commits_and_keep_one_order(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        groups: list[int] = []
        journal.subscribers.append(lambda group: groups.append(len(group.batches)))
        async with anyio.create_task_group() as tasks:
            for value in range(200):
                tasks.start_soon(append, journal, batch_of(value))
        assert sum(groups) == 200
        assert len(groups) < 200
        from_memory = await journal.read(0)
        async with opened_copy(journal) as reader:
            assert (await reader.read(0)).batches == from_memory.batches


@asynccontextmanager
async def opened_copy(journal: Journal) -> AsyncIterator[Journal]:
    """The same file, by a journal that has nothing of it in memory."""
    folder = journal.path.parent / "copy"
    folder.mkdir()
    with sqlite3.connect(journal.path) as source, sqlite3.connect(folder / "events.db") as target:
        source.backup(target)
    source.close()
    target.close()
    async with opened(folder) as copy:
        yield copy


async def test_positions_are_never_given_twice(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await append(journal, batch_of(1.0))
        await append(journal, batch_of(2.0))
        journal.keep_from(2, 2)
        await append(journal, batch_of(3.0))
        journal.keep_from(3, 3)
    async with opened(tmp_path) as journal:
        assert journal.last == 3
        await append(journal, batch_of(4.0))
        assert journal.last == 4


async def test_what_every_exporter_has_passed_is_trimmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.journal_file.TRIM_COMMITS", 1)
    async with opened(tmp_path) as journal:
        await append(journal, batch_of(*range(1000)))
        full = journal.bytes
        await append(journal, batch_of(1.0))
        journal.keep_from(1, 1)
        await append(journal, batch_of(2.0))
        await append(journal, batch_of(3.0))
        assert journal.bytes < full
        gap = await journal.read(0)
        assert (gap.upto, gap.batches) == (1, ())
        assert list((await journal.read(gap.upto)).batches) == [batch_of(1.0), batch_of(2.0), batch_of(3.0)]


async def test_a_client_that_gives_up_does_not_undo_the_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await append(journal, batch_of(1.0))
        await append(journal, batch_of(2.0))
        assert list((await journal.read(0)).batches) == [batch_of(1.0), batch_of(2.0)]


async def test_a_full_journal_refuses_and_takes_again_once_it_was_trimmed(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=1000) as journal:
        await append(journal, batch_of(*range(200)))
        with pytest.raises(Overloaded, match="journal is full"):
            await append(journal, batch_of(1.0))
        trimmed = anyio.Event()
        journal.keep_from(1, 1)
        journal.advance("exporter.test", Cursor(1, Account()))
        settled = journal._settled

        def notice(commit: object) -> None:
            settled(commit)  # type: ignore[arg-type]
            trimmed.set()

        assert journal._committer is not None
        journal._committer._settled = notice
        await trimmed.wait()
        await append(journal, batch_of(1.0))


async def test_a_journal_that_was_full_takes_no_more_until_it_holds_a_twentieth_less(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=1000) as journal:
        for held, refused in ((999, False), (1000, True), (950, True), (949, False), (999, False)):
            journal.bytes = held
            assert (journal.failure is not None) == refused, held


async def test_without_room_on_the_disk_nothing_is_taken(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        journal.room.reserve = Reserve(tmp_path, 2**62)
        journal.room.reserve.look()
        assert journal.failure is not None
        with pytest.raises(Overloaded, match="the disk is full"):
            await append(journal, batch_of(1.0))


async def test_a_second_process_is_turned_away_by_name(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(StartError, match="is held by process"):
            async with opened(tmp_path):
                raise AssertionError("opened twice")


async def test_durability_none_answers_before_the_commit(tmp_path: Path) -> None:
    async with opened(tmp_path, durability=Durability.NONE) as journal:
        await append(journal, batch_of(1.0))
        assert journal.last == 0


@pytest.mark.parametrize(("durability", "synchronous"), [(Durability.POWER_LOSS, 2), (Durability.CRASH, 1)])
async def test_the_file_is_synchronised_as_the_durability_says(
    tmp_path: Path, durability: Durability, synchronous: int
) -> None:
    async with opened(tmp_path, durability=durability) as journal:
        assert journal._committer is not None
        found = await journal._committer.call(lambda file: file._connection.execute("PRAGMA synchronous").fetchone())
        assert found == (synchronous,)


async def test_no_row_is_trimmed_before_the_cursors_that_have_passed_it_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.journal_file.TRIM_COMMITS", 1)
    async with opened(tmp_path) as journal:
        await append(journal, batch_of(1.0))
        await journal.call(lambda file: file.save_cursors({"exporter.test": Cursor(0, Account())}))
        committer = journal._committer
        assert committer is not None
        begin = committer._file.begin

        def begin_late() -> None:
            # The thread has taken the cursors that it saves; now an exporter takes all there is.
            committer.moved.note("exporter.test", Cursor(1, Account()))
            committer.trim_upto = 1
            begin()

        monkeypatch.setattr(committer._file, "begin", begin_late)
        await append(journal, batch_of(2.0))
        with sqlite3.connect(journal.path) as other:
            assert other.execute("SELECT position FROM cursors").fetchall() == [(0,)]
            assert other.execute("SELECT first FROM journal").fetchall() == [(1,), (2,)]
        other.close()


async def test_what_follows_a_gap_is_read_however_much_came_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.journal_reader.READ_ITEMS", 3)
    async with opened(tmp_path) as journal:
        await append(journal, batch_of(1.0, 2.0, 3.0))
    async with opened(tmp_path) as journal:
        await journal.skip_to(5)
        await append(journal, batch_of(4.0))
        assert (await journal.read(0)).upto == 1
        gap = await journal.read(1)
        assert (gap.upto, gap.batches) == (5, ())
        assert list((await journal.read(5)).batches) == [batch_of(4.0)]
