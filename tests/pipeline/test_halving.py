"""Halving: what is cut in two is still all there, in order, and both halves say what their points belong to."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from pipeline import Event, EventBatch, MetricBatch
from pipeline.halving import halve

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
KINDS = ("gauge", "sum", "histogram", "exponential_histogram", "summary")

Metrics = list[tuple[str, int]]
"""The kind and the number of points of each metric."""

metrics = st.lists(st.tuples(st.sampled_from((*KINDS, "")), st.integers(0, 5)), max_size=4)
requests = st.lists(st.lists(metrics, max_size=3), max_size=3)


def request_of(resources: list[list[Metrics]]) -> ExportMetricsServiceRequest:
    """Resources with scopes with metrics, all with names of their own; each point has a number as its time."""
    request, number = ExportMetricsServiceRequest(), 0
    for resource_number, scopes in enumerate(resources):
        resource = request.resource_metrics.add(schema_url=f"resource {resource_number}")
        resource.resource.attributes.add(key="service.name").value.string_value = f"service {resource_number}"
        for scope_number, several in enumerate(scopes):
            scope = resource.scope_metrics.add(schema_url=f"scope {scope_number}")
            scope.scope.name, scope.scope.version = f"scope {scope_number}", "1"
            for kind, count in several:
                metric = scope.metrics.add(name=f"metric_{number}", unit="By", description=f"Says {kind}.")
                for _ in range(count if kind else 0):
                    getattr(metric, kind).data_points.add(time_unix_nano=number).attributes.add(key=f"k{number}")
                    number += 1
                if kind in ("sum", "histogram", "exponential_histogram"):
                    getattr(metric, kind).aggregation_temporality = 1 + number % 2
                if kind == "sum":
                    metric.sum.is_monotonic = True
    return request


def points_of(request: ExportMetricsServiceRequest) -> Iterator[tuple[bytes, ...]]:
    """Every point, after all that it belongs to, without the other points."""
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                around = (bare(resource, "scope_metrics"), bare(scope, "metrics"), bare_metric(metric))
                for point in data_of(metric).data_points if metric.WhichOneof("data") else ():
                    yield (*around, point.SerializeToString(deterministic=True))


def data_of(metric: Metric) -> Any:
    return getattr(metric, str(metric.WhichOneof("data")))


def bare(message: Message, field: str) -> bytes:
    copy = type(message).FromString(message.SerializeToString())
    copy.ClearField(field)
    return copy.SerializeToString(deterministic=True)


def bare_metric(metric: Metric) -> bytes:
    copy = Metric.FromString(metric.SerializeToString())
    if copy.WhichOneof("data"):
        data_of(copy).ClearField("data_points")
    return copy.SerializeToString(deterministic=True)


def has_empty_shells(request: ExportMetricsServiceRequest) -> bool:
    scopes = [scope for resource in request.resource_metrics for scope in resource.scope_metrics]
    every = [metric for scope in scopes for metric in scope.metrics]
    return (
        any(not resource.scope_metrics for resource in request.resource_metrics)
        or any(not scope.metrics for scope in scopes)
        or any(not metric.WhichOneof("data") or not data_of(metric).data_points for metric in every)
    )


@given(requests.filter(lambda resources: len(list(points_of(request_of(resources)))) > 1))
def test_halves_of_metrics_hold_every_point_in_order_with_what_it_belongs_to(resources: list[list[Metrics]]) -> None:
    request = request_of(resources)
    points = list(points_of(request))
    batch = MetricBatch(request.SerializeToString(), len(points), NOW, "req_1", "key")
    halves = halve(batch)
    assert halves is not None
    held = []
    for half in halves:
        assert isinstance(half, MetricBatch)
        read = ExportMetricsServiceRequest.FromString(half.request)
        own = list(points_of(read))
        assert half.points == len(half) == len(own) > 0
        assert not has_empty_shells(read)
        assert (half.received_at, half.request_id, half.key_service) == (NOW, "req_1", "key")
        held += own
    assert held == points
    assert abs(len(halves[0]) - len(halves[1])) <= 1
    assert batch.request == request.SerializeToString(), "what was cut is as it was"


@given(st.integers(2, 50))
def test_halves_of_events_hold_every_event_in_order(count: int) -> None:
    events = [Event("custom", float(number), NOW) for number in range(count)]
    batch = EventBatch("service", events, NOW, "req_1", "1.0", "instance", "key")
    halves = halve(batch)
    assert halves is not None
    first, second = halves
    assert isinstance(first, EventBatch)
    assert isinstance(second, EventBatch)
    assert [*first.events, *second.events] == events == list(batch.events)
    assert abs(len(first) - len(second)) <= 1
    for half in halves:
        assert isinstance(half, EventBatch)
        assert (half.service, half.received_at, half.request_id) == ("service", NOW, "req_1")
        assert (half.version, half.instance_id, half.key_service) == ("1.0", "instance", "key")


def test_metrics_that_cannot_be_read_cannot_be_halved() -> None:
    assert halve(MetricBatch(b"\xff\xff\xff", 2, NOW)) is None
