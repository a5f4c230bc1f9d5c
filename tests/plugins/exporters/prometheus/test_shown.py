"""What a scrape shows of what was exported: the last values, under the right names, and no more bytes than it may have."""

from __future__ import annotations

import random

import anyio
import anyio.lowlevel
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client import Gauge

from pipeline import Event, EventBatch, MetricBatch
from plugins.exporters.prometheus.exposition import Format
from tests.plugins.exporters.prometheus.otlp import (
    NOW,
    Exposed,
    buckets,
    counter,
    gauge,
    histogram,
    number,
    quantiles,
    summary,
)
from tests.plugins.exporters.prometheus.test_fuzz import Fuzz

pytestmark = pytest.mark.anyio

INF, NAN = float("inf"), float("nan")


async def test_each_kind_is_written_as_both_formats_have_it() -> None:
    exposed = Exposed()
    await exposed.take(
        counter("requests", number(3, {"method": 'a"\n\\'}), description='Of "all" \\ sorts.\n'),
        histogram("took", buckets([0.5, 1], [1, 0, 2], 7.25, {"method": "b"}), unit="s"),
        summary("size", quantiles([(0.99, 2.0), (0.5, 1.0)], sum=3.0, count=4), unit="By"),
    )
    assert await exposed.text() == (
        '# HELP requests_total Of "all" \\\\ sorts.\\n\n'
        "# TYPE requests_total counter\n"
        'requests_total{method="a\\"\\n\\\\"} 3.0\n'
        "# TYPE took_seconds histogram\n"
        'took_seconds_bucket{method="b",le="0.5"} 1\n'
        'took_seconds_bucket{method="b",le="1.0"} 1\n'
        'took_seconds_bucket{method="b",le="+Inf"} 3\n'
        'took_seconds_sum{method="b"} 7.25\n'
        'took_seconds_count{method="b"} 3\n'
        "# TYPE size_bytes summary\n"
        'size_bytes{quantile="0.5"} 1.0\n'
        'size_bytes{quantile="0.99"} 2.0\n'
        "size_bytes_sum 3.0\n"
        "size_bytes_count 4\n"
    )
    openmetrics = await exposed.text(Format.OPENMETRICS)
    assert openmetrics.startswith(
        '# HELP requests Of \\"all\\" \\\\ sorts.\\n\n# TYPE requests counter\nrequests_total{'
    )
    assert openmetrics.endswith("size_bytes_count 4\n# EOF\n")


@pytest.mark.parametrize("value", [0.0, 1.5, -1e308, 5e-324, 1e16, INF, -INF, NAN])
async def test_a_number_is_read_back_as_it_came(value: float) -> None:
    exposed = Exposed()
    await exposed.take(gauge("a", value))
    assert repr((await exposed.values())["a"]) == repr(value)


async def test_the_last_value_counts_whatever_its_time() -> None:
    exposed = Exposed()
    await exposed.take(gauge("a", number(1.0, time_unix_nano=2**63), number(2.0, time_unix_nano=5)))
    assert await exposed.values() == {"a": 2}
    await exposed.take(gauge("a", number(3.0)), gauge("a", number(4.0, time_unix_nano=1)))
    assert await exposed.values() == {"a": 4}
    await exposed.take(counter("b", 9.0), counter("b", number(1.0, start_time_unix_nano=1)))
    assert await exposed.values() == {"a": 4, "b_total": 1}


async def test_attributes_are_the_same_series_in_any_order() -> None:
    exposed = Exposed()
    for value, labels in ((1.0, {"x": "1", "y": "2"}), (2.0, {"y": "2", "x": "1"})):
        await exposed.take(gauge("a", number(value, labels)))
    assert await exposed.shown() == {("a", frozenset([("x", "1"), ("y", "2")])): 2}
    assert exposed.set_aside == {}


async def test_equal_labels_are_one_sample_whatever_they_were_called() -> None:
    """Sorted by their keys, the labels of these two come in different orders."""
    exposed = Exposed()
    await exposed.take(gauge("a", number(1.0, {"k.b": "1", "k_a": "2"}), number(2.0, {"k_b": "1", "k_a": "2"})))
    assert await exposed.shown() == {("a", frozenset([("k_a", "2"), ("k_b", "1")])): 1}


async def test_bounds_may_change_from_push_to_push() -> None:
    exposed = Exposed()
    for bounds in ([1.0], [1.0, 2.0, 3.0], [], [5.0]):
        await exposed.take(histogram("a", buckets(bounds, range(len(bounds) + 1), 1.0)))
        shown = await exposed.shown()
        assert {dict(labels)["le"] for name, labels in shown if name == "a_bucket"} == {*map(str, bounds), "+Inf"}
    assert exposed.reading("prometheus_series") == 1


async def test_quantiles_may_change_from_push_to_push() -> None:
    exposed = Exposed()
    for values in ([(0.5, 1.0)], [(0.1, 1.0), (0.5, 2.0), (0.9, NAN)], [], [(1.0, INF)]):
        await exposed.take(summary("a", quantiles(values)))
        shown = await exposed.shown()
        assert sorted(dict(labels)["quantile"] for name, labels in shown if name == "a") == [
            str(each) for each, _ in values
        ]


async def test_a_histogram_without_a_sum_or_of_negative_values_has_neither_sum_nor_count() -> None:
    """OpenMetrics wants both or none; the bucket of +Inf says the count."""
    exposed = Exposed()
    await exposed.take(histogram("a", buckets([1], [1, 2], None)), histogram("b", buckets([-1], [1, 2], -5.0)))
    assert {name for name, _ in await exposed.shown()} == {"a_bucket", "b_bucket"}


@pytest.mark.parametrize(
    ("resource", "labels"),
    [
        ({}, {}),
        ({"service.instance.id": "i"}, {}),
        ({"service.name": "mcp-metrics-service", "service.instance.id": "i"}, {}),
        ({"service.name": "shop", "host.name": "h"}, {"job": "shop"}),
        ({"service.name": "shop", "service.instance.id": "i-1"}, {"job": "shop", "instance": "i-1"}),
        ({"service.name": "shop", "service.namespace": "eu"}, {"job": "eu/shop"}),
        ({"service.name": 'a"\nb'}, {"job": 'a"\nb'}),
    ],
)
async def test_data_of_another_service_says_whose_it_is(resource: dict[str, str], labels: dict[str, str]) -> None:
    exposed = Exposed()
    await exposed.take(gauge("a", 1.0), resource=resource)
    assert await exposed.shown() == {("a", frozenset(labels.items())): 1}


async def test_services_are_kept_apart_and_a_point_s_own_labels_go_first() -> None:
    exposed = Exposed()
    for service, value in (("x", 1.0), ("y", 2.0)):
        await exposed.take(
            gauge("a", value), gauge("b", number(value, {"job": f"of {service}"})), resource={"service.name": service}
        )
    assert await exposed.shown() == {
        ("a", frozenset([("job", "x")])): 1,
        ("a", frozenset([("job", "y")])): 2,
        ("b", frozenset([("job", "of x")])): 1,
        ("b", frozenset([("job", "of y")])): 2,
    }


@pytest.mark.parametrize("most", [1024, 5000, 50_000])
async def test_the_data_of_a_scrape_is_never_more_than_max_bytes(most: int) -> None:
    """Whatever it is; and what fits is shown."""
    fuzz, exposed = Fuzz(most), Exposed(max_bytes=most)
    extremes = [-1.7976931348623157e308, -2.2250738585072014e-308, 5e-324]
    await exposed.take(gauge("g", *[number(value, {"k": "\0" * index}) for index, value in enumerate(extremes)]))
    await exposed.take(histogram("h", buckets([1.7976931348623157e308], [2**62, 2**62], 1.7976931348623157e308)))
    for _ in range(60):
        await exposed.take(*[fuzz.metric() for _ in range(5)])
        largest = max([len((await exposed.text(format)).encode()) - len("# EOF\n") for format in Format])
        assert largest <= exposed.reading("prometheus_series_bytes") <= most
    assert exposed.set_aside["beyond max_bytes"] > 0
    assert largest > most / 5


async def test_a_histogram_that_grows_beyond_max_bytes_stays_as_it_was() -> None:
    exposed = Exposed(max_bytes=1024)
    await exposed.take(histogram("a", buckets([1.0], [1, 2], 1.0)))
    before = await exposed.shown()
    await exposed.take(histogram("a", buckets([*range(20)], [1] * 21, 1.0)))
    assert await exposed.shown() == before
    assert exposed.set_aside == {"beyond max_bytes": 1}


async def test_pushes_during_a_scrape_hide_no_series_and_the_last_value_wins() -> None:
    """Neither one whose bounds change just then."""
    exposed, generator = Exposed(), random.Random(1)
    ended = anyio.Event()

    async def push(step: int) -> None:
        bounds = sorted(generator.sample(range(100), generator.randrange(1, 5)))
        points = [number(step, {"k": str(index)}) for index in range(0, 2000, generator.randrange(1, 20))]
        await exposed.take(histogram("b", buckets(bounds, [step] * (len(bounds) + 1), 1.0)), gauge("a", *points))

    async def push_often() -> None:
        for step in range(1, 40):
            await push(step)
        ended.set()

    await push(0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(push_often)
        while not ended.is_set():
            assert ("b_count", frozenset()) in await exposed.shown(Format.TEXT)
    assert (await exposed.shown())[("a", frozenset([("k", "0")]))] == 39


async def test_every_point_of_a_large_push_is_taken_in_while_others_run() -> None:
    exposed = Exposed()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        await exposed.take(gauge("a", *[number(index, {"k": str(index)}) for index in range(5000)]))
        shown = await exposed.shown()
        tasks.cancel_scope.cancel()
    assert len(shown) == 5000
    assert turns > 20


async def test_a_metric_may_come_in_parts_and_in_several_batches() -> None:
    request = ExportMetricsServiceRequest()
    for index in range(3):
        scope = request.resource_metrics.add().scope_metrics.add()
        scope.metrics.append(gauge("a", number(index, {"k": str(index)})))
        scope.metrics.append(gauge("a", number(index, {"k": f"{index} again"})))
    exposed = Exposed()
    events = EventBatch("s", [Event("custom", 1.0, NOW)], NOW)
    await exposed.export(MetricBatch(request.SerializeToString(), 6, NOW), events, MetricBatch(b"", 0, NOW))
    assert len(await exposed.shown()) == 6


async def test_the_service_s_own_telemetry_is_behind_the_data() -> None:
    exposed = Exposed()
    await exposed.take(gauge("a", 1.0))
    Gauge("own", "Of the service.", registry=exposed.host.own).set(2)
    assert list(await exposed.values()) == ["a", "own"]
