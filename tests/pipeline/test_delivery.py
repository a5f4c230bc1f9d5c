"""Delivery: each exporter at its own pace, nothing lost, nothing given on twice by the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from pipeline import ComponentConfig, Delivery, EventBatch, Exporter, Permanent, Retryable
from pipeline.delivery import PipelineDelivery
from pipeline.journal import Journal
from pipeline.journal_settings import JournalSettings
from pipeline.testing import NopHost
from tests.pipeline.test_journal import append, batch_of

pytestmark = pytest.mark.anyio


class Sink(Exporter[ComponentConfig]):
    """Remembers the values that it was handed; `refuse` may raise instead."""

    def __init__(self, id: str = "sink", refuse: Callable[[Delivery], None] = lambda delivery: None) -> None:
        super().__init__(id, ComponentConfig(), NopHost())
        self.refuse = refuse
        self.deliveries: list[list[float]] = []
        self.changed = anyio.Event()

    async def export(self, delivery: Delivery) -> None:
        self.refuse(delivery)
        self.deliveries.append([batch.events[0].value for batch in delivery.batches if isinstance(batch, EventBatch)])
        self.changed.set()
        self.changed = anyio.Event()

    @property
    def values(self) -> list[float]:
        return [value for delivery in self.deliveries for value in delivery]

    async def holds(self, count: int) -> None:
        while len(self.values) < count:
            await self.changed.wait()


class EagerSink(Sink):
    at_once = True


class KeepingSink(Sink):
    """Stores its position together with what it takes, as a database does."""

    keeps_position = True
    stored: int | None = None

    async def export(self, delivery: Delivery) -> None:
        await super().export(delivery)
        self.stored = delivery.upto

    async def position(self, pipeline: str, journal_id: str = "") -> int | None:
        return self.stored


@asynccontextmanager
async def delivering(
    folder: Path,
    *sinks: Exporter[Any],
    size: int = 1,
    interval: float = 60.0,
    accept_reset: bool = False,
    max_bytes: int = 2**30,
    max_dead_letter_bytes: int = 2**20,
) -> AsyncIterator[tuple[Journal, PipelineDelivery]]:
    settings = JournalSettings(folder, size, interval, max_bytes, max_dead_letter_bytes=max_dead_letter_bytes)
    journal = Journal("events", settings)
    delivery = PipelineDelivery(journal, sinks)
    async with anyio.create_task_group() as tasks:
        try:
            await journal.open()
            await delivery.start(tasks, accept_reset=accept_reset)
            yield journal, delivery
        finally:
            with anyio.CancelScope(shield=True):
                await delivery.stop(grace=1)
                await journal.close()


async def test_a_batch_is_delivered_when_size_is_reached_and_not_before(tmp_path: Path) -> None:
    sink, eager = Sink(), EagerSink("eager")
    async with delivering(tmp_path, sink, eager, size=3) as (journal, _):
        for value in range(2):
            await append(journal, batch_of(value))
            await eager.holds(value + 1)
        assert sink.values == []
        await append(journal, batch_of(2))
        await sink.holds(3)
        assert sink.deliveries == [[0, 1, 2]]


async def test_what_is_due_together_is_delivered_at_once_although_it_exceeds_one_delivery(tmp_path: Path) -> None:
    sink = Sink()
    async with delivering(tmp_path, sink, size=3) as (journal, _):
        journal.memory.configure(0, 1)  # a delivery holds one batch
        for value in range(3):
            await append(journal, batch_of(value))
        with anyio.fail_after(20):  # a third of the interval
            await sink.holds(3)
        assert sink.deliveries == [[0], [1], [2]]


async def test_a_batch_is_delivered_when_it_has_waited_for_the_interval(tmp_path: Path) -> None:
    sink = Sink()
    async with delivering(tmp_path, sink, size=1000, interval=0.05) as (journal, _):
        await append(journal, batch_of(1))
        await sink.holds(1)


async def test_flush_returns_when_everything_has_been_delivered(tmp_path: Path) -> None:
    sink = Sink()
    async with delivering(tmp_path, sink, size=1000) as (journal, delivery):
        for value in range(5):
            await append(journal, batch_of(value))
        await delivery.flush()
        assert sink.values == [0, 1, 2, 3, 4]


async def test_flush_does_not_wait_for_an_exporter_that_does_not_work(tmp_path: Path) -> None:
    def down(delivery: Delivery) -> None:
        raise Retryable("connection refused")

    dead, sink = Sink("dead", down), Sink()
    async with delivering(tmp_path, dead, sink) as (journal, delivery):
        await append(journal, batch_of(1))
        await delivery.flush()
        assert sink.values == [1]
        assert delivery.workers[0].failure == "connection refused"
        assert delivery.backlog() == 0


async def test_a_dead_exporter_delays_no_other_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    up = False

    def until_up(delivery: Delivery) -> None:
        if not up:
            raise ConnectionRefusedError("down")

    dead, sink = Sink("dead", until_up), Sink()
    async with delivering(tmp_path, dead, sink) as (journal, _):
        for value in range(20):
            await append(journal, batch_of(value))
        await sink.holds(20)
        up = True
        await dead.holds(20)
        assert dead.values == sink.values == list(range(20))


async def test_one_batch_that_is_refused_for_good_is_found_and_kept(tmp_path: Path) -> None:
    def poisoned(delivery: Delivery) -> None:
        if any(isinstance(batch, EventBatch) and batch.events[0].value == 13 for batch in delivery.batches):
            raise Permanent("unlucky")

    sink = Sink(refuse=poisoned)
    async with delivering(tmp_path, sink, size=1000) as (journal, delivery):
        for value in range(20):
            await append(journal, batch_of(value))
        await delivery.flush()
        assert sink.values == [value for value in range(20) if value != 13]
        assert journal._committer is not None
        query = "SELECT exporter, position, reason FROM dead_letters"
        letters = await journal._committer.call(lambda file: file._connection.execute(query).fetchall())
        assert letters == [("exporter.sink", 14, "unlucky")]


async def test_a_poison_batch_moves_the_position_that_the_exporter_keeps(tmp_path: Path) -> None:
    def poisoned(delivery: Delivery) -> None:
        if delivery.batches:
            raise Permanent("never")

    sink = KeepingSink(refuse=poisoned)
    async with delivering(tmp_path, sink) as (journal, delivery):
        await append(journal, batch_of(1))
        await delivery.flush()
        assert sink.stored == 1


async def test_everything_taken_frees_the_journal_without_further_traffic(tmp_path: Path) -> None:
    sink = Sink()
    async with delivering(tmp_path, sink) as (journal, delivery):
        freed = anyio.Event()
        await append(journal, batch_of(1))
        assert journal._committer is not None
        settled = journal._committer._settled

        def notice(commit: Any) -> None:
            settled(commit)
            if journal.bytes == 0:
                freed.set()

        journal._committer._settled = notice
        await delivery.flush()
        await freed.wait()


async def test_an_exporter_far_behind_reads_from_disk_what_memory_no_longer_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.journal_tail.TAIL_ITEMS", 10)
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    up = False

    def until_up(delivery: Delivery) -> None:
        if not up:
            raise Retryable("down")

    sink = Sink(refuse=until_up)
    async with delivering(tmp_path, sink) as (journal, _):
        for value in range(300):
            await append(journal, batch_of(value))
        up = True
        await sink.holds(300)
        assert sink.values == list(range(300))
