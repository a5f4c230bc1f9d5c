"""The journal when something fails: nobody waits for ever, and it goes on as soon as that works again."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from pipeline import Delivery, Overloaded, Retryable
from pipeline.committer import _Call
from pipeline.dead_letters import Refused
from pipeline.delivery import PipelineDelivery
from pipeline.journal import Journal
from pipeline.journal_file import LOG_BYTES, JournalFile
from pipeline.journal_format import Durability, Group
from pipeline.salvage import Damaged
from pipeline.supervision import Supervision
from tests.pipeline.test_delivery import Sink, delivering
from tests.pipeline.test_journal import append, batch_of, opened
from tests.running import until

pytestmark = pytest.mark.anyio


async def test_a_damaged_record_costs_itself_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path) as journal:
        for value in range(3):
            await append(journal, batch_of(value))
    with sqlite3.connect(tmp_path / "events.db") as other:
        other.execute("UPDATE journal SET payload = zeroblob(length(payload)) WHERE first = 2")
    other.close()
    async with opened(tmp_path) as journal:
        found, position = [], 0
        while position < journal.last:
            delivery = await journal.read(position)
            found += list(delivery.batches)
            position = delivery.upto
        assert found == [batch_of(0), batch_of(2)]
    assert "damaged record: positions 2 to 2, 1 items" in caplog.text


async def test_an_append_after_close_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        pass
    with pytest.raises(Overloaded, match="closed"):
        await append(journal, batch_of(1.0))


async def test_a_commit_that_fails_refuses_its_group_and_the_next_one_works(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        with sqlite3.connect(tmp_path / "events.db", isolation_level=None) as other:
            other.execute("CREATE TRIGGER deny BEFORE INSERT ON journal BEGIN SELECT RAISE(ABORT, 'disk full'); END")
            with pytest.raises(Overloaded, match="disk full"):
                await append(journal, batch_of(1.0))
            assert "disk full" in str(journal.failure)
            other.execute("DROP TRIGGER deny")
        other.close()
        await append(journal, batch_of(2.0))
        assert journal.failure is None
        assert list((await journal.read(0)).batches) == [batch_of(2.0)]


async def test_a_checkpoint_that_fails_does_not_end_the_committer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.journal_file.CHECKPOINT_BYTES", 1)
    async with opened(tmp_path) as journal:
        await append(journal, batch_of(1.0))
        size = (tmp_path / "events.db").stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            # The write-ahead log may still grow a little, the main file not at all.
            resource.setrlimit(resource.RLIMIT_FSIZE, (max(size, 8 * 2**20), hard))
            for value in range(40):
                with contextlib.suppress(Overloaded):
                    await append(journal, batch_of(*range(value * 1000)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await append(journal, batch_of(2.0))
        assert journal.failure is None


async def test_what_comes_after_the_thread_has_ended_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        committer = journal._committer
        assert committer is not None
        await committer.stop()
        with pytest.raises(Overloaded):
            await committer.call(lambda file: file.cursors())
        with pytest.raises(Overloaded):
            await append(journal, batch_of(1.0))
        journal._committer = None


async def test_a_thread_that_dies_with_a_commit_in_hand_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def fail(file: JournalFile, *arguments: object) -> None:
        entered.set()
        go_on.wait()
        raise RuntimeError("a mistake of ours")

    refused = []

    async def push(journal: Journal) -> None:
        with pytest.raises(Overloaded) as refusal:
            await append(journal, batch_of(1.0))
        refused.append(refusal)

    async with opened(tmp_path) as journal:
        monkeypatch.setattr(JournalFile, "write", fail)
        monkeypatch.setattr(JournalFile, "rollback", fail)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(push, journal)
                await anyio.to_thread.run_sync(entered.wait)
                tasks.start_soon(push, journal)  # gathers behind the commit that will not end
                await anyio.wait_all_tasks_blocked()
                go_on.set()
        assert len(refused) == 2
        assert "the committer ended" in str(journal.failure)


async def test_a_rollback_that_fails_is_tried_again_and_then_all_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: JournalFile, *arguments: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    async with opened(tmp_path) as journal:
        with monkeypatch.context() as broken:
            broken.setattr(JournalFile, "write", fail)
            broken.setattr(JournalFile, "rollback", fail)
            for _ in range(2):
                with pytest.raises(Overloaded, match="disk I/O error"):
                    await append(journal, batch_of(1.0))
        await append(journal, batch_of(2.0))
        assert list((await journal.read(0)).batches) == [batch_of(2.0)]


async def test_an_append_while_the_journal_closes_does_not_hang(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        outcomes: list[str] = []

        async def push() -> None:
            try:
                for _ in range(50):
                    await append(journal, batch_of(1.0))
            except Overloaded as refusal:
                outcomes.append(str(refusal))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(push)
                await anyio.lowlevel.checkpoint()
                await journal.close()
        assert set(outcomes) <= {"the journal is closed"}


async def test_what_waits_in_memory_counts_against_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    write = JournalFile.write

    def stall(file: JournalFile, *arguments: Any) -> Group:
        go_on.wait()
        return write(file, *arguments)

    async with opened(tmp_path, durability=Durability.NONE, max_bytes=100_000) as journal:
        monkeypatch.setattr(JournalFile, "write", stall)

        async def push_too_much() -> None:
            for _ in range(100):
                await append(journal, batch_of(*range(100)))

        with pytest.raises(Overloaded, match="journal is full"):
            await push_too_much()
        go_on.set()


async def test_what_meets_the_damage_is_done_again_with_the_file_that_takes_its_place(tmp_path: Path) -> None:
    """A start that asks for what an exporter has yet to take must not fail for one bad page."""
    met: list[JournalFile] = []

    def count(file: JournalFile) -> int:
        if not met:
            met.append(file)
            raise Damaged("a page cannot be read")
        return file.items_after(0)

    async with opened(tmp_path) as journal:
        await append(journal, batch_of(1.0, 2.0))
        assert await journal.call(count) == 2
        await append(journal, batch_of(3.0))
    assert corrupt_files(tmp_path) != []


async def test_behind_a_commit_that_does_not_end_nothing_more_is_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.room.STUCK_SECONDS", 0.05)
    go_on = threading.Event()
    async with opened(tmp_path) as journal, anyio.create_task_group() as tasks:
        tasks.start_soon(journal.call, lambda file: go_on.wait())
        await until(lambda: "the disk has not answered" in str(journal.failure))
        with pytest.raises(Overloaded, match="the disk has not answered"):
            await append(journal, batch_of(1.0))
        go_on.set()
        await until(lambda: journal.failure is None)
        await append(journal, batch_of(2.0))


async def test_who_begins_to_watch_hears_that_a_thread_has_ended_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: JournalFile) -> None:
        raise SystemExit

    async with delivering(tmp_path, Sink()) as (journal, _):
        journal._committer._put(_Call(fail, journal._loop.create_future()))  # type: ignore[union-attr]
        await until(lambda: journal.fault is not None)
        ended: list[str] = []
        graph = SimpleNamespace(pipelines=[SimpleNamespace(journal=journal)])
        supervision = Supervision(lambda: ended.append("ended"))
        supervision.watch(graph)  # type: ignore[arg-type]
        assert ended == ["ended"]
        assert "the committer ended" in str(supervision.fault)


async def test_what_was_answered_from_memory_is_committed_at_the_end_however_much_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path, durability=Durability.NONE) as journal:
        for value in range(8):
            await append(journal, batch_of(value, service="s" * 4 * 2**20))
    async with opened(tmp_path) as journal:
        assert journal.items == 8


async def test_dead_letters_do_not_let_the_log_grow(tmp_path: Path) -> None:
    big = batch_of(1.0, service="s" * 2**20)
    async with opened(tmp_path) as journal:
        for position in range(1, 101):
            refused = [Refused(position, big, "no")]
            await journal.call(partial(JournalFile.bury, exporter="e", cursor=None, refused=refused, max_bytes=2**30))
        assert (tmp_path / "events.db-wal").stat().st_size < LOG_BYTES + 2 * 2**20


async def push_too_much(journal: Journal) -> None:
    for value in range(100):
        await append(journal, batch_of(value))


async def test_an_exporter_whose_place_cannot_be_given_up_keeps_no_journal_full(tmp_path: Path) -> None:
    def refuse(delivery: Delivery) -> None:
        raise Retryable("down")

    taking, broken = Sink("taking"), Sink("broken", refuse)
    async with delivering(tmp_path, taking, broken, max_bytes=100) as (journal, delivery):
        with pytest.raises(Overloaded, match="is full"):
            await push_too_much(journal)
        with sqlite3.connect(tmp_path / "events.db", isolation_level=None) as other:
            other.execute("CREATE TRIGGER deny BEFORE DELETE ON cursors BEGIN SELECT RAISE(ABORT, 'not now'); END")
            with pytest.raises(Overloaded, match="not now"):
                await delivery.remove(delivery.workers[1], 0)
        other.close()
        await until(lambda: journal.failure is None)
        await append(journal, batch_of(0))


async def test_who_has_not_begun_saves_no_cursor(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        delivery = PipelineDelivery(journal, [Sink()])
        await delivery.stop(0)
        delivery.note_saved()
    async with opened(tmp_path) as journal:
        assert await journal.call(lambda file: file.cursors()) == {}


def corrupt_files(folder: Path) -> list[Path]:
    """What was set aside there."""
    return list(folder.glob("events.db.corrupt-*"))
