"""The handover: what an exporter refuses for good is found and kept, everything else is delivered, and nothing is lost."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from pipeline import Blocked, Delivery, EventBatch, MetricBatch, Oversized, Permanent, Retryable
from pipeline.data import Batch
from pipeline.dead_letters import DeadLetter, content, listed
from pipeline.handover import SEARCH_TRIES
from pipeline.journal import Journal
from tests.pipeline.test_delivery import KeepingSink, Sink, delivering
from tests.pipeline.test_journal import NOW, append, batch_of

pytestmark = pytest.mark.anyio


class Taker(Sink):
    """Remembers every value of the batches that it took, and the size in items of each try."""

    def __init__(self, refuse: Callable[[Delivery], None] = lambda delivery: None) -> None:
        super().__init__(refuse=refuse)
        self.tries: list[int] = []
        self.taken: list[float] = []

    async def export(self, delivery: Delivery) -> None:
        self.tries.append(delivery.items)
        await super().export(delivery)
        self.taken += values_of(*delivery.batches)


class KeepingTaker(Taker, KeepingSink):
    """Stores its position with its data."""


def values_of(*batches: Batch) -> list[float]:
    return [event.value for batch in batches if isinstance(batch, EventBatch) for event in batch.events]


def refusing(*poison: float, error: Callable[[str], Permanent] = Permanent) -> Callable[[Delivery], None]:
    """Refuses whatever holds one of these values."""

    def refuse(delivery: Delivery) -> None:
        if bad := set(poison).intersection(values_of(*delivery.batches)):
            raise error(f"poison: {min(bad):g}")

    return refuse


async def letters(journal: Journal) -> list[tuple[DeadLetter, list[float]]]:
    """The dead letters, with the values of the events that they hold."""
    found = await journal.call(lambda file: listed(file._connection))
    held = await journal.call(lambda file: [content(file._connection, each.id) for each in found])
    return [(each, values_of(batch)) for each, batch in zip(found, held, strict=True) if batch is not None]


async def buried(journal: Journal) -> list[float]:
    return [value for _, values in await letters(journal) for value in values]


async def test_a_poison_item_is_found_in_its_batch_and_only_it_is_kept(tmp_path: Path) -> None:
    sink = Taker(refusing(13, 17))
    async with delivering(tmp_path, sink, size=1000) as (journal, delivery):
        for start in range(0, 30, 10):
            await append(journal, batch_of(*range(start, start + 10)))
        await delivery.flush()
        assert sorted(sink.taken) == [value for value in range(30) if value not in (13, 17)]
        found = await letters(journal)
        assert [(each.exporter, each.position, each.reason, values) for each, values in found] == [
            ("exporter.sink", 2, "poison: 13", [13]),
            ("exporter.sink", 2, "poison: 17", [17]),
        ]
        (worker,) = delivery.workers
        assert (worker.handover.sent, worker.handover.dead_lettered, worker.pending) == (28, 2, 0)
        assert (worker.position, worker.failure) == (3, None)


@pytest.mark.parametrize("poison", [0, 4095, 4096, 8191])
async def test_one_poison_of_many_items_is_found_in_few_tries(tmp_path: Path, poison: int) -> None:
    sink = Taker(refusing(poison))
    async with delivering(tmp_path, sink, size=10_000) as (journal, delivery):
        await append(journal, batch_of(*range(8192)))
        await delivery.flush()
        assert len(sink.tries) <= 2 * math.log2(8192) + 2
        assert sorted(sink.taken) == [value for value in range(8192) if value != poison]
        assert await buried(journal) == [poison]


@pytest.mark.parametrize("a_batch", [1, 50, 2000])
async def test_when_all_is_poison_the_search_ends_and_all_of_it_is_kept(tmp_path: Path, a_batch: int) -> None:
    sink = Taker(refusing(*range(2000)))
    async with delivering(tmp_path, sink, size=10_000) as (journal, delivery):
        batches = (batch_of(*range(start, start + a_batch)) for start in range(0, 2000, a_batch))
        await asyncio.gather(*(append(journal, batch) for batch in batches))
        await delivery.flush()
        assert len(sink.tries) <= SEARCH_TRIES + math.log2(2000) + 1
        assert (sink.taken, await buried(journal)) == ([], [*range(2000)])
        assert delivery.workers[0].handover.dead_lettered == 2000


async def test_what_is_too_large_is_cut_until_it_fits_however_often_that_takes(tmp_path: Path) -> None:
    def refuse(delivery: Delivery) -> None:
        if delivery.items > 3:
            raise Oversized("at the most 3")
        refusing(7)(delivery)

    sink = Taker(refuse)
    async with delivering(tmp_path, sink, size=10_000) as (journal, delivery):
        await append(journal, batch_of(*range(2000)))
        await delivery.flush()
        assert sum(tries > 3 for tries in sink.tries) > 2 * SEARCH_TRIES
        assert sorted(sink.taken) == [value for value in range(2000) if value != 7]
        assert await buried(journal) == [7]


async def test_what_is_too_large_is_cut_although_the_search_for_poison_has_ended(tmp_path: Path) -> None:
    def refuse(delivery: Delivery) -> None:
        if delivery.items > 1:
            raise Oversized("one by one")
        refusing(*range(SEARCH_TRIES * 2))(delivery)

    sink, count = Taker(refuse), SEARCH_TRIES * 4
    async with delivering(tmp_path, sink, size=10_000) as (journal, delivery):
        await append(journal, batch_of(*range(count)))
        await delivery.flush()
        assert sink.taken == [*range(SEARCH_TRIES * 2, count)]
        assert await buried(journal) == [*range(SEARCH_TRIES * 2)]


async def test_one_item_that_is_too_large_is_kept(tmp_path: Path) -> None:
    sink = Taker(refusing(1, error=Oversized))
    async with delivering(tmp_path, sink, size=1000) as (journal, delivery):
        await append(journal, batch_of(0, 1, 2))
        await delivery.flush()
        assert (sink.taken, await buried(journal)) == ([0, 2], [1])


async def test_what_shall_not_be_divided_is_kept_whole_at_once(tmp_path: Path) -> None:
    sink = Taker(refusing(3, error=lambda message: Permanent(message, divide=False)))
    async with delivering(tmp_path, sink, size=1000) as (journal, delivery):
        for start in (0, 2, 4):
            await append(journal, batch_of(start, start + 1))
        await delivery.flush()
        assert (sink.tries, sink.taken) == ([6], [])
        assert [(each.position, values) for each, values in await letters(journal)] == [
            (1, [0, 1]),
            (2, [2, 3]),
            (3, [4, 5]),
        ]


async def test_an_exporter_that_keeps_its_position_is_handed_whole_batches_only(tmp_path: Path) -> None:
    sink = KeepingTaker(refusing(3))
    async with delivering(tmp_path, sink, size=1000) as (journal, delivery):
        for start in (0, 2, 4, 6):
            await append(journal, batch_of(start, start + 1))
        await delivery.flush()
        assert sink.taken == [0, 1, 4, 5, 6, 7]
        assert all(items % 2 == 0 for items in sink.tries)
        assert [(each.position, values) for each, values in await letters(journal)] == [(2, [2, 3])]
        assert sink.stored == 4


async def test_a_move_of_a_position_that_is_kept_is_tried_again_whatever_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.001)
    errors = [ExceptionGroup("of a task group", [Permanent("no")]), Permanent("no")]

    def refuse(delivery: Delivery) -> None:
        if delivery.batches:
            raise Permanent("never")
        if errors:
            raise errors.pop()

    sink = KeepingTaker(refuse)
    async with delivering(tmp_path, sink) as (journal, delivery):
        await append(journal, batch_of(1))
        with anyio.fail_after(5):
            while sink.stored != 1:
                await sink.changed.wait()
        assert await buried(journal) == [1]
        assert delivery.workers[0].handover.attempts.failed_tries == 2


async def test_metrics_that_cannot_be_read_are_kept_whole_and_end_no_worker(tmp_path: Path) -> None:
    def refuse(delivery: Delivery) -> None:
        if any(isinstance(batch, MetricBatch) for batch in delivery.batches):
            raise Permanent("garbage")

    sink = Taker(refuse)
    async with delivering(tmp_path, sink, size=1000) as (journal, delivery):
        await append(journal, MetricBatch(b"\xff\xff\xff", 5, NOW))
        await append(journal, batch_of(1))
        await delivery.flush()
        assert sink.taken == [1]
        (letter,) = await journal.call(lambda file: listed(file._connection))
        assert (letter.items, letter.reason) == (5, "garbage")
        assert delivery.workers[0].failure is None


async def test_a_reason_that_no_file_could_hold_holds_up_nothing(tmp_path: Path) -> None:
    def refuse(delivery: Delivery) -> None:
        raise Permanent("\udcff" + "x" * 100_000)

    async with delivering(tmp_path, Taker(refuse)) as (journal, delivery):
        await append(journal, batch_of(1))
        with anyio.fail_after(5):
            await delivery.flush()
        ((letter, _),) = await letters(journal)
        assert letter.reason.startswith("?xxx")
        assert len(letter.reason) < 10_000


async def test_an_exporter_that_is_blocked_says_why_and_is_probed_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.001)
    monkeypatch.setattr(Blocked, "PROBE_SECONDS", 0.3)
    times: list[float] = []
    errors: list[Exception] = [Blocked("401", "unauthorized"), Retryable("503"), Blocked("401", "unauthorized")]
    seen: list[str | None] = []

    def refuse(delivery: Delivery) -> None:
        times.append(asyncio.get_running_loop().time())
        seen.append(attempts.blocked)
        if errors:
            raise errors.pop()

    sink = Taker(refuse)
    async with delivering(tmp_path, sink) as (journal, delivery):
        attempts = delivery.workers[0].handover.attempts
        await append(journal, batch_of(1))
        await sink.holds(1)
        assert seen == [None, "unauthorized", None, "unauthorized"]
        assert attempts.blocked is None
        waited = [after - before for before, after in pairwise(times)]
        assert [seconds >= 0.3 for seconds in waited] == [True, False, True]
        assert await letters(journal) == []


async def test_what_is_interrupted_in_the_search_is_kept_in_the_journal_and_delivered_by_the_next_start(
    tmp_path: Path,
) -> None:
    searching = anyio.Event()

    def refuse(delivery: Delivery) -> None:
        refusing(3)(delivery)
        if 7.0 in values_of(*delivery.batches):
            searching.set()
            raise Retryable("down")

    first = Taker(refuse)
    async with delivering(tmp_path, first) as (journal, _):
        await append(journal, batch_of(*range(8)))
        await searching.wait()
    assert sorted(first.taken) == [0, 1, 2]
    second = Taker()
    async with delivering(tmp_path, second) as (journal, delivery):
        assert await letters(journal) == []
        await delivery.flush()
        assert second.taken == [*range(8)]


async def test_what_goes_down_in_the_middle_of_a_search_is_searched_to_the_end_once_it_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.001)

    def refuse(delivery: Delivery) -> None:
        refusing(3)(delivery)
        if len(sink.tries) % 2:
            raise Retryable("every other time")

    sink = Taker(refuse)
    async with delivering(tmp_path, sink) as (journal, _):
        await append(journal, batch_of(*range(8)))
        await append(journal, batch_of(8))
        with anyio.fail_after(5):
            while 8 not in sink.taken:
                await sink.changed.wait()
        assert sorted(sink.taken) == [0, 1, 2, 4, 5, 6, 7, 8]
        assert await buried(journal) == [3]
