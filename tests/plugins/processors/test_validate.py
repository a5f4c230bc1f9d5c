"""What `POST /metrics` accepts: every row of the body's table in docs/api.md, and the documents that break decoders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline import Caller, Context, Event, EventBatch, Invalid, TokenBucket
from pipeline.testing import NopHost
from plugins.processors.validate import SHIPPED_TYPES, ValidateConfig, ValidateProcessor

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
GOOD = {"type": "custom", "value": 1}


def make_context() -> Context:
    """A request that arrives at noon."""
    context = Context("req_1")
    context.received_at = NOW
    return context


async def decode(document: bytes | dict[str, Any], **config: Any) -> tuple[EventBatch, Context]:
    """What becomes of a document, and the context afterwards."""
    context = make_context()
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    processor = ValidateProcessor("validate", ValidateConfig(**config), NopHost())
    return await processor.decode(body, context), context


async def event_of(**fields: Any) -> Event:
    """The event of a good metric with these fields."""
    batch, context = await decode({"service": "s", "metrics": [{**GOOD, **fields}]})
    assert context.errors == []
    assert context.received == 1
    (event,) = batch.events
    return event


async def faults_of(metric: Any) -> list[str]:
    """What is said of a bad metric, which takes the good one beside it nowhere."""
    batch, context = await decode({"service": "s", "metrics": [GOOD, metric]})
    assert len(batch) == 1
    assert (context.received, context.rejected) == (2, 1)
    return context.listed_errors()


async def details_of(document: bytes | dict[str, Any]) -> Sequence[dict[str, Any]]:
    """The details of the refusal of a document that is wrong as a whole."""
    with pytest.raises(Invalid) as caught:
        await decode(document)
    assert caught.value.details
    return caught.value.details


async def test_a_full_document_becomes_a_batch_with_all_that_it_says() -> None:
    metric = {
        "type": "tool_execution",
        "value": 1.5,
        "duration_ms": 12,
        "timestamp": "2026-07-01T14:00:00.000001+02:00",
        "dimensions": {"method": "call", "size": 3, "ratio": 0.5, "success": True, "server_name": None},
        "metadata": {"any thing": [1, {"deep": None}]},
        "unknown": 1,
    }
    document = {"service": "auth-server", "version": "1.0.0", "instance_id": "a.b", "metrics": [metric], "unknown": {}}

    batch, _ = await decode(document)

    event = Event(
        "tool_execution",
        1.5,
        NOW + timedelta(microseconds=1),
        12.0,
        {"method": "call", "size": 3, "ratio": 0.5, "success": True, "server_name": None},
        {"any thing": [1, {"deep": None}]},
    )
    assert batch == EventBatch("auth-server", [event], NOW, "req_1", "1.0.0", "a.b")


async def test_existing_clients_one_metric_with_a_zoneless_time_and_nulls_is_accepted_and_means_utc() -> None:
    metric = {
        "type": "auth_request",
        "value": 1.0,
        "duration_ms": None,
        "timestamp": "2026-07-01T11:59:59.123456",
        "dimensions": {"success": True, "server": None},
        "metadata": None,
    }

    batch, context = await decode({"service": "auth", "version": None, "instance_id": None, "metrics": [metric]})

    time = datetime(2026, 7, 1, 11, 59, 59, 123456, tzinfo=UTC)
    assert batch.events == (Event("auth_request", 1.0, time, None, {"success": True, "server": None}, {}),)
    assert (batch.version, batch.instance_id) == (None, None)
    assert (context.received, context.rejected, context.errors) == (1, 0, [])


async def test_the_service_of_the_key_is_kept_beside_the_one_that_is_claimed() -> None:
    context = make_context()
    context.caller = Caller("mcp-gateway", "0123abcd", frozenset({"ingest"}), TokenBucket(1000))
    processor = ValidateProcessor("validate", ValidateConfig(), NopHost())

    batch = await processor.decode(json.dumps({"service": "auth", "metrics": [GOOD]}).encode(), context)

    assert (batch.service, batch.key_service) == ("auth", "mcp-gateway")


@pytest.mark.parametrize("service", ["a", "A-Z_09", "x" * 100])
async def test_a_service_of_1_to_100_word_characters_is_accepted(service: str) -> None:
    batch, _ = await decode({"service": service, "metrics": [GOOD]})
    assert batch.service == service


@pytest.mark.parametrize(
    "service", ["", "x" * 101, "a b", "a.b", "ä", "a\n", "../../etc", "'; DROP TABLE metrics", 1, None, ["a"]]
)
async def test_any_other_service_is_refused_whole(service: Any) -> None:
    (detail,) = await details_of({"service": service, "metrics": [GOOD]})
    assert detail["loc"] == ["body", "service"]


@pytest.mark.parametrize("version", ["", "1.2.3", "not semantic", "ü" * 64, None])
async def test_a_version_is_any_string_of_at_most_64(version: str | None) -> None:
    batch, _ = await decode({"service": "s", "version": version, "metrics": [GOOD]})
    assert batch.version == version


@pytest.mark.parametrize(
    ("field", "value"),
    [("version", "x" * 65), ("version", 1), ("instance_id", ""), ("instance_id", "x" * 101), ("instance_id", "a/b"),
     ("instance_id", "a\n"), ("instance_id", 1), ("metrics", {}), ("metrics", "x"), ("metrics", None), ("metrics", [])],
)  # fmt: skip
async def test_another_field_of_the_document_that_is_wrong_is_named(field: str, value: Any) -> None:
    (detail,) = await details_of({"service": "s", "metrics": [GOOD], field: value})
    assert detail["loc"] == ["body", field]
    assert set(detail) == {"type", "loc", "msg", "input"}
    assert detail["input"] == (value[:64] if isinstance(value, str) else value)


async def test_everything_that_is_wrong_with_the_document_is_named_at_once() -> None:
    document = {"service": 1, "version": [1], "instance_id": "", "metrics": "x" * 1000}
    details = await details_of(document)
    assert [detail["loc"][1] for detail in details] == ["service", "version", "instance_id", "metrics"]
    assert [detail["input"] for detail in details] == [1, [], "", "x" * 64], "shown, and no more of it than helps"


async def test_missing_fields_are_named() -> None:
    details = await details_of({"service": "s"})
    assert [(detail["type"], detail["loc"]) for detail in details] == [("missing", ["body", "metrics"])]
    assert [detail["loc"][1] for detail in await details_of(b"{}")] == ["service", "metrics"]


@pytest.mark.parametrize(
    ("document", "shown"), [(b"[1]", []), (b" \n[1]", []), (b'"x"', "x"), (b"null", None), (b"1e400", "1e400")]
)
async def test_what_is_not_an_object_is_refused_whole(document: bytes, shown: Any) -> None:
    (detail,) = await details_of(document)
    assert (detail["loc"], detail["input"]) == (["body"], shown)


@pytest.mark.parametrize("type_", SHIPPED_TYPES)
async def test_every_shipped_type_is_accepted(type_: str) -> None:
    assert (await event_of(type=type_)).type == type_


async def test_types_are_configuration() -> None:
    document = {"service": "s", "metrics": [GOOD, {"type": "mine", "value": 1}]}
    batch, context = await decode(document, types=("mine",))
    assert [event.type for event in batch.events] == ["mine"]
    assert context.errors == ["metrics[0].type: must be a configured type, got 'custom' (mine)"]
    with pytest.raises(ValidationError):
        ValidateConfig(types=())


@pytest.mark.parametrize("value", [0, -1e12, 1e12, 10**12, 0.1, 5e-324])
async def test_a_value_within_its_bounds_is_kept_as_a_float(value: float) -> None:
    kept = (await event_of(value=value)).value
    assert kept == value
    assert isinstance(kept, float)


@pytest.mark.parametrize("duration", [0, 86_400_000, 0.5, None])
async def test_a_duration_within_a_day_is_kept(duration: float | None) -> None:
    assert (await event_of(duration_ms=duration)).duration_ms == duration


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (None, NOW),
        ("2026-06-30", datetime(2026, 6, 30, tzinfo=UTC)),
        ("2026-06-30T01:02:03", datetime(2026, 6, 30, 1, 2, 3, tzinfo=UTC)),
        ("2026-06-30 01:02:03Z", datetime(2026, 6, 30, 1, 2, 3, tzinfo=UTC)),
        ("2026-06-30T01:02:03.123456789Z", datetime(2026, 6, 30, 1, 2, 3, 123456, tzinfo=UTC)),
        ("2026-06-30T01:02:03-02:30", datetime(2026, 6, 30, 3, 32, 3, tzinfo=UTC)),
        ("2026-07-01T12:05:00Z", NOW + timedelta(minutes=5)),
        ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
async def test_a_timestamp_is_kept_in_utc(text: str | None, time: datetime) -> None:
    kept = (await event_of(timestamp=text)).timestamp
    assert kept == time
    assert kept.tzinfo is UTC


async def test_twenty_dimensions_of_every_kind_are_kept() -> None:
    kinds = ["x" * 200, "\r\n\u2028\x1b[31m", 2**63 - 1, -(2**63), 1.0, -1e300, True, False, None, ""]
    dimensions = {f"_{index}": kind for index, kind in enumerate(kinds * 2)}
    kept = (await event_of(dimensions={"k" * 50: 1, **dict(list(dimensions.items())[:19])})).dimensions
    assert len(kept) == 20
    assert [repr(value) for value in kept.values()] == [repr(value) for value in [1, *kinds, *kinds][:20]]


async def test_thirty_metadata_of_any_kind_are_kept() -> None:
    value = {"a b": ["x" * 900, 1, 2.5, None, {"c": []}]}
    metadata = {"any key\n": "x" * 1000, **{f"{number:050}": value for number in range(29)}}
    assert (await event_of(metadata=metadata)).metadata == metadata


@pytest.mark.parametrize(
    ("metric", "fault"),
    [
        (1, ": must be an object, got 1"),
        (["x"], ": must be an object, got a list"),
        ({"value": 1}, ".type: is missing (must be a string)"),
        ({**GOOD, "type": None}, ".type: must be a string, got null"),
        ({"type": "custom"}, ".value: is missing (must be a number from -1e12 to 1e12)"),
        ({**GOOD, "value": None}, ".value: must be a number from -1e12 to 1e12, got null"),
        ({**GOOD, "value": "1"}, ".value: must be a number from -1e12 to 1e12, got '1'"),
        ({**GOOD, "value": True}, ".value: must be a number from -1e12 to 1e12, got true"),
        ({**GOOD, "value": 1.0000001e12}, ".value: must be a number from -1e12 to 1e12, got 1000000100000.0"),
        ({**GOOD, "value": -(10**12) - 1}, ".value: must be a number from -1e12 to 1e12, got -1000000000001"),
        ({**GOOD, "duration_ms": -1}, ".duration_ms: must be a number from 0 to 86400000, got -1"),
        ({**GOOD, "duration_ms": 86400001}, ".duration_ms: must be a number from 0 to 86400000, got 86400001"),
        ({**GOOD, "timestamp": 1}, ".timestamp: must be a string with an ISO 8601 time, got 1"),
        ({**GOOD, "timestamp": "now"}, ".timestamp: must be an ISO 8601 time, got 'now'"),
        ({**GOOD, "timestamp": "0001-01-01T00:00:00+01:00"}, ".timestamp: must be an ISO 8601 time, got '0001-01-01T00:00:00+01:00'"),
        ({**GOOD, "timestamp": "2026-07-01T12:05:01"}, ".timestamp: must not be more than 5 minutes ahead, got '2026-07-01T12:05:01'"),
        ({**GOOD, "dimensions": [1]}, ".dimensions: must be an object, got a list"),
        ({**GOOD, "dimensions": {f"k{i}": 1 for i in range(21)}}, ".dimensions: must have at most 20 entries, got 21"),
        ({**GOOD, "dimensions": {"": 1}}, ".dimensions: names must be 1 to 50 characters, got ''"),
        ({**GOOD, "dimensions": {"k" * 51: 1}}, f".dimensions: names must be 1 to 50 characters, got '{'k' * 51}'"),
        ({**GOOD, "dimensions": {"le\n": 1}}, ".dimensions: names must be [A-Za-z_][A-Za-z0-9_]*, got 'le\\n'"),
        ({**GOOD, "dimensions": {"1a": 1}}, ".dimensions: names must be [A-Za-z_][A-Za-z0-9_]*, got '1a'"),
        ({**GOOD, "dimensions": {"ä": 1}}, ".dimensions: names must be [A-Za-z_][A-Za-z0-9_]*, got '\\xe4'"),
        ({**GOOD, "metadata": "x"}, ".metadata: must be an object, got 'x'"),
        ({**GOOD, "metadata": {str(i): 1 for i in range(31)}}, ".metadata: must have at most 30 entries, got 31"),
        ({**GOOD, "metadata": {"k": "x" * 1001}}, ".metadata.'k': must be at most 1000 characters as text"),
        ({**GOOD, "metadata": {"k": ["x" * 997]}}, ".metadata.'k': must be at most 1000 characters as text"),
        ({**GOOD, "metadata": {"k": 2**63}}, ".metadata.'k': integers must fit 64 bits"),
        ({**GOOD, "metadata": {"k": [{"a": -(2**63) - 1}]}}, ".metadata.'k': integers must fit 64 bits"),
        ({**GOOD, "metadata": {"k": json.loads("[" * 33 + "]" * 33)}}, ".metadata.'k': must not be nested deeper than 32"),
    ],
)  # fmt: skip
async def test_a_fault_in_a_metric_is_named_with_its_place_and_what_would_be_right(metric: Any, fault: str) -> None:
    assert await faults_of(metric) == [f"metrics[1]{fault}"]


@pytest.mark.parametrize("value", ["x" * 201, [1], {"a": 1}, 2**63, -(2**63) - 1])
async def test_a_dimension_that_is_no_short_scalar_is_named(value: Any) -> None:
    (fault,) = await faults_of({**GOOD, "dimensions": {"method": value}})
    assert fault.startswith(
        "metrics[1].dimensions.'method': must be a string of at most 200 characters, a 64-bit integer"
    )


async def test_every_fault_of_a_bad_metric_is_listed() -> None:
    metric = {
        "type": "nope",
        "value": "x",
        "duration_ms": -1,
        "timestamp": "never",
        "dimensions": {"a-b": 1, "long": "x" * 201},
        "metadata": {"k": "x" * 1001, "": 1},
    }
    paths = [fault.removeprefix("metrics[1]").partition(":")[0] for fault in await faults_of(metric)]
    assert sorted(paths) == sorted(
        [
            ".type",
            ".value",
            ".duration_ms",
            ".timestamp",
            ".dimensions",
            ".dimensions.'long'",
            ".metadata",
            ".metadata.'k'",
        ]
    )
    assert len(await faults_of({})) == 2
