"""The table of `metrics-service top`: a line a component, in the order in which data flows through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from plugins.exporters.prometheus.rates import Samples, by_label, total

Cell = tuple[str, str]
"""What a value is, and the value; both empty if it is not known."""


@dataclass(frozen=True)
class Row:
    """A component of a pipeline; `note` stands behind its values."""

    pipeline: str
    component: str
    cells: Sequence[Cell]
    note: str = ""


def table(now: Samples, rates: Samples) -> str:
    """The table as aligned text: `now` is the later scrape, `rates` are its counters' growth a second."""
    rows = [*_pipelines(now, rates), *_http(rates), *_shown(now)]
    columns = [_aligned(_first_of_each([row.pipeline for row in rows])), _aligned([row.component for row in rows])]
    for cells in zip_longest(*(row.cells for row in rows), fillvalue=("", "")):
        names, values = zip(*cells, strict=True)
        width = max(map(len, values))
        columns.append([f"{name} {value:>{width}}" for name, value in zip(_aligned(names), values, strict=True)])
    lines = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    return "".join(f"{line}  {row.note}".rstrip() + "\n" for line, row in zip(lines, rows, strict=True))


def _first_of_each(names: Sequence[str]) -> list[str]:
    """A pipeline's name stands only where it begins."""
    return ["" if name == before else name for before, name in zip(["", *names], names, strict=False)]


def _aligned(column: Sequence[str]) -> list[str]:
    width = max(map(len, column), default=0)
    return [each.ljust(width) for each in column]


def _cell(name: str, value: float | None, decimals: int = 1) -> Cell:
    return ("", "") if value is None else (name, f"{value:.{decimals}f}")


def _pipelines(now: Samples, rates: Samples) -> Iterator[Row]:
    for pipeline in by_label(now, "journal_bytes", "pipeline"):
        yield from _received(pipeline, rates)
        filtered = by_label(rates, "processor_filtered_items_total", "processor", pipeline=pipeline)
        for processor, rate in filtered.items():
            yield Row(pipeline, processor, [_cell("filtered/s", rate)])
        yield _journal(pipeline, now)
        taken = by_label(rates, "otelcol_exporter_sent_items_total", "exporter", pipeline=pipeline)
        for exporter, rate in taken.items():
            yield _delivered(pipeline, exporter, rate, now)


def _received(pipeline: str, rates: Samples) -> Iterator[Row]:
    accepted = by_label(rates, "otelcol_receiver_accepted_items_total", "receiver", pipeline=pipeline)
    for receiver, rate in accepted.items():
        whose = {"pipeline": pipeline, "receiver": receiver}
        # There is a counter of refusals only once there was one.
        refused = total(rates, "otelcol_receiver_refused_items_total", **whose) or 0.0
        requests = by_label(rates, "otelcol_receiver_refused_requests_total", "reason", **whose)
        reasons = ", ".join(f"{reason} {count:.1f}" for reason, count in requests.items() if count)
        note = f"refused requests/s: {reasons}" if reasons else ""
        yield Row(pipeline, receiver, [_cell("accepted/s", rate), _cell("refused/s", refused)], note)


def _journal(pipeline: str, now: Samples) -> Row:
    held = total(now, "journal_bytes", pipeline=pipeline)
    limit = total(now, "journal_limit_bytes", pipeline=pipeline)
    age = total(now, "journal_oldest_item_age_seconds", pipeline=pipeline)
    share = 100 * held / limit if held is not None and limit else None
    return Row(pipeline, "journal", [_cell("full %", share), _cell("age s", age)])


def _delivered(pipeline: str, exporter: str, taken: float, now: Samples) -> Row:
    whose = {"pipeline": pipeline, "exporter": exporter}
    cells = [
        _cell("taken/s", taken),
        _cell("waiting", total(now, "otelcol_exporter_queue_size", **whose), 0),
        _cell("lag s", total(now, "exporter_lag_seconds", **whose)),
        _cell("dead letters", total(now, "exporter_dead_lettered_items_total", **whose), 0),
    ]
    return Row(pipeline, exporter, cells, "failing" if total(now, "exporter_working", **whose) == 0 else "")


def _http(rates: Samples) -> Iterator[Row]:
    """All HTTP receivers together: their telemetry does not say which."""
    classes: dict[str, float] = {}
    for status, rate in by_label(rates, "http_requests_total", "status").items():
        classes[f"{status[:1]}xx/s"] = classes.get(f"{status[:1]}xx/s", 0.0) + rate
    if classes:
        seconds = total(rates, "http_request_duration_seconds_sum")
        requests = total(rates, "http_request_duration_seconds_count")
        mean = 1000 * seconds / requests if seconds is not None and requests else None
        yield Row(
            "HTTP", "requests", [*(_cell(each, classes[each]) for each in sorted(classes)), _cell("mean ms", mean)]
        )


def _shown(now: Samples) -> Iterator[Row]:
    for exporter, series in by_label(now, "prometheus_series", "exporter").items():
        # As with refusals: there is a counter only of what has happened.
        aside = total(now, "prometheus_set_aside_series_total", exporter=exporter) or 0.0
        yield Row("shown", exporter, [_cell("series", series, 0), _cell("set aside", aside, 0)])
