"""Metrics as OTLP has them, in few words, and an exporter to give them to."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    SummaryDataPoint,
)

from pipeline import Batch, Delivery, Distribution, MetricBatch
from pipeline.testing import NopHost
from plugins.exporters.prometheus.exporter import PrometheusConfig, PrometheusExporter
from plugins.exporters.prometheus.exposition import Format
from tests.plugins.exporters.prometheus.reading import Samples, read

CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)

Labels = Mapping[str, str]


def attributes(labels: Labels) -> list[KeyValue]:
    """Attributes with strings for values, in that order."""
    return [KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in labels.items()]


def number(value: float, labels: Labels | None = None, **more: Any) -> NumberDataPoint:
    """A point of a gauge or a sum."""
    return NumberDataPoint(as_double=value, attributes=attributes(labels or {}), **more)


def gauge(name: str, *points: NumberDataPoint | float, **more: Any) -> Metric:
    """A gauge with these points, or values without attributes."""
    metric = Metric(name=name, **more)
    metric.gauge.data_points.extend(each if isinstance(each, NumberDataPoint) else number(each) for each in points)
    return metric


def counter(
    name: str, *points: NumberDataPoint | float, temporality: Any = CUMULATIVE, is_monotonic: bool = True, **more: Any
) -> Metric:
    """A sum with these points, or values without attributes."""
    metric = Metric(name=name, **more)
    metric.sum.aggregation_temporality = temporality
    metric.sum.is_monotonic = is_monotonic
    metric.sum.data_points.extend(each if isinstance(each, NumberDataPoint) else number(each) for each in points)
    return metric


def buckets(
    bounds: Sequence[float], counts: Sequence[int], sum: float | None = 1.0, labels: Labels | None = None, **more: Any
) -> HistogramDataPoint:
    """A point of a histogram, whose count is what its buckets hold if nothing else is said."""
    more = {"count": builtins.sum(counts), "attributes": attributes(labels or {}), **more}
    return HistogramDataPoint(explicit_bounds=bounds, bucket_counts=counts, sum=sum, **more)


def histogram(name: str, *points: HistogramDataPoint, temporality: Any = CUMULATIVE, **more: Any) -> Metric:
    """A histogram with these points."""
    metric = Metric(name=name, **more)
    metric.histogram.aggregation_temporality = temporality
    metric.histogram.data_points.extend(points)
    return metric


def quantiles(values: Sequence[tuple[float, float]], sum: float = 1.0, count: int = 1, **more: Any) -> SummaryDataPoint:
    """A point of a summary."""
    each = [SummaryDataPoint.ValueAtQuantile(quantile=quantile, value=value) for quantile, value in values]
    return SummaryDataPoint(quantile_values=each, sum=sum, count=count, **more)


def summary(name: str, *points: SummaryDataPoint, **more: Any) -> Metric:
    """A summary with these points."""
    metric = Metric(name=name, **more)
    metric.summary.data_points.extend(points)
    return metric


def batch_of(*metrics: Metric, resource: Labels | None = None) -> MetricBatch:
    """What a push of these metrics is."""
    request = ExportMetricsServiceRequest()
    one = request.resource_metrics.add()
    one.resource.attributes.extend(attributes(resource or {}))
    one.scope_metrics.add().metrics.extend(metrics)
    return MetricBatch(request.SerializeToString(), 1, NOW)


class Exposed:
    """An exporter without a socket: what is given to it, and what a scrape of it would show."""

    def __init__(self, **options: Any) -> None:
        self.host = NopHost()
        self.exporter = PrometheusExporter("prometheus", PrometheusConfig.model_validate(options), self.host)

    async def take(self, *metrics: Metric, resource: Labels | None = None) -> None:
        """Export these metrics as one batch."""
        await self.export(batch_of(*metrics, resource=resource))

    async def export(self, *batches: Batch) -> None:
        """Export these batches as one delivery."""
        await self.exporter.export(Delivery("metrics", 0, len(batches), batches))

    async def text(self, format: Format = Format.TEXT) -> str:
        """What a scrape would show, as it is."""
        return b"".join(await self.exporter._write(format)).decode()

    async def shown(self, *formats: Format) -> Samples:
        """What a scrape would show, the same in these formats, or in both."""
        first, *others = [read(await self.exporter._write(format), format) for format in formats or Format]
        assert all(repr(each) == repr(first) for each in others)
        return first

    async def values(self) -> dict[str, float]:
        """The same by names alone, where there are no labels."""
        return {name: value for (name, labels), value in (await self.shown()).items() if not labels}

    def reading(self, name: str) -> float:
        """What the exporter says of itself under that name, of all labels together."""
        (instrument,) = [each for each in self.exporter.instruments() if each.name == name]
        return sum(value for _, value in instrument.read() if not isinstance(value, Distribution))

    def renderings(self) -> int:
        """How often a scrape has been written."""
        (instrument,) = [each for each in self.exporter.instruments() if "duration" in each.name]
        return sum(sum(value.counts) for _, value in instrument.read() if isinstance(value, Distribution))

    @property
    def set_aside(self) -> dict[str, float]:
        """How many series the exporter says that it does not show, by reason."""
        (instrument,) = [each for each in self.exporter.instruments() if "set_aside" in each.name]
        return {labels["reason"]: value for labels, value in instrument.read() if not isinstance(value, Distribution)}
