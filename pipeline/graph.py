"""The graph: components, and the edges that the pipelines of the configuration draw between them.

    extensions                         (whoever asks for their interface)

    receiver ─▶ chain [processors] ─▶ journal ─▶ worker ─▶ exporter
                                             └─▶ worker ─▶ connector ─▶ chain of another pipeline

Receivers, exporters, connectors and extensions are one instance each; processors one a pipeline.
"""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio

from pipeline import books
from pipeline.adoption import adopt
from pipeline.books import Intake
from pipeline.chain import Chain
from pipeline.component import Buffer, Component, Connector, Exporter, Extension, Host, Kind, Processor, Receiver
from pipeline.config.model import ComponentSpec, Configuration, PipelineSpec
from pipeline.containment import FAULT, starting, stopping
from pipeline.counts import intake
from pipeline.data import Position, Store
from pipeline.deadlines import Calls
from pipeline.delivery import PipelineDelivery
from pipeline.errors import StartError, TimedOut, in_a_line
from pipeline.findings import looking_at
from pipeline.identity import CONFLICT, OWNER, has_records, recorded
from pipeline.interfaces import Database
from pipeline.journal import Journal
from pipeline.journal_settings import JournalSettings
from pipeline.memory import Memory
from pipeline.rescue import refuse_rescued
from pipeline.reserve import Reserve
from pipeline.saved_state import NAME as STATE_FILE
from pipeline.saved_state import Source
from pipeline.supervision import Starts


@dataclass(frozen=True)
class Pipeline:
    """One pipeline, wired: what goes in by the chain comes out by the delivery."""

    id: str
    processors: tuple[Processor[Any], ...]
    chains: Mapping[str, Chain]
    """What each receiver or connector that feeds it calls, by its id."""
    journal: Journal
    delivery: PipelineDelivery
    takes_from_outside: bool
    """Whether a receiver that others send to feeds it, and not only connectors or what the service says of itself."""
    settings: JournalSettings
    exporters: tuple[Exporter[Any], ...]

    def former_folder(self) -> Path | None:
        """See `Buffer.former_folder`. Raises `StartError`."""
        buffer = self.processors[-1]
        assert isinstance(buffer, Buffer), "checked with the configuration"
        with starting(f"processor {buffer.id}", "cannot name its former folder"):
            return buffer.former_folder()

    def present_path(self) -> Path:
        """The journal's file before a start, which may be in the folder of an earlier version. Raises `StartError`."""
        former = self.former_folder()
        return self.journal.path if former is None else former / self.journal.path.name

    @property
    def intake(self) -> Intake:
        """What came in since the start, and what became of it."""
        return intake(self.journal)


Key = tuple[Kind, str]
"""The kind and the id of a component."""


@dataclass(frozen=True)
class Kept:
    """What a graph takes over from the one that runs: its journals with their deliveries and chains, by pipeline, and these components."""

    graph: Graph
    components: Set[Key]

    def pipeline(self, id: str) -> Pipeline | None:
        """The pipeline of that id, if it runs already."""
        return next((each for each in self.graph.pipelines if each.id == id), None)


class Graph:
    """All components of one configuration. Constructing it touches nothing outside, and nothing that it takes over."""

    def __init__(
        self,
        configuration: Configuration,
        host: Host,
        extensions: tuple[Extension[Any], ...],
        kept: Kept | None = None,
        calls: Calls | None = None,
    ) -> None:
        self._host = host
        self._calls = calls or Calls()
        self._configuration = configuration
        self._kept = kept
        self.extensions = extensions
        self._shared: dict[Key, Component[Any]] = {}
        self.pipelines: list[Pipeline] = []
        self.memory: Memory = kept.graph.memory if kept else Memory()
        """The memory budget of the service."""
        self.reserves: dict[Path, Reserve] = dict(kept.graph.reserves) if kept else {}
        # Downstream first, so that a connector's next chain exists when its own pipeline is built.
        for spec in reversed(configuration.pipelines):
            self.pipelines.insert(0, self._build(spec))
        self._kept = None  # what ran before is not held for as long as this runs

    def _build(self, spec: PipelineSpec) -> Pipeline:
        before = self._kept.pipeline(spec.id) if self._kept else None
        processors = tuple(self._processor(id, before) for id in spec.processors)
        buffer = processors[-1]
        assert isinstance(buffer, Buffer), "checked with the configuration"
        with starting(f"processor {buffer.id}", "cannot be made"):
            settings = _checked(buffer.journal_settings())
        journal = before.journal if before else Journal(spec.id, settings)
        journal.memory = self.memory
        chains = {}
        takes_from_outside = False
        for id in spec.receivers:
            source = self._component((Kind.RECEIVER, Kind.CONNECTOR), id)
            assert isinstance(source, Receiver | Connector), "checked with the configuration"
            known = before and id in before.chains
            chains[id] = (
                before.chains[id] if before and known else Chain(processors, journal, source, spec.signal, self._calls)
            )
            source.chain = chains[id]
            from_outside = isinstance(source, Receiver) and source.takes_from_outside
            chains[id].counts.from_outside = from_outside
            takes_from_outside |= from_outside
        exporters = tuple(
            cast("Exporter[Any]", self._component((Kind.EXPORTER, Kind.CONNECTOR), id)) for id in spec.exporters
        )
        delivery = before.delivery if before else PipelineDelivery(journal, exporters, self._calls)
        if settings.folder not in self.reserves:
            self.reserves[settings.folder] = Reserve(settings.folder, settings.reserve)
        if not before:
            journal.room.takes_pushes, journal.room.reserve = takes_from_outside, self.reserves[settings.folder]
            journal.trims_when_confirmed = self._host.is_service
        return Pipeline(spec.id, processors, chains, journal, delivery, takes_from_outside, settings, exporters)

    def configure_journals(self) -> None:
        """Have every journal be kept as this graph says, and all of them within its memory budget."""
        workers = sum(len(each.exporters) for each in self.pipelines)
        self.memory.configure(self._configuration.settings.memory_budget, workers)
        for reserve in self.reserves.values():
            of_folder = [
                each.settings.reserve for each in self.pipelines if each.settings.folder == reserve.path.parent
            ]
            reserve.size = max(of_folder, default=0)
        for pipeline in self.pipelines:
            journal = pipeline.journal
            journal.settings, journal.room.takes_pushes = pipeline.settings, pipeline.takes_from_outside
            journal.room.reserve = self.reserves[pipeline.settings.folder]

    def _processor(self, id: str, before: Pipeline | None) -> Processor[Any]:
        if self._kept and before and (Kind.PROCESSOR, id) in self._kept.components:
            for each in before.processors:
                if each.id == id:
                    return each
        return cast("Processor[Any]", make(self._configuration.components[Kind.PROCESSOR, id], self._host))

    def _component(self, kinds: tuple[Kind, ...], id: str) -> Component[Any]:
        (key,) = ((kind, id) for kind in kinds if (kind, id) in self._configuration.components)
        if key not in self._shared:
            kept = self._kept.graph.find(key) if self._kept and key in self._kept.components else None
            self._shared[key] = kept or make(self._configuration.components[key], self._host)
        return self._shared[key]

    def find(self, key: Key) -> Component[Any] | None:
        """The receiver, exporter, connector or extension of that name; None if there is none."""
        extension = next((each for each in self.extensions if (each.kind, each.id) == key), None)
        return self._shared.get(key) or extension

    def sources(self, owner: str) -> Sequence[Source]:
        """The pipelines that feed the exporter or connector of that name; all pipelines if none does."""
        feeding = [each for each in self.pipelines if any(exporter.name == owner for exporter in each.exporters)]
        return [
            Source(
                each.id,
                each.settings.folder,
                each.journal.id,
                each.journal.stores.get(owner) if each.journal.last else None,
            )
            for each in feeding or self.pipelines
        ]

    def components(self) -> Iterator[Component[Any]]:
        """Every component, those that others rely on first."""
        yield from self.extensions
        yield from (each for each in self._shared.values() if not isinstance(each, Receiver))
        for pipeline in self.pipelines:
            yield from pipeline.processors
        yield from (each for each in self._shared.values() if isinstance(each, Receiver))

    async def start(self, tasks: Starts, *, accept_journal_reset: bool, accept_database_reset: bool = False) -> None:
        """Start everything: what others rely on first, receivers last, so that nothing comes in before it can be kept.

        With `accept_database_reset`, a database without cursors takes the place of a lost one.
        """
        self.configure_journals()
        await self._adopt_former_folders(accept_missing=accept_database_reset)
        for reserve in self.reserves.values():
            reserve.make_room()
        async with journals(self.pipelines, accept_reset=accept_journal_reset):
            if not accept_database_reset:
                self._refuse_missing_databases()
            for component in self.components():
                if not isinstance(component, Receiver):
                    await start_component(component, self._calls)
            await self._compare(accept_reset=accept_journal_reset, accept_new=accept_database_reset)
        await begin(self.pipelines, tasks)
        for reserve in self.reserves.values():
            await anyio.to_thread.run_sync(reserve.look)
            tasks.start_soon(reserve.run, name=f"reserve {reserve.path}")
        for component in self.components():
            if isinstance(component, Receiver):
                await start_component(component, self._calls)

    async def _compare(self, *, accept_reset: bool, accept_new: bool) -> None:
        if accept_new:
            await refuse_used(self.pipelines)
        owner = await compare(
            self.pipelines, self.extensions, self._calls, accept_reset=accept_reset, accept_new=accept_new
        )
        await self.claim_reserves(owner, accept_new=accept_new)

    async def claim_reserves(
        self, owner: Store | None, known: Container[Path] = (), *, accept_new: bool = False
    ) -> None:
        """Record the owner of the journals in each reserve file, except in the folders in `known`.

        Raises `StartError` if a folder belongs to another database, unless `accept_new`.
        """
        ours = {each.journal.path for each in self.pipelines} | {folder / STATE_FILE for folder in self.reserves}
        for folder, reserve in self.reserves.items():
            if owner is not None and folder not in known:
                await anyio.to_thread.run_sync(reserve.claim, owner.id, ours, accept_new)

    async def _adopt_former_folders(self, *, accept_missing: bool) -> None:
        """Rename the folders in which an earlier version kept journals. Raises `StartError` if the owner of one is not certain."""
        found = {}
        for pipeline in self.pipelines:
            if (former := await anyio.to_thread.run_sync(pipeline.former_folder)) is not None:
                found[former] = pipeline.settings.folder
                for path in () if accept_missing else self._missing_databases():
                    refuse_missing(pipeline, former / pipeline.journal.path.name, path)
        for former, folder in found.items():
            await anyio.to_thread.run_sync(adopt, former, folder)

    def _refuse_missing_databases(self) -> None:
        """Raise `StartError` if a database is missing in which something was stored, before an empty one is made in its place."""
        for path in self._missing_databases():
            for pipeline in self.pipelines:
                refuse_missing(pipeline, pipeline.journal.path, path)

    def _missing_databases(self) -> list[Path]:
        databases = (each for each in self.extensions if isinstance(each, Database))
        return [each.path for each in databases if not each.path.exists()]

    async def stop(self, grace: float, ending: Ending) -> None:
        """Stop everything that may have been started: receivers first, all together, then what they fed.

        `grace` is in seconds, for each of these two and for each component that hangs; `ending` ends a component's tasks and
        listeners. Neither an error of one nor that it hangs keeps the others from stopping.
        """
        await stop_parts(list(self.components()), self.pipelines, grace, ending, self._calls)

    async def flush(self, into: Exporter[Any] | None = None) -> list[str]:
        """Flush pipeline after pipeline, upstream first, since connectors fill the later ones. Returns who did not work.

        With `into`, only what leads to that exporter. Raises `TimedOut` at the deadline, with the exporters that are behind.
        """
        asked = None if into is None else self._leading_to(into)
        seconds = self._calls.deadlines.flush
        until = anyio.current_time() + seconds
        failed: list[str] = []
        for pipeline in self.pipelines:
            not_working, behind = await pipeline.delivery.flush(asked, until - anyio.current_time())
            if behind:
                raise TimedOut(f"not flushed within {seconds:g} s: {', '.join(behind)}")
            failed += not_working
        return failed

    def _leading_to(self, exporter: Exporter[Any]) -> set[Component[Any]]:
        """The exporter, and the connectors that fill the pipelines before it."""
        found: set[Component[Any]] = {exporter}
        for pipeline in reversed(self.pipelines):
            if not found.isdisjoint(worker.exporter for worker in pipeline.delivery.workers):
                connectors = (self._shared.get((Kind.CONNECTOR, id)) for id in pipeline.chains)
                found |= {connector for connector in connectors if connector is not None}
        return found


def _checked(settings: Any) -> JournalSettings:
    if not isinstance(settings, JournalSettings):
        raise TypeError(f"journal_settings returned {in_a_line(settings)} (must return JournalSettings)")
    return settings


def make(spec: ComponentSpec, host: Host) -> Component[Any]:
    """Construct a component, which touches nothing."""
    with starting(f"{spec.kind} {spec.id}", "cannot be made"):
        component = spec.declaration.component(spec.id, spec.config, host)
        made = vars(component)
        if not {"id", "config", "host", "log"} <= made.keys():
            raise StartError(f"{spec.kind} {spec.id} cannot be made: it does not call super().__init__", FAULT)
        for name, right in (("id", spec.id), ("kind", spec.kind)):
            if (value := getattr(component, name)) != right:
                wrong = f"it sets {name} to {in_a_line(value)} (must be {str(right)!r})"
                raise StartError(f"{spec.kind} {spec.id} cannot be made: {wrong}", FAULT)
    component.third_party = spec.third_party
    return component


async def start_component(component: Component[Any], calls: Calls | None = None) -> None:
    """Start one component. Raises `StartError`, whatever it raises, and if it does not return by its deadline."""
    calls = calls or Calls()
    with starting(f"{component.kind} {component.id}", "cannot start"):
        seconds = None if component.starts_slowly else calls.deadlines.start
        await calls.watch(component, "start", component.start, seconds)


@asynccontextmanager
async def journals(pipelines: Sequence[Pipeline], *, accept_reset: bool) -> AsyncIterator[None]:
    """Open the journals, which accept nothing until `begin`. If the block raises, they are closed, and those that are new are deleted.

    Raises `StartError`.
    """
    try:
        for pipeline in pipelines:
            pipeline.journal.accepting = False
            await pipeline.journal.open(accept_reset=accept_reset)
        yield
    except BaseException:
        with anyio.CancelScope(shield=True):
            for pipeline in pipelines:
                await pipeline.delivery.stop(0)
                await pipeline.journal.abandon()
        raise


def refuse_missing(pipeline: Pipeline, journal: Path, database: Path) -> None:
    """Raise `StartError` if a journal says that something was stored in the missing database."""
    names = {each.name for each in pipeline.exporters if each.keeps_position and Database in each.requires}
    try:
        with looking_at(journal) as connection:
            ((last,),) = connection.execute("SELECT last FROM state")
            saved = {} if books.is_outdated(connection) else books.saved(connection)
            stores = recorded(connection) if has_records(connection) else {}
    except (sqlite3.Error, OSError):
        return  # missing or damaged: a repaired journal has no cursors, so the store's cursors decide
    stored = [cursor for name, cursor in saved.items() if name in names and cursor.position]
    if stored or (last and OWNER in stores):
        refuse_rescued({database, Path(os.path.realpath(database))})  # it names the copy
        events = max((cursor.account.sent for cursor in stored), default=0)
        what = f"that {events} events were stored in it" if events else "that it was used"
        log = Path(
            f"{os.path.realpath(database)}-wal"
        )  # SQLite would apply it to any file at the path, and damage a backup
        restore = f"move {log} away and restore a backup" if log.exists() else "restore a backup"
        raise StartError(
            f"the database {database} is missing, but the journal {journal} says {what}"
            f" (put it back, {restore}, or run with --accept-database-reset to go on with a new one)",
            CONFLICT,
        )


async def refuse_used(pipelines: Sequence[Pipeline]) -> None:
    """Raise `StartError` if a database, which is to take the place of a lost one, has stored events of another journal."""
    for pipeline in pipelines:
        journal = pipeline.journal
        for exporter in pipeline.exporters:
            if not exporter.keeps_position or Database not in exporter.requires:
                continue
            store, recorded = await exporter.store(), journal.stores.get(exporter.name)
            if store is None or (recorded is not None and recorded.id == store.id):
                continue
            position = await exporter.position(pipeline.id, journal.id)
            if isinstance(position, Position) and position.journal_id != journal.id:
                raise StartError(
                    f"{store.name} has stored events of another journal than {journal.path}"
                    " (--accept-database-reset takes a new database only: put the right one back, or move this one away)",
                    CONFLICT,
                )


async def compare(
    pipelines: Sequence[Pipeline],
    extensions: Sequence[Extension[Any]],
    calls: Calls,
    *,
    accept_reset: bool,
    accept_new: bool = False,
) -> Store | None:
    """Compare journals and stores, in both directions. Returns the owner of the journals.

    Raises `StartError` if one does not belong to the other. With `accept_new`, a new database takes the place of the recorded one.
    """
    owner: Store | None = None
    for extension in extensions:
        with starting(f"extension {extension.id}", "cannot name its store"):
            store: Callable[[], Awaitable[Store | None]] = extension.store
            found = await calls.watch(extension, "store", store, calls.deadlines.start)
        owner = owner or found
    for pipeline in reversed(pipelines):
        if owner is not None:
            await pipeline.journal.claim(OWNER, owner, accept_new=accept_new)
        with starting(f"pipeline {pipeline.id}", "cannot deliver"):
            await pipeline.delivery.compare(accept_reset=accept_reset, accept_new=accept_new)
    return owner


async def begin(pipelines: Sequence[Pipeline], tasks: Starts) -> None:
    """Begin to deliver, downstream first, and to accept batches. Raises `StartError`."""
    for pipeline in reversed(pipelines):
        with starting(f"pipeline {pipeline.id}", "cannot deliver"):
            await pipeline.delivery.begin(tasks)
        pipeline.journal.accepting = True


async def stop_parts(
    components: Sequence[Component[Any]],
    pipelines: Sequence[Pipeline],
    grace: float,
    ending: Ending,
    calls: Calls | None = None,
) -> None:
    """See `Graph.stop`: the same for some components, those that others rely on first, and some pipelines."""
    until = anyio.current_time() + 2 * grace

    async def stop(component: Component[Any]) -> None:
        # Components that hang share this time, so that a supervisor need not wait for each.
        await stop_component(component, ending, min(grace, until - anyio.current_time()), calls)

    async with anyio.create_task_group() as tasks:
        for component in components:
            if isinstance(component, Receiver):
                tasks.start_soon(stop, component)
    async with anyio.create_task_group() as tasks:
        for pipeline in pipelines:
            tasks.start_soon(pipeline.delivery.stop, grace)
    others = [each for each in reversed(components) if not isinstance(each, Receiver)]
    async with anyio.create_task_group() as tasks:
        for component in others:
            if isinstance(component, Exporter):
                tasks.start_soon(stop, component)
    for pipeline in pipelines:
        pipeline.delivery.note_saved()  # what exporters saved when they stopped, the journal need not keep
        await stopping(f"journal {pipeline.id}", pipeline.journal.close)
    for component in others:
        if not isinstance(component, Exporter):
            await stop(component)


LEAST_GRACE = 1.0
"""Seconds; that no request is waited for does not mean that no file is closed."""
Ending = Callable[[Component[Any]], Awaitable[None]]


async def stop_component(component: Component[Any], ending: Ending, grace: float, calls: Calls | None = None) -> None:
    """Stop one component, whatever it raises: its tasks and listeners within `grace` seconds, and then itself within as many."""
    who, grace, calls = f"{component.kind} {component.id}", max(grace, LEAST_GRACE), calls or Calls()
    await stopping(f"what {who} runs", lambda: ending(component), grace + 2 * LEAST_GRACE)
    await stopping(who, lambda: calls.watch(component, "stop", component.stop, patience=math.inf), grace)
