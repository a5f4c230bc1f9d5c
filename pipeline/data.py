"""What flows through the graph: batches of items, and the context of the request that brought them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self, TypeVar

import msgspec

if TYPE_CHECKING:
    from pipeline.interfaces import Caller
    from pipeline.memory import RequestHold

K = TypeVar("K")
V = TypeVar("V")

DimensionValue = str | int | float | bool | None

MAX_ERRORS = 100
"""How many faults an answer lists before it only says how many more there are (docs/api.md)."""


class Signal(StrEnum):
    """What kind of data a pipeline carries."""

    EVENTS = "events"
    METRICS = "metrics"


def _read_only(self: object, *args: object, **changes: object) -> NoReturn:
    raise TypeError("the mapping is read-only (copy it with dict() to change it)")


class ReadOnlyDict(dict[K, V]):
    """A mapping that raises `TypeError` on every change in place. `dict(mapping)` and `{**mapping}` give one that can be changed.

    It is a dict, and not a `MappingProxyType`, so that every encoder accepts it.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # a read-only method has no signature that fits
        __setitem__ = __delitem__ = __ior__ = _read_only
        clear = pop = popitem = setdefault = update = _read_only

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self  # its values cannot be changed either

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


_NO_DIMENSIONS: ReadOnlyDict[str, DimensionValue] = ReadOnlyDict()
_set = msgspec.structs.force_setattr
_encode_metadata = msgspec.json.Encoder().encode
_decode_metadata = msgspec.json.Decoder().decode


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One thing that happened. It is immutable: `replace` gives a changed copy.

    `duration_ms` is in milliseconds, `timestamp` is aware and in UTC. `dimensions` is a read-only mapping.

    `metadata` holds any JSON values. It is stored as JSON text, which `metadata_json` gives as it is. The constructor takes a mapping,
    or the text of a JSON object. It raises `TypeError` or `ValueError` for a value that JSON cannot hold.
    """

    type: str
    value: float
    timestamp: datetime
    duration_ms: float | None = None
    if TYPE_CHECKING:

        def __init__(
            self,
            type: str,
            value: float,
            timestamp: datetime,
            duration_ms: float | None = None,
            dimensions: Mapping[str, DimensionValue] = ...,
            metadata: Mapping[str, Any] | str = ...,
        ) -> None: ...

        @property
        def dimensions(self) -> Mapping[str, DimensionValue]:
            """Names and values by which events are counted."""

        @property
        def metadata(self) -> dict[str, Any]:
            """Other JSON values. Every access decodes the text and returns a new object."""

        @property
        def metadata_json(self) -> str:
            """The metadata as the text of a JSON object."""

    else:
        dimensions: dict[str, DimensionValue] = _NO_DIMENSIONS
        metadata: str = "{}"

    def __post_init__(self) -> None:
        dimensions = self.dimensions
        if type(dimensions) is not ReadOnlyDict:
            _set(self, "dimensions", ReadOnlyDict(dimensions) if dimensions else _NO_DIMENSIONS)
        metadata: Any = self.metadata_json
        if type(metadata) is not str:
            _set_metadata_json(self, _encode_metadata(metadata).decode() if metadata else "{}")

    def replace(self, **changes: Any) -> Event:
        """A copy with these fields changed. Takes the names and the types of the constructor."""
        return msgspec.structs.replace(self, **changes)


# The field `metadata` holds the text. msgspec reads and writes fields by their place in the object, so the attribute of that name is free
# to decode it.
_field: Any = vars(Event)["metadata"]
_set_metadata_json = _field.__set__
Event.metadata_json = _field  # type: ignore[method-assign]
Event.metadata = property(lambda event: _decode_metadata(event.metadata_json), doc="See the class.")  # type: ignore[assignment,method-assign]


class EventBatch(msgspec.Struct, frozen=True, array_like=True, tag="events"):
    """The events of one request of one service, decoded and checked. It is immutable: `replace` gives a changed copy.

    `service`, `version` and `instance_id` are what the sender says of itself, `key_service` is whose key it used. `events` is a tuple;
    the constructor takes any sequence.
    Fields are written to the journal in this order: new ones go to the end and have a default.
    """

    service: str
    events: tuple[Event, ...]
    received_at: datetime
    request_id: str = ""
    version: str | None = None
    instance_id: str | None = None
    key_service: str | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            service: str,
            events: Sequence[Event],
            received_at: datetime,
            request_id: str = "",
            version: str | None = None,
            instance_id: str | None = None,
            key_service: str | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        if type(self.events) is not tuple:
            _set(self, "events", tuple(self.events))

    def __len__(self) -> int:
        return len(self.events)

    def replace(self, **changes: Any) -> EventBatch:
        """A copy with these fields changed. Takes the names and the types of the constructor."""
        return msgspec.structs.replace(self, **changes)


class MetricBatch(msgspec.Struct, frozen=True, array_like=True, tag="metrics"):
    """OTLP metrics, as the bytes of one `ExportMetricsServiceRequest` and the number of data points in it.

    It is immutable: `replace` gives a changed copy.
    """

    request: bytes
    points: int
    received_at: datetime
    request_id: str = ""
    key_service: str | None = None

    def __len__(self) -> int:
        return self.points

    def replace(self, **changes: Any) -> MetricBatch:
        """A copy with these fields changed. Takes the names and the types of the constructor."""
        return msgspec.structs.replace(self, **changes)


Batch = EventBatch | MetricBatch


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of a request, counted in items; durable by the time anybody holds one."""

    accepted: int
    rejected: int
    errors: tuple[str, ...]
    request_id: str
    repeated: bool = False
    warnings: tuple[str, ...] = ()
    """Changes to accepted items, each as `path: what was replaced`."""


class Idempotency(msgspec.Struct, frozen=True):
    """A client's own name for a request, unique for the owner of a key, with the SHA-256 of the body (`pipeline/idempotency.py`)."""

    owner: str
    key: str
    digest: bytes


class Context:
    """One request: who asks, for what, and what was found wrong with it so far.

    `scope` is what the caller's key must allow (None: any good key will do), `cost` how many tokens the request takes.
    """

    __slots__ = (
        "caller",
        "cost",
        "credential",
        "errors",
        "faults",
        "hold",
        "idempotency",
        "is_ascii",
        "peer",
        "received",
        "received_at",
        "rejected",
        "request_id",
        "scope",
        "warned",
        "warnings",
    )

    def __init__(
        self,
        request_id: str | None = None,
        *,
        credential: str | None = None,
        scope: str | None = "ingest",
        cost: int = 1,
        peer: str = "",
    ) -> None:
        self.request_id = request_id or new_request_id()
        self.received_at = datetime.now(UTC)
        self.credential = credential
        self.scope = scope
        self.cost = cost
        self.peer = peer
        self.idempotency: Idempotency | None = None
        self.caller: Caller | None = None
        self.received = 0
        """Items that the request held, good or bad."""
        self.rejected = 0
        """Items that were found bad."""
        self.errors: list[str] = []
        self.faults = 0
        self.warnings: list[str] = []
        self.warned = 0
        self.hold: RequestHold | None = None
        """The request's share of the memory budget; None if it is not counted, or moved to the journal."""
        self.is_ascii = False
        """Whether the text of the request is known to be ASCII, so that its memory can be estimated from its length."""

    def reject(self, faults: Iterable[str]) -> None:
        """Leave one item out, for these reasons, each as `path: what is wrong`."""
        self.rejected += 1
        for fault in faults:
            self.faults += 1
            if self.faults <= MAX_ERRORS:
                self.errors.append(fault)

    def warn(self, warnings: Iterable[str]) -> None:
        """Add warnings about accepted items, each as `path: what was replaced`."""
        for warning in warnings:
            self.warned += 1
            if self.warned <= MAX_ERRORS:
                self.warnings.append(warning)

    def listed_warnings(self) -> list[str]:
        """The warnings as an answer shows them: the first hundred, then a line with the number of the others."""
        if self.warned <= MAX_ERRORS:
            return self.warnings
        return [*self.warnings, f"and {self.warned - MAX_ERRORS} more"]

    def listed_errors(self) -> list[str]:
        """The faults as an answer shows them: the first hundred, then a line that says how many more."""
        if self.faults <= MAX_ERRORS:
            return self.errors
        return [*self.errors, f"and {self.faults - MAX_ERRORS} more"]

    def outcome(self, accepted: int) -> Outcome:
        """What to answer once `accepted` items are durable."""
        errors, warnings = tuple(self.listed_errors()), tuple(self.listed_warnings())
        return Outcome(accepted, self.rejected, errors, self.request_id, warnings=warnings)


class Delivery(msgspec.Struct, frozen=True):
    """What an exporter is handed: consecutive batches of one pipeline's journal.

    `after` is the position of the exporter's cursor before, `upto` the one after it has taken all of this; the batches have
    the positions between. A delivery without batches only moves the cursor; one that moves nothing, with `upto` at `after`, is
    dead letters that are handed over again.

    `journal_id` identifies the journal, in hexadecimal. An item is identified by (journal_id, pipeline, position, index): the position of
    its batch in the journal and its index in that batch. `items_upto` is the number of items that the journal has ever stored up to `upto`;
    an exporter with `keeps_position` stores both with its cursor and returns them from `position`.
    """

    pipeline: str
    after: int
    upto: int
    batches: Sequence[Batch]
    positions: tuple[int, ...] = ()
    """The positions of the batches where they are not consecutive: some were left out (`Permanent.items`). Use `position`."""
    journal_id: str = ""
    items_upto: int = 0

    def __post_init__(self) -> None:
        if type(self.batches) is not tuple:
            _set(self, "batches", tuple(self.batches))

    def position(self, number: int) -> int:
        """The position in the journal of the batch with that number in `batches`."""
        return self.positions[number] if self.positions else self.after + 1 + number

    @property
    def items(self) -> int:
        """How many events or data points this is."""
        return sum(map(len, self.batches))


class Position(NamedTuple):
    """The cursor that an exporter stored with its data: `upto` of the last delivery that it took.

    `items` is `Delivery.items_upto` of that delivery; None if it was not stored. `journal_id` is the journal that the cursor belongs to;
    empty if it was not stored.
    """

    upto: int
    items: int | None = None
    journal_id: str = ""


class Store(NamedTuple):
    """Where an exporter or extension keeps data. `id` never changes and survives a backup and its restoration; `name` is for messages."""

    id: str
    name: str


def new_request_id() -> str:
    """An id that tells one request from another in logs; not a secret."""
    return f"req_{random.getrandbits(64):016x}"
