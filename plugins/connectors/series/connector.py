"""The component: takes events at once, gives series on when they have changed, saves them now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import anyio
import msgspec

from pipeline import (
    Connector,
    Context,
    Delivery,
    Event,
    EventBatch,
    Host,
    Instrument,
    MetricBatch,
    Position,
    Refusal,
    StartError,
    StateError,
    StateLost,
    Store,
)
from plugins.connectors.series.config import SeriesConfig
from plugins.connectors.series.instruments import series_instruments
from plugins.connectors.series.otlp import RequestBuilder
from plugins.connectors.series.table import Series, TypeTable, parse_name

SAVE_EVERY = 2.0
"""Seconds between two saves while something changes: what a start after a crash has to read from the journal again."""
SAVING_SHARE = 0.05
"""Of the time that saving may take when thousands of series change all the time: the journal writes to the same disk."""
HOLD_SECONDS = 0.001
"""How long events are added up, or series are written, before others run: a new series costs seven times what a known one does."""
EVENTS_AT_A_TIME = 50
SERIES_A_BATCH = 200
"""At the most, in one batch of the next pipeline."""
RECORDS_AT_A_TIME = 500
"""Series that are encoded for a save before others run."""
EMISSION_SHARE = 0.05
"""Of its time that emitting may take when all series change all the time."""
TRY_AGAIN = 1.0
"""Seconds, while the next pipeline takes nothing."""
_INTERVALS = {"emit_interval", "repeat_interval"}


class SeriesConnector(Connector[SeriesConfig]):
    """Turns events into counters, histograms and gauges, given on as cumulative OTLP metrics."""

    at_once = True
    keeps_position = True

    def __init__(self, id: str, config: SeriesConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self.clock = time.time_ns
        """The wall clock, in nanoseconds since 1970."""
        self._owner = f"connector.{id}"
        self._tables = {type_: TypeTable(type_, config, self._now, self._changed) for type_ in config.types}
        self._positions: dict[str, Position] = {}
        self._saved: dict[str, Position] = {}
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
        self._interval_changed = anyio.Event()

    async def start(self) -> None:
        """Go on from what was saved last. Raises `StartError` if that cannot be read."""
        try:
            self._positions, records = await self.host.state.load(self._owner)
        except StateError as error:
            raise StartError(f"cannot read the saved state of {self.id}: {error}") from None
        self._saved = dict(self._positions)
        self._restore(records)
        self._to_emit.clear()  # there is nobody yet who would take it; the first delivery or flush gives it on
        self.host.spawn(self, self._keep_emitting)
        self.host.spawn(self, self._keep_saving)
        self.host.spawn(self, self._keep_repeating)

    async def reload(self, config: SeriesConfig, host: Host) -> Callable[[], None]:
        """The intervals may change. Raises `StartError` for everything else, which is what the series are made by."""
        for name in sorted(type(config).model_fields.keys() - _INTERVALS):
            if getattr(config, name) != getattr(self.config, name):
                raise StartError(f"connectors.{self.id}.{name}: cannot change while the service runs (restart it)", 78)
        return self._interval_changed.set

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
        if former := sum(len(table.former) for table in self._tables.values()):
            self.log.info(
                "%d series have labels that the configuration no longer has, and are shown as they were", former
            )

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

    async def store(self) -> Store:
        """See `Exporter.store`."""
        return self.host.state.store(self._owner)

    async def position(self, pipeline: str, journal_id: str = "") -> Position | None:
        """See `Exporter.position`."""
        return self._positions.get(pipeline)

    def saved(self, pipeline: str) -> int | None:
        """See `Exporter.saved`."""
        return self._saved.get(pipeline, Position(0)).upto

    async def export(self, delivery: Delivery) -> None:
        """Add the events up. A delivery that comes again is taken from where it was left."""
        # A cancellation in the middle of a batch would leave it added in part, and it would be added again.
        async with self._adding:
            with anyio.CancelScope(shield=True):
                await self._add_all(delivery)
            self._to_save.set()

    async def _add_all(self, delivery: Delivery) -> None:
        positions, pipeline, journal = self._positions, delivery.pipeline, delivery.journal_id
        known = positions.get(pipeline, Position(0))
        upto = max(known.upto, delivery.after) if known.journal_id in ("", journal) else delivery.after
        until = time.perf_counter() + HOLD_SECONDS
        for position, batch in enumerate(delivery.batches, delivery.after + 1):
            if position > upto or delivery.upto == delivery.after:
                assert isinstance(batch, EventBatch), "checked with the configuration"
                for first in range(0, len(batch), EVENTS_AT_A_TIME):
                    self._add(batch.service, batch.events[first : first + EVENTS_AT_A_TIME])
                    if time.perf_counter() > until:
                        await asyncio.sleep(0)
                        until = time.perf_counter() + HOLD_SECONDS
                upto = max(upto, min(position, delivery.upto))
                positions[pipeline] = Position(upto, None, journal)
        if delivery.upto >= upto:
            positions[pipeline] = Position(delivery.upto, delivery.items_upto, journal)

    def _add(self, service: str, events: Sequence[Event]) -> None:
        tables = self._tables
        for event in events:
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
            except Exception as error:  # a processor may raise anything; the next emission has what this one had
                self._failed_emissions += 1
                if not isinstance(error, Refusal):
                    self.log.exception("cannot give the series on, will try again")
                self._to_emit.set()
                pause = TRY_AGAIN
            await anyio.sleep(pause)

    async def _keep_repeating(self) -> None:
        while True:
            self._interval_changed = anyio.Event()
            with anyio.move_on_after(self.config.repeat_interval or None) as waiting:
                await self._interval_changed.wait()
            if not waiting.cancelled_caught:
                continue
            for table in self._tables.values():
                for number, series in enumerate(list(table.series.values())):
                    self._to_be_emitted(series)
                    if number % RECORDS_AT_A_TIME == 0:
                        await asyncio.sleep(0)
            self._to_emit.set()

    async def _emit(self) -> None:
        waiting, self._unemitted = self._unemitted, []
        try:
            while waiting:
                chosen, waiting = waiting[:SERIES_A_BATCH], waiting[SERIES_A_BATCH:]
                await self._give_on(chosen)
        finally:
            self._unemitted += waiting

    async def _give_on(self, chosen: Sequence[Series]) -> None:
        try:
            batch = await self._build(chosen)
            if len(batch):
                await self.chain.process(batch, Context(scope=None))
        except BaseException:
            again = set(self._unemitted)
            self._unemitted += [series for series in chosen if series not in again]
            for series in chosen:
                series.unemitted = True
            raise

    async def _build(self, chosen: Sequence[Series]) -> MetricBatch:
        builder = RequestBuilder(self.host.service_name, self.id, self._now())
        until = time.perf_counter() + HOLD_SECONDS
        for series in chosen:
            series.unemitted = False  # what changes from now on is given on with the next
            builder.add(series)
            if time.perf_counter() > until:
                await asyncio.sleep(0)
                until = time.perf_counter() + HOLD_SECONDS
        return builder.batch()

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
        except Exception as error:  # without a save the journal fills up, so it is tried again whatever happens
            expected = isinstance(error, StateError)
            reason = "cannot save the series; the journal keeps what they are made of: %s"
            self.log.warning(reason, error, exc_info=None if expected else error)
            return False
        return True

    async def save(self) -> None:
        """Save what has changed, with how far into the events that is. Raises `StateError`; then nothing is forgotten."""
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
                    await self.host.state.save(self._owner, positions, records)
            except BaseException as error:  # a cancellation, too: what is saved next must hold them
                if isinstance(error, StateLost):
                    changed = [
                        each for table in self._tables.values() for each in (*table.series.values(), *table.former)
                    ]
                    self._saved = {}
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
        return series_instruments(
            self.id, self._tables.values(), lambda: self._unmapped, lambda: self._failed_emissions
        )
