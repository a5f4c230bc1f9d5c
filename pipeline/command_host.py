"""A host for commands: the extensions of a configuration, without a service around them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from prometheus_client import CollectorRegistry

from pipeline.component import ASGIApp, Component, Exporter, Extension, Health, Host
from pipeline.config.fields import ListenerConfig
from pipeline.config.model import Configuration
from pipeline.data import MetricBatch
from pipeline.graph import Key, make, start_component, stop_component
from pipeline.interfaces import State
from pipeline.masking import keep_configured
from pipeline.routes import Route
from pipeline.watched_files import WatchedFiles

T = TypeVar("T")


class CommandHost(Host):
    """What the extensions of a configuration see in a command: each other, and nothing that runs in the background. The
    service builds on it."""

    is_service = False

    def __init__(self, configuration: Configuration, existing: Mapping[Key, Component[Any]] | None = None) -> None:
        keep_configured(configuration)
        self.environ: Mapping[str, str] = configuration.environ
        self.service_name = configuration.settings.name
        self._settings = configuration.settings
        self.extensions: list[Extension[Any]] = []
        for spec in configuration.extensions:
            extension = (existing or {}).get((spec.kind, spec.id)) or make(spec, self)
            self.extensions.append(cast("Extension[Any]", extension))

    def extension(self, interface: type[T]) -> T:
        """The extension that offers this interface. Raises `LookupError` if none does."""
        for extension in self.extensions:
            if isinstance(extension, interface):
                return extension
        raise LookupError(f"no extension offers {interface.__name__}")

    @property
    def state(self) -> State:
        """See `Host.state`."""
        raise RuntimeError("a command has no saved state")

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

    def watch(self, component: Component[Any], files: WatchedFiles) -> None:
        """See `Host.watch`."""
        raise RuntimeError("a command watches no files")

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
