"""Setting, renaming, dropping and hashing entries of events."""

from __future__ import annotations

import copy
import hmac
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import Batch, Context, Event, EventBatch
from pipeline.testing import NopHost
from plugins.processors.attributes import Attributes, AttributesConfig
from plugins.processors.validate import ValidateConfig, ValidateProcessor
from tests.running import running

pytestmark = pytest.mark.anyio

KEY = "a key that nobody guesses"
CONTEXT = Context("req_1")


def make(*actions: dict[str, Any], **options: Any) -> Attributes:
    config = AttributesConfig.model_validate({"actions": actions, **options})
    return Attributes("attributes", config, NopHost())


def event(type_: str = "call", metadata: dict[str, Any] | None = None, **dimensions: Any) -> Event:
    return Event(type_, 1.0, CONTEXT.received_at, 2.0, dimensions, metadata or {})


def batch_of(*events: Event) -> EventBatch:
    return EventBatch("test", list(events), CONTEXT.received_at, "req_1", "1.2.3", "a", "owner")


def events_of(batch: Batch) -> list[Event]:
    assert isinstance(batch, EventBatch)
    return list(batch.events)


async def shaped(processor: Attributes, event: Event) -> Event:
    (found,) = events_of(await processor.process(batch_of(event), CONTEXT))
    return found


def plain_hash(text: str, length: int = 16) -> str:
    return sha256(text.encode()).hexdigest()[:length]


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        ({"set": {"a": 1, "b": True}}, {}, {"a": 1, "b": True}),
        ({"set": {"a": 1}}, {"a": "old", "c": 2.5}, {"a": 1, "c": 2.5}),
        ({"rename": {"a": "b"}}, {"a": 1, "c": 2}, {"b": 1, "c": 2}),
        ({"rename": {"a": "b"}}, {"c": 2}, {"c": 2}),
        ({"rename": {"a": "b"}}, {"a": 1, "b": 2}, {"b": 1}),
        ({"rename": {"a": "b"}}, {"b": 2, "a": 1}, {"b": 1}),
        ({"rename": {"a": "b", "b": "a"}}, {"a": 1, "b": 2}, {"a": 2, "b": 1}),
        ({"rename": {"a": "c", "b": "c"}}, {"b": 2, "a": 1}, {"c": 2}),
        ({"rename": {"a": "a"}}, {"a": 1}, {"a": 1}),
        ({"rename": {"a": "b"}}, {"a": None}, {"b": None}),
        ({"drop": ["a", "b"]}, {"a": 1, "c": 2}, {"c": 2}),
        ({"drop": ["a"]}, {"c": 2}, {"c": 2}),
        ({"hash": ["a", "b"]}, {"a": "ann", "c": 2}, {"a": plain_hash("ann"), "c": 2}),
        ({"hash": ["a", "b"]}, {"a": 17, "b": True}, {"a": plain_hash("17"), "b": plain_hash("true")}),
        ({"hash": ["a", "b"]}, {"a": 0, "b": ""}, {"a": plain_hash("0"), "b": plain_hash("")}),
        ({"hash": ["a"]}, {"a": None}, {"a": None}),
        ({"hash": ["a"]}, {"a": "Zoë"}, {"a": plain_hash("Zoë")}),
    ],
)
async def test_an_action_does_what_it_says_to_dimensions_and_to_metadata(
    action: dict[str, Any], before: dict[str, Any], after: dict[str, Any]
) -> None:
    found = await shaped(make(action), event(metadata=before, **before))
    assert repr(sorted(found.dimensions.items())) == repr(sorted(after.items()))
    assert found.metadata == before

    found = await shaped(make({**action, "metadata": True}), event(metadata=before, **before))
    assert repr(sorted(found.metadata.items())) == repr(sorted(after.items()))
    assert found.dimensions == before


async def test_actions_are_done_in_order() -> None:
    processor = make({"rename": {"user": "user_hash"}}, {"hash": ["user_hash"]}, {"set": {"user": "hidden"}})
    found = await shaped(processor, event(user="ann"))
    assert found.dimensions == {"user_hash": plain_hash("ann"), "user": "hidden"}


async def test_an_action_is_only_for_its_types_and_keeps_its_place_among_the_others() -> None:
    processor = make(
        {"hash": ["a"]},
        {"rename": {"a": "b"}, "types": ["login", "logout"]},
        {"set": {"only": "logout"}, "types": ["logout"]},
        {"drop": ["a"]},
    )
    assert (await shaped(processor, event("login", a="x"))).dimensions == {"b": plain_hash("x")}
    assert (await shaped(processor, event("logout", a="x"))).dimensions == {"b": plain_hash("x"), "only": "logout"}
    assert (await shaped(processor, event("call", a="x", b="y"))).dimensions == {"b": "y"}


async def test_everything_else_of_the_batch_and_the_events_stays() -> None:
    first, second = event("login", {"m": [1]}, a=1), event("call")
    found = await make({"set": {"b": 2}}).process(batch_of(first, second), CONTEXT)
    expected = first.replace(dimensions={"a": 1, "b": 2}), second.replace(dimensions={"b": 2})
    assert found == batch_of(*expected)


async def test_nothing_that_came_in_is_changed_and_an_event_that_no_action_touches_is_given_on_itself() -> None:
    untouched = event("call", {"x": 1}, y=2)
    touched = event("login", {"a": 1}, a=1)
    bare = Event("login", 1.0, CONTEXT.received_at)
    batch = batch_of(untouched, touched, bare)
    before = copy.deepcopy(batch)
    both = ({"set": {"b": 1}}, {"rename": {"a": "c"}}, {"drop": ["b"]}, {"hash": ["c"]})
    actions = [{**action, "types": ["login"], "metadata": on} for action in both for on in (False, True)]

    found = events_of(await make(*actions).process(batch, CONTEXT))

    assert batch == before
    assert Event("call", 1.0, CONTEXT.received_at).dimensions == {}, "the default of all events"
    assert found[0] is untouched
    assert found[1].dimensions == found[1].metadata == {"c": plain_hash("1")}
    (same,) = events_of(await make({"drop": ["a"]}, {"hash": ["a"]}).process(batch_of(untouched), CONTEXT))
    assert same is untouched


@pytest.mark.parametrize("length", [8, 16, 64])
async def test_a_hash_is_as_long_as_it_is_configured_and_keyed_if_there_is_a_key(length: int) -> None:
    plain = make({"hash": ["user"]}, hash_length=length)
    keyed = make({"hash": ["user"]}, hash_length=length, hash_key=KEY)
    assert (await shaped(plain, event(user="ann"))).dimensions == {"user": plain_hash("ann", length)}
    expected = hmac.new(KEY.encode(), b"ann", sha256).hexdigest()[:length]
    assert (await shaped(keyed, event(user="ann"))).dimensions == {"user": expected}


async def test_nested_metadata_is_hashed_whatever_the_order_of_its_keys() -> None:
    processor = make({"hash": ["who"], "metadata": True})
    one = await shaped(processor, event(metadata={"who": {"a": [1], "b": None}}))
    other = await shaped(processor, event(metadata={"who": {"b": None, "a": [1]}}))
    assert one.metadata == other.metadata == {"who": plain_hash('{"a":[1],"b":null}')}


values = st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-(2**63), 2**63 - 1) | st.booleans()


@given(value=values, other=values, key=st.none() | st.text("abc", min_size=16, max_size=20))
async def test_equal_values_have_equal_hashes_in_every_process_and_pipeline(value: Any, other: Any, key: str) -> None:
    async def hashed(found: Any) -> Any:
        return (await shaped(make({"hash": ["a"]}, hash_key=key, hash_length=64), event(a=found))).dimensions["a"]

    assert await hashed(value) == await hashed(copy.deepcopy(value))
    if str(value).lower() != str(other).lower():
        assert await hashed(value) != await hashed(other)


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        ({}, "has nothing to do"),
        ({"types": ["call"]}, "has nothing to do"),
        ({"set": {"a": 1}, "drop": ["a"]}, "has set and drop .must have exactly one of set, rename, drop, hash"),
        ({"set": {}}, "at least 1 item"),
        ({"drop": []}, "at least 1 item"),
        ({"drop": ["a"], "types": []}, "at least 1 item"),
        ({"set": {"user-id": 1}}, "'user-id' is no name for a dimension"),
        ({"set": {"é": 1}}, "is no name for a dimension"),
        ({"set": {"": 1}, "metadata": True}, "must be 1 to 50 characters"),
        ({"rename": {"a": "1b"}}, "'1b' is no name"),
        ({"rename": {"a b": "b"}}, "'a b' is no name"),
        ({"hash": ["a.b"]}, "'a.b' is no name"),
        ({"drop": ["a" * 51]}, "must be 1 to 50 characters"),
        ({"set": {"a": "x" * 201}}, "is 201 characters long .must be at most 200"),
        ({"set": {"a": 2**63}}, "must fit 64 bits"),
        ({"set": {"a": float("nan")}}, "must be finite"),
        ({"set": {"a": None}}, "valid string"),
        ({"set": {"a": [1]}}, "valid string"),
        ({"set": {f"a{number}": 1 for number in range(21)}}, "at most 20 items"),
        ({"lower": ["a"]}, "Extra inputs"),
    ],
)
def test_what_validate_would_not_let_in_is_not_configured_either(action: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        make(action)


def test_there_must_be_an_action_and_what_is_secret_must_be_hard_to_guess() -> None:
    with pytest.raises(ValidationError, match="has no actions"):
        make()
    with pytest.raises(ValidationError, match="is too short for a key"):
        make({"hash": ["a"]}, hash_key="x" * 15)
    for length in (7, 65):
        with pytest.raises(ValidationError, match="hash_length"):
            make({"hash": ["a"]}, hash_length=length)


def test_names_of_metadata_may_hold_anything() -> None:
    make({"drop": ["user-id", "a b"], "metadata": True})


SETTABLE = {"a": "x" * 200, "_B9": 2**63 - 1, "c": -(2**63), "d" * 50: 1.5, "e": False, "f": ""}


async def test_what_may_be_set_is_what_validate_lets_in() -> None:
    found = await shaped(make({"set": SETTABLE}), event("custom"))
    pushed = {"service": "test", "metrics": [{"type": "custom", "value": 1, "dimensions": found.dimensions}]}
    validate = ValidateProcessor("validate", ValidateConfig(), NopHost())
    assert (await validate.decode(json.dumps(pushed).encode(), Context())).events[0].dimensions == SETTABLE


CONFIGURATION = """
extends: development
processors:
  attributes:
    hash_key: ${env:USER_HASH_KEY}
    actions:
      - set: {region: eu-west}
      - rename: {user: user_hash}
        types: [auth_request]
      - hash: [user_hash]
      - drop: [session-id]
        metadata: true
service:
  pipelines:
    events:
      processors: [auth, rate_limit, validate, attributes, batch]
"""


async def test_a_push_is_stored_as_it_was_shaped(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(CONFIGURATION)
    metadata = {"session-id": "abc", "id": 1}
    login = {"type": "auth_request", "value": 1, "dimensions": {"user": "ann"}, "metadata": metadata}
    other = {"type": "custom", "value": 1, "dimensions": {"user": "ann"}}
    async with running(tmp_path, config=str(tmp_path / "own.yaml"), USER_HASH_KEY=KEY) as service:
        assert (await service.push(login, other)).json()["accepted"] == 2
        await service.flush()
        stored = service.rows("SELECT dimensions, metadata FROM metrics ORDER BY id")
    ann = hmac.new(KEY.encode(), b"ann", sha256).hexdigest()[:16]
    assert [(json.loads(dimensions), json.loads(kept)) for dimensions, kept in stored] == [
        ({"user_hash": ann, "region": "eu-west"}, {"id": 1}),
        ({"user": "ann", "region": "eu-west"}, {}),
    ]
