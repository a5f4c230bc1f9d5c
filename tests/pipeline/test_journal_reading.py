"""Reading a journal back when something fails: what was accepted is given up only where it is damaged, never for an error that passes."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import pytest

from pipeline.dead_letters import Refused
from pipeline.high_water import HighWaterMark
from pipeline.journal import Journal
from pipeline.journal_file import JournalFile
from pipeline.salvage import Damaged
from tests.pipeline.test_delivery import Sink, delivering
from tests.pipeline.test_journal import append, batch_of, opened

pytestmark = pytest.mark.anyio

COUNT = 30


@asynccontextmanager
async def waiting(folder: Path) -> AsyncIterator[Journal]:
    """A journal whose batches are on the disk alone."""
    async with opened(folder) as journal:
        for value in range(COUNT):
            await append(journal, batch_of(value))
    async with opened(folder) as journal:
        yield journal


def failing(
    execute: Callable[..., Awaitable[Iterable[Any]]], beginning: str, *errors: BaseException
) -> Callable[..., Awaitable[Iterable[Any]]]:
    """The same, which raises these first when it is to do what begins so."""
    left = list(errors)

    async def executes(sql: str, *arguments: Any) -> Iterable[Any]:
        if left and sql.startswith(beginning):
            raise left.pop()
        return await execute(sql, *arguments)

    return executes


async def test_an_error_that_passes_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    sink = Sink()
    down = True

    def refuse(delivery: object) -> None:
        if down:
            raise RuntimeError("down")

    sink.refuse = refuse
    async with delivering(tmp_path, sink) as (journal, delivery):
        for value in range(COUNT):
            await append(journal, batch_of(value))
    down = False
    async with delivering(tmp_path, sink, size=2 * COUNT) as (journal, delivery):
        connection = journal._reader._connection
        assert connection is not None
        errors = [sqlite3.OperationalError("disk I/O error") for _ in range(3)]
        execute = failing(connection.execute_fetchall, "SELECT payload", *errors)
        monkeypatch.setattr(connection, "execute_fetchall", execute)
        await delivery.flush()
        await sink.holds(COUNT)
        assert sink.values == list(range(COUNT))
        assert delivery.workers[0].account.missing == 0


async def test_a_page_that_cannot_be_read_costs_the_rows_that_are_in_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        for value in range(10):
            await append(journal, batch_of(*range(value, value + 2000)))
    path = tmp_path / "events.db"
    content = path.read_bytes()
    with sqlite3.connect(path) as other:
        ((payload,),) = other.execute("SELECT payload FROM journal WHERE first = 10")
    other.close()
    # The first overflow page of the last row is made to lead nowhere.
    end = content.rindex(payload[6000:6100]) // 4096 * 4096
    path.write_bytes(content[:end] + b"\xff\xff\xff\xff" + content[end + 4 :])
    async with opened(tmp_path) as journal:
        groups = await journal._reader.read(0, 10)
        assert [group.last for group in groups if group.batches] == list(range(1, 10))


async def test_a_reader_that_cannot_open_the_new_file_does_not_stay_with_the_one_that_was_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with waiting(tmp_path) as journal:
        await journal._reader.read(0, COUNT)
        with pytest.raises(Exception, match="damaged"):
            await journal.call(partial(JournalFile.report, error=Damaged("damaged")))
        await journal.call(lambda file: file.cursors())  # of the file that has taken its place
        await append(journal, batch_of(COUNT))
        connect = aiosqlite.connect

        async def fail(*arguments: Any, **options: Any) -> None:
            monkeypatch.setattr(aiosqlite, "connect", connect)
            raise sqlite3.OperationalError("unable to open database file")

        monkeypatch.setattr(aiosqlite, "connect", fail)
        with pytest.raises(sqlite3.OperationalError):
            await journal._reader.read(0, COUNT + 1)
        groups = await journal._reader.read(COUNT, COUNT + 1)
        assert [list(group.batches) for group in groups] == [[batch_of(COUNT)]]


async def test_nobodys_connection_is_closed_while_he_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with waiting(tmp_path) as journal:
        reader = journal._reader
        reading, go_on, found = anyio.Event(), anyio.Event(), []
        assert reader._connection is not None
        execute = reader._connection.execute_fetchall

        async def executes(sql: str, *arguments: Any) -> Iterable[Any]:
            if sql.startswith("SELECT payload"):
                reading.set()
                await go_on.wait()
            return await execute(sql, *arguments)

        monkeypatch.setattr(reader._connection, "execute_fetchall", executes)

        async def read() -> None:
            found.extend(await reader.read(0, COUNT))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await reading.wait()
            with pytest.raises(Exception, match="damaged"):
                await journal.call(partial(JournalFile.report, error=Damaged("damaged")))
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            go_on.set()
        assert [len(group.batches) for group in found] == [1] * (2 * COUNT)


async def test_one_read_brings_no_more_bytes_than_memory_should_hold(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        for value in range(12):
            await append(journal, batch_of(value, service="s" * 4 * 2**20))
        position, reads = 0, []
        while position < journal.last:
            groups = await journal._reader.read(position, journal.last)
            reads.append(sum(group.size for group in groups) / 2**20)
            position = groups[-1].last
        assert len(reads) == 3
        assert max(reads) < 20


async def test_a_log_that_somebody_reads_is_not_checkpointed_with_every_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[HighWaterMark] = []
    monkeypatch.setattr(HighWaterMark, "synchronise", lambda mark: tries.append(mark))
    big = batch_of(1.0, service="s" * 2**20)
    async with opened(tmp_path) as journal:
        with closing(sqlite3.connect(tmp_path / "events.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM state").fetchall()
            for position in range(1, 61):
                refused = [Refused(position, big, "no")]
                bury = partial(JournalFile.bury, exporter="e", cursor=None, refused=refused, max_bytes=2**30)
                await journal.call(bury)
            assert 2 <= len(tries) <= 8
