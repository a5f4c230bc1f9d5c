"""What is not shown: it is counted by reason, once a series, said once in the log, and spoils nothing else."""

from __future__ import annotations

import logging

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, NumberDataPoint
from prometheus_client import Counter, Histogram, Info

from pipeline import MetricBatch, Permanent
from plugins.exporters.prometheus.exposition import Format
from plugins.exporters.prometheus.store import MAX_LABEL_BYTES, MAX_LABELS, MAX_LINES
from tests.plugins.exporters.prometheus.otlp import (
    DELTA,
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

pytestmark = pytest.mark.anyio

INF, NAN = float("inf"), float("nan")
EXPONENTIAL = Metric(name="a")
EXPONENTIAL.exponential_histogram.data_points.add(count=1)
A_LOT = {f"k{index}": "v" for index in range(MAX_LABELS + 1)}

UNSHOWN = [
    ("not cumulative", counter("a", 1.0, temporality=DELTA)),
    ("not cumulative", counter("a", 1.0, temporality=DELTA, is_monotonic=False)),
    ("not cumulative", counter("a", 1.0, temporality=0)),
    ("not cumulative", histogram("a", buckets([1], [1, 1]), temporality=DELTA)),
    ("of a kind that is not shown (exponential_histogram)", EXPONENTIAL),
    ("without a name, or with one that is too long", gauge("", 1.0)),
    ("without a name, or with one that is too long", counter("_total", 1.0)),
    ("without a name, or with one that is too long", gauge("x" * 257, 1.0)),
    ("a counter that is negative or no number", counter("a", -1.0)),
    ("a counter that is negative or no number", counter("a", NAN)),
    ("a counter that is negative or no number", counter("a", -INF)),
    ("without a value", gauge("a", number(1.0, flags=1))),
    ("without a value", histogram("a", buckets([], [1], flags=1))),
    ("without a value", summary("a", quantiles([], flags=1))),
    ("a histogram whose buckets do not add up", histogram("a", buckets([1], [1]))),
    ("a histogram whose buckets do not add up", histogram("a", buckets([1], [1, 1, 1]))),
    ("a histogram whose buckets do not add up", histogram("a", buckets([1], [1, 1], count=3))),
    ("a histogram whose buckets do not add up", histogram("a", buckets([1], [2**63, 2**63], count=0))),
    ("a histogram whose sum is negative or no number", histogram("a", buckets([1], [1, 1], -1.0))),
    ("a histogram whose sum is negative or no number", histogram("a", buckets([1], [1, 1], NAN))),
    ("a histogram whose sum is negative or no number", histogram("a", buckets([-1], [1, 1], NAN))),
    ("a histogram whose sum is negative or no number", histogram("a", buckets([], [1], -1.0))),
    ("a histogram whose bounds do not ascend", histogram("a", buckets([1, 1], [1, 1, 1]))),
    ("a histogram whose bounds do not ascend", histogram("a", buckets([2, 1], [1, 1, 1]))),
    ("a histogram whose bounds do not ascend", histogram("a", buckets([0.0, -0.0], [1, 1, 1]))),
    ("a histogram whose bounds do not ascend", histogram("a", buckets([1, INF], [1, 1, 1]))),
    ("a histogram whose bounds do not ascend", histogram("a", buckets([NAN], [1, 1]))),
    ("a summary that is negative, or no number", summary("a", quantiles([(0.5, -1.0)]))),
    ("a summary that is negative, or no number", summary("a", quantiles([(1.1, 1.0)]))),
    ("a summary that is negative, or no number", summary("a", quantiles([(NAN, 1.0)]))),
    ("a summary that is negative, or no number", summary("a", quantiles([], sum=-1.0))),
    ("a summary that is negative, or no number", summary("a", quantiles([], sum=NAN))),
    ("a summary with a quantile twice", summary("a", quantiles([(0.5, 1.0), (0.5, 2.0)]))),
    ("a summary with a quantile twice", summary("a", quantiles([(0.0, 1.0), (-0.0, 2.0)]))),
    ("with too many labels, or too long ones", gauge("a", number(1.0, A_LOT))),
    ("with too many labels, or too long ones", gauge("a", number(1.0, {"k": "x" * MAX_LABEL_BYTES}))),
    ("with too many labels, or too long ones", gauge("a", number(1.0, {"k": "\0" * (MAX_LABEL_BYTES // 2)}))),
    ("with too many labels, or too long ones", gauge("a", number(1.0, {"k" * 1_000_000: ""}))),
    ("beyond max_bytes", gauge("a", number(1.0, {"k": "x" * 2000}))),
    ("beyond max_bytes", gauge("a", 1.0, description="x" * 1024)),
]


@pytest.mark.parametrize(("reason", "metric"), UNSHOWN)
async def test_what_cannot_be_shown_is_counted_once_and_said_once(
    reason: str, metric: Metric, caplog: pytest.LogCaptureFixture
) -> None:
    exposed = Exposed(max_bytes=1024)
    for _ in range(3):
        await exposed.take(metric, gauge("good", 1.0))
    assert exposed.set_aside == {reason: 1}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert reason in caplog.text
    assert await exposed.values() == {"good": 1}
    assert exposed.reading("prometheus_series") == 1


CLASHES = [
    (gauge("a_total", 1.0), counter("a", 1.0)),
    (counter("a", 1.0), gauge("a_total", 1.0)),
    (counter("a", 1.0), gauge("a", 1.0)),
    (gauge("a", 1.0), counter("a", 1.0)),
    (counter("a", 1.0), gauge("a_created", 1.0)),
    (histogram("a", buckets([1], [1, 1])), gauge("a_bucket", 1.0)),
    (gauge("a_count", 1.0), histogram("a", buckets([1], [1, 1]))),
    (gauge("a_sum", 1.0), summary("a", quantiles([]))),
    (summary("a", quantiles([])), histogram("a", buckets([1], [1, 1]))),
    (histogram("a", buckets([1], [1, 1])), counter("a_sum", 1.0)),
    (gauge("a.b", 1.0), counter("a", 1.0, unit="s"), counter("a_seconds", 1.0), gauge("a_seconds", 1.0)),
]


@pytest.mark.parametrize("metrics", CLASHES)
async def test_of_metrics_whose_names_clash_the_first_is_shown(metrics: list[Metric]) -> None:
    exposed = Exposed()
    await exposed.take(*metrics[:1])
    before = await exposed.shown()
    await exposed.take(*metrics)
    shown = await exposed.shown()
    assert shown.items() >= before.items()
    assert sum(exposed.set_aside.values()) > 0


async def test_of_series_with_equal_labels_the_first_is_shown() -> None:
    exposed = Exposed()
    for value in (1.0, 2.0):
        await exposed.take(
            gauge("a", number(value, {"a.b": "1"}), number(8, {"a_b": "1"}), number(9, {"a-b": "1", "c": ""}))
        )
    assert await exposed.shown() == {("a", frozenset([("a_b", "1")])): 2}
    assert exposed.set_aside == {"with the labels of another series": 2}


async def test_a_series_is_shown_as_soon_as_a_point_of_it_can_be() -> None:
    exposed = Exposed()
    await exposed.take(gauge("a", number(1.0, flags=1)), counter("b", NAN), histogram("c", buckets([1], [1], 0.5)))
    await exposed.take(gauge("a", 1.0), counter("b", 1.0), histogram("c", buckets([], [1], 0.5)))
    assert (await exposed.values()) == {"a": 1, "b_total": 1, "c_sum": 0.5, "c_count": 1}


async def test_a_point_that_cannot_be_shown_leaves_the_value_before_it() -> None:
    exposed = Exposed()
    await exposed.take(counter("a", 1.0), histogram("b", buckets([], [1], 0.5)), gauge("c", 1.0))
    for _ in range(3):
        await exposed.take(counter("a", -1.0), histogram("b", buckets([], [2], -1.0)), gauge("c", number(2.0, flags=1)))
    assert (await exposed.values()) == {"a_total": 1, "b_sum": 0.5, "b_count": 1, "c": 1}
    assert set(exposed.set_aside.values()) == {1}


async def test_what_is_no_otlp_is_refused_for_ever() -> None:
    with pytest.raises(Permanent, match="no OTLP"):
        await Exposed().export(MetricBatch(b"\xff\xff", 1, NOW))


async def test_no_name_or_value_can_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    await Exposed().take(counter("a\n2026 ERROR \x1b[31m\u2028" + "x" * 10_000, -1.0))
    (message,) = caplog.messages
    assert message.isprintable()
    assert len(message) < 200


async def test_the_log_says_no_more_than_so_much_about_it(caplog: pytest.LogCaptureFixture) -> None:
    exposed = Exposed()
    await exposed.take(*[counter(f"a{index}", -1.0) for index in range(3 * MAX_LINES)])
    assert len(caplog.messages) == MAX_LINES
    assert exposed.set_aside == {"a counter that is negative or no number": 3 * MAX_LINES}


async def test_more_metrics_than_can_be_told_apart_are_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.exporters.prometheus.store.MAX_STREAMS", 2)
    exposed = Exposed()
    for _ in range(2):
        await exposed.take(gauge("a", 1.0), gauge("b", 1.0), gauge("c", 1.0))
    assert await exposed.values() == {"a": 1, "b": 1}
    assert exposed.set_aside == {"of too many metrics": 1}


async def test_series_beyond_what_is_remembered_are_counted_by_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugins.exporters.prometheus.store.MAX_REMEMBERED", 1)
    exposed = Exposed()
    for _ in range(3):
        await exposed.take(counter("a", -1.0), counter("b", -1.0))
    assert exposed.set_aside == {"a counter that is negative or no number": 1 + 3}


OWN = [
    (Counter, gauge("own_total", 1.0)),
    (Counter, counter("own", 1.0)),
    (Counter, gauge("own_created", 1.0)),
    (Histogram, gauge("own_bucket", 1.0)),
    (Histogram, gauge("own", 1.0)),
    (Histogram, summary("own", quantiles([]))),
    (Info, gauge("own_info", 1.0)),
]


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize(("kind", "metric"), OWN)
async def test_the_service_s_own_telemetry_goes_before_data_of_its_name(
    kind: type[Counter | Histogram | Info], metric: Metric, format: Format
) -> None:
    """Whichever of the two is there first."""
    exposed = Exposed()
    await exposed.take(metric, gauge("b", 2.0))
    series = exposed.reading("prometheus_series")
    kind("own", "Of the service.", registry=exposed.host.own)
    for _ in range(2):
        text = await exposed.text(format)
        assert text.count("# TYPE own") == len({line for line in text.split("\n") if line.startswith("# TYPE own")})
        assert "b 2.0" in text
    await exposed.take(metric, gauge(metric.name, number(1.0, {"more": "x"})))
    assert "more" not in await exposed.text(format)
    assert exposed.set_aside["under a name of the service's own telemetry"] >= 1
    assert exposed.reading("prometheus_series") == series - 1


async def test_a_deeply_nested_attribute_is_shown() -> None:
    value = AnyValue(string_value="x")
    for _ in range(20):
        outer = AnyValue()
        outer.array_value.values.append(value)
        value = outer
    exposed = Exposed()
    metric = Metric(name="a")
    metric.gauge.data_points.append(NumberDataPoint(as_int=1, attributes=[KeyValue(key="k", value=value)]))
    await exposed.take(metric)
    assert await exposed.shown() == {("a", frozenset([("k", "[" * 20 + '"x"' + "]" * 20)])): 1}
