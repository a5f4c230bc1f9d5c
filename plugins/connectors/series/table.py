"""The series of one type of events: who is who, within limits, and what they add up to."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable

import msgspec

from pipeline import DimensionValue, Event
from plugins.connectors.series.config import SeriesConfig

OTHER = "_other"
UNSET = "_unset"
OVERFLOW = (("otel_metric_overflow", "true"), ("service", OTHER))

_UNWANTED = re.compile(r"[^A-Za-z0-9\-_.:/]")

Labels = tuple[tuple[str, str], ...]
"""Names and values, sorted by name: what tells one series of a type from another."""


class Saved(msgspec.Struct, array_like=True):
    """What a series adds up to, as it is saved. New fields go to the end and have a default."""

    started: int
    total: float
    counts: list[int]
    sum: float
    bounds: tuple[float, ...]
    last: float | None
    histogram_started: int = 0
    """0 of a version that had `started` for everything."""


class Series:
    """The counter, the histogram and the gauge of one set of labels.

    `started` is when it began, in nanoseconds since 1970, and `histogram_started` when its histogram did, which begins anew with other
    buckets; `counts` are by bucket, not cumulative.
    """

    __slots__ = (
        "counts",
        "encoded",
        "folded",
        "histogram_started",
        "labels",
        "last",
        "name",
        "started",
        "sum",
        "table",
        "total",
        "unemitted",
        "unsaved",
    )

    def __init__(self, table: TypeTable, labels: Labels, started: int) -> None:
        self.table = table
        self.name = msgspec.json.encode([table.type, labels]).decode()
        """What its record is called: the type and the labels, as JSON."""
        self.labels = labels
        self.started = self.histogram_started = started
        self.total = 0.0
        self.counts = [0] * (len(table.bounds) + 1)
        self.sum = 0.0
        self.last: float | None = None
        self.folded = any(value == OTHER for _, value in labels)
        self.unemitted = False
        self.unsaved = False
        self.encoded: dict[str, bytes] = {}
        """What of its data points never changes, encoded, by kind."""

    def record(self) -> bytes:
        """What it adds up to, for `TypeTable.restore`."""
        own = (self.started, self.total, self.counts, self.sum, self.table.bounds, self.last, self.histogram_started)
        return _encode(Saved(*own))


class TypeTable:
    """All series of one type.

    `changed` is told of a series that is new or has changed since it was last emitted or saved.
    """

    def __init__(
        self, type_: str, config: SeriesConfig, clock: Callable[[], int], changed: Callable[[Series], None]
    ) -> None:
        self.type = type_
        self.rule = config.types[type_]
        self.bounds = config.buckets
        self.series: dict[Labels, Series] = {}
        self.folded = 0
        """Events of which a label's value was folded into `_other`."""
        self.overflowed = 0
        """Events that were added to the overflow series."""
        self.former: list[Series] = []
        """Series with labels that the configuration no longer has."""
        self.negative = 0
        """Events whose negative value was not added."""
        self._names = ("service", *self.rule.labels)
        self._values: dict[str, set[str]] = {name: set() for name in self._names}
        self._max_length = config.max_label_length
        self._max_values = config.max_label_cardinality
        self._max_series = config.max_series
        # By the labels as they came, of those that were shown as they came: so there are no more than there are series.
        self._known: dict[tuple[str, ...], Series] = {}
        self._clock = clock
        self._changed = changed
        self._adds = None if self.rule.counter is None else self.rule.counts
        self._observes = None if self.rule.histogram is None else self.rule.observes
        self._shows_last = self.rule.gauge is not None

    @property
    def active(self) -> int:
        """How many sets of labels there are."""
        return len(self.series) + len(self.former)

    def add(self, service: str, event: Event) -> None:
        """Add one event to its series. This is the hot path: under 3 µs (`python -m bench --only series`)."""
        get = event.dimensions.get
        labels = self.rule.labels
        key = (service, *[value if (value := get(name)).__class__ is str else text(value) for name in labels])
        series = self._known.get(key) or self._resolve(key)
        value = event.value
        if self._adds == "value":
            if value >= 0:
                series.total += value
            else:
                self.negative += 1
        elif self._adds == "events":
            series.total += 1
        if self._observes is not None:
            self._observe(series, value, event.duration_ms)
        if self._shows_last:
            series.last = value
        if series.folded:
            self._count_folded(series)
        if not series.unemitted or not series.unsaved:
            self._changed(series)

    def _observe(self, series: Series, value: float, duration_ms: float | None) -> None:
        if self._observes == "duration":
            if duration_ms is None:
                return
            value = duration_ms / 1000
        elif value < 0:
            self.negative += self._adds != "value"  # else it is counted already
            return
        series.counts[bisect_left(self.bounds, value)] += 1
        series.sum += value

    def _count_folded(self, series: Series) -> None:
        if series.labels == OVERFLOW:
            self.overflowed += 1
        else:
            self.folded += 1

    def _resolve(self, key: tuple[str, ...]) -> Series:
        """The series of labels that have not been seen before, or not lately."""
        values = [self._bounded(name, raw) for name, raw in zip(self._names, key, strict=True)]
        labels = tuple(sorted(zip(self._names, values, strict=True)))
        series = self.series.get(labels)
        if series is None:
            series = self._new(labels) if len(self.series) < self._max_series else self._overflow()
            if series.labels == OVERFLOW:
                return series
        if list(key) == values:
            self._known[key] = series
        return series

    def _bounded(self, name: str, raw: str) -> str:
        value = _UNWANTED.sub("_", raw)[: self._max_length] or UNSET
        seen = self._values[name]
        return value if value in seen or len(seen) < self._max_values or value == UNSET else OTHER

    def _new(self, labels: Labels) -> Series:
        series = self.series[labels] = Series(self, labels, self._clock())
        self._take_values(labels)
        return series

    def _take_values(self, labels: Labels) -> None:
        """Only what a series carries takes a place among a label's values, so that a restart finds the same ones taken."""
        for label, value in labels:
            if value not in (OTHER, UNSET) and label in self._values:
                self._values[label].add(value)

    def _overflow(self) -> Series:
        return self.series.get(OVERFLOW) or self._new(OVERFLOW)

    def restore(self, labels: Labels, record: bytes) -> None:
        """Go on from what was saved. Series with the labels of an earlier configuration stay as they are, beyond the limits, so
        that what is added up over all stays right. Raises `msgspec.MsgspecError`."""
        saved = _decode(record)
        if labels == OVERFLOW or [name for name, _ in labels] == sorted(self._names):
            series = self._new(labels)
        else:
            series = Series(self, labels, self._clock())
            self.former.append(series)
        series.started, series.total, series.last = saved.started, saved.total, saved.last
        if saved.bounds == self.bounds:
            series.counts, series.sum = saved.counts, saved.sum
            series.histogram_started = saved.histogram_started or saved.started
        else:
            series.histogram_started = self._clock()
        self._changed(series)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Saved).decode


def text(value: DimensionValue) -> str:
    """A dimension's value as a label shows it, before it is bounded."""
    if value is None:
        return UNSET
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def parse_name(name: str) -> tuple[str, Labels]:
    """The type and the labels that a record's name stands for. Raises `msgspec.MsgspecError`."""
    return msgspec.json.decode(name, type=tuple[str, Labels])
