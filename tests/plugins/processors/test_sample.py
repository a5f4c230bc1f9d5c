"""Keeping a share of the events."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import Batch, Context, Event, EventBatch
from pipeline.testing import NopHost
from plugins.processors.sample import Sample, SampleConfig
from tests.running import running
from tests.scrapes import total

pytestmark = pytest.mark.anyio

CONTEXT = Context("req_of_the_context")
MANY = 20_000


def make(percentage: float, **options: Any) -> Sample:
    return Sample("sample", SampleConfig.model_validate({"percentage": percentage, **options}), NopHost())


def event(type_: str = "call", **dimensions: Any) -> Event:
    return Event(type_, 1.0, CONTEXT.received_at, None, dimensions)


def batch_of(*events: Event, request_id: str = "req_1") -> EventBatch:
    return EventBatch("test", list(events), CONTEXT.received_at, request_id, "1.2.3", "a", "owner")


async def kept(processor: Sample, batch: Batch, context: Context = CONTEXT) -> list[Event]:
    found = await processor.process(batch, context)
    assert isinstance(found, EventBatch)
    return list(found.events)


def numbered(count: int) -> list[Event]:
    return [event(user=f"user {number}") for number in range(count)]


@pytest.mark.parametrize("by", [None, "user"])
@pytest.mark.parametrize("seed", [0, 1, -(2**70)])
@pytest.mark.parametrize("percentage", [0.5, 10, 50, 99])
async def test_the_share_that_is_kept_is_the_one_that_was_asked_for(
    percentage: float, seed: int, by: str | None
) -> None:
    share = percentage / 100
    deviation = sqrt(MANY * share * (1 - share))
    found = await kept(make(percentage, by=by, seed=seed), batch_of(*numbered(MANY)))
    assert abs(len(found) - MANY * share) < 4 * deviation


async def test_requests_of_one_event_are_sampled_like_one_of_many() -> None:
    processor = make(25)
    batches = [batch_of(event(), request_id=f"req_{number}") for number in range(2000)]
    found = sum([len(await kept(processor, batch)) for batch in batches])
    assert 420 < found < 580


async def test_a_hundred_percent_is_everything() -> None:
    batch = batch_of(*numbered(1000))
    assert await make(100).process(batch, CONTEXT) is batch
    assert await make(100, by="user").process(batch, CONTEXT) is batch


async def test_the_batch_stays_as_it_was_but_for_its_events() -> None:
    events = numbered(50)
    batch = batch_of(*events)
    found = await make(30).process(batch, CONTEXT)
    assert 0 < len(found) < 50
    assert found == batch_of(*await kept(make(30), batch))
    assert list(batch.events) == events, "what came in is not changed"


async def test_the_choice_is_the_same_in_every_process_for_ever() -> None:
    """A new version that chooses otherwise breaks up what belongs together: these are not to be changed."""
    events = [event(user=user) for user in ("ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal", 7, True)]
    assert [each.dimensions["user"] for each in await kept(make(40, by="user"), batch_of(*events))] == [
        "ann",
        "eve",
        "hal",
        True,
    ]
    found = await kept(make(40), batch_of(*events))
    assert [events.index(each) for each in found] == [1, 2, 4, 9]


async def test_another_seed_or_another_request_chooses_others() -> None:
    events = numbered(100)
    first = await kept(make(50), batch_of(*events))
    assert await kept(make(50, seed=1), batch_of(*events)) != first
    assert await kept(make(50), batch_of(*events, request_id="req_2")) != first
    by_user = await kept(make(50, by="user"), batch_of(*events))
    assert await kept(make(50, by="user", seed=1), batch_of(*events)) != by_user
    assert await kept(make(50, by="user"), batch_of(*events, request_id="req_2")) == by_user


async def test_a_batch_without_a_request_id_is_decided_by_that_of_the_context() -> None:
    events = numbered(100)
    context = Context("req_1")
    assert await kept(make(50), batch_of(*events, request_id=""), context) == await kept(make(50), batch_of(*events))


async def test_events_without_the_dimension_are_decided_each_by_itself() -> None:
    without = [event(), event(user=None)] * 500
    found = await kept(make(50, by="user"), batch_of(*without))
    assert 400 < len(found) < 600
    assert found == await kept(make(50), batch_of(*without))


async def test_other_types_pass() -> None:
    calls, logins = [event("call")] * 1000, [event("login")] * 10
    found = await kept(make(10, types=["call", "custom"]), batch_of(*logins, *calls, *logins))
    assert [each.type for each in found].count("login") == 20
    assert 50 < [each.type for each in found].count("call") < 150


values = st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-(2**63), 2**63 - 1) | st.booleans()
percentages = st.floats(0, 100, exclude_min=True)
seeds = st.integers(0, 3)


@given(value=values, percentage=percentages, seed=seeds, places=st.lists(st.integers(0, 9), min_size=1, max_size=5))
async def test_equal_values_are_kept_or_not_wherever_they_come(
    value: Any, percentage: float, seed: int, places: list[int]
) -> None:
    decisions = set()
    for number, place in enumerate(places):
        events = [*numbered(place), event("login", user=value, other=number)]
        found = await kept(make(percentage, by="user", seed=seed), batch_of(*events, request_id=f"req_{number}"))
        decisions.add(any(each is events[-1] for each in found))
    assert len(decisions) == 1


@given(low=percentages, high=percentages, seed=seeds, by=st.sampled_from([None, "user"]), users=st.lists(values))
async def test_what_is_kept_at_a_percentage_is_kept_in_the_same_order_at_a_higher_one(
    low: float, high: float, seed: int, by: str | None, users: list[Any]
) -> None:
    low, high = sorted((low, high))
    batch = batch_of(*(event(user=user) for user in users))
    few = [id(each) for each in await kept(make(low, by=by, seed=seed), batch)]
    many = [id(each) for each in await kept(make(high, by=by, seed=seed), batch)]
    assert few == [each for each in many if each in set(few)]
    assert many == [id(each) for each in batch.events if id(each) in set(many)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"percentage": 0},
        {"percentage": -1},
        {"percentage": 100.1},
        {"percentage": float("nan")},
        {"percentage": "some"},
        {"percentage": 10, "by": ""},
        {"percentage": 10, "types": []},
        {"percentage": 10, "seed": 1.5},
    ],
)
def test_a_share_that_is_none_is_a_mistake(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SampleConfig.model_validate(options)


CONFIGURATION = """
extends: development
processors:
  sample:
    percentage: 50
    by: user
    types: [custom]
service:
  pipelines:
    events:
      processors: [auth, rate_limit, validate, sample, batch]
"""


async def test_a_push_is_stored_by_users_and_answered_whole(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(CONFIGURATION)
    users = [f"user {number}" for number in range(100)]
    pushed = [{"type": "custom", "value": 1, "dimensions": {"user": user}} for user in users]
    login = {"type": "auth_request", "value": 1, "dimensions": {"user": "user 0"}}
    query = "SELECT dimensions ->> 'user', count(*) FROM metrics WHERE metric_type = 'custom' GROUP BY 1"
    async with running(tmp_path, config=str(tmp_path / "own.yaml")) as service:
        for _ in range(3):
            assert (await service.push(login, *pushed)).json()["accepted"] == 101
        await service.flush()
        stored = dict(service.rows(query))
        assert service.rows("SELECT count(*) FROM metrics WHERE metric_type = 'auth_request'") == [(3,)]
        text = await service.scrape()
    chosen = await kept(make(50, by="user"), batch_of(*(event(user=user) for user in users)))
    assert stored == {each.dimensions["user"]: 3 for each in chosen}
    assert total(text, "processor_filtered_items_total", processor="sample") == 3 * (100 - len(chosen))
