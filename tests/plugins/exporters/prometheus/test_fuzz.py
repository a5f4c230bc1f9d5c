"""Whatever is pushed, a scrape can be read: by the parsers of Prometheus' client, by a strict grammar, and by promtool."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from plugins.exporters.prometheus.exposition import Format
from tests.plugins.exporters.prometheus.otlp import CUMULATIVE, DELTA, Exposed, batch_of
from tests.programs import need

pytestmark = pytest.mark.anyio

CHUNKS, METRICS_A_CHUNK = 20, 250
"""Of about four points each."""

PIECES = [
    *("a", "b", "le", "quantile", "__name__", "job", "instance", "_total", "_bucket", "_count", "_sum", "_created", "_info"),
    *("total", "seconds", "_seconds", "_", "__", ":", ".", "-", " ", "", "0", "9", "é", "日本", "\U0001f600", "'", "x" * 70),
    *("\n", "\r", "\r\n", "\0", "\x1b[31m", "\x85", "\u2028", "\u2029", "\ufeff", "\u202e", "\t", "\x1c", "\x7f"),
    *('"', "\\", "\\n", '\\"', "\\\\", "{", "}", ",", "=", '",', '"}', "# EOF", "# TYPE a gauge", "\na 1\n", ";", "#", " # "),
]  # fmt: skip
NAMES = [
    "a",
    "a_b",
    "a.b",
    "a_total",
    "a_bucket",
    "a_count",
    "a_sum",
    "a_created",
    "a_info",
    "9a",
    "_9a",
    "a_b_seconds",
]
KEYS = ["a.b", "a_b", "a-b", "b", "a_a", "le", "exported_le", "quantile", "__name__", "__a", "_a", "job", "le\n"]
UNITS = ["", "1", "s", "ms", "By", "%", "{x}", "a\nb", "h"]
NUMBERS = [0.0, -0.0, 1.0, -1.0, 0.1, 1e308, -1e308, 5e-324, 1e16, 123456789.125, 1e-7]
ODD = [float("nan"), float("inf"), float("-inf")]
INTEGERS = [0, 1, -1, 2**63 - 1, -(2**63), 2**53 + 1]


class Fuzz:
    """OTLP that a random generator made up; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self) -> str:
        return "".join(self.random.choices(PIECES, k=self.random.choice([0, 1, 1, 1, 2, 2, 3, 5])))

    def name_of(self, known: list[str]) -> str:
        """One of those that meet others, or one of its own."""
        return self.random.choice(known) if self.random.random() < 0.5 else self.text()

    def number(self) -> float:
        return self.random.choice(self.random.choice([NUMBERS, NUMBERS, ODD, [self.random.uniform(-1e3, 1e3)]]))

    def value(self, depth: int = 0) -> AnyValue:
        kind = self.random.randrange(12 if depth < 3 else 10)
        if kind < 6:
            return AnyValue(string_value=self.name_of(["x", "y"]))
        if kind == 10:
            value = AnyValue()
            value.array_value.values.extend(self.value(depth + 1) for _ in range(2))
            return value
        if kind == 11:
            value = AnyValue()
            value.kvlist_value.values.extend(self.attributes(depth + 1))
            return value
        return [
            AnyValue(),
            AnyValue(bool_value=self.random.random() < 0.5),
            AnyValue(int_value=self.random.choice(INTEGERS)),
            AnyValue(double_value=self.number()) if depth % 2 else AnyValue(bytes_value=b"\xff\0\n"),
        ][kind - 6]

    def attributes(self, depth: int = 0) -> list[KeyValue]:
        return [KeyValue(key=self.name_of(KEYS), value=self.value(depth)) for _ in range(self.random.randrange(4))]

    def metric(self) -> Metric:
        metric = Metric(name=self.name_of(NAMES), unit=self.random.choice(UNITS), description=self.text())
        [self._gauge, self._sum, self._histogram, self._summary, self._other][
            self.random.choice([0, 1, 1, 2, 2, 3, 4])
        ](metric)
        return metric

    def _gauge(self, metric: Metric) -> None:
        metric.gauge.SetInParent()
        self._numbers(metric.gauge.data_points)

    def _sum(self, metric: Metric) -> None:
        metric.sum.is_monotonic = self.random.random() < 0.7
        metric.sum.aggregation_temporality = self.random.choice([CUMULATIVE, CUMULATIVE, CUMULATIVE, DELTA])
        self._numbers(metric.sum.data_points)

    def _numbers(self, points: Any) -> None:
        for _ in range(4):
            if self.random.random() < 0.5:
                points.add(as_double=self.number(), attributes=self.attributes(), flags=int(self.random.random() < 0.1))
            else:
                points.add(as_int=self.random.choice(INTEGERS), attributes=self.attributes())

    def _histogram(self, metric: Metric) -> None:
        metric.histogram.aggregation_temporality = self.random.choice([CUMULATIVE, CUMULATIVE, DELTA])
        for _ in range(4):
            bounds = sorted(self.random.sample(NUMBERS, self.random.randrange(5)))
            if self.random.random() < 0.2:
                bounds.append(self.number())
            counts = [self.random.choice([0, 1, 7, 2**62]) for _ in range(len(bounds) + (self.random.random() < 0.9))]
            total = sum(counts) % 2**64 + (self.random.random() < 0.1)
            point = metric.histogram.data_points.add(explicit_bounds=bounds, bucket_counts=counts, count=total)
            point.attributes.extend(self.attributes())
            if self.random.random() < 0.8:
                point.sum = self.number()

    def _summary(self, metric: Metric) -> None:
        for _ in range(4):
            point = metric.summary.data_points.add(attributes=self.attributes(), count=2**63, sum=self.number())
            for quantile in self.random.choices(
                [0.0, -0.0, 0.5, 0.99, 1.0, 1.5, float("nan")], k=self.random.randrange(3)
            ):
                point.quantile_values.add(quantile=quantile, value=self.number())

    def _other(self, metric: Metric) -> None:
        if self.random.random() < 0.5:
            metric.exponential_histogram.data_points.add(count=1)


@pytest.mark.parametrize("seed", range(CHUNKS))
async def test_a_scrape_can_be_read_whatever_was_pushed(seed: int) -> None:
    fuzz, exposed = Fuzz(seed), Exposed()
    for _ in range(5):
        metrics = [fuzz.metric() for _ in range(METRICS_A_CHUNK // 5)]
        resource = fuzz.random.choice([{}, {"service.name": fuzz.text(), "service.instance.id": fuzz.text()}])
        await exposed.export(batch_of(*metrics, resource=resource))
        shown = await exposed.shown()
    assert len(shown) > 200
    assert len(exposed.set_aside) > 5


async def test_promtool_can_read_what_a_scrape_shows_whatever_was_pushed() -> None:
    promtool = need("promtool", "prometheus")
    fuzz, exposed = Fuzz(-1), Exposed()
    await exposed.take(*[fuzz.metric() for _ in range(2 * METRICS_A_CHUNK)])
    shown = (await exposed.text(Format.TEXT)).encode()
    checked = await anyio.run_process([promtool, "check", "metrics"], input=shown, check=False)
    assert checked.returncode == 3, checked.stderr  # which are matters of style; 1 is what cannot be read
    assert b"error while linting" not in checked.stderr
