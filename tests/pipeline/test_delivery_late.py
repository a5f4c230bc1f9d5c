"""An exporter that keeps its own position and cannot say it at the start: its worker asks again, and nothing is lost meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

import pipeline.worker
from pipeline import Delivery, Position, Retryable, StartError, Store
from pipeline.books import Account
from pipeline.journal import Journal
from tests.pipeline.test_delivery import EagerSink, delivering
from tests.pipeline.test_delivery_restored import StoringSink, account, filled
from tests.pipeline.test_journal import append, batch_of
from tests.running import until

pytestmark = pytest.mark.anyio


class RemoteSink(StoringSink):
    """A store on another machine. `problem` is raised by each call while it is set, and `hangs` keeps them from returning."""

    def __init__(self, cursor: Position | None = None, id: str = "s" * 32) -> None:
        super().__init__(cursor, id)
        self.problem: BaseException | None = ConnectionRefusedError("server down")
        self.hangs: asyncio.Event | None = None
        self.asked = 0

    async def store(self) -> Store | None:
        self.asked += 1
        if self.hangs is not None:
            await self.hangs.wait()
        if self.problem is not None:
            raise self.problem
        return await super().store()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.02)
    monkeypatch.setattr("pipeline.attempts.LONGEST_BACKOFF", 0.05)
    monkeypatch.setattr(pipeline.worker, "ASK_SECONDS", 0.1)


PROBLEMS = [ConnectionRefusedError("server down"), TimeoutError(), SystemExit(1), asyncio.CancelledError()]


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: type(problem).__name__)
async def test_the_start_goes_on_and_the_exporter_gets_everything_once_it_answers(
    tmp_path: Path, problem: BaseException, known: bool
) -> None:
    cursor = (await filled(tmp_path, StoringSink(), (1.0,), (2.0,)))[-1] if known else None
    sink, other = RemoteSink(cursor), EagerSink("other")
    sink.problem = problem
    with anyio.fail_after(20):
        async with delivering(tmp_path, sink, other) as (journal, delivery):
            worker = delivery.workers[0]
            assert worker.failure is not None
            for value in (10, 11, 12):
                await append(journal, batch_of(value))
            await other.holds(3)
            await trimmed_as_far_as_allowed(journal)
            assert (await delivery.flush())[0] == ["exporter storing"]
            asked = sink.asked
            await until(lambda: sink.asked > asked + 1)
            assert sink.values == []
            sink.problem = None
            await until(lambda: worker.failure is None)
            await delivery.flush()
            assert sink.values == [10, 11, 12]
    assert account(tmp_path) == (Account(sent=5) if known else Account(sent=3))


async def trimmed_as_far_as_allowed(journal: Journal) -> None:
    """A trim as the next commits make it."""
    committer = journal._committer
    assert committer is not None
    upto = committer.trim_upto
    await journal.call(lambda file: file.trim(upto))


async def test_an_exporter_that_hangs_delays_no_start_and_is_named(tmp_path: Path) -> None:
    sink = RemoteSink()
    sink.problem, sink.hangs = None, asyncio.Event()
    with anyio.fail_after(20):
        async with delivering(tmp_path, sink) as (journal, delivery):
            assert "has not reported its position" in str(delivery.workers[0].failure)
            await append(journal, batch_of(1))
            sink.hangs.set()
            await sink.holds(1)
            assert sink.asked == 1, "the call that hung was not abandoned"


async def test_a_stop_does_not_wait_for_one_that_hangs(tmp_path: Path) -> None:
    sink = RemoteSink()
    sink.problem, sink.hangs = None, asyncio.Event()
    with anyio.fail_after(20):
        async with delivering(tmp_path, sink):
            pass


async def test_what_was_stored_meanwhile_by_its_own_account_is_not_delivered_again(tmp_path: Path) -> None:
    """The journal's cursor is behind the store's, as after `kill -9`."""

    def down(_: Delivery) -> None:
        raise Retryable("down")

    first = StoringSink()
    async with delivering(tmp_path, first, EagerSink("other", down)) as (journal, delivery):
        for value in (1, 2, 3):
            await append(journal, batch_of(value))
        await delivery.flush()
    assert first.cursor is not None
    with closing(sqlite3.connect(tmp_path / "events.db")) as connection, connection:
        connection.execute("UPDATE cursors SET position = 1, sent = 1 WHERE exporter = 'exporter.storing'")
    ahead, other = RemoteSink(first.cursor._replace(upto=2, items=2)), EagerSink("other")
    with anyio.fail_after(20):
        async with delivering(tmp_path, ahead, other) as (journal, delivery):
            await append(journal, batch_of(4))
            await other.holds(4)
            await trimmed_as_far_as_allowed(journal)
            ahead.problem = None
            await ahead.holds(2)
            assert ahead.values == [3, 4]
    assert account(tmp_path) == Account(sent=4)


async def test_a_restored_store_that_answers_late_is_counted_once(tmp_path: Path) -> None:
    cursors = await filled(tmp_path, StoringSink(), (1.0,), (2.0, 3.0), (4.0,))
    sink = RemoteSink(cursors[0])
    with anyio.fail_after(20):
        async with delivering(tmp_path, sink) as (journal, delivery):
            await append(journal, batch_of(9))
            sink.problem = None
            await sink.holds(1)
            assert sink.values == [9]
            assert delivery.workers[0].missing_at_start == 3
    assert account(tmp_path) == Account(sent=2, missing=3)


async def test_another_store_that_answers_late_is_blocked_and_gets_nothing(tmp_path: Path) -> None:
    await filled(tmp_path, StoringSink(), (1.0,), (2.0,))
    sink, other = RemoteSink(id="t" * 32), EagerSink("other")
    with anyio.fail_after(20):
        async with delivering(tmp_path, sink, other) as (journal, delivery):
            await append(journal, batch_of(3))
            sink.problem = None
            worker = delivery.workers[0]
            await until(lambda: worker.handover.attempts.blocked is not None)
            assert worker.handover.attempts.blocked == "another store"
            assert "has no cursor" in str(worker.failure)
            await other.holds(1)
            assert sink.values == []
    assert account(tmp_path) == Account(sent=2)


async def test_one_that_refuses_by_itself_ends_the_start(tmp_path: Path) -> None:
    """The negative control: what an exporter says for certain is not retried."""
    sink = RemoteSink()
    sink.problem = StartError("the wrong password", 78)
    with pytest.raises(ExceptionGroup) as group:
        async with delivering(tmp_path, sink):
            pytest.fail("it has started")
    assert group.group_contains(StartError, match="the wrong password")
    assert sink.asked == 1
