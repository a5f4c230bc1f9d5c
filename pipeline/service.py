"""The service: one graph, brought up, kept in sight, and taken down."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus
from prometheus_client import CollectorRegistry

from pipeline import systemd
from pipeline.changes import Certificates, read_certificates
from pipeline.command_host import CommandHost
from pipeline.component import ASGIApp, Component, Exporter, Extension, Health, Receiver
from pipeline.config.fields import ListenerConfig
from pipeline.config.model import Configuration
from pipeline.containment import (
    AWAITED,
    CONTAINED,
    FAULT,
    contained,
    contained_app,
    instruments_of,
    is_ours,
    starting,
)
from pipeline.data import MetricBatch
from pipeline.deadlines import Asked, Calls, Deadlines
from pipeline.errors import ConfigError, StartError, in_a_line
from pipeline.former import Former
from pipeline.graph import Graph
from pipeline.guard import guard_instruments
from pipeline.hard_exit import MARGIN
from pipeline.instruments import PACKAGE, LastReload, engine_instruments
from pipeline.interfaces import FormerState, State
from pipeline.journal import Journal
from pipeline.logs import set_up_logs
from pipeline.masking import keep_configured
from pipeline.memory import return_freed_memory
from pipeline.presence import Presence
from pipeline.registry import states
from pipeline.reload import Reload
from pipeline.routes import Access, Route
from pipeline.saved_state import SavedState, StateFiles
from pipeline.serving import Listener, share_files
from pipeline.supervision import Supervision
from pipeline.telemetry import Instrument, Telemetry
from pipeline.telemetry_otlp import telemetry_batch
from pipeline.watchdog import Watchdog
from pipeline.watched_files import WatchedFiles

_log = logging.getLogger("service")


class Service(CommandHost):
    """One configuration that runs, until another takes its place."""

    is_service = True

    def __init__(
        self,
        configuration: Configuration,
        *,
        accept_journal_reset: bool = False,
        accept_database_reset: bool = False,
        deadlines: Deadlines | None = None,
    ) -> None:
        super().__init__(configuration)
        self.configuration = configuration
        self.calls = Calls(deadlines)
        """The calls of plugin code that are in progress."""
        self.tell_stopping: Callable[[float, int], None] = lambda seconds, exit_code: None
        """Called when a stop begins, with how long it may take, in seconds, and the exit code of a process that takes longer."""
        self.tell_rescue: Callable[[], None] = lambda: None
        """Called before files are saved, which has no time limit."""
        self.graph = Graph(configuration, self, tuple(self.extensions), calls=self.calls)
        self.state_files = StateFiles(accept_reset=accept_journal_reset)
        self.former = Former()
        self.last_reload = LastReload()
        self.ready = False
        """Whether everything has started and nothing is being stopped."""
        self.started = asyncio.Event()
        """Set once everything has started."""
        self.listeners: dict[Component[Any], list[Listener]] = {}
        self._left_out = states(configuration.broken)
        self._certificates: Certificates = {}
        self._reloading = anyio.Lock()
        self._preparing: anyio.CancelScope | None = None
        self._starting: anyio.CancelScope | None = None
        self._accept_journal_reset = accept_journal_reset
        self._accept_database_reset = accept_database_reset
        self._spawned: dict[Component[Any], list[asyncio.Task[None]]] = {}
        self._failures: dict[Component[Any], str] = {}
        self._stop_asked = asyncio.Event()
        self._tasks: TaskGroup | None = None
        self._watchdog = Watchdog()
        self._telemetry: Telemetry | None = None
        self._supervision = Supervision(self.ask_to_stop)
        self._supervision.watch(self.graph)
        self._files: dict[Component[Any], list[WatchedFiles]] = {}
        self._presence = Presence(self._watched_files, self._journals)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Start, serve until `ask_to_stop`, stop. Raises `StartError`, with everything stopped again, also if a part of it has ended.

        `task_status` is told when the service is ready, for callers that use `TaskGroup.start`.
        """
        return_freed_memory()
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            resource = {"service.name": self.service_name, "service.version": version(PACKAGE)}
            self._telemetry = Telemetry(self.instruments(), resource)
            tasks.start_soon(self._watchdog.run)
            tasks.start_soon(self.calls.run)
            try:
                self._certificates = read_certificates(self.configuration)
                self._supervision.of(tasks).start_soon(self._presence.run, name="presence")
                if await self._start(tasks):
                    self.last_reload.succeeded_at = time.time()
                    self.ready = True
                    self.started.set()
                    self._say("ready")
                    task_status.started()
                    await self._stop_asked.wait()
                    self.tell_stopping(self.seconds_to_stop, FAULT)
                    self._say("stopping")
                    await (self._drain() if self._supervision.fault is None else self._supervision.drain())
            finally:
                self.tell_stopping(self.seconds_to_stop, FAULT)
                self.ready = False
                with anyio.CancelScope(shield=True):
                    async with self._reloading:  # one that has gone too far to be undone
                        pass
                    await self._presence.check()
                    if self._presence.fault is not None:
                        self.tell_rescue()
                    await self._presence.before_stop()
                    await self.graph.stop(self._settings.stop_timeout, self.end)
                    await self._close_state()
                self._telemetry.close()
                tasks.cancel_scope.cancel()
        self._supervision.check()
        _log.info("stopped")

    async def _start(self, tasks: TaskGroup) -> bool:
        """Start everything. False if it was asked to stop meanwhile."""
        with anyio.CancelScope() as self._starting:
            if not self._stop_asked.is_set():
                await self.graph.start(
                    self._supervision.of(tasks),
                    accept_journal_reset=self._accept_journal_reset,
                    accept_database_reset=self._accept_database_reset,
                )
        self._starting = None
        return not self._stop_asked.is_set()

    @property
    def seconds_to_stop(self) -> float:
        """How long a stop may take, whatever components do, in seconds."""
        return self._settings.drain_delay + 2 * self._settings.stop_timeout + MARGIN

    def _say(self, state: str) -> None:
        """Tell whoever watches the process: `ready`, `reloading` (until the next `ready`), `stopping`."""
        _log.info(state, extra={"configuration": self.configuration.digest} if state == "ready" else {})
        systemd.say(self, state)

    def ask_to_stop(self) -> None:
        """Make `run` end."""
        self._stop_asked.set()
        for scope in (self._starting, self._preparing):
            if scope is not None:
                scope.cancel()

    async def _drain(self) -> None:
        """Serve on for a while, no longer ready: who sends requests here is to hear of it before nobody takes them any more."""
        self.ready = False
        for each in self._listening:
            each.guard.closing = True
        await anyio.sleep(self._settings.drain_delay)

    @property
    def _listening(self) -> list[Listener]:
        return [each for listening in self.listeners.values() for each in listening]

    @property
    def grace(self) -> float:
        """How long what is in hand is given when something stops, in seconds."""
        return self._settings.stop_timeout

    async def reload(self, load: Callable[[], Configuration]) -> bool:
        """Go on with the configuration that `load` gives; it is called in a thread. Gives whether that is in force.

        What is wrong with it, or needs a restart, is logged, a line each, and nothing has changed.
        """
        async with self._reloading:
            if not self.started.is_set() or self._stop_asked.is_set():
                return False
            self._say("reloading")
            with anyio.move_on_after(self.calls.deadlines.reload) as self._preparing:
                try:
                    await self._reload(load)
                finally:
                    late = self.calls.late()
            too_slow = self._preparing.cancelled_caught
            self._preparing = None
            if self._stop_asked.is_set():
                return False
            if too_slow:
                self.last_reload.successful = False
                waits_for = f", it waited for {', '.join(late)}" if late else ""
                _log.error("not reloaded: it did not finish within %g s%s", self.calls.deadlines.reload, waits_for)
            self._say("ready")
            return self.last_reload.successful

    async def _reload(self, load: Callable[[], Configuration]) -> None:
        try:
            # A file that does not answer blocks a thread, not the reload.
            configuration = await anyio.to_thread.run_sync(load, abandon_on_cancel=True)
            certificates = await anyio.to_thread.run_sync(read_certificates, configuration, abandon_on_cancel=True)
            keep_configured(configuration)
            change = Reload(self, configuration, self._certificates, certificates)
            await change.prepare(self._supervision)
        except (ConfigError, StartError) as error:
            self.last_reload.successful = False
            for problem in error.problems if isinstance(error, ConfigError) else (error,):
                _log.error("not reloaded: %s", problem)
            return
        except CONTAINED:
            self.last_reload.successful = False
            _log.exception("not reloaded")
            return
        assert self._preparing is not None
        self._preparing.deadline = math.inf
        with anyio.CancelScope(shield=True):
            change.switch(self._supervision)
            self._certificates = certificates
            await change.settle(self._supervision)
            self._read_instruments()

    def switch(self, configuration: Configuration, graph: Graph, extensions: list[Extension[Any]]) -> None:
        """Be the service of another configuration from now on; its graph runs. See `Reload`."""
        if configuration.settings.log != self._settings.log:
            set_up_logs(configuration.settings.log.level, configuration.settings.log.format)
        self.configuration, self._settings, self.environ = configuration, configuration.settings, configuration.environ
        self.graph, self.extensions = graph, extensions
        self._supervision.watch(graph)
        self._left_out = states(configuration.broken)
        for each in self._listening:
            each.grace = self.grace
        share_files(self._listening)
        self.last_reload.successful, self.last_reload.succeeded_at = True, time.time()
        self._read_instruments()

    def _read_instruments(self) -> None:
        assert self._telemetry is not None, "there is telemetry once the service runs"
        self._telemetry.read_from(self.instruments())

    async def _close_state(self) -> None:
        """Close the saved state. After a failed start, a new file is deleted again, unless a journal has recorded it."""
        journals = [each.journal for each in self.graph.pipelines if each.journal.path.exists()]
        recorded = {store.id for journal in journals for store in journal.stores.values()}
        await self.state_files.close(None if self.started.is_set() else recorded)

    @property
    def state(self) -> State:
        """See `Host.state`."""
        return self.state_of(self.graph, self.extensions)

    def state_of(self, graph: Graph, extensions: Sequence[Extension[Any]]) -> State:
        """The saved state of the components of that graph, which runs with these extensions."""
        former = next((each for each in extensions if isinstance(each, FormerState)), None)
        return SavedState(self.state_files, graph.sources, lambda: former)

    def watch(self, component: Component[Any], files: WatchedFiles) -> None:
        """See `Host.watch`."""
        self._files.setdefault(component, []).append(files)

    def _watched_files(self) -> list[WatchedFiles]:
        """In the order in which their content is saved: a store before the journals that may be ahead of it."""
        states = [each.files for each in self.state_files.opened.values()]
        return (
            [files for each in self._files.values() for files in each]
            + states
            + [each.files for each in self._journals()]
        )

    def _journals(self) -> list[Journal]:
        return [pipeline.journal for pipeline in self.graph.pipelines]

    def spawn(self, component: Component[Any], task: Callable[[], Awaitable[None]]) -> None:
        """See `Host.spawn`."""
        assert self._tasks is not None, "tasks are spawned by start, not by construction"
        # Not in the task group of the service, which would wait for one that swallows its cancellation.
        spawned = asyncio.create_task(self._watch(component, task), name=f"{component.kind} {component.id}")
        self._spawned.setdefault(component, []).append(spawned)

    async def _watch(self, component: Component[Any], task: Callable[[], Awaitable[None]]) -> None:
        try:
            await self.calls.watch(component, "a task", task, reported=math.inf, patience=math.inf)
        except AWAITED as error:
            if is_ours(error):
                raise
            self._failures[component] = f"failed with {type(error).__name__}"
            _log.exception("a task of %s %s failed", component.kind, component.id)

    async def listen(self, component: Component[Any], listener: ListenerConfig, app: ASGIApp) -> None:
        """See `Host.listen`."""
        listening = Listener(listener, contained_app(component, app))
        self.listeners.setdefault(component, []).append(listening)
        await listening.start(self._settings.stop_timeout)
        share_files(self._listening)
        host, port = listening.address
        scheme = "https" if listener.tls.certificate else "http"
        _log.info("%s %s listens on %s://%s:%d", component.kind, component.id, scheme, host, port)

    async def end(self, component: Component[Any]) -> None:
        """End the listeners and the tasks of a component that is about to be stopped."""
        for listening in self.listeners.pop(component, ()):
            await listening.stop()
        self._files.pop(component, None)
        self._failures.pop(component, None)
        if spawned := self._spawned.pop(component, None):
            for each in spawned:
                each.cancel()
            _, left = await asyncio.wait(spawned, timeout=self._settings.stop_timeout)
            if left:
                _log.error("a task of %s %s does not end: it is left behind", component.kind, component.id)

    def routes(self) -> Sequence[Route]:
        """See `Host.routes`."""
        return self.routes_of(self.graph)

    def routes_of(self, graph: Graph) -> Sequence[Route]:
        """The routes that the components of a graph offer. Raises `StartError` if two offer the same."""
        offered: dict[tuple[str, str], Component[Any]] = {}
        routes: list[Route] = []
        for component in graph.components():
            with starting(f"{component.kind} {component.id}", "cannot offer its routes"):
                own = [] if isinstance(component, Receiver) else [_checked(each) for each in component.routes()]
            for route in own:
                other = offered.setdefault((route.method, route.path), component)
                if other is not component:
                    raise StartError(f"{route.method} {route.path} is offered by {other.id} and by {component.id}", 78)
                doing = f"{route.method} {route.path}"
                asked = Asked(self.calls, component, doing, reported=self.calls.deadlines.route_reported)
                routes.append(replace(route, handler=contained(asked, route.handler)))
        return routes

    async def flush(self, into: Exporter[Any] | None = None) -> Sequence[str]:
        """See `Host.flush`. Until everything has started, what was accepted before has not been looked at."""
        if not self.started.is_set():
            return ["the service, which is starting"]
        if self._presence.fault is not None:
            return [f"the service: {self._presence.fault}"]
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
        engine = engine_instruments(
            self.graph.pipelines, self.configuration.digest, self._watchdog, self.last_reload, self.graph.memory
        )
        engine += guard_instruments(self.listeners)
        engine += self._presence.instruments()
        components = (each for component in self.graph.components() for each in instruments_of(component))
        return [*engine, *components, *self.former.instruments()]

    def health(self) -> Health:
        """See `Host.health`. Receivers that others send to and their journals decide whether we accept; what else fails is shown."""
        fault = self._supervision.fault
        found: dict[str, str] = {} if fault is None else {"service": fault}
        accepting = self.ready and fault is None and self._presence.fault is None
        for component in self.graph.components():
            failure = self._failures.get(component) or self._listening_failure(component)
            accepting = accepting and not (failure and isinstance(component, Receiver) and component.takes_from_outside)
            name = f"{component.kind}/{component.id}"
            found[name] = failure or self.calls.state_of(name) or self._watchdog.state_of(name) or "ok"
        for pipeline in self.graph.pipelines:
            failure = pipeline.journal.failure
            # One that nobody outside feeds keeps no push from being accepted.
            accepting = accepting and (failure is None or not pipeline.takes_from_outside)
            found[f"journal/{pipeline.id}"] = failure or "ok"
            for worker in pipeline.delivery.workers:
                if worker.failure is not None:
                    # The reason may be text of another side, and this is shown without a key: only the log has it.
                    since = worker.handover.attempts.failing_since
                    found[f"{worker.exporter.kind}/{worker.exporter.id}"] = (
                        f"cannot deliver since {since:%Y-%m-%dT%H:%M:%SZ}"
                    )
        if (state := self._presence.state) is not None:
            found["files"] = state
        return Health(accepting, found | self._left_out)

    def _listening_failure(self, component: Component[Any]) -> str | None:
        return next((each.failure for each in self.listeners.get(component, ()) if each.failure), None)


def _checked(route: Any) -> Route:
    """The route. Raises `TypeError` for any other object."""
    if not isinstance(route, Route):
        raise TypeError(f"routes returned {in_a_line(route)} (must return a sequence of Route)")
    types_of: dict[str, type] = {"method": str, "path": str, "access": Access, "summary": str}
    for name, right in types_of.items():
        if not isinstance(value := getattr(route, name, ""), right):
            raise TypeError(f"routes returned one with {name}={in_a_line(value)} (must be a {right.__name__})")
    if not route.path.startswith("/") or not callable(route.handler):
        raise TypeError(f"routes returned one with path={route.path!r} and handler={in_a_line(route.handler)}")
    return route
