"""What flows through the graph: batches of items, and the context of the request that brought them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from pipeline.interfaces import Caller

DimensionValue = str | int | float | bool | None

MAX_ERRORS = 100
"""How many faults an answer lists before it only says how many more there are (docs/api.md)."""


class Signal(StrEnum):
    """What kind of data a pipeline carries."""

    EVENTS = "events"
    METRICS = "metrics"


class Event(msgspec.Struct, array_like=True, gc=False):
    """One thing that happened.

    `duration_ms` is in milliseconds, `timestamp` is aware and in UTC. `metadata` holds any JSON values.
    """

    type: str
    value: float
    timestamp: datetime
    duration_ms: float | None = None
    dimensions: dict[str, DimensionValue] = {}
    metadata: dict[str, Any] = {}


class EventBatch(msgspec.Struct, array_like=True, tag="events"):
    """The events of one request of one service, decoded and checked.

    `service`, `version` and `instance_id` are what the sender says of itself, `key_service` is whose key it used.
    Fields are written to the journal in this order: new ones go to the end and have a default.
    """

    service: str
    events: list[Event]
    received_at: datetime
    request_id: str = ""
    version: str | None = None
    instance_id: str | None = None
    key_service: str | None = None

    def __len__(self) -> int:
        return len(self.events)


class MetricBatch(msgspec.Struct, array_like=True, tag="metrics"):
    """OTLP metrics, as the bytes of one `ExportMetricsServiceRequest` and the number of data points in it."""

    request: bytes
    points: int
    received_at: datetime
    request_id: str = ""
    key_service: str | None = None

    def __len__(self) -> int:
        return self.points


Batch = EventBatch | MetricBatch


class Outcome(msgspec.Struct, array_like=True):
    """What became of a request, counted in items; durable by the time anybody holds one."""

    accepted: int
    rejected: int
    errors: list[str]
    request_id: str
    repeated: bool = False
    warnings: list[str] = []
    """What was changed in items that were accepted, each as `path: what was replaced`."""


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
        "idempotency",
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

    def reject(self, faults: Iterable[str]) -> None:
        """Leave one item out, for these reasons, each as `path: what is wrong`."""
        self.rejected += 1
        for fault in faults:
            self.faults += 1
            if self.faults <= MAX_ERRORS:
                self.errors.append(fault)

    def warn(self, warnings: Iterable[str]) -> None:
        """Add what the answer says about accepted items, each as `path: what was replaced`."""
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
        errors, warnings = self.listed_errors(), self.listed_warnings()
        return Outcome(accepted, self.rejected, errors, self.request_id, warnings=warnings)


class Delivery(msgspec.Struct, frozen=True):
    """What an exporter is handed: consecutive batches of one pipeline's journal.

    `after` is the position of the exporter's cursor before, `upto` the one after it has taken all of this; the batches have
    the positions between. A delivery without batches only moves the cursor; one that moves nothing, with `upto` at `after`, is
    dead letters that are handed over again.
    """

    pipeline: str
    after: int
    upto: int
    batches: Sequence[Batch]

    @property
    def items(self) -> int:
        """How many events or data points this is."""
        return sum(map(len, self.batches))


def new_request_id() -> str:
    """An id that tells one request from another in logs; not a secret."""
    return f"req_{random.getrandbits(64):016x}"
