"""What the series are called and carry, and how many there may be."""

from __future__ import annotations

import re
from itertools import pairwise
from math import isfinite
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline import ComponentConfig, ConfigModel, Duration

RESERVED = frozenset({"service", "metric_type", "le", "quantile", "otel_metric_overflow"})
"""Labels that every series carries, or that mean something to Prometheus."""

_METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


def _metric_name(name: str) -> str:
    if not _METRIC_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a metric (must match {_METRIC_NAME.pattern})")
    return name


def _label_name(name: str) -> str:
    if not _LABEL_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a label (must match [a-zA-Z_][a-zA-Z0-9_]*, without __ at its start)"
        )
    if name in RESERVED:
        raise ValueError(f"{name!r} is a label that is given already (must be none of {', '.join(sorted(RESERVED))})")
    return name


MetricName = Annotated[str, AfterValidator(_metric_name)]
LabelName = Annotated[str, AfterValidator(_label_name)]


class SeriesType(ConfigModel):
    """What events of one type become."""

    counter: MetricName | None = None
    """The counter; `_total` is added to its name if it is not there."""
    counts: Literal["value", "events"] = "value"
    """What the counter adds: the value of each event, unless it is negative, or one for each event."""
    histogram: MetricName | None = None
    """The histogram; of durations, `_seconds` is added to its name if it is not there."""
    observes: Literal["duration", "value"] = "duration"
    """What the histogram observes: `duration_ms`, in seconds, of the events that have one, or the value, unless it is negative."""
    gauge: MetricName | None = None
    """The gauge that shows the last value."""
    labels: tuple[LabelName, ...] = ()
    """The dimensions that become labels, beside `service` and `metric_type`."""

    @field_validator("labels")
    @classmethod
    def _each_once(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({name for name in labels if labels.count(name) > 1})
        if repeated:
            raise ValueError(f"{repeated[0]!r} is there twice (must be there once)")
        return labels


class SeriesConfig(ComponentConfig):
    """The table from events to series, and its limits."""

    types: dict[str, SeriesType]
    """What events become, by their type; an event of another type becomes nothing."""
    buckets: tuple[float, ...] = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
    """The upper bounds of the histograms' buckets, in seconds. A histogram whose buckets change starts anew."""
    max_label_length: int = Field(96, ge=1, le=1024)
    """Characters of a label's value; what is longer is cut."""
    max_label_cardinality: int = Field(150, ge=1)
    """Distinct values of a label of a type; what comes then is shown as `_other`."""
    max_series: int = Field(2000, ge=1)
    """Label sets of a type; what comes then is added to one more, with `otel_metric_overflow="true"`. One with a histogram takes
    about 4 KB of a scrape."""
    emit_interval: Duration = 1.0
    """The shortest time between two emissions, in seconds. After a pause the first is at once; a scrape and a flush do not wait."""

    repeat_interval: Duration | None = None
    """How often series that did not change are given on all the same, in seconds: who receives OTLP takes a series for gone when nothing
    comes for some minutes. By default never; Prometheus, which scrapes, needs none of it."""

    @field_validator("buckets")
    @classmethod
    def _ascending(cls, buckets: tuple[float, ...]) -> tuple[float, ...]:
        if not buckets or not all(map(isfinite, buckets)) or any(low >= high for low, high in pairwise(buckets)):
            raise ValueError(f"{list(buckets)!r} are no bounds (must be finite, ascending and at least one)")
        return buckets

    @model_validator(mode="after")
    def _one_kind_a_name(self) -> SeriesConfig:
        kinds: dict[str, str] = {}
        for each in self.types.values():
            for kind in ("counter", "histogram", "gauge"):
                name = getattr(each, kind)
                if name is not None and kinds.setdefault(name, kind) != kind:
                    raise ValueError(f"{name!r} is a {kinds[name]} and a {kind} (must be one of them)")
        return self
