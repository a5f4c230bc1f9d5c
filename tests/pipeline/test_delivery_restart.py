"""Delivery after a restart: each exporter goes on where it was, whatever became of the others and of the journal."""

from __future__ import annotations

import logging
from pathlib import Path

import anyio
import pytest

from pipeline import Delivery, Overloaded, Retryable, StartError
from pipeline.journal import Journal
from pipeline.journal_settings import JournalSettings
from tests.pipeline.test_delivery import EagerSink, KeepingSink, Sink, delivering
from tests.pipeline.test_journal import append, batch_of

pytestmark = pytest.mark.anyio


async def test_after_a_restart_an_exporter_goes_on_where_it_was(tmp_path: Path) -> None:
    first = Sink()
    async with delivering(tmp_path, first) as (journal, delivery):
        await append(journal, batch_of(1))
        await delivery.flush()

    def down(delivery: Delivery) -> None:
        raise Retryable("down")

    async with delivering(tmp_path, Sink(refuse=down)) as (journal, _):
        await append(journal, batch_of(2))
    second = Sink()
    async with delivering(tmp_path, second, size=1):
        await second.holds(1)
        assert second.values == [2]


async def test_a_new_exporter_starts_at_the_end(tmp_path: Path) -> None:
    old = Sink("old")
    async with delivering(tmp_path, old) as (journal, delivery):
        await append(journal, batch_of(1))
        await delivery.flush()
    old, new = Sink("old"), Sink("new")
    async with delivering(tmp_path, old, new) as (journal, delivery):
        await append(journal, batch_of(2))
        await delivery.flush()
        assert new.values == [2]


async def test_an_exporter_that_left_gives_up_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with delivering(tmp_path, Sink("stays"), Sink("leaves")):
        pass
    with caplog.at_level(logging.WARNING):
        async with delivering(tmp_path, Sink("stays")) as (journal, _):
            assert set(await journal.call(lambda file: file.cursors())) == {"exporter.stays"}
    assert "exporter.leaves is no longer configured" in caplog.text


async def test_a_journal_that_was_lost_is_noticed_and_accepted_only_if_told_so(tmp_path: Path) -> None:
    keeping = KeepingSink()
    keeping.stored = 41
    with pytest.raises(ExceptionGroup) as raised:
        async with delivering(tmp_path, keeping):
            raise AssertionError("started")
    (error,) = raised.value.exceptions
    assert isinstance(error, StartError)
    assert "--accept-journal-reset" in str(error)
    async with delivering(tmp_path, keeping, accept_reset=True) as (journal, delivery):
        await append(journal, batch_of(1))
        await delivery.flush()
        assert (keeping.values, keeping.stored) == ([1], 42)


async def test_a_journal_that_is_refused_leaves_no_empty_one_behind(tmp_path: Path) -> None:
    journal = Journal("events", JournalSettings(tmp_path / "metrics-journal", 1, 60, 2**30))
    await journal.open()
    await journal.abandon()
    assert not (tmp_path / "metrics-journal").exists()
    await journal.open()
    await journal.close()
    await journal.open()
    await journal.abandon()
    assert (tmp_path / "metrics-journal" / "events.db").exists(), "it was there before"


async def test_a_journal_that_one_exporter_filled_has_room_again_once_that_one_is_gone(tmp_path: Path) -> None:
    def down(delivery: Delivery) -> None:
        raise Retryable("down")

    works = Sink("works")
    async with delivering(tmp_path, works, Sink("dead", down)) as (journal, delivery):
        await append(journal, batch_of(*range(60_000)))
        await delivery.flush()
    async with delivering(tmp_path, Sink("works"), max_bytes=2**20) as (journal, _):
        with anyio.fail_after(10):
            while True:
                try:
                    await append(journal, batch_of(1.0))
                    break
                except Overloaded:
                    await anyio.sleep(0.05)


async def test_a_position_inside_a_gap_is_passed_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeping, other = KeepingSink("keeping"), EagerSink("other")
    async with delivering(tmp_path, other, Sink("holds", lambda _: None)) as (journal, delivery):
        for value in range(3):
            await append(journal, batch_of(value))
        await delivery.flush()
    keeping.stored = 100

    def down(delivery: Delivery) -> None:
        raise Retryable("down")

    with anyio.fail_after(10):
        async with delivering(tmp_path, keeping, EagerSink("other"), Sink("holds", down), accept_reset=True) as (
            journal,
            delivery,
        ):
            await delivery.flush()
            assert [worker.position for worker in delivery.workers[:2]] == [100, 100]
    assert "positions 4 to 100 are damaged, or were trimmed" in caplog.text
