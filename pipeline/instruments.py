"""What the engine says of itself: what came in and went out, by component, and how far behind whom.

The names are the Collector's where the meaning is the same. It has one for each signal; here an item is an event or a data
point, whichever flows through the pipeline.
"""

from __future__ import annotations

import platform
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from pipeline.books_instruments import books_instruments
from pipeline.telemetry import Instrument, InstrumentKind, Reading

if TYPE_CHECKING:
    from pipeline.counts import Counts
    from pipeline.graph import Pipeline
    from pipeline.memory import Memory
    from pipeline.watchdog import Watchdog
    from pipeline.worker import Worker

COUNTER, GAUGE = InstrumentKind.COUNTER, InstrumentKind.GAUGE
PACKAGE = "mcp-metrics-service"


def engine_instruments(
    pipelines: Sequence[Pipeline], digest: str, watchdog: Watchdog, last_reload: LastReload, memory: Memory
) -> list[Instrument]:
    """The engine's instruments; `digest` is that of the configuration."""
    return [
        *_about_the_process(digest),
        *_about_reloads(last_reload),
        *_about_memory(memory),
        *watchdog.instruments(),
        *_about_what_comes_in(pipelines),
        *_about_what_goes_out(pipelines),
        *_about_journals(pipelines),
        *books_instruments(pipelines),
    ]


def _about_the_process(digest: str) -> Iterator[Instrument]:
    built = {"version": version(PACKAGE), "python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    yield Instrument("build_info", GAUGE, "What runs; always 1.", tuple(built), lambda: [(built, 1)])
    yield Instrument(
        "config_info",
        GAUGE,
        "A digest that changes when the configuration means something else; always 1.",
        ("digest",),
        lambda: [({"digest": digest}, 1)],
    )


def _about_memory(memory: Memory) -> Iterator[Instrument]:
    yield Instrument(
        "memory_budget_bytes",
        GAUGE,
        "Memory that decoded data may take, by part of the budget.",
        ("part",),
        lambda: [({"part": part}, int(limit)) for part, limit, _ in memory.parts()],
    )
    yield Instrument(
        "memory_used_bytes",
        GAUGE,
        "Estimated memory that decoded data takes, by part of the budget. A single request or delivery may exceed its part.",
        ("part",),
        lambda: [({"part": part}, used) for part, _, used in memory.parts()],
    )
    yield Instrument(
        "memory_refused_requests_total",
        COUNTER,
        "Requests refused with 503 because the memory budget had no room for them.",
        (),
        lambda: [({}, memory.bodies.refused + memory.decoded.refused)],
    )


@dataclass
class LastReload:
    """How the configuration was loaded the last time: at the start, or anew while the service runs."""

    successful: bool = True
    succeeded_at: float = 0.0
    """When it was loaded the last time without an error, in seconds since 1970."""


def _about_reloads(last: LastReload) -> Iterator[Instrument]:
    """Under the names that Prometheus has for its own."""
    yield Instrument(
        "config_last_reload_successful",
        GAUGE,
        "1 if the configuration that was loaded last is in force, 0 if it was refused and the one before is.",
        (),
        lambda: [({}, last.successful)],
    )
    yield Instrument(
        "config_last_reload_success_timestamp_seconds",
        GAUGE,
        "When the configuration that is in force was loaded.",
        (),
        lambda: [({}, last.succeeded_at)],
    )


def _about_what_comes_in(pipelines: Sequence[Pipeline]) -> Iterator[Instrument]:
    """By receiver or connector, and the pipeline that it feeds."""
    chains = [(source, one.id, chain.counts) for one in pipelines for source, chain in one.chains.items()]

    def each(value: Callable[[Counts], float]) -> Callable[[], Iterable[Reading]]:
        return lambda: [({"receiver": source, "pipeline": id}, value(counts)) for source, id, counts in chains]

    def by_reason(of: Callable[[Counts], dict[str, int]]) -> Callable[[], Iterable[Reading]]:
        return lambda: [
            ({"receiver": source, "pipeline": id, "reason": reason}, count)
            for source, id, counts in chains
            for reason, count in of(counts).items()
        ]

    whose = ("receiver", "pipeline")
    yield Instrument(
        "receiver_received_items_total",
        COUNTER,
        "Items that came in, good or bad, or that a connector made; as far as it is known how many a request held.",
        whose,
        each(lambda counts: counts.received),
    )
    yield Instrument(
        "otelcol_receiver_accepted_items_total",
        COUNTER,
        "Items that were answered as durable.",
        whose,
        each(lambda counts: counts.accepted),
    )
    yield Instrument(
        "otelcol_receiver_refused_items_total",
        COUNTER,
        "Items that were not accepted, by reason; of one that cannot be read, or was refused before, nobody knows how many it held.",
        (*whose, "reason"),
        by_reason(lambda counts: counts.refused_items),
    )
    yield Instrument(
        "otelcol_receiver_refused_requests_total",
        COUNTER,
        "Requests of which nothing was accepted, by reason; failed authentications are those that were unauthenticated.",
        (*whose, "reason"),
        by_reason(lambda counts: counts.refused_requests),
    )
    yield Instrument(
        "receiver_repeated_items_total",
        COUNTER,
        "Items of requests that repeated an Idempotency-Key, and were not stored again.",
        whose,
        each(lambda counts: counts.repeated),
    )

    def by_processor(of: Callable[[Counts], dict[str, int]]) -> Callable[[], Iterable[Reading]]:
        return lambda: [
            ({"processor": processor, "pipeline": id}, count)
            for _, id, counts in chains
            for processor, count in of(counts).items()
        ]

    whose = ("processor", "pipeline")
    yield Instrument(
        "processor_filtered_items_total",
        COUNTER,
        "Items that a processor left out on purpose.",
        whose,
        by_processor(lambda counts: counts.filtered),
    )
    yield Instrument(
        "processor_added_items_total",
        COUNTER,
        "Items that a processor added to what it was given.",
        whose,
        by_processor(lambda counts: counts.added),
    )


def _about_what_goes_out(pipelines: Sequence[Pipeline]) -> Iterator[Instrument]:
    def each(value: Callable[[Worker], float]) -> Callable[[], Iterable[Reading]]:
        return lambda: [
            ({"exporter": worker.exporter.id, "pipeline": one.id}, value(worker))
            for one in pipelines
            for worker in one.delivery.workers
        ]

    def say(name: str, kind: InstrumentKind, description: str, value: Callable[[Worker], float]) -> Instrument:
        return Instrument(name, kind, description, ("exporter", "pipeline"), each(value))

    yield say(
        "otelcol_exporter_sent_items_total",
        COUNTER,
        "Items that the exporter or connector has taken.",
        lambda worker: worker.handover.sent,
    )
    yield say(
        "exporter_dead_lettered_items_total",
        COUNTER,
        "Items that the exporter refused for good; they are kept.",
        lambda worker: worker.handover.dead_lettered,
    )
    yield say(
        "exporter_evicted_items_total",
        COUNTER,
        "Items of dead letters that were deleted to make room for newer ones.",
        lambda worker: worker.handover.evicted,
    )
    yield say(
        "exporter_replayed_items_total",
        COUNTER,
        "Items of dead letters that the exporter has taken after all.",
        lambda worker: worker.handover.replayed,
    )
    yield say(
        "exporter_dropped_items_total",
        COUNTER,
        "Items that were given up since the journal was full (`when_full: drop_oldest`).",
        lambda worker: worker.account.dropped,
    )
    yield say(
        "exporter_failed_deliveries_total",
        COUNTER,
        "Deliveries that did not succeed, and are tried again.",
        lambda worker: worker.handover.attempts.failed_tries,
    )
    yield say(
        "otelcol_exporter_queue_size",
        GAUGE,
        "Items that wait for the exporter in the journal: its lag.",
        lambda worker: worker.pending,
    )
    yield say(
        "exporter_queue_bytes",
        GAUGE,
        "What waits for the exporter in the journal, in bytes; of a row that it has taken in part, by its share of the items.",
        lambda worker: worker.waiting.bytes,
    )
    yield say("exporter_lag_seconds", GAUGE, "How long the oldest item that waits for the exporter has waited.", _lag)
    yield say(
        "exporter_working",
        GAUGE,
        "1 while deliveries succeed, 0 while they are tried again.",
        lambda worker: worker.failure is None,
    )
    yield Instrument(
        "exporter_blocked",
        GAUGE,
        "1 while an exporter waits for a person to mend something: a key, an address, a certificate.",
        ("exporter", "pipeline", "reason"),
        lambda: [
            ({"exporter": worker.exporter.id, "pipeline": one.id, "reason": worker.handover.attempts.blocked}, 1)
            for one in pipelines
            for worker in one.delivery.workers
            if worker.handover.attempts.blocked is not None
        ],
    )


def _lag(worker: Worker) -> float:
    oldest = worker.oldest
    return 0.0 if oldest is None else max(0.0, (datetime.now(UTC) - oldest).total_seconds())


def _about_journals(pipelines: Sequence[Pipeline]) -> Iterator[Instrument]:
    def say(name: str, kind: InstrumentKind, description: str, value: Callable[[Pipeline], float]) -> Instrument:
        return Instrument(
            name, kind, description, ("pipeline",), lambda: [({"pipeline": one.id}, value(one)) for one in pipelines]
        )

    yield say(
        "journal_items_total",
        COUNTER,
        "Items that were made durable.",
        lambda one: sum(chain.counts.journaled for chain in one.chains.values()),
    )
    yield say(
        "journal_forgotten_keys_total",
        COUNTER,
        "Idempotency keys that there was no room to remember for a day: what is sent again under one is stored again.",
        lambda one: one.journal.forgotten_keys,
    )
    yield say("journal_bytes", GAUGE, "What the journal holds for its exporters.", lambda one: one.journal.bytes)
    yield say(
        "journal_limit_bytes",
        GAUGE,
        "What it may hold before pushes are refused.",
        lambda one: one.journal.settings.max_bytes,
    )
    yield say(
        "journal_free_bytes",
        GAUGE,
        "Room on the journal's disk; pushes are refused when it is less than the reserve.",
        lambda one: one.journal.room.reserve.free,
    )
    yield say(
        "journal_reserve_bytes",
        GAUGE,
        "Room that is kept back for the journals of its folder; 0 while the disk is full.",
        lambda one: one.journal.room.reserve.held,
    )
    yield say(
        "journal_oldest_item_age_seconds",
        GAUGE,
        "How long the oldest item that an exporter still has to take has waited.",
        lambda one: max(map(_lag, one.delivery.workers), default=0.0),
    )
    yield say(
        "journal_accepting",
        GAUGE,
        "1 while pushes can be made durable, else 0.",
        lambda one: one.journal.failure is None,
    )
