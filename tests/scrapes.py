"""Reading what a scrape shows, with the parser of Prometheus' own client, and what one would show of an OTLP request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, frozenset[tuple[str, str]]]
"""The name of a sample and its labels."""


def samples(text: str, *, prefix: str = "mcp_") -> dict[Sample, float]:
    """Every sample of the metrics whose names begin so. Fails on what is no exposition, and on a sample that is there twice."""
    found: dict[Sample, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(prefix):
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in found, f"{key} is there twice"
                found[key] = sample.value
    return found


def total(text: str, name: str, **labels: str) -> float:
    """The sum of all samples of that name that have these labels, as PromQL's `sum(name{labels})`."""
    wanted = set(labels.items())
    return sum(value for (each, found), value in samples(text, prefix=name).items() if each == name and wanted <= found)


def samples_of(request: ExportMetricsServiceRequest) -> dict[Sample, float]:
    """The samples that Prometheus would have of a request, histograms as their buckets, sum and count. Fails on one that is there twice."""
    found: dict[Sample, float] = {}
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for key, value in _samples_of(metric):
                    assert key not in found, f"{key} is there twice"
                    found[key] = value
    return found


def _samples_of(metric: Metric) -> Iterator[tuple[Sample, float]]:
    for number in (*metric.sum.data_points, *metric.gauge.data_points):
        yield (metric.name, _labels(number.attributes)), number.as_double
    for point in metric.histogram.data_points:
        labels = _labels(point.attributes)
        bounds = [*map(str, point.explicit_bounds), "+Inf"]
        for bound, count in zip(bounds, accumulate(point.bucket_counts), strict=True):
            yield (f"{metric.name}_bucket", labels | {("le", bound)}), count
        yield (f"{metric.name}_count", labels), point.count
        yield (f"{metric.name}_sum", labels), point.sum


def _labels(attributes: Iterable[KeyValue]) -> frozenset[tuple[str, str]]:
    return frozenset((each.key, each.value.string_value) for each in attributes)
