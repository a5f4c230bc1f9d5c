"""The connector by itself: what it takes, gives on and saves, with a real database and a chain that ends here."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric

from pipeline import Delivery, Event, EventBatch, MetricBatch, Overloaded, Position, StateError, StateLost
from pipeline.saved_state import SavedState, Source, StateFiles
from pipeline.testing import NopHost, SinkChain
from plugins.connectors.series.config import SeriesConfig
from plugins.connectors.series.connector import RECORDS_AT_A_TIME, SERIES_A_BATCH, SeriesConnector
from tests.pipeline.test_saved_state import damage_behind_its_back, set_aside

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 23, tzinfo=UTC)
TYPES = {
    "call": {"counter": "calls_total", "histogram": "call_duration_seconds", "labels": ["tool"]},
    "custom": {"gauge": "last_value"},
}


@asynccontextmanager
async def connected(path: Path, **config: Any) -> AsyncIterator[tuple[SeriesConnector, SinkChain]]:
    """A connector that is started, with its state in that folder."""
    host, files = NopHost(), StateFiles()
    host.state = SavedState(files, lambda owner: [Source("events", path)])
    series = SeriesConnector("series", SeriesConfig.model_validate({"types": TYPES, **config}), host)
    series.chain = chain = SinkChain()
    await series.start()
    yield series, chain
    await series.stop()
    await files.close()


def call(value: float = 1.0, tool: str = "search", type_: str = "call") -> Event:
    return Event(type_, value, NOW, 250.0, {"tool": tool})


def delivery(after: int, *pushes: Sequence[Event]) -> Delivery:
    """Deliver these pushes, which follow that position."""
    batches = [EventBatch("web", list(events), NOW) for events in pushes]
    return Delivery("events", after, after + len(batches), batches)


def requests(chain: SinkChain) -> list[ExportMetricsServiceRequest]:
    """What was given on, decoded; each says how many points it has."""
    found = []
    for batch in chain.batches:
        assert isinstance(batch, MetricBatch)
        request = ExportMetricsServiceRequest.FromString(batch.request)
        counts = [
            len(each.sum.data_points or each.histogram.data_points or each.gauge.data_points)
            for each in metrics(request)
        ]
        assert batch.points == len(batch) == sum(counts)
        found.append(request)
    return found


def metrics(request: ExportMetricsServiceRequest) -> list[Metric]:
    ((scope,),) = ([*resource.scope_metrics] for resource in request.resource_metrics)
    return list(scope.metrics)


def counters(chain: SinkChain) -> dict[str, float]:
    """The last value of the counter that was given on, by tool."""
    found = {}
    for request in requests(chain):
        for metric in metrics(request):
            for point in metric.sum.data_points:
                labels = {each.key: each.value.string_value for each in point.attributes}
                found[labels["tool"]] = point.as_double
    return found


async def test_what_is_given_on_is_cumulative_otlp(tmp_path: Path) -> None:
    async with connected(tmp_path) as (series, chain):
        await series.export(delivery(0, [call(2.0)], [call(3.0), call(-7.0, type_="custom")]))
        await series.flush()
        (request,) = requests(chain)
        (resource,) = request.resource_metrics
        assert [(each.key, each.value.string_value) for each in resource.resource.attributes] == [
            ("service.name", "mcp-metrics-service")
        ]
        by_name = {metric.name: metric for metric in metrics(request)}
        total, duration, last = by_name["calls_total"], by_name["call_duration_seconds"], by_name["last_value"]
        cumulative = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
        assert total.sum.is_monotonic
        assert total.sum.aggregation_temporality == duration.histogram.aggregation_temporality == cumulative
        (number,), (histogram,), (gauge,) = (
            total.sum.data_points,
            duration.histogram.data_points,
            last.gauge.data_points,
        )
        assert (number.as_double, histogram.count, histogram.sum, gauge.as_double) == (5.0, 2, 0.5, -7.0)
        assert len(histogram.bucket_counts) == len(histogram.explicit_bounds) + 1
        assert duration.unit == "s"
        labels = {(each.key, each.value.string_value) for each in number.attributes}
        assert labels == {("service", "web"), ("metric_type", "call"), ("tool", "search")}


async def test_only_what_has_changed_is_given_on(tmp_path: Path) -> None:
    async with connected(tmp_path) as (series, chain):
        await series.export(delivery(0, [call(tool="a"), call(tool="b")]))
        await series.flush()
        await series.flush()
        await series.export(delivery(1, [call(tool="b")]))
        await series.flush()
        assert len(chain.batches) == 2
        chain.batches.pop(0)
        assert counters(chain) == {"b": 2}


async def test_many_series_are_given_on_in_several_batches(tmp_path: Path) -> None:
    count = SERIES_A_BATCH * 2 + 1
    async with connected(tmp_path, max_label_cardinality=count) as (series, chain):
        await series.export(delivery(0, [call(tool=f"t{number}") for number in range(count)]))
        await series.flush()
        assert len(chain.batches) == 3
        assert len(counters(chain)) == count


async def test_what_the_next_pipeline_refuses_is_given_on_later_and_nothing_is_lost(tmp_path: Path) -> None:
    async with connected(tmp_path) as (series, chain):
        await series.export(delivery(0, [call(tool="a"), call(tool="b")]))
        chain.refusal = Overloaded("the journal is full")
        with pytest.raises(Overloaded):
            await series.flush()
        await series.export(delivery(1, [call(tool="a")]))
        chain.refusal = None
        await series.flush()
        assert counters(chain) == {"a": 2, "b": 1}
        assert len(chain.batches) == 1


async def test_counters_go_on_where_they_were_saved(tmp_path: Path) -> None:
    async with connected(tmp_path) as (series, _):
        await series.export(delivery(0, [call()], [call()]))
        assert series.saved("events") == 0
    async with connected(tmp_path) as (series, chain):
        assert await series.position("events") == Position(2, 0)
        assert series.saved("events") == 2
        await series.flush()
        assert counters(chain) == {"search": 2}
        await series.export(delivery(2, [call()]))
        await series.flush()
        assert counters(chain) == {"search": 3}


async def test_a_delivery_that_comes_again_or_overlaps_is_added_once(tmp_path: Path) -> None:
    async with connected(tmp_path) as (series, chain):
        await series.export(delivery(0, [call()], [call()]))
        await series.export(delivery(0, [call()], [call()]))
        await series.export(delivery(1, [call()], [call()]))
        await series.flush()
        assert counters(chain) == {"search": 3}


async def test_a_gap_in_the_journal_moves_the_position(tmp_path: Path) -> None:
    async with connected(tmp_path) as (series, _):
        await series.export(Delivery("events", 0, 5, ()))
        await series.export(delivery(5, [call()]))
        await series.save()
        assert series.saved("events") == 6


async def test_while_the_state_is_locked_events_are_added_and_saved_later(tmp_path: Path) -> None:
    async with connected(tmp_path) as (series, chain):
        await series.export(delivery(0, [call()]))
        with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StateError, match="database is locked"):
                await series.save()
            assert series.saved("events") == 0
            await series.export(delivery(1, [call()]))
            await series.flush()
            assert counters(chain) == {"search": 2}
        await series.save()
        assert series.saved("events") == 2
    async with connected(tmp_path) as (series, chain):
        await series.flush()
        assert counters(chain) == {"search": 2}


@pytest.mark.parametrize("turns", range(1, 8))
async def test_a_save_that_is_cancelled_at_any_await_loses_nothing(tmp_path: Path, turns: int) -> None:
    count = 3 * RECORDS_AT_A_TIME
    async with connected(tmp_path, max_label_cardinality=count) as (series, _):
        await series.export(delivery(0, [call(tool=f"t{number}") for number in range(count)]))
        saving = asyncio.create_task(series.save())
        for _ in range(turns):
            await asyncio.sleep(0)
        saving.cancel()
        with suppress(asyncio.CancelledError):
            await saving
    async with connected(tmp_path, max_label_cardinality=count) as (series, chain):
        await series.flush()
        assert counters(chain) == {f"t{number}": 1 for number in range(count)}


@pytest.mark.parametrize("turns", range(1, 8))
async def test_an_emission_that_is_cancelled_at_any_await_loses_nothing(tmp_path: Path, turns: int) -> None:
    count = 3 * SERIES_A_BATCH
    async with connected(tmp_path, max_label_cardinality=count) as (series, chain):
        await series.export(delivery(0, [call(tool=f"t{number}") for number in range(count)]))
        emitting = asyncio.create_task(series.flush())
        for _ in range(turns):
            await asyncio.sleep(0)
        emitting.cancel()
        with suppress(asyncio.CancelledError):
            await emitting
        await series.flush()
        assert counters(chain) == {f"t{number}": 1 for number in range(count)}


async def test_a_record_that_is_damaged_costs_its_own_series(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(tmp_path) as (series, _):
        await series.export(delivery(0, [call(tool="a"), call(tool="b")]))
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
        other.execute("UPDATE records SET record = x'00', crc = 0 WHERE name LIKE '%\"a\"%'")
    async with connected(tmp_path) as (series, chain):
        assert "1 records of connector.series are damaged" in caplog.text
        await series.flush()
        assert counters(chain) == {"b": 1}


async def test_an_event_of_a_type_without_series_is_counted(tmp_path: Path) -> None:
    async with connected(tmp_path) as (series, chain):
        await series.export(delivery(0, [call(type_="unknown")]))
        await series.flush()
        assert chain.batches == []
        read = {each.name: dict_of(each.read()) for each in series.instruments()}
        assert read["series_unmapped_events_total"] == {("series",): 1}


def dict_of(readings: Any) -> dict[tuple[str, ...], float]:
    return {tuple(labels.values()): value for labels, value in readings}


async def test_a_clock_that_is_put_back_ends_no_series_before_it_began(tmp_path: Path) -> None:
    async with connected(tmp_path) as (series, chain):
        series.clock = lambda: 1_000_000_000_000
        await series.export(delivery(0, [call()]))
        series.clock = lambda: 5
        await series.flush()
        (request,) = requests(chain)
        point = metrics(request)[0].sum.data_points[0]
        assert point.time_unix_nano == point.start_time_unix_nano == 1_000_000_000_000


async def test_it_stops_without_a_start_and_twice(tmp_path: Path) -> None:
    series = SeriesConnector("series", SeriesConfig.model_validate({"types": TYPES}), NopHost())
    await series.stop()
    await series.stop()


async def test_state_that_is_damaged_while_it_runs_is_saved_again_from_memory(tmp_path: Path) -> None:
    async with connected(tmp_path) as (series, _):
        await series.export(delivery(0, [call(tool="a"), call(tool="b")]))
    async with connected(tmp_path) as (series, _):
        damage_behind_its_back(tmp_path)
        await series.export(delivery(1, [call(tool="b")]))
        with pytest.raises(StateLost):
            await series.save()
        assert series.saved("events") == 0
        await series.save()
        assert series.saved("events") == 2
    assert len(set_aside(tmp_path)) == 1
    async with connected(tmp_path) as (series, chain):
        await series.flush()
        assert counters(chain) == {"a": 1, "b": 2}
