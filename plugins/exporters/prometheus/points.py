"""OTLP's data points, read into series. What cannot be shown is refused with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    DataPointFlags,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    SummaryDataPoint,
)

from plugins.exporters.prometheus.family import Family, Histogram, Number, Series, Summary

_CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
_NO_VALUE = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK


class Unshowable(Exception):
    """Why a point cannot be shown, in a few words that do not change from point to point. `for_good` says that the series'
    next points cannot be either."""

    def __init__(self, reason: str, *, for_good: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good


def kind_of(metric: Metric) -> str:
    """The type that Prometheus gives to the metric. Raises `Unshowable`."""
    data = metric.WhichOneof("data")
    if data in ("gauge", "summary"):
        return data
    if data in ("sum", "histogram"):
        if getattr(metric, data).aggregation_temporality != _CUMULATIVE:
            raise Unshowable("not cumulative")
        if data == "histogram":
            return data
        return "counter" if metric.sum.is_monotonic else "gauge"
    raise Unshowable(f"of a kind that is not shown ({data or 'none'})")


def points_of(metric: Metric) -> Any:
    """Its data points, of whatever kind."""
    data = metric.WhichOneof("data")
    return getattr(metric, data).data_points if data else ()


def read_number(family: Family, series: Series | None, labels: str, point: NumberDataPoint) -> Series:
    """The series with the point's value. Raises `Unshowable`."""
    value = point.as_double or float(point.as_int)
    if family.kind == "counter" and not value >= 0:
        raise Unshowable("a counter that is negative or no number")
    if point.flags & _NO_VALUE:
        raise Unshowable("without a value")
    if series is None:
        series = Number(family, labels)
    assert isinstance(series, Number)
    series.value = value
    return series


def read_histogram(family: Family, series: Series | None, labels: str, point: HistogramDataPoint) -> Series:
    """The series with the point's buckets. Raises `Unshowable`."""
    counts, bounds = tuple(point.bucket_counts) or (point.count,), tuple(point.explicit_bounds)
    if point.flags & _NO_VALUE:
        raise Unshowable("without a value")
    if len(counts) != len(bounds) + 1 or sum(counts) != point.count:
        raise Unshowable("a histogram whose buckets do not add up")
    if (point.HasField("sum") and not point.sum >= 0) and not (bounds and bounds[0] < 0 and not math.isnan(point.sum)):
        raise Unshowable("a histogram whose sum is negative or no number")
    if series is None or bounds != getattr(series, "bounds", None):
        if not all(map(math.isfinite, bounds)) or any(low >= high for low, high in pairwise(bounds)):
            raise Unshowable("a histogram whose bounds do not ascend")
        series = Histogram(family, labels, bounds)
    assert isinstance(series, Histogram)
    series.counts, series.sum = counts, point.sum if point.HasField("sum") else None
    return series


def read_summary(family: Family, series: Series | None, labels: str, point: SummaryDataPoint) -> Series:
    """The series with the point's quantiles. Raises `Unshowable`."""
    quantiles = sorted((each.quantile, each.value) for each in point.quantile_values)
    if point.flags & _NO_VALUE:
        raise Unshowable("without a value")
    if not point.sum >= 0 or any(not 0 <= quantile <= 1 or value < 0 for quantile, value in quantiles):
        raise Unshowable("a summary that is negative, or no number")
    if any(first == then for (first, _), (then, _) in pairwise(quantiles)):
        raise Unshowable("a summary with a quantile twice")
    if series is None or len(quantiles) > len(getattr(series, "quantiles", ())):
        series = Summary(family, labels, len(quantiles))
    assert isinstance(series, Summary)
    series.quantiles, series.count, series.sum = quantiles, point.count, point.sum
    return series


Reader = Callable[[Family, Series | None, str, Any], Series]
READERS: dict[str, Reader] = {
    "counter": read_number,
    "gauge": read_number,
    "histogram": read_histogram,
    "summary": read_summary,
}
