"""The memory budget: what decoded data costs, and who may hold how much of it."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Batch, Event, EventBatch, MetricBatch
from pipeline.errors import Overloaded
from pipeline.memory import (
    BATCH_COST,
    DEFAULT_BUDGET,
    Hold,
    Memory,
    Pool,
    Recent,
    cost_of,
    estimate,
)

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
decode = msgspec.msgpack.Decoder(Batch).decode
names = st.from_regex(r"[a-z_]{1,50}", fullmatch=True)
ascii_texts = st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=200)
texts = ascii_texts | st.text("aé€\U0001f389", max_size=200)


def dimensions(values: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Dimensions with these texts."""
    value = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(-1e9, 1e9) | values
    return st.dictionaries(names, value, max_size=20)


def measured(events: list[dict[str, Any]], copies: int = 50) -> tuple[EventBatch, int, int]:
    """A batch as it is decoded, the length of its encoded form, and what it takes by tracemalloc."""
    made = [Event("custom", 1.5, NOW, 2.5, each["dimensions"], each["metadata"]) for each in events]
    encoded = msgspec.msgpack.encode(EventBatch("service", made * copies, NOW))
    decode(encoded)  # fills the cache of names
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        batch = decode(encoded)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert isinstance(batch, EventBatch)
    return batch, len(encoded), after - before


def events(values: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Some events with these texts."""
    metadata = st.dictionaries(names, values, max_size=5)
    return st.lists(
        st.fixed_dictionaries({"dimensions": dimensions(values), "metadata": metadata}), min_size=1, max_size=3
    )


@settings(deadline=None, max_examples=30)
@given(made=events(texts))
def test_the_cost_of_a_batch_is_what_it_takes_within_a_factor(made: list[dict[str, Any]]) -> None:
    batch, _, taken = measured(made)
    assert 0.8 * taken < cost_of(batch) < 3 * taken + BATCH_COST


@settings(deadline=None, max_examples=30)
@given(made=events(ascii_texts))
def test_the_cost_of_a_batch_of_ascii_is_told_from_its_encoded_form(made: list[dict[str, Any]]) -> None:
    batch, encoded, taken = measured(made)
    assert 0.8 * taken < cost_of(batch, encoded, is_ascii=True) < 3.5 * taken + BATCH_COST


def test_a_batch_of_metrics_costs_its_bytes() -> None:
    assert 10_000 < cost_of(MetricBatch(b"x" * 10_000, 1, NOW)) < 11_000


@pytest.mark.parametrize(
    "metric",
    [
        "}",
        ',"dimensions":{' + ",".join(f'"d{n}":{n}' for n in range(1000, 1020)) + "}}",
        ',"dimensions":{' + ",".join(f'"d{n}":"\U0001f389"' for n in range(20)) + "}}",
        ',"dimensions":{' + ",".join(f'"d{n}":"\U0001f389{"x" * 190}"' for n in range(20)) + "}}",
        ',"metadata":{"a":"\U0001f389' + "x" * 990 + '"}}',
        ',"metadata":{"a":"' + "x" * 990 + '"}}',
    ],
    ids=["smallest", "integers", "emoji", "texts with an emoji", "metadata with an emoji", "metadata"],
)
@pytest.mark.parametrize("count", [1, 100, 3000])
def test_the_estimate_of_a_document_is_no_less_than_what_it_costs(metric: str, count: int) -> None:
    metric = '{"type":"custom","value":1' + metric
    document = f'{{"service":"s","metrics":[{",".join([metric] * count)}]}}'.encode()
    pushed = msgspec.json.decode(document)["metrics"]
    nothing: dict[str, Any] = {}
    made = [
        Event("custom", 1.0, NOW, None, each.get("dimensions", nothing), each.get("metadata", nothing))
        for each in pushed
    ]
    cost = cost_of(EventBatch("s", made, NOW))
    assert cost <= estimate(document) * 1.05 + 2 * BATCH_COST + 500
    assert estimate(document) <= 12 * len(document)


def test_what_is_over_the_limit_is_refused_unless_its_holder_is_alone() -> None:
    pool = Pool(100)
    one, other = Hold(pool), Hold(pool)
    one.take(1000)
    with pytest.raises(Overloaded):
        other.take(1)
    one.take(1000)
    assert (pool.used, pool.refused) == (2000, 1)
    one.give_back()
    one.give_back()
    other.take(100)
    other.set(500)
    assert pool.used == 500
    other.give_back()
    assert pool.used == 0


async def test_who_waits_for_room_gets_it_in_turn_and_nobody_passes_them() -> None:
    pool = Pool(100)
    holder = Hold(pool)
    holder.take(60)
    order: list[str] = []

    async def wait(name: str, size: int) -> None:
        hold = Hold(pool)
        await hold.take_in_turn(size)
        order.append(name)
        await anyio.lowlevel.checkpoint()
        hold.give_back()

    async with anyio.create_task_group() as tasks:
        for name, size in (("larger than all", 1000), ("large", 90), ("small", 1)):
            tasks.start_soon(wait, name, size)
            await anyio.wait_all_tasks_blocked()
        assert order == []
        holder.give_back()
    assert order == ["larger than all", "large", "small"]
    assert (pool.used, pool.refused) == (0, 0)


async def test_who_waits_too_long_or_leaves_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.memory.MOST_WAIT", 0.05)
    pool = Pool(100)
    holder, late = Hold(pool), Hold(pool)
    holder.take(60)
    with anyio.move_on_after(0.01):
        await Hold(pool).take_in_turn(90)
    with pytest.raises(Overloaded):
        await late.take_in_turn(90)
    assert (pool.used, pool.refused) == (60, 1)
    await Hold(pool).take_in_turn(40)
    assert pool.used == 100


class Some:
    """What forgets ten bytes at a time."""

    def __init__(self, cost: int) -> None:
        self.cost = cost

    def forget_oldest(self) -> None:
        self.cost -= 10


def test_the_largest_forgets_first_and_no_more_than_it_must() -> None:
    recent = Recent(100)
    small, large = Some(30), Some(100)
    recent.members += [small, large]
    recent.make_room()
    assert (small.cost, large.cost) == (30, 70)


def test_the_parts_are_the_whole_and_workers_share_theirs() -> None:
    memory = Memory()
    memory.configure(DEFAULT_BUDGET, 3)
    assert sum(limit for _, limit, _ in memory.parts()) == DEFAULT_BUDGET
    assert 3 * memory.share == memory.deliveries.limit
