"""Exporters whose state is saved less often than they take deliveries, and those that hold something back."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import Delivery, Overloaded, Retryable
from pipeline.journal import Journal
from tests.pipeline.test_delivery import EagerSink, KeepingSink, Sink, delivering
from tests.pipeline.test_journal import append, batch_of
from tests.running import until

pytestmark = pytest.mark.anyio


class SavingSink(EagerSink):
    """Takes at once; what it took is durable up to `saved_upto`, which a test moves."""

    keeps_position = True

    def __init__(self, saved_upto: int | None = None) -> None:
        super().__init__("saving")
        self.saved_upto = saved_upto

    async def position(self, pipeline: str, journal_id: str = "") -> int | None:
        return self.saved_upto

    def saved(self, pipeline: str) -> int | None:
        return self.saved_upto or 0


class HoldingSink(EagerSink):
    """Holds back what it takes until it is asked to give it on."""

    given_on = 0
    refusal: Exception | None = None

    async def flush(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.given_on = len(self.values)


async def fill(journal: Journal) -> None:
    """Append until it refuses."""
    for value in range(1000):
        await append(journal, batch_of(value))


async def test_what_was_taken_but_not_saved_comes_again_after_a_restart(tmp_path: Path) -> None:
    first = SavingSink()
    async with delivering(tmp_path, first) as (journal, delivery):
        for value in range(4):
            await append(journal, batch_of(value))
        await delivery.flush()
        assert first.values == [0, 1, 2, 3]
        first.saved_upto = 3
    again = SavingSink(saved_upto=3)
    async with delivering(tmp_path, again):
        await again.holds(1)
        assert again.values == [3]


async def test_what_was_never_saved_comes_again_as_a_whole(tmp_path: Path) -> None:
    async with delivering(tmp_path, SavingSink()) as (journal, delivery):
        for value in range(3):
            await append(journal, batch_of(value))
        await delivery.flush()
    again = SavingSink()
    async with delivering(tmp_path, again):
        await again.holds(3)
        assert again.values == [0, 1, 2]


async def test_a_journal_that_is_full_empties_once_its_content_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.delivery.LOOK_AGAIN", 0.01)
    monkeypatch.setattr("pipeline.journal.CURSORS_SAVED_EVERY", 0.01)
    saving = SavingSink()
    async with delivering(tmp_path, saving, KeepingSink(), max_bytes=2000) as (journal, delivery):
        with pytest.raises(Overloaded):
            await fill(journal)
        await delivery.flush()
        assert journal.failure is not None
        saving.saved_upto = journal.last
        await until(lambda: journal.failure is None)
        await append(journal, batch_of(1))


async def test_in_memory_nothing_is_kept_for_an_exporter_that_has_taken_it(tmp_path: Path) -> None:
    async with delivering(tmp_path, SavingSink()) as (journal, delivery):
        await append(journal, batch_of(1))
        await delivery.flush()
        assert journal.in_memory(1) is None
        assert journal.bytes > 0


async def test_flush_waits_until_what_is_held_back_has_been_given_on(tmp_path: Path) -> None:
    sink = HoldingSink()
    async with delivering(tmp_path, sink) as (journal, delivery):
        await append(journal, batch_of(1, 2))
        assert await delivery.flush() == ([], [])
        assert sink.given_on == len(sink.values) == 1


async def test_flush_names_an_exporter_that_cannot_give_on_what_it_holds_back(tmp_path: Path) -> None:
    sink = HoldingSink("holding")
    sink.refusal = Overloaded("the journal is full")
    async with delivering(tmp_path, sink) as (journal, delivery):
        await append(journal, batch_of(1))
        assert await delivery.flush() == (["exporter holding"], [])


async def test_a_flush_of_some_waits_for_nobody_else(tmp_path: Path) -> None:
    def down(_: object) -> None:
        raise Retryable("down")

    eager, slow = EagerSink("eager"), Sink("slow", down)
    async with delivering(tmp_path, eager, slow, size=1000) as (journal, delivery):
        await append(journal, batch_of(1))
        assert await delivery.flush({eager}) == ([], [])
        assert eager.values == [1]
        assert delivery.workers[1].failure is None, "the other was not even asked"


async def test_a_worker_tells_since_when_something_waits(tmp_path: Path) -> None:
    def down(_: object) -> None:
        raise Retryable("down")

    eager, dead = EagerSink("eager"), Sink("dead", down)
    async with delivering(tmp_path, eager, dead) as (journal, delivery):
        batch = batch_of(1)
        await append(journal, batch)
        await delivery.flush()
        assert [worker.oldest for worker in delivery.workers] == [None, batch.received_at]
        assert [worker.handover.sent for worker in delivery.workers] == [1, 0]
        assert delivery.workers[1].handover.attempts.failed_tries == 1


async def test_nothing_is_trimmed_beyond_the_cursor_that_the_journal_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    up = False

    def until_up(delivery: Delivery) -> None:
        if not up:
            raise Retryable("down")

    saving, slow = SavingSink(), Sink(refuse=until_up)
    async with delivering(tmp_path, saving, slow) as (journal, _):
        await append(journal, batch_of(1.0))
        await saving.holds(1)
        saving.saved_upto = 1
        up = True
        await slow.holds(1)
        await until(lambda: journal.bytes == 0)
        cursors = await journal.call(lambda file: file.cursors())
        assert cursors["exporter.saving"].position == 1
