"""The books as the service itself shows them: both halves, and whether they balance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.telemetry import Instrument, InstrumentKind

if TYPE_CHECKING:
    from pipeline.graph import Pipeline
    from pipeline.worker import Worker


def books_instruments(pipelines: Sequence[Pipeline]) -> Iterator[Instrument]:
    """The books of what came in, by pipeline, and of what went out, by exporter."""
    yield Instrument(
        "books_items",
        InstrumentKind.GAUGE,
        "What became of the items that were journaled since an exporter was placed, by column of `metrics-service books`.",
        ("exporter", "pipeline", "column"),
        lambda: [
            ({"exporter": worker.exporter.id, "pipeline": one.id, "column": column}, count)
            for one in pipelines
            for worker in one.delivery.workers
            for column, count in _columns(worker)
        ],
    )
    yield Instrument(
        "books_missing_at_start_items",
        InstrumentKind.GAUGE,
        "Items that were missing at the last start because the exporter's store was an older copy.",
        ("exporter", "pipeline"),
        lambda: [
            ({"exporter": worker.exporter.id, "pipeline": one.id}, worker.missing_at_start)
            for one in pipelines
            for worker in one.delivery.workers
        ],
    )
    yield Instrument(
        "books_difference_items",
        InstrumentKind.GAUGE,
        "Items that are not accounted for; anything but 0 is a bug.",
        ("exporter", "pipeline"),
        lambda: [
            ({"exporter": worker.exporter.id, "pipeline": one.id}, worker.unaccounted)
            for one in pipelines
            for worker in one.delivery.workers
        ],
    )
    yield Instrument(
        "books_intake_items",
        InstrumentKind.GAUGE,
        "What came into a pipeline since the start, and what became of it: received + generated = the other columns.",
        ("pipeline", "column"),
        lambda: [
            ({"pipeline": one.id, "column": column}, count)
            for one in pipelines
            for column, count in one.intake._asdict().items()
        ],
    )
    yield Instrument(
        "books_intake_difference_items",
        InstrumentKind.GAUGE,
        "Items that came in and are not accounted for; anything but 0 is a bug.",
        ("pipeline",),
        lambda: [({"pipeline": one.id}, one.intake.difference) for one in pipelines],
    )


def _columns(worker: Worker) -> Iterator[tuple[str, int]]:
    account = worker.account
    yield "sent", account.sent
    yield "dead_lettered", account.dead_lettered
    yield "dropped", account.dropped
    yield "missing", account.missing
    yield "pending", worker.pending
