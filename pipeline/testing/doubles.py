"""Stand-ins for what a component meets, each written once: it implements the interface and remembers what it was asked.

The exporters are component types as well. A test that wants them in a graph gives this module to the registry
(`load_registry(extra=[doubles])`) and names them:

    exporters:
      recording:
      failing:
        times: 3
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from prometheus_client import CollectorRegistry
from pydantic import Field

from pipeline import (
    Batch,
    Boolean,
    Chain,
    Component,
    ComponentConfig,
    Context,
    Declaration,
    Delivery,
    DimensionValue,
    Event,
    EventBatch,
    Exporter,
    Extension,
    Health,
    Host,
    ListenerConfig,
    MetricBatch,
    Outcome,
    Permanent,
    Position,
    Refusal,
    Retryable,
    Route,
    Signal,
    State,
    Store,
    WatchedFiles,
    hookimpl,
)

T = TypeVar("T")

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
"""When sample batches were received."""


class NopHost:
    """A `Host` without an engine behind it: looks up the extensions that a test puts in `extensions`, keeps in `spawned`
    what a component wants to run and in `listening` what it wants to serve, and runs and serves nothing. A test may put metrics
    into `own`, the service's own telemetry, replace `own_batch`, the same as OTLP, put names of those who do not keep up into
    `behind`, and replace `state`, which is kept in memory."""

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
        self.own_batch = metric_batch(name="own_total")
        self.behind: list[str] = []
        self.state: State = MemoryState()
        self.watched: list[WatchedFiles] = []

    def extension(self, interface: type[T]) -> T:
        """See `Host.extension`. Raises `LookupError` if no extension offers it."""
        for extension in self.extensions:
            if isinstance(extension, interface):
                return extension
        raise LookupError(f"no extension offers {interface.__name__}")

    def spawn(self, component: Component[Any], task: Callable[[], Awaitable[None]]) -> None:
        """Keep the task in `spawned`."""
        self.spawned.append(task)

    async def listen(self, component: Component[Any], listener: ListenerConfig, app: Any) -> None:
        """Keep the app in `listening`."""
        self.listening.append((listener, app))

    def watch(self, component: Component[Any], files: WatchedFiles) -> None:
        """Keep the files in `watched`."""
        self.watched.append(files)

    def routes(self) -> Sequence[Route]:
        """The routes of the extensions."""
        return [route for extension in self.extensions for route in extension.routes()]

    async def flush(self, into: Exporter[Any] | None = None) -> Sequence[str]:
        """What the test put into `behind`."""
        return self.behind

    def telemetry(self) -> CollectorRegistry:
        """What the test put into `own`."""
        return self.own

    def telemetry_batch(self) -> MetricBatch:
        """What the test put into `own_batch`."""
        return self.own_batch

    def health(self) -> Health:
        """Everything is well."""
        return Health(accepting=True, components={extension.id: "running" for extension in self.extensions})


class MemoryState(State):
    """A `State` that is gone with the test."""

    def __init__(self) -> None:
        self._positions: dict[str, dict[str, Position]] = {}
        self._records: dict[str, dict[str, bytes]] = {}

    async def load(self, owner: str) -> tuple[dict[str, Position], dict[str, bytes]]:
        """See `State.load`."""
        return dict(self._positions.get(owner, {})), dict(self._records.get(owner, {}))

    async def save(self, owner: str, positions: Mapping[str, Position], changed: Mapping[str, bytes]) -> None:
        """See `State.save`."""
        self._positions.setdefault(owner, {}).update(positions)
        self._records.setdefault(owner, {}).update(changed)

    def store(self, owner: str) -> Store:
        """See `State.store`."""
        return Store("0" * 32, "the memory of the test")


class SinkChain(Chain):
    """A chain that ends here: it keeps what it is given in `batches`, or refuses it with `refusal`."""

    def __init__(self, refusal: Refusal | None = None) -> None:
        self.authenticates = False
        self.refusal = refusal
        self.batches: list[Batch] = []

    async def process(self, batch: Batch, context: Context) -> Outcome:
        """Keep the batch."""
        await asyncio.sleep(0)  # where a real one would wait for its commit
        if self.refusal is not None:
            raise self.refusal
        self.batches.append(batch)
        return context.outcome(len(batch))


class RecordingConfig(ComponentConfig):
    """There is nothing to choose."""


class RecordingExporter(Exporter[RecordingConfig]):
    """A sink: keeps every delivery that it takes in `deliveries`."""

    at_once = True

    def __init__(self, id: str, config: RecordingConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self.deliveries: list[Delivery] = []

    @property
    def batches(self) -> list[Batch]:
        """The batches of all deliveries, in order."""
        return [batch for delivery in self.deliveries for batch in delivery.batches]

    async def export(self, delivery: Delivery) -> None:
        """Keep the delivery."""
        self.deliveries.append(delivery)


class FailingConfig(RecordingConfig):
    """How often to fail, and how."""

    times: int = Field(1, ge=0)
    """How many deliveries fail before one is taken."""
    permanent: Boolean = False
    """Fail with `Permanent` rather than `Retryable`."""
    retry_after: float | None = None
    """The seconds that a `Retryable` asks to be waited for."""


class FailingExporter(RecordingExporter):
    """Fails as often and as it is told, then records. `failures` counts how often it has failed."""

    config: FailingConfig

    def __init__(self, id: str, config: FailingConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self.failures = 0

    async def export(self, delivery: Delivery) -> None:
        """Keep the delivery, or raise `Retryable` or `Permanent`."""
        if self.failures < self.config.times:
            self.failures += 1
            message = f"failure {self.failures} of {self.config.times}"
            raise Permanent(message) if self.config.permanent else Retryable(message, self.config.retry_after)
        await super().export(delivery)


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `recording` and `failing`."""
    takes = frozenset(Signal)
    return [
        Declaration("recording", RecordingExporter, RecordingConfig, takes),
        Declaration("failing", FailingExporter, FailingConfig, takes),
    ]


def event_batch(
    *values: float,
    type: str = "custom",
    service: str = "test",
    request_id: str = "req_1",
    dimensions: Mapping[str, DimensionValue] | None = None,
) -> EventBatch:
    """A batch with one event a value, all of one type, at noon. Without values it has two events."""
    events = [Event(type, value, NOON, 12.5, dict(dimensions or {"method": "call"})) for value in values or (1.0, 2.5)]
    return EventBatch(service, events, NOON, request_id)


def metric_batch(
    *values: float, name: str = "test_total", labels: Mapping[str, str] | None = None, request_id: str = "req_1"
) -> MetricBatch:
    """A batch with one cumulative sum of that name, with one data point a value: its label `number` counts them, from 0.

    Without values it has two data points.
    """
    points = values or (1.0, 2.5)
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name=name, description="A sample.")
    metric.sum.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    metric.sum.is_monotonic = True
    time = int(NOON.timestamp()) * 10**9
    for number, value in enumerate(points):
        point = metric.sum.data_points.add(as_double=value, start_time_unix_nano=time, time_unix_nano=time)
        for key, text in {**(labels or {}), "number": str(number)}.items():
            point.attributes.add(key=key).value.string_value = text
    return MetricBatch(request.SerializeToString(), len(points), NOON, request_id)
