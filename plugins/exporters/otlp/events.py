"""Events as OTLP: each one a point of its own, with its own time and all of its dimensions, as a delta.

    mcp.event.TYPE            sum: the event's value; a negative one is no part of a sum that only grows, and is left out
    mcp.event.TYPE.duration   histogram, in seconds: of the events that have a duration

The resource is the sender: `service.name`, `service.version`, `service.instance.id`.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric, ScopeMetrics

from pipeline import DimensionValue, Event, EventBatch

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Of the histograms' buckets, in seconds: those of the series."""
HOLD_SECONDS = 0.001
"""How long points are made before others run: one takes some 10 µs."""

Sender = tuple[str, str | None, str | None]
"""Service, version, instance."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA


class EventRequest:
    """Builds one request of many events. `scope` is who makes it."""

    def __init__(self, scope: str) -> None:
        self.negative = 0
        """Events whose value was left out."""
        self._scope_name = scope
        self._request = ExportMetricsServiceRequest()
        self._scopes: dict[Sender, ScopeMetrics] = {}
        self._metrics: dict[tuple[Sender, str, str], Metric] = {}

    async def add(self, batches: Sequence[EventBatch]) -> None:
        """Add all events of these batches, and let others run in between."""
        until = time.perf_counter() + HOLD_SECONDS
        for batch in batches:
            sender = (batch.service, batch.version, batch.instance_id)
            for event in batch.events:
                self._add(sender, event)
                if time.perf_counter() > until:
                    await asyncio.sleep(0)
                    until = time.perf_counter() + HOLD_SECONDS

    def body(self) -> bytes:
        """The request, encoded."""
        return self._request.SerializeToString()

    def _add(self, sender: Sender, event: Event) -> None:
        attributes = [_attribute(name, value) for name, value in event.dimensions.items() if value is not None]
        at = _nanoseconds(event.timestamp)
        if event.value < 0:
            self.negative += 1
        else:
            number = self._sum(sender, event.type).sum.data_points.add(
                attributes=attributes, start_time_unix_nano=at, time_unix_nano=at
            )
            number.as_double = event.value
        if event.duration_ms is not None:
            seconds = event.duration_ms / 1000
            point = self._histogram(sender, event.type).histogram.data_points.add(
                attributes=attributes, start_time_unix_nano=at, time_unix_nano=at, count=1, explicit_bounds=BOUNDS
            )
            point.sum = point.min = point.max = seconds
            counts = [0] * (len(BOUNDS) + 1)
            counts[bisect_left(BOUNDS, seconds)] = 1
            point.bucket_counts.extend(counts)

    def _sum(self, sender: Sender, type_: str) -> Metric:
        key = (sender, "sum", type_)
        if key not in self._metrics:
            metric = self._scope(sender).metrics.add(
                name=f"mcp.event.{type_}", description=f"Values of {type_} events."
            )
            metric.sum.is_monotonic, metric.sum.aggregation_temporality = True, _DELTA
            self._metrics[key] = metric
        return self._metrics[key]

    def _histogram(self, sender: Sender, type_: str) -> Metric:
        key = (sender, "histogram", type_)
        if key not in self._metrics:
            metric = self._scope(sender).metrics.add(name=f"mcp.event.{type_}.duration", unit="s")
            metric.description = f"Durations of {type_} events."
            metric.histogram.aggregation_temporality = _DELTA
            self._metrics[key] = metric
        return self._metrics[key]

    def _scope(self, sender: Sender) -> ScopeMetrics:
        if sender not in self._scopes:
            resource = self._request.resource_metrics.add()
            for name, value in zip(("service.name", "service.version", "service.instance.id"), sender, strict=True):
                if value is not None:
                    resource.resource.attributes.append(_attribute(name, value))
            self._scopes[sender] = resource.scope_metrics.add()
            self._scopes[sender].scope.name = self._scope_name
        return self._scopes[sender]


def _nanoseconds(time: datetime) -> int:
    """Since 1970, exactly. 0, which is OTLP's "unknown", for what was before."""
    return max(0, (time - _EPOCH) // _MICROSECOND * 1000)


def _attribute(name: str, value: DimensionValue) -> KeyValue:
    match value:
        case bool():
            return KeyValue(key=name, value=AnyValue(bool_value=value))
        case int():
            return KeyValue(key=name, value=AnyValue(int_value=value))
        case float():
            return KeyValue(key=name, value=AnyValue(double_value=value))
    return KeyValue(key=name, value=AnyValue(string_value=value or ""))
