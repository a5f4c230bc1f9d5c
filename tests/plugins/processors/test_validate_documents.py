"""Documents as a whole: how many metrics, how many faults, and bytes that break decoders."""

from __future__ import annotations

import gc
import json
import logging
import tracemalloc
from typing import Any

import pytest

from pipeline import Context, Invalid, Malformed, TooLarge
from pipeline.testing import NopHost
from plugins.processors.validate import ValidateConfig, ValidateProcessor
from tests.plugins.processors.test_validate import GOOD, NOW, decode, make_context

pytestmark = pytest.mark.anyio


def document_of(metric: str) -> bytes:
    """A document of a good metric and this one, as text."""
    return b'{"service": "s", "metrics": [{"type": "custom", "value": 1}, %s]}' % metric.encode()


async def test_what_a_client_sends_at_most_is_accepted() -> None:
    batch, context = await decode({"service": "s", "metrics": [{**GOOD, "value": number} for number in range(1024)]})
    assert [event.value for event in batch.events] == list(range(1024))
    assert (context.received, context.rejected) == (1024, 0)


async def test_one_bad_metric_does_not_take_99_good_ones_with_it() -> None:
    metrics = [{**GOOD, "value": number} for number in range(100)]
    metrics[50] = {"type": "custom", "value": "x"}

    batch, context = await decode({"service": "s", "metrics": metrics})

    assert [event.value for event in batch.events] == [number for number in range(100) if number != 50]
    assert context.errors == ["metrics[50].value: must be a number from -1e12 to 1e12, got 'x'"]
    assert (context.received, context.rejected) == (100, 1)


async def test_a_metric_at_its_limits_is_as_good_beside_a_bad_one() -> None:
    metric = {
        "type": "custom",
        "value": -1e12,
        "duration_ms": 86_400_000,
        "timestamp": "2026-07-01T12:05:00",
        "dimensions": {f"{number:_>50}": "x" * 200 for number in range(20)},
        "metadata": {f"{number:050}": "x" * 1000 for number in range(30)},
    }
    alone, _ = await decode({"service": "s", "metrics": [metric]})
    beside, context = await decode({"service": "s", "metrics": [metric, {}]})
    assert beside == alone
    assert context.rejected == 1


async def test_faults_come_in_the_order_of_the_metrics_whatever_their_kind() -> None:
    bad = [{"type": "nope", "value": 1}, {"type": "custom"}, {"type": "nope", "value": 1}, {"type": "custom"}]
    _, context = await decode({"service": "s", "metrics": [GOOD, *bad]})
    assert [error[: len("metrics[0]")] for error in context.errors] == [f"metrics[{index}]" for index in (1, 2, 3, 4)]


async def test_after_a_hundred_faults_only_their_number_is_said() -> None:
    _, context = await decode({"service": "s", "metrics": [GOOD, *({} for _ in range(53))]})
    errors = context.listed_errors()
    assert len(errors) == 101
    assert errors[100] == "and 6 more"
    assert context.rejected == 53


async def test_exactly_a_hundred_faults_are_all_listed() -> None:
    _, context = await decode({"service": "s", "metrics": [GOOD, *({} for _ in range(50))]})
    assert len(context.listed_errors()) == 100
    assert context.listed_errors()[-1].startswith("metrics[50].value: is missing")


async def test_a_document_without_one_good_metric_is_refused_with_all_its_faults() -> None:
    context = make_context()
    processor = ValidateProcessor("validate", ValidateConfig(), NopHost())
    with pytest.raises(Invalid) as caught:
        await processor.decode(
            json.dumps({"service": "s", "metrics": [{"type": "nope", "value": 1}, 7, {}]}).encode(), context
        )
    assert caught.value.details == ()
    assert (context.received, context.rejected, context.faults) == (3, 3, 4)


@pytest.mark.parametrize("metric", ['{"type": "custom", "value": 1}', "{}"])
async def test_more_metrics_than_the_limit_are_refused_whole_whether_good_or_bad(metric: str) -> None:
    body = b'{"service": "s", "metrics": [%s]}'
    with pytest.raises(TooLarge, match=r"^more than 10,000 metrics$"):
        await decode(body % b",".join([metric.encode()] * 10_001))
    with pytest.raises(TooLarge, match=r"^more than 2 metrics$"):
        await decode(body % b",".join([metric.encode()] * 3), max_metrics=2)
    batch, _ = await decode(body % b",".join([b'{"type": "custom", "value": 1}'] * 10_000))
    assert len(batch) == 10_000


DEEP = "[" * 100_000 + "]" * 100_000
PLACES = [
    '{"type": "custom", "value": 1, "metadata": {"k": %s}}',
    '{"type": "custom", "value": 1, "dimensions": {"k": %s}}',
    '{"type": "custom", "value": 1, "unknown": %s}',
    '{"type": "custom", "value": %s}',
    '{"type": "bad value", "value": "x", "unknown": %s}',
    "%s",
]
HALF = 320_000
VALUES = {
    "lists": "[" + ",".join(["[]"] * HALF) + "]",
    "objects": "[" + ",".join(["{}"] * HALF) + "]",
    "objects in objects": "[" + ",".join(['{"a":' * 9 + "1" + "}" * 9] * (HALF // 5)) + "]",
    "numbers": "[" + ",".join(["1"] * 2 * HALF) + "]",
    "names": "{" + ",".join(f'"{number}":1' for number in range(2 * HALF)) + "}",
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("place", [*PLACES[:2], PLACES[3], PLACES[5]])
async def test_more_values_than_metrics_can_have_are_refused_before_they_cost_memory(place: str, kind: str) -> None:
    body, context = document_of(place.replace("%s", VALUES[kind])), make_context()
    processor = ValidateProcessor("validate", ValidateConfig(), NopHost())
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match=r"^more than 640,000 values$"):
            await processor.decode(body, context)
        assert tracemalloc.get_traced_memory()[1] < len(body) + 100_000
    finally:
        tracemalloc.stop()
    assert gc.isenabled()


async def test_no_document_without_nesting_has_too_many_values() -> None:
    names = [f"d{number}" for number in range(30)]
    full = {**GOOD, "duration_ms": 1, "timestamp": None}
    full |= {"dimensions": dict.fromkeys(names[:20], 1), "metadata": dict.fromkeys(names, 1)}
    batch, _ = await decode({"service": "s", "metrics": [full] * 10_000})
    assert len(batch) == 10_000
    assert gc.isenabled()


async def test_who_takes_more_metrics_takes_more_values() -> None:
    processor = ValidateProcessor("validate", ValidateConfig(max_metrics=20_000), NopHost())
    body = document_of('{"type": "custom", "value": 1, "unknown": %s}'.replace("%s", VALUES["numbers"]))
    assert len(await processor.decode(body, make_context())) == 2


LISTS = "[" + ",".join(["[]"] * 333) + "]"
METADATA = {
    "lists": (31, LISTS),
    "objects": (80, "[" + ",".join(['{"a":[' * 15 + "]}" * 15] * 8) + "]"),
    "integers": (43, "[" + ",".join(["1"] * 490) + "]"),
    "space": (5, "[" + " " * 50_000 + "[],[]]"),
}


@pytest.mark.parametrize("kind", METADATA)
async def test_metadata_takes_no_more_memory_than_its_text(kind: str) -> None:
    metrics, value = METADATA[kind]
    entries = ",".join(f'"k{number}":{value}' for number in range(30))
    metric = f'{{"type": "custom", "value": 1, "metadata": {{{entries}}}}}'
    body = document_of(",".join([metric] * metrics))
    processor = ValidateProcessor("validate", ValidateConfig(), NopHost())
    context = make_context()
    await processor.decode(body, make_context())  # makes what is made once
    tracemalloc.start()
    try:
        batch = await processor.decode(body, context)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(batch), context.errors) == (metrics + 1, [])
    assert json.loads(batch.events[1].metadata_json) == json.loads(f"{{{entries}}}")
    assert kept < 1.1 * len(body) + 100_000
    assert peak < 1.1 * len(body) + 3_000_000, "one metric's metadata at a time"


@pytest.mark.parametrize(
    "value", ['"%s"' % ("x" * 5_000_000), '"%s"' % ("\U0001f600" * 1_000_000), f"[{'[],' * 100_000}1]"]
)
@pytest.mark.parametrize("other", ["", '"dimensions": [], '])
async def test_a_metadata_value_that_is_surely_too_long_is_refused_before_it_costs_memory(
    value: str, other: str
) -> None:
    body, context = (
        document_of(f'{{"type": "custom", "value": 1, {other}"metadata": {{"k": {value}}}}}'),
        make_context(),
    )
    processor = ValidateProcessor("validate", ValidateConfig(), NopHost())
    tracemalloc.start()
    try:
        await processor.decode(body, context)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert context.errors[-1] == "metrics[1].metadata.'k': must be at most 1000 characters as text"
    assert peak < 3 * len(body) + 200_000, "copies of its bytes, and no objects"


@pytest.mark.parametrize("escape", [r"\u0041", r"\ud83c\udf89"])
async def test_a_text_of_a_thousand_escapes_is_accepted_and_its_limit_is_in_characters(escape: str) -> None:
    body = document_of(f'{{"type": "custom", "value": 1, "metadata": {{"k": "{escape * 1000}"}}}}')
    batch, _ = await decode(body)
    assert len(batch.events[1].metadata["k"]) == 1000


@pytest.mark.parametrize(
    "value", [[2**70] * 1001, {"a": [[]] * 1001}, [["x"] * 600] * 2, [json.loads("[" * 300 + "]" * 300)] * 1001]
)
async def test_a_value_that_is_wide_is_too_long_whatever_else_it_is(value: Any) -> None:
    _, context = await decode({"service": "s", "metrics": [GOOD, {**GOOD, "metadata": {"k": value}}]})
    assert context.errors == ["metrics[1].metadata.'k': must be at most 1000 characters as text"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[" * 1000,
        b"nonsense",
        b'{"service": "s"} trailing',
        b"\xef\xbb\xbf{}",
        b'{"a": 01}',
        b"{'a': 1}",
        b"\0",
    ],
)
async def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed, match=r"^Request body is (not valid JSON: .+|too deeply nested)$"):
        await decode(body)


@pytest.mark.parametrize("place", PLACES)
async def test_nesting_without_end_is_refused_wherever_it_is(place: str) -> None:
    with pytest.raises(Malformed, match=r"^Request body is too deeply nested$"):
        await decode(document_of(place.replace("%s", DEEP)))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e", "+1", ".5"])
async def test_numbers_that_json_does_not_have_are_malformed_wherever_they_are(place: str, number: str) -> None:
    with pytest.raises(Malformed, match=r"^Request body is not valid JSON: "):
        await decode(document_of(place.replace("%s", number)))


@pytest.mark.parametrize("place", [*PLACES[:2], PLACES[3], PLACES[5]])
@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 5_000, "9" * 1_000_000, "1" + "0" * 30])
async def test_a_number_that_nothing_can_hold_is_a_fault_of_its_metric(place: str, number: str) -> None:
    batch, context = await decode(document_of(place.replace("%s", number)))
    assert len(batch) == 1
    (error,) = context.errors
    assert error.startswith("metrics[1]")
    assert len(error) < 300


async def test_a_mapping_of_a_million_entries_is_one_fault() -> None:
    entries = ",".join(f'"{number}":[]' for number in range(100_000))
    _, context = await decode(document_of(f'{{"type": "custom", "value": 1, "dimensions": {{{entries}}}}}'))
    assert context.errors == ["metrics[1].dimensions: must have at most 20 entries, got 100000"]


@pytest.mark.parametrize(
    "text",
    ["x" * 100_000, "\x1b" * 64, "\u202e" * 1000, "\U0001f600" * 65],
    ids=["long", "escape", "override", "emoji"],
)
async def test_what_a_fault_shows_of_a_value_is_short_printable_and_ascii(text: str) -> None:
    metric = {"type": text, "value": text, "timestamp": text, "dimensions": {text: text}, "metadata": {text: text}}
    _, context = await decode({"service": "s", "metrics": [GOOD, metric]})
    assert len(context.errors) >= 5
    for error in context.errors:
        assert error.replace("…", "").isascii()
        assert error.isprintable()
        assert len(error) < 300


@pytest.mark.parametrize("text", ["\r\n", "\u2028", "\x1b[31m", "'; DROP TABLE metrics; --", "../../etc/passwd"])
async def test_hostile_text_is_kept_as_it_is(text: str) -> None:
    metric = {**GOOD, "dimensions": {"k": text}, "metadata": {text: text}}
    batch, _ = await decode({"service": "s", "version": text, "metrics": [metric]})
    assert batch.version == text
    assert (batch.events[0].dimensions, batch.events[0].metadata) == ({"k": text}, {text: text})


async def test_an_odd_version_is_a_warning_once_for_a_service(caplog: pytest.LogCaptureFixture) -> None:
    processor = ValidateProcessor("validate", ValidateConfig(), NopHost())
    for version in ("latest", "latest", "1.2.3", "v1.2.3-rc.1+5", "1.2"):
        await processor.decode(json.dumps({"service": "s", "version": version, "metrics": [GOOD]}).encode(), Context())
    assert [record.__dict__["version"] for record in caplog.records] == ["latest", "1.2"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_events_older_than_seven_days_are_accepted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    await decode({"service": "s", "metrics": [{**GOOD, "timestamp": "2026-06-24T12:00:00Z"}]})
    assert caplog.records == []
    batch, _ = await decode({"service": "s", "metrics": [{**GOOD, "timestamp": "2026-06-24T11:59:59Z"}, GOOD]})
    assert [event.timestamp < NOW for event in batch.events] == [True, False]
    assert [record.getMessage() for record in caplog.records] == ["events are older than 7 days"]
