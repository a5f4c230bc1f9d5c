"""Stand-ins for what a component meets, each written once: it implements the interface and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

from pipeline import (
    Batch,
    Chain,
    Component,
    Context,
    Exporter,
    Extension,
    Health,
    ListenerConfig,
    Outcome,
    Refusal,
    Route,
)

T = TypeVar("T")


class NopHost:
    """A `Host` without an engine behind it: looks up the extensions that a test puts in `extensions`, keeps in `spawned`
    what a component wants to run and in `listening` what it wants to serve, and runs and serves nothing. A test may put metrics
    into `own`, the service's own telemetry, and names of those who do not keep up into `behind`."""

    def __init__(
        self, *extensions: Extension[Any], environ: Mapping[str, str] | None = None, is_service: bool = True
    ) -> None:
        self.environ: Mapping[str, str] = environ or {}
        self.service_name = "mcp-metrics-service"
        self.is_service = is_service
        self.extensions = list(extensions)
        self.spawned: list[Callable[[], Awaitable[None]]] = []
        self.listening: list[tuple[ListenerConfig, Any]] = []
        self.own = CollectorRegistry()
        self.behind: list[str] = []

    def extension(self, interface: type[T]) -> T:
        for extension in self.extensions:
            if isinstance(extension, interface):
                return extension
        raise LookupError(f"no extension offers {interface.__name__}")

    def spawn(self, component: Component[Any], task: Callable[[], Awaitable[None]]) -> None:
        self.spawned.append(task)

    async def listen(self, component: Component[Any], listener: ListenerConfig, app: Any) -> None:
        self.listening.append((listener, app))

    def routes(self) -> Sequence[Route]:
        return [route for extension in self.extensions for route in extension.routes()]

    async def flush(self, into: Exporter[Any] | None = None) -> Sequence[str]:
        return self.behind

    def telemetry(self) -> CollectorRegistry:
        return self.own

    def health(self) -> Health:
        return Health(accepting=True, components={extension.id: "running" for extension in self.extensions})


class SinkChain(Chain):
    """A chain that ends here: it keeps what it is given in `batches`, or refuses it with `refusal`."""

    def __init__(self, refusal: Refusal | None = None) -> None:
        self.authenticates = False
        self.refusal = refusal
        self.batches: list[Batch] = []

    async def process(self, batch: Batch, context: Context) -> Outcome:
        await asyncio.sleep(0)  # where a real one would wait for its commit
        if self.refusal is not None:
            raise self.refusal
        self.batches.append(batch)
        return context.outcome(len(batch))
