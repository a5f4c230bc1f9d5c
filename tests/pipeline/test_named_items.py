"""`Permanent(items=…)`: the items that an exporter names become dead letters, and the rest is delivered exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pipeline import Delivery, Permanent, Retryable
from pipeline.data import EventBatch, MetricBatch
from pipeline.halving import count_points, pick
from pipeline.testing import event_batch, metric_batch
from tests.pipeline.test_delivery import KeepingSink, Sink, delivering
from tests.pipeline.test_handover import KeepingTaker, Taker, buried, letters, refusing, values_of
from tests.pipeline.test_journal import append, batch_of

pytestmark = pytest.mark.anyio

KINDS = pytest.mark.parametrize("kind", [Taker, KeepingTaker])


def items_of(delivery: Delivery) -> Iterator[tuple[tuple[int, int], float]]:
    for number, batch in enumerate(delivery.batches):
        assert isinstance(batch, EventBatch)
        assert len(batch) > 0, "an exporter is never given an empty batch"
        yield from (((delivery.position(number), index), event.value) for index, event in enumerate(batch.events))


def naming(*poison: float, most: int = 1000) -> Callable[[Delivery], None]:
    """Names those items of a delivery that have these values, at most so many at once."""

    def refuse(delivery: Delivery) -> None:
        if bad := [item for item, value in items_of(delivery) if value in poison]:
            raise Permanent("poison", items=bad[:most])

    return refuse


@KINDS
@pytest.mark.parametrize("most", [1, 2, 1000])
async def test_named_items_become_dead_letters_and_the_rest_is_delivered_once(
    tmp_path: Path, kind: type[Taker], most: int
) -> None:
    poison = [0, 7, 13, 14, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29]  # the third batch is all poison
    sink = kind(naming(*poison, most=most))
    async with delivering(tmp_path, sink, size=1000) as (journal, delivery):
        for start in range(0, 40, 10):
            await append(journal, batch_of(*range(start, start + 10)))
        await delivery.flush()
        assert sink.taken == [value for value in range(40) if value not in poison]
        assert sorted(await buried(journal)) == poison
        found = [(each.position, values) for each, values in await letters(journal)]
        assert all(1 + value // 10 == position for position, values in found for value in values)
        (worker,) = delivery.workers
        assert (worker.handover.sent, worker.handover.dead_lettered, worker.pending) == (26, 14, 0)
        assert (worker.position, worker.unaccounted) == (4, 0)
        assert sink.deliveries[-1] == [1, 10, 30], "in one delivery"
        if isinstance(sink, KeepingSink):
            assert sink.stored == 4


@KINDS
@pytest.mark.parametrize(
    "items", [[(9, 0)], [(1, 99)], [(0, 0)], [(1, -1)], [("1", 0)], [None], [(1,)], [(1, 0.0)]], ids=repr
)
async def test_items_that_do_not_exist_are_ignored(tmp_path: Path, kind: type[Taker], items: Any) -> None:
    def refuse(delivery: Delivery) -> None:
        if 2 in values_of(*delivery.batches):
            raise Permanent("poison", items=items)

    sink = kind(refuse)
    async with delivering(tmp_path, sink, size=1000) as (journal, delivery):
        for value in range(4):
            await append(journal, batch_of(value))
        await delivery.flush()
        assert (sink.taken, await buried(journal)) == ([0, 1, 3], [2]), "as without items"


@KINDS
async def test_named_items_and_a_batch_that_is_refused_as_a_whole_are_all_kept(
    tmp_path: Path, kind: type[Taker]
) -> None:
    """Letters of one position must not overwrite each other."""
    name, refuse_all = naming(1, 11, 21), refusing(12)

    def refuse(delivery: Delivery) -> None:
        name(delivery)
        refuse_all(delivery)

    sink = kind(refuse)
    async with delivering(tmp_path, sink, size=1000) as (journal, delivery):
        for start in range(0, 30, 10):
            await append(journal, batch_of(*range(start, start + 3)))
        await delivery.flush()
        rest = [12] if kind is Taker else [10, 12]
        assert sorted(await buried(journal)) == sorted([1, 11, 21, *rest])
        assert sorted(sink.taken) == sorted({0, 1, 2, 10, 11, 12, 20, 21, 22} - {1, 11, 21, *rest})
        assert delivery.workers[0].unaccounted == 0


@KINDS
async def test_a_crash_between_the_burial_and_the_delivery_of_the_rest_repeats_nothing(
    tmp_path: Path, kind: type[Taker]
) -> None:
    name = naming(1, 3)
    buried_once = False

    def refuse(delivery: Delivery) -> None:
        nonlocal buried_once
        name(delivery)
        buried_once = True
        raise Retryable("ends here")

    first = kind(refuse)
    async with delivering(tmp_path, first, size=1000) as (journal, delivery):
        await append(journal, batch_of(0, 1, 2))
        await append(journal, batch_of(3))
        await append(journal, batch_of(4))
        assert await delivery.flush() == (["exporter sink"], [])
        assert buried_once
        assert await buried(journal) == [1, 3], "they are durable before the rest is delivered"
        assert delivery.workers[0].handover.dead_lettered == 0
    second = kind(name)
    async with delivering(tmp_path, second, size=1000) as (journal, delivery):
        await delivery.flush()
        assert (first.taken, second.taken) == ([], [0, 2, 4])
        assert await buried(journal) == [1, 3], "once"
        (worker,) = delivery.workers
        assert (worker.account.sent, worker.account.dead_lettered, worker.unaccounted) == (3, 2, 0)


async def test_an_error_of_a_class_that_does_not_have_items_is_one_without(tmp_path: Path) -> None:
    class Own(Permanent):
        def __init__(self) -> None:
            Exception.__init__(self, "poison")
            self.divide = True

    def refuse(delivery: Delivery) -> None:
        if 1 in values_of(*delivery.batches):
            raise Own

    sink = Taker(refuse)
    async with delivering(tmp_path, sink, size=1000) as (journal, delivery):
        await append(journal, batch_of(0, 1, 2))
        await delivery.flush()
        assert (sink.taken, await buried(journal)) == ([0, 2], [1])


async def test_named_data_points_become_dead_letters(tmp_path: Path) -> None:
    class Points(Sink):
        taken: list[int] = []  # noqa: RUF012 - one test uses it

        async def export(self, delivery: Delivery) -> None:
            for number, batch in enumerate(delivery.batches):
                if len(batch) == 5:
                    raise Permanent("poison", items=[(delivery.position(number), 1), (delivery.position(number), 4)])
                self.taken += labels(batch)

    sink = Points()
    async with delivering(tmp_path, sink, size=1000) as (journal, delivery):
        await append(journal, metric_batch(0, 1, 2, 3, 4))
        await append(journal, metric_batch(0, 1))
        await delivery.flush()
        assert sink.taken == [0, 2, 3, 0, 1]
        ((letter, _),) = await letters(journal)
        assert letter.items == 2


def labels(batch: Any) -> list[int]:
    request = ExportMetricsServiceRequest.FromString(batch.request)
    points = request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points
    return [int(point.attributes[0].value.string_value) for point in points]


@given(st.integers(1, 30), st.sets(st.integers(-2, 32)))
def test_picked_items_and_the_others_are_all_items_in_order(count: int, indices: set[int]) -> None:
    events, points = event_batch(*map(float, range(count))), metric_batch(*map(float, range(count)))
    inside = sorted(index for index in indices if 0 <= index < count)
    outside = [index for index in range(count) if index not in indices]
    for batch in (events, points):
        picked = pick(batch, indices)
        assert picked is not None
        for half, expected in zip(picked, (inside, outside), strict=True):
            assert len(half) == len(expected)
            if isinstance(half, EventBatch):
                assert [event.value for event in half.events] == expected
            elif expected:
                assert labels(half) == expected
                assert isinstance(half, MetricBatch)
                assert count_points(ExportMetricsServiceRequest.FromString(half.request)) == len(expected)
