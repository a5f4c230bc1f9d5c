"""A reload: from the configuration that runs to another, and no request notices.

constructed    the new graph, with all that stays taken over
prepared       what is new has started, what changes in place has checked its new settings; what fails up to here is undone
switched       in one turn of the loop: components, chains, journals, listeners, what the service says of itself
settled        what was replaced or is gone ends what it has in hand, and stops
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from pipeline.changes import Certificates, Restarts, changes_in_place, specs, unchanged
from pipeline.component import Component, Receiver
from pipeline.config.fields import ListenerConfig
from pipeline.config.model import Configuration
from pipeline.config.sharing import parts_of
from pipeline.containment import CALLED, CONTAINED, starting
from pipeline.errors import ServiceError
from pipeline.graph import Kept, Pipeline, begin, compare, journals, start_component, stop_parts
from pipeline.next_host import NextHost
from pipeline.supervision import Starts

if TYPE_CHECKING:
    from pipeline.service import Service
    from pipeline.serving import Listener

_log = logging.getLogger("service")


class Reload:
    """One change of a service to another configuration. `before` and `now` are the certificates of both (`changes.py`)."""

    def __init__(self, service: Service, configuration: Configuration, before: Certificates, now: Certificates) -> None:
        """Construct the new graph. Raises `ConfigError` for what needs a restart, and `StartError`."""
        old = service.configuration
        kept = unchanged(old, configuration, before, now)
        restarts = Restarts(old, configuration, {(each.kind, each.id) for each in service.listeners})
        restarts.look(kept)
        restarts.problems.raise_any()
        self._service = service
        self._configuration = configuration
        self._old = service.graph
        self._host = NextHost(service, configuration, Kept(service.graph, kept))
        self._graph = self._host.graph
        restarts.look_at_journals(self._old, self._graph)
        restarts.problems.raise_any()
        was, comes = list(self._old.components()), list(self._graph.components())
        self._kept = [each for each in comes if each in was]
        self._added = [each for each in comes if each not in was]
        self._gone = [each for each in was if each not in comes]
        ran = {each.id: each for each in self._old.pipelines}
        runs = {each.id for each in self._graph.pipelines}
        self._kept_pipelines = [(ran[each.id], each) for each in self._graph.pipelines if each.id in ran]
        self._added_pipelines = [each for each in self._graph.pipelines if each.id not in ran]
        self._gone_pipelines = [each for each in self._old.pipelines if each.id not in runs]
        self._apply: list[Callable[[], None]] = []

    async def prepare(self, tasks: Starts) -> None:
        """Do all that may fail. Raises `StartError`, or is cancelled, with all of it undone."""
        try:
            await self._prepare(tasks)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._undo()
            raise

    async def _prepare(self, tasks: Starts) -> None:
        coming = specs(self._configuration)
        for component in self._kept:
            config = coming[component.kind, component.id].config
            if changes_in_place(type(component)):
                with starting(f"{component.kind} {component.id}", "cannot take its new configuration"):
                    reload = partial(component.reload, config, self._host)
                    self._apply.append(await self._service.calls.watch(component, "reload", reload))
            for listener in self._service.listeners.get(component, ()):
                self._apply.append(listener.change(_coming(listener, component.config, config)))
        async with journals(self._added_pipelines, accept_reset=False):
            for component in self._added:
                if not isinstance(component, Receiver):
                    await start_component(component, self._service.calls)
            owner = await compare(self._added_pipelines, self._host.extensions, self._service.calls, accept_reset=False)
            await self._graph.claim_reserves(owner, known=self._old.reserves)
        await begin(self._added_pipelines, tasks)
        for folder, reserve in self._graph.reserves.items():
            if folder not in self._old.reserves:
                await anyio.to_thread.run_sync(reserve.look)
        for component in self._added:
            if isinstance(component, Receiver):
                await start_component(component, self._service.calls)

    async def _undo(self) -> None:
        service = self._service
        await stop_parts(self._added, self._added_pipelines, service.grace, service.end, service.calls)
        for pipeline in self._added_pipelines:
            if not pipeline.journal.items:  # a receiver that has started may have answered
                await pipeline.journal.abandon()
        for folder, reserve in self._graph.reserves.items():
            if folder not in self._old.reserves:
                await anyio.to_thread.run_sync(reserve.discard)

    def switch(self, tasks: Starts) -> None:
        """Put the new configuration in force."""
        coming = specs(self._configuration)
        self._left = [self._change_chains(old, new) for old, new in self._kept_pipelines]
        for apply in self._apply:
            try:
                apply()
            except CALLED:
                _log.exception("a component does not keep its word that it can take its new configuration")
        for component in self._graph.components():
            component.config, component.host = coming[component.kind, component.id].config, self._service
        self._graph.configure_journals()
        for folder, reserve in self._graph.reserves.items():
            if folder not in self._old.reserves:
                tasks.start_soon(reserve.run, name=f"reserve {reserve.path}")
        for _, pipeline in self._kept_pipelines:
            placed = {worker.exporter.name for worker in pipeline.delivery.workers}
            for exporter in pipeline.exporters:
                if exporter.name not in placed:
                    pipeline.delivery.place(exporter, tasks)
        for component in self._replaced():
            self._service.former.replaced(component)
        self._service.switch(self._configuration, self._graph, self._host.extensions)

    def _change_chains(self, old: Pipeline, new: Pipeline) -> list[Callable[[], Awaitable[Any]]]:
        """Gives what returns when no request is in the former processors any more."""
        if old.processors == new.processors:
            return []
        return [chain.change(new.processors) for id, chain in new.chains.items() if id in old.chains]

    def _replaced(self) -> list[Component[Any]]:
        comes = {(each.kind, each.id) for each in self._added}
        return [each for each in self._gone if (each.kind, each.id) in comes]

    async def settle(self, tasks: Starts) -> None:
        """Stop what was replaced or is gone. What goes wrong is logged."""
        try:
            await self._settle(tasks)
        except CONTAINED:
            _log.exception("not all that was replaced has stopped")

    async def _settle(self, tasks: Starts) -> None:
        grace = self._service.grace
        for _, pipeline in self._kept_pipelines:
            await self._settle_delivery(pipeline, grace, tasks)
        with anyio.move_on_after(grace):
            for left in self._left:
                for wait in left:
                    await wait()
        await stop_parts(self._gone, self._gone_pipelines, grace, self._service.end, self._service.calls)
        replaced = self._replaced()
        for component in self._gone:
            if component in replaced:
                self._service.former.stopped(component)
            else:
                self._service.former.gone((component.kind, component.id))

    async def _settle_delivery(self, pipeline: Pipeline, grace: float, tasks: Starts) -> None:
        by_name = {exporter.name: exporter for exporter in pipeline.exporters}
        for worker in list(pipeline.delivery.workers):
            exporter = by_name.get(worker.exporter.name)
            try:
                if exporter is None:
                    await pipeline.delivery.remove(worker, grace)
                elif exporter is not worker.exporter:
                    await pipeline.delivery.replace(worker, exporter, grace, tasks)
            except ServiceError as error:
                _log.error(
                    "pipeline %s: %s gives up its place with the next start: %s",
                    pipeline.id,
                    worker.exporter.name,
                    error,
                )


def _coming(listener: Listener, old: Any, new: Any) -> ListenerConfig:
    """What is to become of a listener's settings, wherever they are in the component's options."""
    places = [at for each, at in parts_of(old, ListenerConfig) if each is listener.config]
    found = [each for each, at in parts_of(new, ListenerConfig) if at in places]
    return found[0] if found else listener.config
