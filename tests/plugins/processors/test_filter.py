"""Keeping some events and leaving out others."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import Batch, Context, Event, EventBatch
from pipeline.testing import NopHost
from plugins.processors.filter import Filter, FilterConfig
from tests.running import running
from tests.scrapes import samples, total

pytestmark = pytest.mark.anyio

CONTEXT = Context("req_1")


def make(**options: Any) -> Filter:
    return Filter("filter", FilterConfig.model_validate(options), NopHost())


def event(type_: str = "call", **dimensions: Any) -> Event:
    return Event(type_, 1.0, CONTEXT.received_at, None, dimensions)


def batch_of(*events: Event, service: str = "web") -> EventBatch:
    return EventBatch(service, list(events), CONTEXT.received_at, "req_1", "1.2.3", "a", "owner")


def events_of(batch: Batch) -> list[Event]:
    assert isinstance(batch, EventBatch)
    return list(batch.events)


async def keeps(processor: Filter, event: Event, service: str = "web") -> bool:
    return len(await processor.process(batch_of(event, service=service), CONTEXT)) == 1


EVENT = event("call", method="GET", status=200, ok=True, share=0.5, user=None)


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        ({"types": ["call"]}, True),
        ({"types": ["login", "call"]}, True),
        ({"types": ["login"]}, False),
        ({"types": ["cal"]}, False),
        ({"services": ["web", "auth"]}, True),
        ({"services": ["auth"]}, False),
        ({"dimensions": {"method": "GET"}}, True),
        ({"dimensions": {"method": "get"}}, False),
        ({"dimensions": {"method": ["POST", "GET"]}}, True),
        ({"dimensions": {"method": ["POST", "PUT"]}}, False),
        ({"dimensions": {"method": "GET", "status": 200}}, True),
        ({"dimensions": {"method": "GET", "status": 404}}, False),
        ({"dimensions": {"status": "200"}}, False),
        ({"dimensions": {"status": 200.0}}, True),
        ({"dimensions": {"share": 0.5}}, True),
        ({"dimensions": {"ok": True}}, True),
        ({"dimensions": {"ok": 1}}, False),
        ({"dimensions": {"ok": "true"}}, False),
        ({"dimensions": {"ok": [False, True]}}, True),
        ({"dimensions": {"user": "ann"}}, False),
        ({"dimensions": {"other": ["", 0, False]}}, False),
        ({"types": ["call"], "services": ["web"], "dimensions": {"method": "GET"}}, True),
        ({"types": ["login"], "services": ["web"], "dimensions": {"method": "GET"}}, False),
        ({"types": ["call"], "services": ["auth"], "dimensions": {"method": "GET"}}, False),
        ({"types": ["call"], "services": ["web"], "dimensions": {"method": "PUT"}}, False),
    ],
)
async def test_a_rule_matches_if_all_parts_of_it_do(rule: dict[str, Any], matches: bool) -> None:
    assert await keeps(make(keep=[rule]), EVENT) is matches
    assert await keeps(make(drop=[rule]), EVENT) is not matches


async def test_one_is_not_true() -> None:
    assert not await keeps(make(keep=[{"dimensions": {"retries": True}}]), event(retries=1))


CALLS, LOGINS, GETS = {"types": ["call"]}, {"types": ["login"]}, {"dimensions": {"method": "GET"}}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep": [CALLS]}, ["call GET", "call PUT"]),
        ({"keep": [CALLS, LOGINS]}, ["call GET", "call PUT", "login GET"]),
        ({"drop": [CALLS]}, ["login GET", "custom PUT"]),
        ({"drop": [CALLS, LOGINS]}, ["custom PUT"]),
        ({"keep": [CALLS], "drop": [GETS]}, ["call PUT"]),
        ({"keep": [GETS, CALLS], "drop": [LOGINS]}, ["call GET", "call PUT"]),
        ({"keep": [CALLS], "drop": [CALLS]}, []),
        ({"keep": [{"services": ["other"]}]}, []),
        ({"drop": [{"services": ["other"]}]}, ["call GET", "call PUT", "login GET", "custom PUT"]),
    ],
)
async def test_kept_is_what_a_keep_rule_matches_and_no_drop_rule(options: dict[str, Any], kept: list[str]) -> None:
    pushed = ["call GET", "call PUT", "login GET", "custom PUT"]
    batch = batch_of(*(event(each.split()[0], method=each.split()[1]) for each in pushed))
    found = events_of(await make(**options).process(batch, CONTEXT))
    assert [f"{each.type} {each.dimensions['method']}" for each in found] == kept


async def test_the_batch_stays_as_it_was_but_for_its_events() -> None:
    call, login = event(), event("login")
    batch = batch_of(call, login)
    assert await make(keep=[CALLS]).process(batch, CONTEXT) == batch_of(call)
    assert batch == batch_of(call, login), "what came in is not changed"
    assert await make(drop=[{"types": ["custom"]}]).process(batch, CONTEXT) is batch


types = st.sampled_from(["call", "login", "custom"])
scalars = st.booleans() | st.integers(-2, 2) | st.sampled_from([0.5, 1.0, "", "1", "true", "GET"])
names = st.sampled_from(["method", "status", "ok"])
rules = st.fixed_dictionaries(
    {},
    optional={
        "types": st.lists(types, min_size=1, max_size=2),
        "services": st.lists(st.sampled_from(["web", "auth"]), min_size=1),
        "dimensions": st.dictionaries(names, scalars | st.lists(scalars, min_size=1, max_size=3), min_size=1),
    },
).filter(bool)
all_rules = st.fixed_dictionaries({"keep": st.lists(rules, max_size=3), "drop": st.lists(rules, max_size=3)}).filter(
    lambda options: bool(options["keep"] or options["drop"])
)
events = st.builds(
    lambda type_, dimensions: event(type_, **dimensions), types, st.dictionaries(names, scalars | st.none())
)


@given(options=all_rules, pushed=st.lists(events, max_size=8))
async def test_it_invents_nothing_changes_nothing_and_keeps_the_order(
    options: dict[str, Any], pushed: list[Event]
) -> None:
    before = copy.deepcopy(pushed)
    processor = make(**options)
    found = events_of(await processor.process(batch_of(*pushed), CONTEXT))

    kept = {id(each) for each in found}
    assert list(map(id, found)) == [id(each) for each in pushed if id(each) in kept]
    assert pushed == before
    # Each is decided without a look at the others, and a second look decides the same.
    assert found == [each for each in pushed if await keeps(processor, each)]
    assert events_of(await processor.process(batch_of(*found), CONTEXT)) == found


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "has no rules"),
        ({"keep": [], "drop": []}, "has no rules"),
        ({"drop": [{}]}, "matches everything .must have at least one of types, services, dimensions"),
        ({"drop": [{"types": []}]}, "at least 1 item"),
        ({"drop": [{"services": []}]}, "at least 1 item"),
        ({"drop": [{"dimensions": {}}]}, "at least 1 item"),
        ({"drop": [{"dimensions": {"a": []}}]}, "dimensions.a has no value"),
        ({"drop": [{"dimensions": {"a": None}}]}, "dimensions.a"),
        ({"drop": [{"type": "call"}]}, "Extra inputs"),
    ],
)
def test_a_rule_that_says_nothing_is_a_mistake(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        make(**options)


CONFIGURATION = """
extends: development
processors:
  filter:
    keep:
      - types: [auth_request, health_check]
    drop:
      - types: [health_check]
        dimensions: {healthy: [true, "yes"]}
service:
  pipelines:
    events:
      processors: [auth, rate_limit, validate, filter, batch]
"""


async def test_a_push_is_stored_without_what_was_filtered_and_answered_whole(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(CONFIGURATION)
    good = {"type": "health_check", "value": 1, "dimensions": {"healthy": True}}
    bad = {"type": "health_check", "value": 2, "dimensions": {"healthy": False}}
    login, custom = {"type": "auth_request", "value": 3}, {"type": "custom", "value": 4}
    async with running(tmp_path, config=str(tmp_path / "own.yaml")) as service:
        assert (await service.push(good, bad, login, custom)).json()["accepted"] == 4
        nothing_left = await service.push(good, custom, good)
        assert (nothing_left.status_code, nothing_left.json()["accepted"]) == (200, 3)
        await service.flush()
        assert service.rows("SELECT value FROM metrics ORDER BY id") == [(2,), (3,)]
        text = await service.scrape()
    filtered = samples(text, prefix="processor_filtered_items_total")
    labels = frozenset({"processor": "filter", "pipeline": "events"}.items())
    assert filtered == {("processor_filtered_items_total", labels): 5}
    assert total(text, "journal_items_total", pipeline="events") == 2
