"""The component: takes events at once, gives series on when they have changed, saves them now and then."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence

import anyio
import msgspec

from pipeline import (
    Connector,
    Context,
    Delivery,
    EventBatch,
    Host,
    Instrument,
    InstrumentKind,
    Reading,
    Refusal,
    StartError,
    State,
)
from plugins.connectors.series.config import SeriesConfig
from plugins.connectors.series.otlp import build_batch
from plugins.connectors.series.table import Series, TypeTable, parse_name

SAVE_EVERY = 2.0
"""Seconds between two saves while something changes: what a start after a crash has to read from the journal again."""
SAVING_SHARE = 0.05
"""Of the time that saving may take when thousands of series change all the time: the store of events writes to the same file."""
SERIES_A_BATCH = 200
"""About a millisecond of building, so that nobody who pushes waits for more."""
EVENTS_AT_A_TIME = 500
"""Likewise, of adding up."""
RECORDS_AT_A_TIME = 500
EMISSION_SHARE = 0.05
"""Of its time that emitting may take when all series change all the time."""
TRY_AGAIN = 1.0
"""Seconds, while the next pipeline takes nothing."""
DATABASE_ERRORS = (sqlite3.Error, TimeoutError)


class SeriesConnector(Connector[SeriesConfig]):
    """Turns events into counters, histograms and gauges, given on as cumulative OTLP metrics."""

    at_once = True
    keeps_position = True
    requires = (State,)

    def __init__(self, id: str, config: SeriesConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self.clock = time.time_ns
        """The wall clock, in nanoseconds since 1970."""
        self._state = host.extension(State)
        self._owner = f"connector.{id}"
        self._tables = {type_: TypeTable(type_, config, self._now, self._changed) for type_ in config.types}
        self._positions: dict[str, int] = {}
        self._saved: dict[str, int] = {}
        self._unemitted: list[Series] = []
        self._unsaved: list[Series] = []
        self._unmapped = 0
        self._failed_emissions = 0
        # Whoever adds up or reads all of it holds it, so that what is saved belongs to one position.
        self._adding = asyncio.Lock()
        self._emitting = asyncio.Lock()
        self._saving = asyncio.Lock()
        self._to_emit = asyncio.Event()
        self._to_save = asyncio.Event()

    async def start(self) -> None:
        """Go on from what was saved last. Raises `StartError` if that cannot be read."""
        try:
            self._positions, records = await self._state.load(self._owner)
        except DATABASE_ERRORS as error:
            raise StartError(f"cannot read what {self.id} saved: {error}") from None
        self._saved = dict(self._positions)
        self._restore(records)
        self._to_emit.clear()  # there is nobody yet who would take it; the first delivery or flush gives it on
        self.host.spawn(self, self._keep_emitting)
        self.host.spawn(self, self._keep_saving)

    async def stop(self) -> None:
        """Save what has changed."""
        await self._try_to_save()

    def _restore(self, records: dict[str, bytes]) -> None:
        for name, record in records.items():
            try:
                type_, labels = parse_name(name)
                if type_ in self._tables:
                    self._tables[type_].restore(labels, record)
            except msgspec.MsgspecError as error:
                self.log.error("set aside a damaged record, so that this series starts anew: %s: %s", name, error)
        for series in self._unsaved:
            series.unsaved = False
        self._unsaved = []

    def _now(self) -> int:
        return self.clock()

    def _changed(self, series: Series) -> None:
        self._to_be_emitted(series)
        self._to_be_saved(series)
        self._to_emit.set()

    def _to_be_emitted(self, series: Series) -> None:
        if not series.unemitted:
            series.unemitted = True
            self._unemitted.append(series)

    def _to_be_saved(self, series: Series) -> None:
        if not series.unsaved:
            series.unsaved = True
            self._unsaved.append(series)

    async def position(self, pipeline: str) -> int | None:
        """See `Exporter.position`."""
        return self._positions.get(pipeline)

    def saved(self, pipeline: str) -> int | None:
        """See `Exporter.saved`."""
        return self._saved.get(pipeline, 0)

    async def export(self, delivery: Delivery) -> None:
        """Add the events up. A delivery that comes again is taken from where it was left."""
        async with self._adding:
            self._positions[delivery.pipeline] = max(self._positions.get(delivery.pipeline, 0), delivery.after)
            added = 0
            for position, batch in enumerate(delivery.batches, delivery.after + 1):
                if position <= self._positions[delivery.pipeline]:
                    continue
                if isinstance(batch, EventBatch):
                    self._add(batch)
                self._positions[delivery.pipeline] = position
                added += len(batch)
                if added >= EVENTS_AT_A_TIME:
                    added = 0
                    await asyncio.sleep(0)
            self._positions[delivery.pipeline] = max(self._positions[delivery.pipeline], delivery.upto)
            self._to_save.set()

    def _add(self, batch: EventBatch) -> None:
        service, tables = batch.service, self._tables
        for event in batch.events:
            table = tables.get(event.type)
            if table is None:
                self._unmapped += 1
            else:
                table.add(service, event)

    async def flush(self) -> None:
        """Give on what has changed. Raises a `Refusal` if the next pipeline does not take it now; then it is still to be given."""
        async with self._emitting:
            await self._emit()

    async def _keep_emitting(self) -> None:
        while True:
            await self._to_emit.wait()
            self._to_emit.clear()
            began = anyio.current_time()
            try:
                await self.flush()
                took = anyio.current_time() - began
                pause = max(self.config.emit_interval, took / EMISSION_SHARE)
            except Refusal as refusal:
                self._failed_emissions += 1
                self.log.debug("the next pipeline takes no series now: %s", refusal)
                self._to_emit.set()
                pause = TRY_AGAIN
            await anyio.sleep(pause)

    async def _emit(self) -> None:
        waiting, self._unemitted = self._unemitted, []
        try:
            while waiting:
                chosen, waiting = waiting[:SERIES_A_BATCH], waiting[SERIES_A_BATCH:]
                await self._give_on(chosen)
        finally:
            self._unemitted += waiting

    async def _give_on(self, chosen: Sequence[Series]) -> None:
        batch = build_batch(self.host.service_name, self.id, self._now(), chosen)
        for series in chosen:
            series.unemitted = False
        try:
            await self.chain.process(batch, Context(scope=None))
        except BaseException:
            for series in chosen:
                self._to_be_emitted(series)
            raise

    async def _keep_saving(self) -> None:
        pause = SAVE_EVERY
        while True:
            await self._to_save.wait()
            await anyio.sleep(pause)
            self._to_save.clear()
            began = anyio.current_time()
            if not await self._try_to_save():
                self._to_save.set()
            pause = max(SAVE_EVERY, (anyio.current_time() - began) / SAVING_SHARE)

    async def _try_to_save(self) -> bool:
        try:
            await self.save()
        except DATABASE_ERRORS as error:
            self.log.warning("cannot save the series; the journal keeps what they are made of: %s", error)
            return False
        return True

    async def save(self) -> None:
        """Save what has changed, with how far into the events that is. Raises `sqlite3.Error`; then nothing is forgotten."""
        async with self._saving:
            changed: list[Series] = []
            try:
                async with self._adding:
                    changed, self._unsaved = self._unsaved, []
                    for series in changed:
                        series.unsaved = False
                    positions = dict(self._positions)
                    records = await self._records(changed)
                if changed or positions != self._saved:
                    await self._state.save(self._owner, positions, records)
            except BaseException:  # a cancellation, too: what is saved next must hold them
                for series in changed:
                    self._to_be_saved(series)
                raise
            self._saved = positions

    async def _records(self, changed: Sequence[Series]) -> dict[str, bytes]:
        records = {}
        for number, series in enumerate(changed, 1):
            records[series.name] = series.record()
            if number % RECORDS_AT_A_TIME == 0:
                await asyncio.sleep(0)
        return records

    def instruments(self) -> Sequence[Instrument]:
        """How many series there are, and what was folded to keep them so many."""
        counter, gauge, by_type = InstrumentKind.COUNTER, InstrumentKind.GAUGE, ("connector", "metric_type")
        return [
            Instrument("series_active", gauge, "Sets of labels that have series.", by_type, self._read("active")),
            Instrument(
                "series_folded_events_total",
                counter,
                "Events of which a label's value is shown as _other, since the label has too many.",
                by_type,
                self._read("folded"),
            ),
            Instrument(
                "series_overflowed_events_total",
                counter,
                "Events that were added to the overflow series, since there are too many series.",
                by_type,
                self._read("overflowed"),
            ),
            Instrument(
                "series_negative_events_total",
                counter,
                "Events whose negative value was not added to a counter or histogram.",
                by_type,
                self._read("negative"),
            ),
            Instrument(
                "series_unmapped_events_total",
                counter,
                "Events of a type that the configuration makes no series of.",
                ("connector",),
                lambda: [({"connector": self.id}, self._unmapped)],
            ),
            Instrument(
                "series_failed_emissions_total",
                counter,
                "Emissions that the next pipeline did not take; the counts are given on with a later one.",
                ("connector",),
                lambda: [({"connector": self.id}, self._failed_emissions)],
            ),
        ]

    def _read(self, what: str) -> Callable[[], Iterable[Reading]]:
        return lambda: [
            ({"connector": self.id, "metric_type": table.type}, getattr(table, what)) for table in self._tables.values()
        ]
