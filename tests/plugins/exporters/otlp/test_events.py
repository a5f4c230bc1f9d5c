"""Events as delta points: each with its own time, value and dimensions, and nothing added or lost."""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric

from pipeline import DimensionValue, Event, EventBatch
from pipeline.testing import event_batch
from plugins.connectors.series.config import SeriesConfig
from plugins.exporters.otlp.events import BOUNDS, EventRequest
from tests.plugins.exporters.otlp.forwarding import answers, over

pytestmark = pytest.mark.anyio

AT = datetime(2026, 11, 23, 12, 0, 0, 123457, tzinfo=UTC)
DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA


def written(*batches: EventBatch) -> tuple[ExportMetricsServiceRequest, int]:
    """The request of these, and how many events it leaves out."""
    request = EventRequest("this-service")
    anyio.run(request.add, batches)
    return ExportMetricsServiceRequest.FromString(request.body()), request.negative


def batch(*events: Event, service: str = "test", **fields: Any) -> EventBatch:
    return EventBatch(service, list(events), AT, **fields)


def metrics(request: ExportMetricsServiceRequest) -> dict[str, Metric]:
    """Its metrics by name, of the first sender."""
    return {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}


def typed(attributes: Any) -> dict[str, Any]:
    return {
        each.key: (each.value.WhichOneof("value"), getattr(each.value, each.value.WhichOneof("value")))
        for each in attributes
    }


def test_an_event_is_a_point_with_its_own_time() -> None:
    later = AT + timedelta(microseconds=1)
    request, _ = written(batch(Event("call", 2.5, AT), Event("call", 3.0, later)))
    (metric,) = metrics(request).values()
    assert (metric.name, metric.sum.is_monotonic, metric.sum.aggregation_temporality) == ("mcp.event.call", True, DELTA)
    exact = int(AT.timestamp()) * 10**9 + 123_457_000
    points = metric.sum.data_points
    assert [(each.as_double, each.start_time_unix_nano, each.time_unix_nano) for each in points] == [
        (2.5, exact, exact),
        (3.0, exact + 1000, exact + 1000),
    ]


def test_dimensions_keep_their_types_and_none_is_left_out() -> None:
    dimensions: dict[str, DimensionValue] = {
        "text": "é",
        "empty": "",
        "yes": True,
        "no": False,
        "one": 1,
        "half": 0.5,
        "big": 2**63 - 1,
        "null": None,
    }
    request, _ = written(batch(Event("call", 1.0, AT, 5.0, dimensions)))
    right = {
        "text": ("string_value", "é"), "empty": ("string_value", ""), "yes": ("bool_value", True), "no": ("bool_value", False),
        "one": ("int_value", 1), "half": ("double_value", 0.5), "big": ("int_value", 2**63 - 1),
    }  # fmt: skip
    found = metrics(request)
    assert typed(found["mcp.event.call"].sum.data_points[0].attributes) == right
    assert typed(found["mcp.event.call.duration"].histogram.data_points[0].attributes) == right


@pytest.mark.parametrize(
    "at", [datetime(1, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)]
)
def test_a_time_before_1970_is_unknown(at: datetime) -> None:
    request, _ = written(batch(Event("call", 1.0, at, 5.0)))
    assert metrics(request)["mcp.event.call"].sum.data_points[0].time_unix_nano == 0


@given(st.timedeltas(timedelta(0), timedelta(days=80_000)))
def test_times_are_exact_to_the_microsecond(since: timedelta) -> None:
    at = datetime(1970, 1, 1, tzinfo=UTC) + since
    request, _ = written(batch(Event("call", 1.0, at)))
    nanoseconds = metrics(request)["mcp.event.call"].sum.data_points[0].time_unix_nano
    assert nanoseconds == since // timedelta(microseconds=1) * 1000


def test_negative_values_are_left_out_and_counted_but_not_their_durations() -> None:
    request, negative = written(batch(Event("call", -1.0, AT, 7.0), Event("call", -0.0, AT), Event("call", 2.0, AT)))
    found = metrics(request)
    assert negative == 1
    assert [each.as_double for each in found["mcp.event.call"].sum.data_points] == [0.0, 2.0]
    assert [each.sum for each in found["mcp.event.call.duration"].histogram.data_points] == [0.007]


def test_what_is_all_left_out_leaves_no_empty_sender() -> None:
    request, negative = written(batch(Event("call", -1.0, AT)), batch(service="nothing"))
    assert negative == 1
    assert request.ByteSize() == 0


@pytest.mark.parametrize("place", range(len(BOUNDS)))
def test_a_duration_that_equals_a_bound_is_within_it(place: int) -> None:
    above = math.nextafter(BOUNDS[place] * 1000, math.inf)
    request, _ = written(batch(Event("call", 1.0, AT, BOUNDS[place] * 1000), Event("call", 1.0, AT, above * 1.0001)))
    at, over_ = metrics(request)["mcp.event.call.duration"].histogram.data_points
    assert [list(at.bucket_counts).index(1), list(over_.bucket_counts).index(1)] == [place, place + 1]


def test_the_bounds_are_those_of_the_series() -> None:
    assert SeriesConfig.model_fields["buckets"].default == BOUNDS


def test_a_resource_is_a_sender_and_a_metric_is_a_type() -> None:
    request, _ = written(
        batch(Event("a", 1, AT), Event("b", 2, AT), service="web", version="1"),
        batch(Event("a", 3, AT), service="web", version="2", instance_id="i"),
        batch(Event("a", 4, AT), service="web", version="1"),
    )
    found = {
        tuple(each.value.string_value for each in resource.resource.attributes): {
            metric.name: [point.as_double for point in metric.sum.data_points]
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        for resource in request.resource_metrics
    }
    assert found == {
        ("web", "1"): {"mcp.event.a": [1, 4], "mcp.event.b": [2]},
        ("web", "2", "i"): {"mcp.event.a": [3]},
    }
    assert [each.key for each in request.resource_metrics[1].resource.attributes] == [
        "service.name",
        "service.version",
        "service.instance.id",
    ]
    assert {scope.scope.name for each in request.resource_metrics for scope in each.scope_metrics} == {"this-service"}


EVENTS = st.lists(
    st.builds(
        Event,
        st.sampled_from(["a", "b", "a.duration"]),
        st.floats(-1e9, 1e9),
        st.just(AT),
        st.none() | st.floats(0, 86_400_000),
        st.dictionaries(st.sampled_from("xyz"), st.none() | st.text(max_size=3) | st.integers(-5, 5) | st.booleans()),
    ),
    max_size=20,
)


@given(st.lists(EVENTS, max_size=4))
def test_nothing_is_added_and_nothing_is_lost(batches: Sequence[list[Event]]) -> None:
    request, negative = written(*(batch(*events, service=f"s{number % 2}") for number, events in enumerate(batches)))
    events = [event for each in batches for event in each]
    sums, durations, buckets = Counter[float](), Counter[float](), Counter[int]()
    for resource in request.resource_metrics:
        for metric in resource.scope_metrics[0].metrics:
            sums.update(point.as_double for point in metric.sum.data_points)
            for point in metric.histogram.data_points:
                assert sum(point.bucket_counts) == point.count == 1
                assert point.sum == point.min == point.max
                durations[point.sum] += 1
                buckets[list(point.bucket_counts).index(1)] += 1
    assert sums == Counter(event.value for event in events if event.value >= 0)
    assert negative == sum(event.value < 0 for event in events)
    seconds = [event.duration_ms / 1000 for event in events if event.duration_ms is not None]
    assert durations == Counter(seconds)
    assert buckets == Counter(bisect_left(BOUNDS, each) for each in seconds)


async def test_others_run_while_a_large_batch_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.exporters.otlp.events.HOLD_SECONDS", 0)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        await EventRequest("this-service").add([event_batch(*([1.0] * 100))])
        tasks.cancel_scope.cancel()
    assert turns >= 100


async def test_what_is_left_out_is_counted_once_however_often_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    async with over("http", tmp_path) as (collector, found):
        answers(collector, lambda: web.Response(status=503), lambda request: collector.requests <= 3)
        await found.put(event_batch(1.0, -1.0))
        await found.done()
        assert found.counted("otlp_negative_events_total") == 1


async def test_an_event_that_cannot_be_written_is_a_dead_letter_and_the_others_are_sent(tmp_path: Path) -> None:
    """No client can send one, since `validate` sees to that; a third party's processor may make one."""
    spoiled = Event("call", 101.0, AT, None, {"n": 2**63})
    good = [Event("call", float(number), AT) for number in range(8)]
    async with over("http", tmp_path) as (collector, found):
        await found.put(batch(*good[:4], spoiled, *good[4:]))
        await found.done()
        assert sorted(value for _, _, _, value, _ in collector.points) == [event.value for event in good]
        ((values, reason),) = found.dead_letters()
        assert values == [101.0]
        assert "cannot be written as OTLP" in reason
