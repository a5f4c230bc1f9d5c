"""What the service says of itself: instruments as plain values, read when somebody scrapes.

Hot paths only add to plain integers. A component offers its instruments as it offers its routes; the official SDK reads them
and hands them to the Prometheus client's registry, for whoever shows it.
"""

from __future__ import annotations

import logging
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter, ObservableGauge
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.containment import CALLED

MOST_LABEL_SETS = 5_000
"""Of one metric; what comes then the SDK folds into one. Its own limit is 2,000, which keys alone may reach."""

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,199}")
_log = logging.getLogger("telemetry")


class InstrumentKind(StrEnum):
    """What Prometheus is told that a metric is."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Distribution:
    """The observations of a histogram: how many were at most each bound, and their sum.

    Not the SDK's own histogram, since `record` is on the hot path: 5 µs a call there, measured, of some 80 that a push costs.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """By bucket, not cumulative; the last one is for what is above every bound."""
        self.sum = 0.0

    def record(self, value: float) -> None:
        """Add one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def __add__(self, other: Distribution) -> Distribution:
        """The observations of both. Raises `ValueError` if their bounds differ."""
        if self.bounds != other.bounds:
            raise ValueError(f"buckets {self.bounds} and {other.bounds} cannot be added up")
        both = Distribution(self.bounds)
        both.counts = [one + another for one, another in zip(self.counts, other.counts, strict=True)]
        both.sum = self.sum + other.sum
        return both


Reading = tuple[Mapping[str, str], float | Distribution]
"""A value by its labels."""
Sums = dict[tuple[str, ...], Any]
"""By the values of the labels, in the order of `Instrument.labels`."""


@dataclass(frozen=True)
class Instrument:
    """One metric of the service's own.

    `name` is what Prometheus shows, with its unit and, for a counter, `_total`. `read` is called on the event loop when
    somebody scrapes; it gives a `Distribution` by labels for a histogram, a number for everything else, always with all of
    `labels`. Values of the same labels that several components give are added up.
    """

    name: str
    kind: InstrumentKind
    description: str
    labels: tuple[str, ...]
    read: Callable[[], Iterable[Reading]]


class Telemetry(Collector):
    """Reads instruments when somebody scrapes `registry`: counters and gauges by the official SDK, histograms, which it cannot
    read so, by the Prometheus client, and beside them what the client knows of the process.

    `resource` says whose telemetry it is. What one component gets wrong is left out, so that it spoils the scrape of no other.
    """

    def __init__(self, instruments: Iterable[Instrument], resource: Mapping[str, str]) -> None:
        self._by_name: dict[str, list[Instrument]] = {}
        self._observed: set[str] = set()
        self._failing: set[str] = set()
        self._closed = False
        self.started = time.time_ns()
        """When it was made, in nanoseconds since 1970: every counter of the service counts from then."""
        self.registry = CollectorRegistry()
        limits: dict[Any, int] = {ObservableCounter: MOST_LABEL_SETS, ObservableGauge: MOST_LABEL_SETS}
        scraped = PrometheusMetricReader(registry=self.registry, scope_info_enabled=False, cardinality_limits=limits)
        self._reader = InMemoryMetricReader(cardinality_limits=limits)
        self.resource = Resource.create(dict(resource))
        self._provider = MeterProvider(
            metric_readers=[scraped, self._reader], resource=self.resource, shutdown_on_exit=False
        )
        self.read_from(instruments)
        self.registry.register(self)
        self.process = ProcessCollector(registry=self.registry)
        """What the Prometheus client knows of the process."""

    def read_from(self, instruments: Iterable[Instrument]) -> None:
        """Read these instruments from now on, and no others."""
        by_name: dict[str, list[Instrument]] = {}
        for each in instruments:
            if _NAME.fullmatch(each.name):
                by_name.setdefault(each.name, []).append(each)
            elif each.name not in self._failing:
                self._failing.add(each.name)
                _log.error("left out %r: it is no name for a metric (must match %s)", each.name, _NAME.pattern)
        self._by_name = by_name
        self._observe()

    def _observe(self) -> None:
        """Have the SDK ask for what it does not ask for yet; what there is no more has nothing to say."""
        meter = self._provider.get_meter("metrics-service")
        for name, (first, *_) in self._by_name.items():
            if name in self._observed:
                continue
            self._observed.add(name)
            if first.kind is InstrumentKind.COUNTER:
                # The reader adds the suffix again.
                short = name.removesuffix("_total")
                meter.create_observable_counter(short, [self._callback(name)], description=first.description)
            elif first.kind is InstrumentKind.GAUGE:
                meter.create_observable_gauge(name, [self._callback(name)], description=first.description)

    def close(self) -> None:
        """Shut the SDK down. Safe twice."""
        if not self._closed:
            self._closed = True
            self._provider.shutdown()

    def _callback(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def callback(options: CallbackOptions) -> Iterator[Observation]:
            labels = self._by_name[name][0].labels if name in self._by_name else ()
            for of_labels, value in self._read(name).items():
                yield Observation(value, dict(zip(labels, of_labels, strict=True)))

        return callback

    def _read(self, name: str) -> Sums:
        """What all instruments of that name say. One that cannot be read is left out, and that is said once."""
        sums: Sums = {}
        for instrument in self._by_name.get(name, ()):
            try:
                sums |= _added(sums, self._by_name[name][0], instrument.read())
            except CALLED:
                if name not in self._failing:
                    self._failing.add(name)
                    _log.exception("cannot read %s", name)
        return sums

    def numbers(self) -> MetricsData | None:
        """Counters, without `_total` in their names, and gauges, as the SDK reads them; None if there are none."""
        return self._reader.get_metrics_data()

    def histograms(self) -> Iterator[tuple[Instrument, Sums]]:
        """The histograms, each by the first instrument of its name, with what all of that name have observed."""
        for name, (first, *_) in self._by_name.items():
            if first.kind is InstrumentKind.HISTOGRAM:
                yield first, self._read(name)

    def collect(self) -> Iterator[Metric]:
        """The histograms, for the registry."""
        for first, sums in self.histograms():
            family = HistogramMetricFamily(first.name, first.description, labels=first.labels)
            for of_labels, value in sums.items():
                bounds = [*map(str, value.bounds), "+Inf"]
                buckets = list(zip(bounds, accumulate(value.counts), strict=True))
                family.add_metric(of_labels, buckets, value.sum)
            yield family


def _added(sums: Sums, first: Instrument, readings: Iterable[Reading]) -> Sums:
    """The sums that these readings change. Raises if they are not what `first`, the first of that name, says."""
    changed: Sums = {}
    for labels, value in readings:
        if labels.keys() != set(first.labels):
            raise ValueError(f"it has the labels {sorted(labels)} (must be {sorted(first.labels)})")
        if isinstance(value, Distribution) is not (first.kind is InstrumentKind.HISTOGRAM):
            raise TypeError(f"{value!r} is not of a {first.kind}")
        key = tuple(labels[each] for each in first.labels)
        "".join(key).encode()  # which fails for what no scrape can hold
        before = changed.get(key, sums.get(key))
        changed[key] = value if before is None else before + value
    return changed
