"""Cutting a batch in two, to find what an exporter refuses in it, or to make it small enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from pipeline.data import Batch, EventBatch, MetricBatch


def halve(batch: Batch) -> tuple[Batch, Batch] | None:
    """Two batches that hold, together and in order, the items of one of at least two; None if its metrics are not readable."""
    middle = len(batch) // 2
    if isinstance(batch, EventBatch):
        first, second = batch.events[:middle], batch.events[middle:]
        return batch.replace(events=first), batch.replace(events=second)
    try:
        return _part(batch, 0, middle), _part(batch, middle, batch.points)
    except DecodeError:
        return None


def pick(batch: Batch, indices: Set[int]) -> tuple[Batch, Batch] | None:
    """The items at these indices, and the others, each in order, as two batches; None if the metrics are not readable."""
    if isinstance(batch, EventBatch):
        chosen = [event for index, event in enumerate(batch.events) if index in indices]
        rest = [event for index, event in enumerate(batch.events) if index not in indices]
        return batch.replace(events=chosen), batch.replace(events=rest)
    try:
        chosen_points = sorted(index for index in indices if 0 <= index < batch.points)
        others = [index for index in range(batch.points) if index not in indices]
        return _only(batch, chosen_points), _only(batch, others)
    except DecodeError:
        return None


def _only(batch: MetricBatch, indices: Sequence[int]) -> MetricBatch:
    """The data points at these indices, which are in order."""
    request = ExportMetricsServiceRequest.FromString(batch.request)
    kept, before = frozenset(indices), 0
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points = _points(metric)
                count = len(points)
                for index in range(count - 1, -1, -1):
                    if before + index not in kept:
                        del points[index]
                before += count
            _delete_empty(scope.metrics, lambda metric: bool(_points(metric)))
        _delete_empty(resource.scope_metrics, lambda scope: bool(scope.metrics))
    _delete_empty(request.resource_metrics, lambda resource: bool(resource.scope_metrics))
    return batch.replace(request=request.SerializeToString(), points=len(indices))


def _part(batch: MetricBatch, start: int, stop: int) -> MetricBatch:
    """The data points from number `start` to before `stop`, with all that says what they belong to."""
    request = ExportMetricsServiceRequest.FromString(batch.request)
    before = 0
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                before += _keep(metric, start - before, stop - before)
            _delete_empty(scope.metrics, lambda metric: bool(_points(metric)))
        _delete_empty(resource.scope_metrics, lambda scope: bool(scope.metrics))
    _delete_empty(request.resource_metrics, lambda resource: bool(resource.scope_metrics))
    return batch.replace(request=request.SerializeToString(), points=stop - start)


def _points(metric: Metric) -> Any:
    """The repeated field of a metric's data points, whatever kind they are."""
    data = metric.WhichOneof("data")
    return getattr(metric, data).data_points if data else []


def count_points(request: ExportMetricsServiceRequest) -> int:
    """The number of data points in a request."""
    scopes = (scope for resource in request.resource_metrics for scope in resource.scope_metrics)
    return sum(len(_points(metric)) for scope in scopes for metric in scope.metrics)


def _keep(metric: Metric, start: int, stop: int) -> int:
    """Delete the points before `start` and from `stop` on, as far as the metric has them. Returns how many it had."""
    points = _points(metric)
    count = len(points)
    del points[max(stop, 0) :]
    del points[: max(start, 0)]
    return count


def _delete_empty(messages: Any, is_full: Callable[[Any], bool]) -> None:
    for place in range(len(messages) - 1, -1, -1):
        if not is_full(messages[place]):
            del messages[place]
