"""The graph: components, and the edges that the pipelines of the configuration draw between them.

    extensions                         (whoever asks for their interface)

    receiver ─▶ chain [processors] ─▶ journal ─▶ worker ─▶ exporter
                                             └─▶ worker ─▶ connector ─▶ chain of another pipeline

Receivers, exporters, connectors and extensions are one instance each; processors one a pipeline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio
from anyio.abc import TaskGroup

from pipeline.chain import Chain
from pipeline.component import Buffer, Component, Connector, Exporter, Extension, Host, Kind, Processor, Receiver
from pipeline.config.model import ComponentSpec, Configuration, PipelineSpec
from pipeline.containment import starting, stopping
from pipeline.delivery import PipelineDelivery
from pipeline.errors import StartError
from pipeline.journal import Journal, JournalSettings
from pipeline.reserve import Reserve


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


class Graph:
    """All components of one configuration. Constructing it touches nothing outside."""

    def __init__(self, configuration: Configuration, host: Host, extensions: tuple[Extension[Any], ...]) -> None:
        self._host = host
        self._configuration = configuration
        self.extensions = extensions
        self._shared: dict[tuple[Kind, str], Component[Any]] = {}
        self.pipelines: list[Pipeline] = []
        self._reserves: dict[Path, Reserve] = {}
        # Downstream first, so that a connector's next chain exists when its own pipeline is built.
        for spec in reversed(configuration.pipelines):
            self.pipelines.insert(0, self._build(spec))

    def _build(self, spec: PipelineSpec) -> Pipeline:
        specs = [self._spec(Kind.PROCESSOR, id) for id in spec.processors]
        processors = tuple(cast("Processor[Any]", make(each, self._host)) for each in specs)
        buffer = processors[-1]
        assert isinstance(buffer, Buffer), "checked with the configuration"
        with starting(f"processor {buffer.id}", "cannot be made"):
            journal = Journal(spec.id, buffer.journal_settings())
        chains = {}
        takes_from_outside = False
        for id in spec.receivers:
            source = self._component((Kind.RECEIVER, Kind.CONNECTOR), id)
            assert isinstance(source, Receiver | Connector), "checked with the configuration"
            source.chain = chains[id] = Chain(processors, journal)
            takes_from_outside |= isinstance(source, Receiver) and source.takes_from_outside
        journal.takes_pushes = takes_from_outside
        journal.reserve = self._reserve(journal.settings)
        exporters = [
            cast("Exporter[Any]", self._component((Kind.EXPORTER, Kind.CONNECTOR), id)) for id in spec.exporters
        ]
        delivery = PipelineDelivery(journal, exporters)
        return Pipeline(spec.id, processors, chains, journal, delivery, takes_from_outside)

    def _reserve(self, settings: JournalSettings) -> Reserve:
        reserve = self._reserves.setdefault(settings.folder, Reserve(settings.folder))
        reserve.size = max(reserve.size, settings.reserve)
        return reserve

    def _spec(self, kind: Kind, id: str) -> ComponentSpec:
        return self._configuration.components[kind, id]

    def _component(self, kinds: tuple[Kind, ...], id: str) -> Component[Any]:
        (kind,) = (kind for kind in kinds if (kind, id) in self._configuration.components)
        if (kind, id) not in self._shared:
            self._shared[kind, id] = make(self._spec(kind, id), self._host)
        return self._shared[kind, id]

    def components(self) -> Iterator[Component[Any]]:
        """Every component, those that others rely on first."""
        yield from self.extensions
        yield from (each for each in self._shared.values() if not isinstance(each, Receiver))
        for pipeline in self.pipelines:
            yield from pipeline.processors
        yield from (each for each in self._shared.values() if isinstance(each, Receiver))

    async def start(self, tasks: TaskGroup, *, accept_journal_reset: bool) -> None:
        """Start everything: what others rely on first, receivers last, so that nothing comes in before it can be kept."""
        for reserve in self._reserves.values():
            reserve.make_room()
        for component in self.components():
            if not isinstance(component, Receiver):
                await start_component(component)
        opened: list[Pipeline] = []
        for pipeline in reversed(self.pipelines):
            await pipeline.journal.open()
            opened.append(pipeline)
            try:
                with starting(f"pipeline {pipeline.id}", "cannot deliver"):
                    await pipeline.delivery.start(tasks, accept_reset=accept_journal_reset)
            except StartError:
                for each in opened:
                    await each.delivery.stop(0)
                    await each.journal.abandon()
                raise
        for reserve in self._reserves.values():
            await anyio.to_thread.run_sync(reserve.look)
            tasks.start_soon(reserve.run, name=f"reserve {reserve.path}")
        for component in self.components():
            if isinstance(component, Receiver):
                await start_component(component)

    async def stop(self, grace: float, ending: Ending) -> None:
        """Stop everything that may have been started: receivers first, all together, then what they fed.

        `grace` is in seconds, for each of these two and for each component that hangs; `ending` ends a component's tasks and
        listeners. Neither an error of one nor that it hangs keeps the others from stopping.
        """
        async with anyio.create_task_group() as tasks:
            for component in self.components():
                if isinstance(component, Receiver):
                    tasks.start_soon(stop_component, component, ending, grace)
        async with anyio.create_task_group() as tasks:
            for pipeline in self.pipelines:
                tasks.start_soon(pipeline.delivery.stop, grace)
        others = [each for each in reversed(list(self.components())) if not isinstance(each, Receiver)]
        for component in (each for each in others if isinstance(each, Exporter)):
            await stop_component(component, ending, grace)
        for pipeline in self.pipelines:
            pipeline.delivery.note_saved()  # what exporters saved when they stopped, the journal need not keep
            await stopping(f"journal {pipeline.id}", pipeline.journal.close)
        for component in (each for each in others if not isinstance(each, Exporter)):
            await stop_component(component, ending, grace)

    async def flush(self, into: Exporter[Any] | None = None) -> list[str]:
        """Flush pipeline after pipeline, upstream first, since connectors fill the later ones. Returns who did not work.

        With `into`, only what leads to that exporter.
        """
        asked = None if into is None else self._leading_to(into)
        return [name for pipeline in self.pipelines for name in await pipeline.delivery.flush(asked)]

    def _leading_to(self, exporter: Exporter[Any]) -> set[Component[Any]]:
        """The exporter, and the connectors that fill the pipelines before it."""
        found: set[Component[Any]] = {exporter}
        for pipeline in reversed(self.pipelines):
            if not found.isdisjoint(worker.exporter for worker in pipeline.delivery.workers):
                connectors = (self._shared.get((Kind.CONNECTOR, id)) for id in pipeline.chains)
                found |= {connector for connector in connectors if connector is not None}
        return found


def make(spec: ComponentSpec, host: Host) -> Component[Any]:
    """Construct a component, which touches nothing."""
    with starting(f"{spec.kind} {spec.id}", "cannot be made"):
        return spec.declaration.component(spec.id, spec.config, host)


async def start_component(component: Component[Any]) -> None:
    """Start one component. Raises `StartError`, whatever it raises."""
    with starting(f"{component.kind} {component.id}", "cannot start"):
        await component.start()


LEAST_GRACE = 1.0
"""Seconds; that no request is waited for does not mean that no file is closed."""
Ending = Callable[[Component[Any]], Awaitable[None]]


async def stop_component(component: Component[Any], ending: Ending, grace: float) -> None:
    """Stop one component, whatever it raises, and within `grace` seconds once its tasks and listeners have ended."""
    grace = max(grace, LEAST_GRACE)
    await stopping(f"{component.kind} {component.id}", lambda: ending(component))
    await stopping(f"{component.kind} {component.id}", component.stop, grace)
