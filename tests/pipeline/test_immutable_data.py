"""Events, batches and what belongs to them are immutable, and journal formats 2 and 1 are both read."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import Delivery, Event, EventBatch, MetricBatch
from pipeline.data import Batch, Idempotency, Outcome, ReadOnlyDict
from pipeline.journal_format import decode_batch, decode_group, encode_group

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
EVENT = Event("custom", 1.0, NOW, 2.0, {"tool": "x", "n": None}, {"deep": [1, {"a": None}]})
BATCH = EventBatch("test", [EVENT], NOW, "req_1", "1", "i", "key")
METRICS = MetricBatch(b"\x0a\x00", 1, NOW)
VALUES: tuple[Any, ...] = (
    EVENT,
    BATCH,
    METRICS,
    Outcome(1, 0, (), "req_1"),
    Idempotency("owner", "key", b"d" * 32),
    Delivery("events", 0, 1, [BATCH]),
)

encode = msgspec.msgpack.Encoder().encode


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_no_attribute_can_be_assigned_or_deleted(value: Any) -> None:
    for field in (*value.__struct_fields__, "metadata_json", "new"):
        with pytest.raises(AttributeError):
            setattr(value, field, getattr(value, field, None))
        with pytest.raises(AttributeError):
            delattr(value, field)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "assign": lambda mapping: mapping.__setitem__("new", 1),
    "replace": lambda mapping: mapping.__setitem__("tool", 1),
    "delete": lambda mapping: mapping.__delitem__("tool"),
    "clear": lambda mapping: mapping.clear(),
    "pop": lambda mapping: mapping.pop("tool"),
    "popitem": lambda mapping: mapping.popitem(),
    "setdefault": lambda mapping: mapping.setdefault("new", 1),
    "update": lambda mapping: mapping.update(new=1),
    "or": lambda mapping: mapping.__ior__({"new": 1}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    "event", [EVENT, Event("custom", 1.0, NOW), decode_batch(encode(BATCH))], ids=["made", "empty", "read"]
)
def test_no_change_of_dimensions_is_possible(event: Any, change: Callable[[Any], Any]) -> None:
    event = event.events[0] if isinstance(event, EventBatch) else event
    before = dict(event.dimensions)
    with pytest.raises(TypeError, match="read-only"):
        change(event.dimensions)
    assert event.dimensions == before


def test_every_method_of_a_dict_that_changes_it_is_covered() -> None:
    changing = {"__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"}
    reading = set(dir(dict)) - changing
    assert {name for name in changing if name in vars(ReadOnlyDict)} == changing
    assert reading - set(dir(object)) == {
        *(
            "__class_getitem__",
            "__contains__",
            "__getitem__",
            "__iter__",
            "__len__",
            "__or__",
            "__reversed__",
            "__ror__",
        ),
        *("copy", "fromkeys", "get", "items", "keys", "values"),
    }


@pytest.mark.parametrize("batch", [BATCH, decode_batch(encode(BATCH))], ids=["made", "read"])
def test_the_lists_of_batches_and_deliveries_are_tuples(batch: Batch) -> None:
    assert isinstance(batch, EventBatch)
    assert type(batch.events) is tuple
    assert type(batch.replace(events=[EVENT] * 2).events) is tuple
    assert type(Delivery("events", 0, 1, [batch]).batches) is tuple


def test_metadata_is_a_new_object_with_every_access() -> None:
    first, second = EVENT.metadata, EVENT.metadata
    assert first == second == {"deep": [1, {"a": None}]}
    first["deep"][1]["a"] = 1
    assert EVENT.metadata == second
    assert EVENT.metadata_json == '{"deep":[1,{"a":null}]}'


def test_what_the_constructor_was_given_can_change_afterwards() -> None:
    dimensions: dict[str, Any] = {"a": 1}
    metadata: dict[str, Any] = {"a": [1]}
    events = [Event("custom", 1.0, NOW, None, dimensions, metadata)]
    batch = EventBatch("test", events, NOW)
    dimensions["b"] = metadata["b"] = 1
    metadata["a"].append(2)
    events.clear()
    assert batch == EventBatch("test", [Event("custom", 1.0, NOW, None, {"a": 1}, {"a": [1]})], NOW)


def test_replace_changes_a_copy_only() -> None:
    changed = EVENT.replace(value=3.0, dimensions={"tool": "y"}, metadata={"a": 1})
    assert (changed.value, changed.dimensions, changed.metadata) == (3.0, {"tool": "y"}, {"a": 1})
    assert (changed.type, changed.timestamp, changed.duration_ms) == ("custom", NOW, 2.0)
    assert (EVENT.value, EVENT.dimensions) == (1.0, {"tool": "x", "n": None})
    assert EVENT.replace(value=3.0).metadata_json == EVENT.metadata_json
    assert BATCH.replace(service="other").events is BATCH.events
    assert METRICS.replace(points=2) == MetricBatch(b"\x0a\x00", 2, NOW)
    for value in (EVENT, BATCH, METRICS):
        with pytest.raises(TypeError):
            value.replace(other=1)


@pytest.mark.parametrize("wrong", [{"a": object()}, {"a": "\ud83c"}, {object(): 1}], ids=["object", "surrogate", "key"])
def test_metadata_that_json_cannot_hold_fails_the_constructor(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Event("custom", 1.0, NOW, metadata=wrong)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_copies_are_equal(value: Any) -> None:
    assert copy.copy(value) == copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value  # noqa: S301 - our own


def test_dimensions_are_a_mapping_for_every_encoder() -> None:
    assert json.loads(json.dumps(EVENT.dimensions)) == {"tool": "x", "n": None}
    assert msgspec.json.encode(EVENT.dimensions) == b'{"tool":"x","n":null}'
    assert {**EVENT.dimensions, "b": 1} == dict(EVENT.dimensions) | {"b": 1} == EVENT.dimensions | {"b": 1}  # type: ignore[operator]


texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(-(2**63), 2**63 - 1)
scalars = st.none() | st.booleans() | integers | numbers | texts
documents = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=4)
times = st.datetimes(timezones=st.just(UTC))
events = st.builds(
    Event,
    texts,
    numbers,
    times,
    st.none() | numbers,
    st.dictionaries(texts, scalars),
    st.dictionaries(texts, documents),
)
batches = st.one_of(
    st.builds(EventBatch, texts, st.lists(events, max_size=3), times, texts, st.none() | texts, st.none() | texts),
    st.builds(MetricBatch, st.binary(), st.integers(0, 100), times, texts, st.none() | texts),
)


def format_1(batch: Batch) -> bytes:
    """A batch as the version before wrote it: metadata as a map, everything else alike."""
    fields = list(msgspec.structs.astuple(batch))
    if isinstance(batch, EventBatch):
        fields[1] = [[*msgspec.structs.astuple(event)[:-1], event.metadata] for event in batch.events]
    return encode(["events" if isinstance(batch, EventBatch) else "metrics", *fields])


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(batches, max_size=3), st.data())
def test_both_formats_are_read_as_what_was_written(written: list[Batch], data: st.DataObject) -> None:
    encoded = [data.draw(st.sampled_from((encode, format_1)))(batch) for batch in written]
    assert decode_group(encode_group(encoded)) == written
    for batch, payload in zip(written, encoded, strict=True):
        read = decode_batch(payload)
        assert read == batch
        assert encode(read) == encode(batch), "what was read is written as format 2"


@pytest.mark.parametrize("order", [("map", "text"), ("text", "map")], ids=lambda order: order[0])
def test_no_batch_with_events_of_both_formats_is_read(order: tuple[str, str]) -> None:
    kinds = {"map": EVENT.metadata, "text": EVENT.metadata_json}
    mixed = [[*msgspec.structs.astuple(EVENT)[:-1], kinds[kind]] for kind in order]
    with pytest.raises(msgspec.MsgspecError):
        decode_batch(encode(["events", "test", mixed, NOW]))
