"""The service: one graph, brought up, kept in sight, and taken down."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, TypeVar, cast

import anyio
from anyio.abc import TaskGroup, TaskStatus
from prometheus_client import CollectorRegistry

from pipeline.component import ASGIApp, Component, Exporter, Extension, Health, Host, Receiver
from pipeline.config.fields import ListenerConfig
from pipeline.config.model import Configuration
from pipeline.containment import AWAITED, contained, instruments_of, is_ours, starting
from pipeline.data import MetricBatch
from pipeline.errors import StartError
from pipeline.graph import Graph, make, start_component, stop_component
from pipeline.guard import guard_instruments
from pipeline.instruments import PACKAGE, engine_instruments
from pipeline.registry import states
from pipeline.routes import Route
from pipeline.serving import Listener
from pipeline.telemetry import Instrument, Telemetry
from pipeline.telemetry_otlp import telemetry_batch
from pipeline.watchdog import Watchdog

T = TypeVar("T")

_log = logging.getLogger("service")


class CommandHost(Host):
    """What the extensions of a configuration see in a command: each other, and nothing that runs in the background. The
    service builds on it."""

    is_service = False

    def __init__(self, configuration: Configuration) -> None:
        self.environ: Mapping[str, str] = configuration.environ
        self.service_name = configuration.settings.name
        self._settings = configuration.settings
        self.extensions: list[Extension[Any]] = []
        for spec in configuration.extensions:
            self.extensions.append(cast("Extension[Any]", make(spec, self)))

    def extension(self, interface: type[T]) -> T:
        """The extension that offers this interface. Raises `LookupError` if none does."""
        for extension in self.extensions:
            if isinstance(extension, interface):
                return extension
        raise LookupError(f"no extension offers {interface.__name__}")

    async def start(self) -> None:
        """Start them, in the order of the configuration."""
        for extension in self.extensions:
            await start_component(extension)

    async def stop(self) -> None:
        """Stop them, the last first."""
        for extension in reversed(self.extensions):
            await stop_component(extension, _nothing_to_end, self._settings.stop_timeout)

    def spawn(self, component: Component[Any], task: Callable[[], Awaitable[None]]) -> None:
        """See `Host.spawn`."""
        raise RuntimeError("a command runs no background tasks")

    async def listen(self, component: Component[Any], listener: ListenerConfig, app: ASGIApp) -> None:
        """See `Host.listen`."""
        raise RuntimeError("a command serves nothing")

    def routes(self) -> Sequence[Route]:
        """See `Host.routes`."""
        raise RuntimeError("a command serves nothing")

    async def flush(self, into: Exporter[Any] | None = None) -> Sequence[str]:
        """See `Host.flush`."""
        raise RuntimeError("a command delivers nothing")

    def health(self) -> Health:
        """See `Host.health`."""
        raise RuntimeError("a command has no health")

    def telemetry(self) -> CollectorRegistry:
        """See `Host.telemetry`."""
        raise RuntimeError("a command has no telemetry")

    def telemetry_batch(self) -> MetricBatch:
        """See `Host.telemetry_batch`."""
        raise RuntimeError("a command has no telemetry")


async def _nothing_to_end(component: Component[Any]) -> None:
    pass


@dataclass(frozen=True)
class _Spawned:
    scope: anyio.CancelScope
    ended: asyncio.Event


class Service(CommandHost):
    """One running configuration."""

    is_service = True

    def __init__(self, configuration: Configuration, *, accept_journal_reset: bool = False) -> None:
        super().__init__(configuration)
        self.graph = Graph(configuration, self, tuple(self.extensions))
        self.ready = False
        """Whether everything has started and nothing is being stopped."""
        self.started = asyncio.Event()
        """Set once everything has started."""
        self.listeners: dict[Component[Any], list[Listener]] = {}
        self._left_out = states(configuration.broken)
        self._digest = configuration.digest
        self._accept_journal_reset = accept_journal_reset
        self._spawned: dict[Component[Any], list[_Spawned]] = {}
        self._failures: dict[Component[Any], str] = {}
        self._stop_asked = asyncio.Event()
        self._tasks: TaskGroup | None = None
        self._watchdog = Watchdog()
        self._telemetry: Telemetry | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Start, serve until `ask_to_stop`, stop. Raises `StartError`, with everything stopped again.

        `task_status` is told when the service is ready, for callers that use `TaskGroup.start`.
        """
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            resource = {"service.name": self.service_name, "service.version": version(PACKAGE)}
            self._telemetry = Telemetry(self.instruments(), resource)
            tasks.start_soon(self._watchdog.run)
            try:
                await self.graph.start(tasks, accept_journal_reset=self._accept_journal_reset)
                self.ready = True
                self.started.set()
                _log.info("ready", extra={"configuration": self._digest})
                task_status.started()
                await self._stop_asked.wait()
                _log.info("stopping")
            finally:
                self.ready = False
                with anyio.CancelScope(shield=True):
                    await self.graph.stop(self._settings.stop_timeout, self._end)
                self._telemetry.close()
                tasks.cancel_scope.cancel()
        _log.info("stopped")

    def ask_to_stop(self) -> None:
        """Make `run` end."""
        self._stop_asked.set()

    def spawn(self, component: Component[Any], task: Callable[[], Awaitable[None]]) -> None:
        """See `Host.spawn`."""
        assert self._tasks is not None, "tasks are spawned by start, not by construction"
        spawned = _Spawned(anyio.CancelScope(), asyncio.Event())
        self._spawned.setdefault(component, []).append(spawned)
        self._tasks.start_soon(self._watch, component, task, spawned)

    async def _watch(self, component: Component[Any], task: Callable[[], Awaitable[None]], spawned: _Spawned) -> None:
        try:
            with spawned.scope:
                await task()
        except AWAITED as error:
            if is_ours(error):
                raise
            self._failures[component] = f"failed: {str(error) or type(error).__name__}"
            _log.exception("a task of %s %s failed", component.kind, component.id)
        finally:
            spawned.ended.set()

    async def listen(self, component: Component[Any], listener: ListenerConfig, app: ASGIApp) -> None:
        """See `Host.listen`."""
        listening = Listener(listener, app)
        self.listeners.setdefault(component, []).append(listening)
        await listening.start(self._settings.stop_timeout)
        host, port = listening.address
        scheme = "https" if listener.tls.certificate else "http"
        _log.info("%s %s listens on %s://%s:%d", component.kind, component.id, scheme, host, port)

    async def _end(self, component: Component[Any]) -> None:
        """End the listeners and the tasks of a component that is about to be stopped."""
        for listening in self.listeners.pop(component, ()):
            await listening.stop()
        for spawned in self._spawned.pop(component, ()):
            spawned.scope.cancel()
            with anyio.move_on_after(self._settings.stop_timeout) as waiting:
                await spawned.ended.wait()
            if waiting.cancelled_caught:
                _log.error("a task of %s %s does not end", component.kind, component.id)

    def routes(self) -> Sequence[Route]:
        """See `Host.routes`. Raises `StartError` if two components offer the same."""
        offered: dict[tuple[str, str], Component[Any]] = {}
        routes: list[Route] = []
        for component in self.graph.components():
            with starting(f"{component.kind} {component.id}", "cannot offer its routes"):
                own = [] if isinstance(component, Receiver) else list(component.routes())
            for route in own:
                other = offered.setdefault((route.method, route.path), component)
                if other is not component:
                    raise StartError(f"{route.method} {route.path} is offered by {other.id} and by {component.id}", 78)
                routes.append(replace(route, handler=contained(component, route.handler)))
        return routes

    async def flush(self, into: Exporter[Any] | None = None) -> Sequence[str]:
        """See `Host.flush`. Until everything has started, what was accepted before has not been looked at."""
        if not self.started.is_set():
            return ["the service, which is starting"]
        return await self.graph.flush(into)

    def telemetry(self) -> CollectorRegistry:
        """See `Host.telemetry`."""
        assert self._telemetry is not None, "there is telemetry once the service runs"
        return self._telemetry.registry

    def telemetry_batch(self) -> MetricBatch:
        """See `Host.telemetry_batch`."""
        assert self._telemetry is not None, "there is telemetry once the service runs"
        return telemetry_batch(self._telemetry)

    def instruments(self) -> list[Instrument]:
        """Everything that it says of itself, by the engine and by component."""
        engine = engine_instruments(self.graph.pipelines, self._digest, self._watchdog)
        engine += guard_instruments(self.listeners)
        return [*engine, *(each for component in self.graph.components() for each in instruments_of(component))]

    def health(self) -> Health:
        """See `Host.health`. Receivers that others send to and their journals decide whether we accept; what else fails is shown."""
        found: dict[str, str] = {}
        accepting = self.ready
        for component in self.graph.components():
            failure = self._failures.get(component) or self._listening_failure(component)
            accepting = accepting and not (failure and isinstance(component, Receiver) and component.takes_from_outside)
            name = f"{component.kind}/{component.id}"
            found[name] = failure or self._watchdog.state_of(name) or "ok"
        for pipeline in self.graph.pipelines:
            failure = pipeline.journal.failure
            # One that nobody outside feeds keeps no push from being accepted.
            accepting = accepting and (failure is None or not pipeline.takes_from_outside)
            found[f"journal/{pipeline.id}"] = failure or "ok"
            for worker in pipeline.delivery.workers:
                if worker.failure is not None:
                    found[f"{worker.exporter.kind}/{worker.exporter.id}"] = f"cannot deliver: {worker.failure}"
        return Health(accepting, found | self._left_out)

    def _listening_failure(self, component: Component[Any]) -> str | None:
        return next((each.failure for each in self.listeners.get(component, ()) if each.failure), None)


async def run_until_signalled(service: Service) -> None:
    """Run the service until SIGTERM or SIGINT; a second one ends the process at once, which is safe. SIGHUP changes nothing."""
    async with anyio.create_task_group() as tasks:

        async def wait_for_signals() -> None:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
                async for received in signals:
                    if received != signal.SIGHUP:
                        service.ask_to_stop()
                        break
                    # Its default is to end the process, which nobody who sends it means.
                    _log.warning("SIGHUP: the configuration is not reloaded, restart the service for that")
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

        tasks.start_soon(wait_for_signals)
        tasks.start_soon(_settle_memory, service)
        await service.run()
        tasks.cancel_scope.cancel()


async def _settle_memory(service: Service) -> None:
    """What start-up made lives as long as the process: the collector need not look at it again. While it did, the p99 of a small
    push was about 24 ms, and 7 ms since (uvicorn, one core)."""
    await service.started.wait()
    gc.collect()
    gc.freeze()
    # A push makes some thirty containers that are gone when it is answered: looking for cycles every 700 is for nothing.
    gc.set_threshold(20_000, 20, 20)
