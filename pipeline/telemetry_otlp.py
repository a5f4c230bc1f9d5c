"""What the service says of itself, as OTLP: the same that a scrape shows, under the same names.

Every number is a double, as in a scrape: a series that changed from integers to doubles would be two to some backends.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.util.types import Attributes
from prometheus_client.core import Metric as Family

from pipeline.data import MetricBatch, new_request_id
from pipeline.telemetry import Distribution, Instrument, Sums, Telemetry

_SCOPE = InstrumentationScope("metrics-service")
_CUMULATIVE = AggregationTemporality.CUMULATIVE


def telemetry_batch(telemetry: Telemetry) -> MetricBatch:
    """All of it as it is now. What it counts it has counted since `telemetry.started`; call it on the event loop."""
    writer = _Writer(telemetry.started, time.time_ns())
    metrics = [
        *writer.numbers(telemetry.numbers()),
        *(writer.histogram(first, sums) for first, sums in telemetry.histograms()),
        *map(writer.family, telemetry.process.collect()),
    ]
    points = sum(len(each.data.data_points) for each in metrics)
    scopes = [ScopeMetrics(_SCOPE, metrics, schema_url="")]
    whose = telemetry.resource
    request = encode_metrics(MetricsData([ResourceMetrics(whose, scopes, whose.schema_url)]))
    return MetricBatch(request.SerializeToString(), points, datetime.now(UTC), new_request_id())


class _Writer:
    """Makes the SDK's metrics of what it has read, and of what it has not. Times are in nanoseconds since 1970."""

    def __init__(self, started: int, now: int) -> None:
        self._started = started
        self._now = now

    def numbers(self, data: MetricsData | None) -> Iterator[Metric]:
        """Counters and gauges. The SDK would have each counter begin when it was first read, which is later than it did."""
        for whose in data.resource_metrics if data else ():
            for scope in whose.scope_metrics:
                for metric in scope.metrics:
                    points = [
                        self._number(point.attributes, point.value)
                        for point in metric.data.data_points
                        if isinstance(point, NumberDataPoint)
                    ]
                    if isinstance(metric.data, Sum):
                        yield replace(metric, name=f"{metric.name}_total", data=_sum(points))
                    else:
                        yield replace(metric, data=Gauge(points))

    def histogram(self, first: Instrument, sums: Sums) -> Metric:
        """One histogram; `sums` are in the order of the labels of `first`."""
        points = [
            self._distribution(dict(zip(first.labels, of_labels, strict=True)), value)
            for of_labels, value in sums.items()
        ]
        return Metric(first.name, first.description, "", Histogram(points, _CUMULATIVE))

    def family(self, family: Family) -> Metric:
        """A counter or a gauge of the Prometheus client."""
        points = [self._number(sample.labels, sample.value) for sample in family.samples]
        if family.type == "counter":
            return Metric(f"{family.name}_total", family.documentation, "", _sum(points))
        return Metric(family.name, family.documentation, "", Gauge(points))

    def _number(self, labels: Attributes, value: float) -> NumberDataPoint:
        return NumberDataPoint(labels, self._started, self._now, float(value))

    def _distribution(self, labels: Mapping[str, str], value: Distribution) -> HistogramDataPoint:
        return HistogramDataPoint(
            labels,
            self._started,
            self._now,
            count=sum(value.counts),
            sum=value.sum,
            bucket_counts=list(value.counts),
            explicit_bounds=value.bounds,
            min=None,  # type: ignore[arg-type]  # nobody has kept them, and to OTLP they are optional
            max=None,  # type: ignore[arg-type]
        )


def _sum(points: Iterable[NumberDataPoint]) -> Sum:
    return Sum(list(points), _CUMULATIVE, is_monotonic=True)
