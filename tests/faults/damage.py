"""Damage to the files of a journal that was left by a crash, and what comes out of it when it is opened again."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio

from pipeline import Delivery, EventBatch
from pipeline.books import Account, Cursor
from pipeline.data import Batch
from pipeline.delivery import PipelineDelivery
from pipeline.errors import Overloaded
from pipeline.journal import Journal
from pipeline.journal_file import JournalFile
from pipeline.journal_settings import JournalSettings
from tests.books import lines
from tests.pipeline.test_delivery import EagerSink
from tests.pipeline.test_journal import append, batch_of

BATCHES = 120
"""Each a commit of its own."""
ITEMS = 2
"""In each batch, so that what is missing can be told exactly."""
TAKEN = 20
"""How many of them one of the exporters has taken, as far as the journal has saved it."""
AHEAD, BEHIND = "exporter.ahead", "exporter.behind"
PER_PAGE = 12
"""More batches than a page of the file holds."""


def batch(number: int) -> EventBatch:
    """The batch at that position, of half a kilobyte."""
    return batch_of(*[number] * ITEMS, service=f"{number:0300}")


class Checkpointed(JournalFile):
    """What a transaction that a test is handed may do with the file."""

    def checkpoint(self) -> None:
        """Move everything into the main file, in the middle of a call."""
        self.commit()
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.begin()


async def crashed(folder: Path, checkpoint_at: int) -> Path:
    """A journal as `kill -9` leaves it, with all that was behind that position in the write-ahead log alone."""
    journal = Journal("events", JournalSettings(folder / "alive", 100, 1.0, 2**30))
    await journal.open()
    for exporter in (AHEAD, BEHIND):
        await journal.call(partial(JournalFile.place, exporter=exporter, cursor=Cursor(0, Account())))
    for number in range(1, BATCHES + 1):
        await append(journal, batch(number))
        if number == TAKEN:
            journal.advance(AHEAD, Cursor(TAKEN, Account(sent=TAKEN * ITEMS)))
        if number == checkpoint_at:
            await journal.call(Checkpointed.checkpoint)  # type: ignore[arg-type]
    left = folder / "left"
    left.mkdir()
    for name in ("events.db", "events.db-wal", "events.mark"):
        shutil.copyfile(folder / "alive" / name, left / name)
    await journal.close()
    shutil.rmtree(folder / "alive")
    return left


def flip(file: Path, chance: random.Random) -> str:
    """Turn one bit over. Returns what was done, for a test that fails."""
    data = bytearray(file.read_bytes())
    at, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
    data[at] ^= bit
    file.write_bytes(data)
    return f"{file.name}: bit {bit} of byte {at} ({at % 4096} of page {at // 4096})"


def truncate(file: Path, chance: random.Random) -> str:
    """Cut it off somewhere."""
    at = chance.randrange(file.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(at)
    return f"{file.name}: cut off at byte {at} ({at % 4096} of page {at // 4096})"


@dataclass
class Outcome:
    """What came of it, by exporter."""

    began: dict[str, int] = field(default_factory=dict)
    """Where each of them went on."""
    got: dict[str, list[Batch]] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    """Items, as the books have it."""
    unbalanced: dict[str, int] = field(default_factory=dict)

    def lost(self, exporter: str) -> int:
        """How many batches it did not get."""
        return BATCHES - self.began[exporter] - len(self.got[exporter][:-1])

    def wrong(self) -> list[str]:
        """All that must not be."""
        found = [f"the books of {exporter} differ by {items}" for exporter, items in self.unbalanced.items()]
        all_of_them = [batch(number) for number in range(BATCHES + 2)]
        for exporter, got in self.got.items():
            if got[-1:] != [all_of_them[-1]]:
                found.append(f"{exporter} did not get what came afterwards")
            began = self.began[exporter]
            if began > TAKEN or (exporter == BEHIND and began):
                found.append(f"{exporter} has skipped some: it began at {began}")
            if not _in_order(got, all_of_them[began + 1 :]):
                found.append(f"{exporter} got something that was never pushed, or got it twice")
            if self.missing[exporter] != self.lost(exporter) * ITEMS:
                found.append(
                    f"{exporter} lost {self.lost(exporter)} batches, but {self.missing[exporter]} items count as missing"
                )
        return found


def _in_order(got: Sequence[Batch], of: Sequence[Batch]) -> bool:
    rest = iter(of)
    return all(each in rest for each in got)


class Taking(EagerSink):
    """Keeps what it takes."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.batches: list[Batch] = []

    async def export(self, delivery: Delivery) -> None:
        self.batches += delivery.batches


@asynccontextmanager
async def delivering(folder: Path, *sinks: Taking) -> AsyncIterator[tuple[Journal, PipelineDelivery]]:
    """The journal in that folder, and its delivery to these."""
    journal = Journal("events", JournalSettings(folder, 100, 1.0, 2**30))
    await journal.open()
    delivery = PipelineDelivery(journal, sinks)
    try:
        async with anyio.create_task_group() as tasks:
            await delivery.start(tasks, accept_reset=False)
            try:
                yield journal, delivery
            finally:
                await delivery.stop(1)
                tasks.cancel_scope.cancel()
    finally:
        await journal.close()


async def _take_all(delivery: PipelineDelivery) -> None:
    while any(await delivery.flush()):  # noqa: ASYNC110 - whoever found damage tries again a little later
        await anyio.sleep(0.01)


async def _push(journal: Journal) -> None:
    while True:
        try:
            return await append(journal, batch(BATCHES + 1))
        except Overloaded:  # this was how the damage was found
            await anyio.sleep(0.01)


async def go_on(folder: Path) -> Outcome:
    """Start with these files, push once more, and let everybody take all there is."""
    sinks = (Taking("ahead"), Taking("behind"))
    outcome = Outcome()
    with anyio.fail_after(10):
        async with delivering(folder, *sinks) as (journal, delivery):
            outcome.began = {worker.exporter.name: worker.position for worker in delivery.workers}
            await _take_all(delivery)
            await _push(journal)
            await _take_all(delivery)
    outcome.got = {sink.name: sink.batches for sink in sinks}
    for line in lines(folder / "events.db"):
        outcome.missing[line.exporter] = line.account.missing
        if line.difference or line.pending:
            outcome.unbalanced[line.exporter] = line.difference or line.pending
    return outcome
