"""The boxes of the graph: their kinds, their life, and how a plugin declares one.

The life of a component has three phases, each with one law:

1. its configuration is checked, purely: the model that it declares says what is right;
2. `__init__` wires and touches nothing: no socket, no file, no task;
3. `start` does what it must with the world, `stop` gives all of it back.

`stop` is safe without a `start` and safe twice, so a failed start is cleaned up by stopping everything.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from pipeline.config.fields import ComponentConfig, ListenerConfig
from pipeline.data import Batch, Context, Delivery, MetricBatch, Position, Signal, Store

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from pipeline.chain import Chain
    from pipeline.findings import Finding
    from pipeline.interfaces import State
    from pipeline.journal_settings import JournalSettings
    from pipeline.routes import Route
    from pipeline.telemetry import Instrument
    from pipeline.watched_files import WatchedFiles

ConfigT = TypeVar("ConfigT", bound=ComponentConfig)
T = TypeVar("T")

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


class Kind(StrEnum):
    """What a component is to the graph; also the section of the configuration that configures it, plus an `s`."""

    RECEIVER = "receiver"
    PROCESSOR = "processor"
    EXPORTER = "exporter"
    CONNECTOR = "connector"
    EXTENSION = "extension"


class Host(Protocol):
    """What the engine offers to a component. Nothing but `extension`, `environ` and `is_service` may be used
    before `start`."""

    environ: Mapping[str, str]
    """The environment, with the `--env-file` merged in."""
    is_service: bool
    """Whether this is the service itself. False in a command like `keys create`, which may run beside it and then takes
    no lock, runs no background task and never checkpoints."""
    service_name: str
    """What this service is called in the telemetry that it gives on: `service.name` of its resource."""

    @property
    def state(self) -> State:
        """Saved state: what a component derives from data. Available from `start` on."""

    def extension(self, interface: type[T]) -> T:
        """The extension that offers this interface. A component names what it asks for in `requires`, which is checked
        before anything is constructed, or in `uses`. Raises `LookupError` if no extension offers it."""

    def spawn(self, component: Component[Any], task: Callable[[], Awaitable[None]]) -> None:
        """Run a task until `component` stops, when it is cancelled. If it raises, the component has failed, and with it
        the service's health."""

    async def listen(self, component: Component[Any], listener: ListenerConfig, app: ASGIApp) -> None:
        """Serve `app` on the listener's address until `component` stops.

        Raises `StartError` if the address cannot be had.
        """

    def watch(self, component: Component[Any], files: WatchedFiles) -> None:
        """Examine these files until `component` stops. While one is missing, replaced or truncated, pushes are refused; if it is not
        back soon, the process saves the content and ends."""

    def routes(self) -> Sequence[Route]:
        """The routes that all components but receivers offer; a receiver that mounts them adds its own."""

    async def flush(self, into: Exporter[Any] | None = None) -> Sequence[str]:
        """Return when every exporter that works has passed all that was accepted before the call: the names of those that
        do not work and have not. With `into`, only that exporter and the connectors that lead to it are asked and waited for."""

    def health(self) -> Health:
        """How the service is now."""

    def telemetry(self) -> CollectorRegistry:
        """What the service says of itself: the instruments of all components and of the engine, for whoever shows them."""

    def telemetry_batch(self) -> MetricBatch:
        """The same as it is now, as OTLP, for whoever gives it on. Everything is cumulative since the start."""


@dataclass(frozen=True)
class Health:
    """`accepting` says whether a push would be made durable now; `components` maps each component to its state in a word or a sentence."""

    accepting: bool
    components: Mapping[str, str]


class Component(Generic[ConfigT]):
    """A box in the graph. `id` is its name in the configuration: `type` or `type/name`."""

    kind: ClassVar[Kind]
    third_party: bool = False
    """Whether a package other than this service, or a loose file, declares it. Set by the graph."""
    requires: ClassVar[tuple[type, ...]] = ()
    """The interfaces of extensions that it asks its host for."""
    uses: ClassVar[tuple[type, ...]] = ()
    """Optional interfaces of extensions. If no extension offers one, `Host.extension` raises `LookupError`."""
    starts_slowly: ClassVar[bool] = False
    """Whether `start` may take longer than 60 s, for example to migrate a large database. Otherwise the process ends then."""

    def __init__(self, id: str, config: ConfigT, host: Host) -> None:
        self.id = id
        self.config = config
        self.host = host
        self.log = logging.getLogger(f"{self.kind}.{id}")

    async def start(self) -> None:
        """Take what is needed from the world. Returns soon: what goes on in the background is given to `host.spawn`.

        Raises `StartError` with one line that a person can act on.
        """

    async def stop(self) -> None:
        """Give everything back, without losing what was taken in. Tasks that were spawned have ended by now."""

    async def reload(self, config: ConfigT, host: Host) -> Callable[[], None]:
        """Check another configuration while the service runs, and read again what it names. Gives what puts it in force: that is called
        at once or never, does no I/O and must not fail; the engine sets `config` then. `host` shows what is to come: its
        environment, routes and extensions.

        Called with every reload, be the configuration another or not. A component without this method is stopped and another started in its
        place when its configuration changes, or the change needs a restart (docs/decisions/0018-reload.md).
        Raises `StartError` for what cannot be used, and for what needs a restart.
        """
        raise NotImplementedError

    def routes(self) -> Sequence[Route]:
        """The HTTP routes that this component offers to receivers that mount routes."""
        return ()

    def instruments(self) -> Sequence[Instrument]:
        """What this component says of itself, for `Host.telemetry`."""
        return ()

    def findings(self) -> Iterable[Finding]:
        """What of its options, its files and its secrets befits a service in production and what does not, for `metrics-service doctor`.

        Called without `start`, beside a running service or without one: it may read, and changes nothing.
        """
        return ()


class Receiver(Component[ConfigT]):
    """Takes data in and answers the sender when the chain has returned: what is answered as success is durable."""

    kind = Kind.RECEIVER
    takes_from_outside: ClassVar[bool] = True
    """Whether somebody waits for its answer. What goes wrong with one that nobody sends anything to is shown, and keeps the
    service from being healthy no more than an exporter does."""
    gives_documents: ClassVar[bool] = False
    """Whether it hands undecoded documents to the chain, so that its pipeline needs a `Decoder`."""

    chain: Chain
    """What it calls with what it takes in; set by the graph before `start`."""


class Processor(Component[ConfigT]):
    """Checks who asks (`admit`), or looks at what is said (`process`). There is one instance a pipeline and configuration,
    without state of its own: what is shared or outlives a configuration belongs to an extension."""

    kind = Kind.PROCESSOR
    limits: ClassVar[bool] = False
    """Whether its `admit` holds every caller to a limit."""
    authenticates: ClassVar[bool] = False
    """Whether its `admit` lets nobody in without finding out who it is. Routes that need a key exist only behind one that does."""

    async def admit(self, context: Context) -> None:
        """Let the request in, before its body is read, or raise a `Refusal`."""

    async def process(self, batch: Batch, context: Context) -> Batch:
        """Give on the batch, or another in its place; what is missing from it has been filtered. Raises a `Refusal` to accept nothing."""
        return batch


class Decoder(Processor[ConfigT]):
    """The processor that turns a document into a batch. Those that look at batches come behind it."""

    async def decode(self, document: bytes, context: Context) -> Batch:
        """Decode and check. Items that are bad are left out and noted with `context.reject`; `context.received` counts all.

        Raises `Malformed`, `Invalid` or `TooLarge` if nothing can be accepted.
        """
        raise NotImplementedError


class Buffer(Processor[ConfigT]):
    """The last processor of every pipeline: where the journal is. It says how the journal is kept; the engine keeps it."""

    def journal_settings(self) -> JournalSettings:
        """How this pipeline's journal is kept and when exporters are due."""
        raise NotImplementedError

    def former_folder(self) -> Path | None:
        """The journal folder of an earlier version, if it exists. The start renames it.

        Reads files, and changes none. Raises `StartError` if the owner of that folder is not certain.
        """
        return None


class Exporter(Component[ConfigT]):
    """Takes what is in the journal somewhere else, at its own pace."""

    kind = Kind.EXPORTER
    at_once: ClassVar[bool] = False
    """Whether it is handed data as soon as there is any, rather than when `size` or `flush_interval` of the buffer say so."""
    keeps_position: ClassVar[bool] = False
    """Whether it stores its cursor together with its data. Then it is exactly-once, and implements `position`."""

    @property
    def name(self) -> str:
        """What it is called in journals: `kind.id`."""
        return f"{self.kind}.{self.id}"

    @property
    def most_items(self) -> int | None:
        """How many items it wants in one delivery at the most, unless a single batch holds more; None for as many as are at hand."""
        return None

    async def export(self, delivery: Delivery) -> None:
        """Take the delivery. Returning means taken: the cursor moves to `delivery.upto`.

        Raises `Retryable` (or `Blocked`) or `Permanent` (or `Oversized`); anything else counts as `Retryable`. Calls for one pipeline
        come one after the other. A delivery that failed comes again, perhaps together with more or in parts. A dead letter that is
        handed over again has batches and moves nothing: `upto` is `after`.
        """
        raise NotImplementedError

    async def position(self, pipeline: str, journal_id: str = "") -> Position | int | None:
        """The cursor that this exporter stored with its data for this pipeline and journal, or None if it has stored none.

        The cursor of another journal may be returned if there is none for `journal_id`: the engine then refuses the start. Called after
        `start` for exporters with `keeps_position`. The engine retries a call that raises, and starts without one that takes too long.
        """
        raise NotImplementedError

    async def store(self) -> Store | None:
        """The store that holds the data and the cursor of an exporter with `keeps_position`. None: the engine cannot tell one from another.

        The journal records it, and the engine refuses another one. Called before `position`, and retried as that is.
        """
        return None

    def saved(self, pipeline: str) -> int | None:
        """The cursor up to which what was taken is durable, for an exporter that saves its state less often than it takes
        deliveries: what comes behind it stays in the journal. None if all that was taken counts as durable."""
        return None

    async def flush(self) -> None:
        """Return when what was taken has been given on, where an exporter holds something back. Raises like `export`."""


class Connector(Exporter[ConfigT]):
    """An exporter of one pipeline that is a receiver of another. It gives data on with `chain.process`, never `chain.admit`."""

    kind = Kind.CONNECTOR

    chain: Chain
    """What it gives data on to; set by the graph before `start`."""


class Extension(Component[ConfigT]):
    """Something components share that data does not flow through. It also inherits the interface that it offers."""

    kind = Kind.EXTENSION

    async def store(self) -> Store | None:
        """The store that it keeps data in. Called after `start`. Journals belong to the store of the first extension that has one."""
        return None


ComponentClass = type[Component[Any]]
ConfigClass = type[ComponentConfig]


@dataclass(frozen=True)
class Declaration:
    """What a plugin says of one component type.

    `type` is the name in the configuration. `takes` are the signals that may flow into a processor, exporter or connector,
    `gives` those that a receiver or connector gives on. `config` is the model of its options, whose field descriptions are
    the reference documentation.
    """

    type: str
    component: ComponentClass
    config: ConfigClass
    takes: frozenset[Signal] = frozenset()
    gives: frozenset[Signal] = frozenset()

    @property
    def kind(self) -> Kind:
        """The kind, by the class of the component."""
        return self.component.kind
