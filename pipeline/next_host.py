"""What components see as their host until the configuration that they belong to is in force."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from pipeline.command_host import CommandHost
from pipeline.component import ASGIApp, Component, Exporter, Health
from pipeline.config.fields import ListenerConfig
from pipeline.config.model import Configuration
from pipeline.data import MetricBatch
from pipeline.graph import Graph, Kept, Key
from pipeline.interfaces import State
from pipeline.routes import Route
from pipeline.watched_files import WatchedFiles

if TYPE_CHECKING:
    from pipeline.service import Service


class NextHost(CommandHost):
    """The environment, extensions and routes are those to come; everything else is the service's, which runs."""

    is_service = True

    def __init__(self, service: Service, configuration: Configuration, kept: Kept) -> None:
        existing: Mapping[Key, Component[Any]] = {
            key: found for key in kept.components if (found := kept.graph.find(key)) is not None
        }
        super().__init__(configuration, existing)
        self._service = service
        self.graph = Graph(configuration, self, tuple(self.extensions), kept, service.calls)

    @property
    def state(self) -> State:
        """See `Host.state`."""
        return self._service.state_of(self.graph, self.extensions)

    def spawn(self, component: Component[Any], task: Callable[[], Awaitable[None]]) -> None:
        """See `Host.spawn`."""
        self._service.spawn(component, task)

    async def listen(self, component: Component[Any], listener: ListenerConfig, app: ASGIApp) -> None:
        """See `Host.listen`."""
        await self._service.listen(component, listener, app)

    def watch(self, component: Component[Any], files: WatchedFiles) -> None:
        """See `Host.watch`."""
        self._service.watch(component, files)

    def routes(self) -> Sequence[Route]:
        """See `Host.routes`."""
        return self._service.routes_of(self.graph)

    async def flush(self, into: Exporter[Any] | None = None) -> Sequence[str]:
        """See `Host.flush`."""
        return await self._service.flush(into)

    def health(self) -> Health:
        """See `Host.health`."""
        return self._service.health()

    def telemetry(self) -> CollectorRegistry:
        """See `Host.telemetry`."""
        return self._service.telemetry()

    def telemetry_batch(self) -> MetricBatch:
        """See `Host.telemetry_batch`."""
        return self._service.telemetry_batch()
