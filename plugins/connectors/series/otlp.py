"""Series as OTLP: cumulative sums and histograms, and gauges, in one request for a few hundred series."""

from __future__ import annotations

from datetime import UTC, datetime

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
)

from pipeline import MetricBatch, new_request_id
from plugins.connectors.series.table import Series, TypeTable

_CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


class RequestBuilder:
    """Builds one request. `service_name` and `scope` say who made it, `now` is the points' time in nanoseconds since 1970."""

    def __init__(self, service_name: str, scope: str, now: int) -> None:
        self.points = 0
        self._now = now
        self._request = ExportMetricsServiceRequest()
        resource = self._request.resource_metrics.add()
        resource.resource.attributes.append(_attribute("service.name", service_name))
        self._scope = resource.scope_metrics.add()
        self._scope.scope.name = scope
        self._metrics: dict[str, Metric] = {}

    def add(self, series: Series) -> None:
        """Add what the series shows now."""
        table, rule = series.table, series.table.rule
        now = max(
            self._now, series.started, series.histogram_started
        )  # a clock that was put back must not end before it began
        if rule.counter is not None:
            number = self._counter(table, rule.counter).sum.data_points.add()
            number.MergeFromString(_fixed_part(series, "number"))
            number.time_unix_nano, number.as_double = now, series.total
            self.points += 1
        if rule.histogram is not None and (count := sum(series.counts)):
            point = self._histogram(table, rule.histogram).histogram.data_points.add()
            point.MergeFromString(_fixed_part(series, "histogram"))
            point.bucket_counts.extend(series.counts)
            point.time_unix_nano, point.count, point.sum = now, count, series.sum
            self.points += 1
        if rule.gauge is not None and series.last is not None:
            number = self._gauge(table, rule.gauge).gauge.data_points.add()
            number.MergeFromString(_fixed_part(series, "number"))
            number.time_unix_nano, number.as_double = now, series.last
            self.points += 1

    def _metric(self, name: str, description: str) -> Metric:
        metric: Metric = self._scope.metrics.add()
        self._metrics[name] = metric
        metric.name, metric.description = name, description
        return metric

    def _counter(self, table: TypeTable, name: str) -> Metric:
        if name not in self._metrics:
            what = "Sum of the values" if table.rule.counts == "value" else "Number"
            metric = self._metric(name, f"{what} of {table.type} events.")
            metric.sum.is_monotonic, metric.sum.aggregation_temporality = True, _CUMULATIVE
        return self._metrics[name]

    def _histogram(self, table: TypeTable, name: str) -> Metric:
        if name not in self._metrics:
            what = "Duration" if table.rule.observes == "duration" else "Value"
            metric = self._metric(name, f"{what} of {table.type} events.")
            metric.histogram.aggregation_temporality = _CUMULATIVE
            metric.unit = "s" if table.rule.observes == "duration" else ""
        return self._metrics[name]

    def _gauge(self, table: TypeTable, name: str) -> Metric:
        return self._metrics.get(name) or self._metric(name, f"Last value of {table.type} events.")

    def batch(self) -> MetricBatch:
        """The request as a batch of the metrics pipeline."""
        return MetricBatch(self._request.SerializeToString(), self.points, datetime.now(UTC), new_request_id())


def _fixed_part(series: Series, kind: str) -> bytes:
    """The part of a data point that never changes, encoded once: with it, a series took 4 µs instead of 32, measured."""
    if kind not in series.encoded:
        labels = (*series.labels, ("metric_type", series.table.type))
        attributes = [_attribute(name, value) for name, value in labels]
        fixed = (
            NumberDataPoint(attributes=attributes, start_time_unix_nano=series.started)
            if kind == "number"
            else HistogramDataPoint(
                attributes=attributes,
                start_time_unix_nano=series.histogram_started,
                explicit_bounds=series.table.bounds,
            )
        )
        series.encoded[kind] = fixed.SerializeToString()
    return series.encoded[kind]


def _attribute(name: str, value: str) -> KeyValue:
    return KeyValue(key=name, value=AnyValue(string_value=value))
