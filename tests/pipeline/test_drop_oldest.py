"""`when_full: drop_oldest`: an exporter that is down loses the oldest of what waits for it, and pushes are not refused for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import anyio
import anyio.lowlevel
import pytest

from pipeline import Delivery, Event, EventBatch, Exporter, ExporterConfig, Overloaded, Retryable
from pipeline.delivery import DROP_ABOVE, DROP_TO, PipelineDelivery
from pipeline.journal import Journal
from pipeline.journal_file import JournalFile
from pipeline.testing import NopHost
from tests.pipeline.test_delivery import delivering
from tests.pipeline.test_journal import NOW, append
from tests.running import until

pytestmark = pytest.mark.anyio

LIMIT = 2**20
BATCH_BYTES = 10_000
PER_LIMIT = LIMIT // BATCH_BYTES


@pytest.fixture(autouse=True)
def tidy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given up is trimmed soon: a second, which is nothing for a journal of many MiB, is long for one of one."""
    monkeypatch.setattr("pipeline.journal.CURSORS_SAVED_EVERY", 0.01)


class Forwarder(Exporter[ExporterConfig]):
    """Sends to somebody who may be away: fails while `down`. Remembers the values that it sent."""

    at_once = True

    def __init__(self, id: str, when_full: Literal["block", "drop_oldest"], *, down: bool) -> None:
        super().__init__(id, ExporterConfig(when_full=when_full), NopHost())
        self.down = down
        self.sent: list[float] = []

    async def export(self, delivery: Delivery) -> None:
        if self.down:
            raise Retryable("connection refused")
        self.sent += [
            event.value for batch in delivery.batches if isinstance(batch, EventBatch) for event in batch.events
        ]


def large(value: float) -> EventBatch:
    """A batch of two events of about `BATCH_BYTES` together."""
    events = [Event("custom", value, NOW, metadata={"text": "x" * (BATCH_BYTES // 2)}) for _ in range(2)]
    return EventBatch("test", events, NOW)


async def push(journal: Journal, *values: float) -> None:
    """Push as clients do that wait for each answer, and no faster than the journal is tidied up."""
    for value in values:
        await append(journal, large(value))
        await until(lambda: journal.bytes < DROP_ABOVE * LIMIT + 2 * BATCH_BYTES)


async def fill(journal: Journal) -> int:
    """Push until the journal refuses. Returns how many batches it took."""
    for value in range(10 * PER_LIMIT):
        try:
            await append(journal, large(value))
        except Overloaded:
            return value
    raise AssertionError("it never refused")


def twice(values: range) -> list[float]:
    return [float(value) for value in values for _ in range(2)]


async def test_the_oldest_is_given_up_and_counted_and_no_push_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away, healthy = Forwarder("away", "drop_oldest", down=True), Forwarder("healthy", "block", down=False)
    count = 4 * PER_LIMIT
    async with delivering(tmp_path, away, healthy, max_bytes=LIMIT) as (journal, delivery):
        worker, _ = delivery.workers
        await push(journal, *range(count))
        await until(lambda: healthy.sent == twice(range(count)))
        assert worker.account.dropped + worker.pending == 2 * count
        assert worker.pending / 2 < PER_LIMIT
        away.down = False
        await _retry_now(delivery)
        await until(lambda: worker.position == journal.last)
        # Not before: what the last push took over the threshold may have been given up since.
        dropped = worker.account.dropped
        assert away.sent == twice(range(dropped // 2, count)), "the oldest are what is missing"
        assert (worker.pending, len(away.sent)) == (0, 2 * count - dropped)
        assert delivery.workers[1].account.dropped == 0
    lines = [each.getMessage() for each in caplog.records if "are given up" in each.getMessage()]
    assert lines
    assert sum(int(line.removeprefix("the journal is full: ").split()[0]) for line in lines) == dropped
    assert "passed over" not in caplog.text


async def least_that_waits(folder: Path, count: int) -> float:
    """Fill a journal several times beside an exporter that is down: the least that waits for it after each loss, as a share."""
    away = Forwarder("away", "drop_oldest", down=True)
    async with delivering(folder, away, max_bytes=LIMIT) as (journal, delivery):
        (worker,) = delivery.workers
        shares = []
        for value in range(count):
            await push(journal, value)
            if worker.account.dropped:
                shares.append(worker.waiting.bytes / LIMIT)
        return min(shares)


async def test_no_more_is_given_up_than_down_to_the_lower_threshold(tmp_path: Path) -> None:
    assert await least_that_waits(tmp_path, 3 * PER_LIMIT) > DROP_TO - 0.02, "the last row may be half a percent below"


async def test_a_loss_by_an_outdated_size_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outdated(file: JournalFile, passed: int, needed: int, limit: int) -> int:
        # As if rows that were trimmed since the size was read counted twice.
        return file.position_after(size=int(2 * (DROP_ABOVE - DROP_TO) * limit), upto=needed)

    monkeypatch.setattr("pipeline.delivery._excess", outdated)
    assert await least_that_waits(tmp_path, 2 * PER_LIMIT) < DROP_TO - 0.02


async def _retry_now(delivery: PipelineDelivery) -> None:
    """End the wait for the next try, which may have grown long."""
    for worker in delivery.workers:
        worker.handover.attempts.interrupt()
        worker._due.set()


async def test_the_backoff_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 600.0)
    away = Forwarder("away", "drop_oldest", down=True)
    async with delivering(tmp_path, away, max_bytes=LIMIT) as (journal, delivery):
        (worker,) = delivery.workers
        await push(journal, *range(PER_LIMIT // 2))
        await until(lambda: worker.failure is not None)
        away.down = False
        await push(journal, *range(PER_LIMIT // 2, PER_LIMIT))
        await until(lambda: worker.account.dropped > 0)
        await until(lambda: worker.position == journal.last)
        assert away.sent == twice(range(worker.account.dropped // 2, PER_LIMIT))


async def test_by_default_a_full_journal_refuses_and_nothing_is_given_up(tmp_path: Path) -> None:
    away = Forwarder("away", "block", down=True)
    async with delivering(tmp_path, away, max_bytes=LIMIT) as (journal, delivery):
        taken = await fill(journal)
        assert (delivery.workers[0].account.dropped, delivery.workers[0].pending) == (0, 2 * taken)


async def test_nothing_is_given_up_while_another_exporter_needs_it_anyhow(tmp_path: Path) -> None:
    away, blocks = Forwarder("away", "drop_oldest", down=True), Forwarder("blocks", "block", down=True)
    async with delivering(tmp_path, away, blocks, max_bytes=LIMIT) as (journal, delivery):
        taken = await fill(journal)
        first, second = delivery.workers
        assert (first.account.dropped, first.pending, second.pending) == (0, 2 * taken, 2 * taken)


async def test_no_more_is_given_up_than_every_other_exporter_has_taken(tmp_path: Path) -> None:
    away, slow = Forwarder("away", "drop_oldest", down=True), Forwarder("slow", "block", down=False)
    async with delivering(tmp_path, away, slow, max_bytes=LIMIT) as (journal, delivery):
        await push(journal, *range(5))
        await until(lambda: delivery.workers[1].position == 5)
        slow.down = True
        await fill(journal)
        await until(lambda: delivery.workers[0].account.dropped > 0)
        assert (delivery.workers[0].position, delivery.workers[0].account.dropped) == (5, 10)


async def test_once_the_other_exporter_has_caught_up_a_full_journal_gets_room_again(tmp_path: Path) -> None:
    away, blocks = Forwarder("away", "drop_oldest", down=True), Forwarder("blocks", "block", down=True)
    async with delivering(tmp_path, away, blocks, max_bytes=LIMIT) as (journal, delivery):
        taken = await fill(journal)
        blocks.down = False
        await _retry_now(delivery)
        await until(lambda: blocks.sent == twice(range(taken)))
        await until(lambda: delivery.workers[0].account.dropped > 0)
        await until(lambda: journal.failure is None)
        await append(journal, large(1))


async def test_two_that_are_down_give_up_the_same(tmp_path: Path) -> None:
    one, two = Forwarder("one", "drop_oldest", down=True), Forwarder("two", "drop_oldest", down=True)
    async with delivering(tmp_path, one, two, max_bytes=LIMIT) as (journal, delivery):
        await push(journal, *range(2 * PER_LIMIT))
        await until(lambda: delivery.workers[0].position == delivery.workers[1].position)
        assert delivery.workers[0].account.dropped == delivery.workers[1].account.dropped > 0


async def test_what_was_given_up_stays_given_up_after_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = Forwarder("away", "drop_oldest", down=True)
    async with delivering(tmp_path, away, max_bytes=LIMIT) as (journal, delivery):
        await push(journal, *range(2 * PER_LIMIT))
    dropped = delivery.workers[0].account.dropped  # the last of it may have been given up at the end
    assert dropped > 0
    away = Forwarder("away", "drop_oldest", down=False)
    async with delivering(tmp_path, away, max_bytes=LIMIT) as (journal, delivery):
        assert delivery.workers[0].pending == 2 * 2 * PER_LIMIT - dropped
        await delivery.flush()
        assert away.sent == twice(range(dropped // 2, 2 * PER_LIMIT))
    assert "passed over" not in caplog.text


async def test_a_journal_that_was_left_full_is_given_room_at_the_start(tmp_path: Path) -> None:
    async with delivering(tmp_path, Forwarder("away", "block", down=True), max_bytes=LIMIT) as (journal, _):
        await fill(journal)
    async with delivering(tmp_path, Forwarder("away", "drop_oldest", down=True), max_bytes=LIMIT) as (
        journal,
        delivery,
    ):
        with anyio.fail_after(10):
            await until(lambda: journal.failure is None)
        await append(journal, large(1))
        assert delivery.workers[0].account.dropped > 0


async def test_what_comes_in_while_the_oldest_is_given_up_is_counted_as_waiting(tmp_path: Path) -> None:
    away = Forwarder("away", "drop_oldest", down=True)
    async with delivering(tmp_path, away, max_bytes=2**30) as (journal, delivery):
        (worker,) = delivery.workers
        for value in range(20):
            await append(journal, large(value))
        async with anyio.create_task_group() as tasks:
            for position in range(1, 21):
                tasks.start_soon(append, journal, large(19 + position))
                worker.drop_upto(position)
                await anyio.lowlevel.checkpoint()
        await until(lambda: worker.position == 20)
        assert (worker.account.dropped, worker.pending) == (40, 40)
