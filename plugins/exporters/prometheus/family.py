"""A metric family and its series: what they show, and the lines that say it.

A series keeps the bytes of its lines until its values change, since most series change seldom and the Prometheus client writes
10,000 lines anew in 70 ms, measured, in which nothing else runs (docs/decisions/0012-our-own-exposition.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from plugins.exporters.prometheus.names import help_text

_SUFFIXES = {
    "counter": ("", "_total", "_created"),
    "gauge": ("",),
    "histogram": ("", "_bucket", "_count", "_sum", "_created"),
    "info": ("", "_info"),
    "summary": ("", "_count", "_sum", "_created"),
}
RESERVED_LABELS = {"histogram": "le", "summary": "quantile"}
BYTES_A_VALUE = 32
"""What a value, the space before it and the longest suffix of a name take on a line, at the most."""


class Family:
    """All series under one name. `kind` is Prometheus' type of it."""

    def __init__(self, name: str, kind: str, description: str) -> None:
        self.name = name
        self.kind = kind
        self.series: dict[str, Series] = {}
        base = name.removesuffix("_total") if kind == "counter" else name
        self.claims = claims(base, kind)
        self.header = _header(name, kind, help_text(description, openmetrics=False))
        self.openmetrics_header = _header(base, kind, help_text(description, openmetrics=True))
        self.header_size = max(len(self.header), len(self.openmetrics_header))
        self.hidden = False
        """Whether the service itself shows something under one of its names."""


def claims(base: str, kind: str) -> frozenset[str]:
    """The names that nobody else may show beside a family of that name (without `_total`) and type."""
    return frozenset(f"{base}{suffix}" for suffix in _SUFFIXES.get(kind, ("",)))


def _header(name: str, kind: str, description: str) -> bytes:
    described = f"# HELP {name} {description}\n" if description else ""
    return f"{described}# TYPE {name} {kind}\n".encode()


class Series:
    """One set of labels. `lines` is what it shows; `update` says what that is from now on, and `render` writes it."""

    __slots__ = ("changed", "family", "labels", "lines", "size")

    def __init__(self, family: Family, labels: str) -> None:
        self.family = family
        self.labels = labels
        self.lines = b""
        self.changed = False
        self.size = 0
        """How many bytes its lines take at the most."""

    def line_size(self, more: int = 0) -> int:
        """How many bytes one line takes at the most; `more` for a label that its labels do not hold."""
        return len(self.family.name) + len(self.labels.encode()) + more + BYTES_A_VALUE

    def render(self) -> None:
        """Write the lines anew."""
        raise NotImplementedError


class Number(Series):
    """A counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self, family: Family, labels: str) -> None:
        super().__init__(family, labels)
        self.value = 0.0
        self.size = self.line_size()

    def render(self) -> None:
        """See `Series.render`."""
        braces = f"{{{self.labels}}}" if self.labels else ""
        self.lines = f"{self.family.name}{braces} {number(self.value)}\n".encode()


class Histogram(Series):
    """A histogram; `counts` are by bucket, and have one more than `bounds`."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, family: Family, labels: str, bounds: tuple[float, ...]) -> None:
        super().__init__(family, labels)
        self.bounds = bounds
        self.counts: Sequence[int] = (0,) * (len(bounds) + 1)
        self.sum: float | None = None
        self.size = (len(bounds) + 3) * self.line_size(BYTES_A_VALUE)

    def render(self) -> None:
        """See `Series.render`."""
        name, labels, before = self.family.name, self.labels, f"{self.labels}," if self.labels else ""
        cumulative = list(accumulate(self.counts))
        lines = [
            f'{name}_bucket{{{before}le="{bound!r}"}} {count}\n'
            for bound, count in zip(self.bounds, cumulative, strict=False)
        ]
        lines.append(f'{name}_bucket{{{before}le="+Inf"}} {cumulative[-1]}\n')
        braces = f"{{{labels}}}" if labels else ""
        if self.sum is not None and (not self.bounds or self.bounds[0] >= 0):
            # Of negative observations a sum may fall, which no counter does; and a count is there if and only if a sum is
            # (OpenMetrics, "Histogram").
            lines.append(f"{name}_sum{braces} {number(self.sum)}\n")
            lines.append(f"{name}_count{braces} {cumulative[-1]}\n")
        self.lines = "".join(lines).encode()


class Summary(Series):
    """A summary: values by quantile."""

    __slots__ = ("count", "quantiles", "sum")

    def __init__(self, family: Family, labels: str, quantiles: int) -> None:
        super().__init__(family, labels)
        self.quantiles: Sequence[tuple[float, float]] = ()
        self.count = 0
        self.sum = 0.0
        self.size = (quantiles + 2) * self.line_size(BYTES_A_VALUE)

    def render(self) -> None:
        """See `Series.render`."""
        name, before = self.family.name, f"{self.labels}," if self.labels else ""
        lines = [f'{name}{{{before}quantile="{quantile!r}"}} {number(value)}\n' for quantile, value in self.quantiles]
        braces = f"{{{self.labels}}}" if self.labels else ""
        lines += [f"{name}_sum{braces} {number(self.sum)}\n", f"{name}_count{braces} {self.count}\n"]
        self.lines = "".join(lines).encode()


def number(value: float) -> str:
    """A value as both formats have it."""
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
