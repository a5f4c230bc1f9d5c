"""The check of a batch where it enters a journal.

Of a batch that only built-in components touched, only the class is compared. A batch that a component of another package touched is
checked in full, once, after the last of these components: the type of every field, then the limits of encoding and decoding. The
pipeline continues with the decoded copy, so that the component cannot change it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from math import isfinite
from typing import Any, NamedTuple

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pipeline.bucket import TokenBucket
from pipeline.component import Component
from pipeline.containment import CONTAINED
from pipeline.data import Batch, Context, Event, EventBatch, Idempotency, MetricBatch, ReadOnlyDict, Signal
from pipeline.errors import Permanent
from pipeline.halving import count_points
from pipeline.interfaces import Caller

MOST_BYTES = 64 * 2**20
"""The largest encoded batch, in bytes."""
MAX_SHOWN = 50
"""The most characters of a dimension's name in a message."""

_encode = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode
_SCALARS = frozenset({str, int, float, bool, type(None)})
_NUMBERS = frozenset({int, float})
_TEXT = frozenset({str, type(None)})


class InvalidBatch(Permanent):
    """A component returned or sent something that is not a valid batch of its pipeline. Nothing of it is stored.

    It is `Permanent`, so that a connector's delivery is divided: the item that causes it becomes a dead letter, and the rest is delivered.
    """

    def __init__(self, component: Component[Any], fault: str) -> None:
        super().__init__(f"{component.kind} {component.id}: invalid batch: {fault}")
        self.component = component


class _Fault(Exception):
    """`path: what is wrong (what would be right)`."""


class Produced(NamedTuple):
    """A batch that a component of another package returned or sent."""

    component: Component[Any]
    batch: Any


class Entry:
    """The checks of one pipeline."""

    def __init__(self, signal: Signal) -> None:
        self.right: type[Batch] = EventBatch if signal is Signal.EVENTS else MetricBatch
        self._decode: Callable[[bytes], Batch] = msgspec.msgpack.Decoder(self.right).decode

    def wrong_type(self, component: Component[Any], batch: object) -> InvalidBatch:
        """The error for an object that is not of the pipeline's class."""
        return InvalidBatch(component, f"got {_name(batch)} (must be {self.right.__name__})")

    def checked(self, produced: Sequence[Produced], context: Context) -> Batch:
        """A checked copy of the last batch. Raises `InvalidBatch`, which names the first component with an invalid batch."""
        last = produced[-1]
        try:
            if (fault := _context_fault(context)) is not None:
                raise _Fault(fault)
            return self._copy(last.batch)
        except CONTAINED as error:  # a plugin's object may raise anything
            raise (self.blamed(produced, context) or InvalidBatch(last.component, _shown(error))) from error

    def blamed(self, produced: Sequence[Produced], context: Context) -> InvalidBatch | None:
        """The error of the first invalid batch, or of the last component if the context is invalid; None if all are valid."""
        for component, batch in produced:
            if (fault := self.fault(batch)) is not None:
                return InvalidBatch(component, fault)
        return self.blamed_for(produced[-1].component, context)

    def blamed_for(self, component: Component[Any], context: Context) -> InvalidBatch | None:
        """The error of a component that wrote something invalid into the context, or None."""
        fault = _context_fault(context)
        return None if fault is None else InvalidBatch(component, fault)

    def fault(self, batch: Any) -> str | None:
        """What is wrong with a batch, or None."""
        try:
            self._copy(batch)
        except CONTAINED as error:
            return _shown(error)
        return None

    def _copy(self, batch: Batch) -> Batch:
        if type(batch) is not self.right:
            raise _Fault(f"got {_name(batch)} (must be {self.right.__name__})")
        for fault in _batch_faults(batch):
            raise _Fault(fault)
        encoded = _encode(batch)
        if len(encoded) > MOST_BYTES:
            raise _Fault(f"{len(encoded)} bytes (must be at most {MOST_BYTES})")
        copy = self._decode(encoded)
        if isinstance(copy, MetricBatch):
            return copy
        for index, event in enumerate(copy.events):
            if event.metadata_json != "{}" and (text := _metadata(index, event)) != event.metadata_json:
                # The plugin's text is not canonical: it has spaces, or a key twice.
                events = list(copy.events)
                events[index] = event.replace(metadata=text)
                copy = copy.replace(events=events)
        return copy


def _metadata(index: int, event: Event) -> str:
    """The canonical text."""
    path = f"events[{index}].metadata"
    try:
        metadata = _decode_json(event.metadata_json)
        _encode(metadata)  # refuses integers that do not fit 64 bits
        text = _encode_json(metadata).decode()
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise _Fault(f"{path}: {error} (must be the text of a JSON object)") from None
    if type(metadata) is not dict:
        raise _Fault(f"{path}: got {_name(metadata)} (must be a JSON object)")
    return text


def _batch_faults(batch: Batch) -> Iterator[str]:
    if type(batch.received_at) is not datetime or batch.received_at.tzinfo is None:
        yield f"received_at: got {_time(batch.received_at)} (must be an aware datetime)"
    if type(batch.request_id) is not str:
        yield f"request_id: got {_name(batch.request_id)} (must be str)"
    if type(batch.key_service) not in _TEXT:
        yield f"key_service: got {_name(batch.key_service)} (must be str or None)"
    if isinstance(batch, MetricBatch):
        yield from _metric_faults(batch)
        return
    if type(batch.service) is not str:
        yield f"service: got {_name(batch.service)} (must be str)"
    for name in ("version", "instance_id"):
        if type(getattr(batch, name)) not in _TEXT:
            yield f"{name}: got {_name(getattr(batch, name))} (must be str or None)"
    for index, event in enumerate(batch.events):
        if not _is_right(event):
            yield from (f"events[{index}]{fault}" for fault in _event_faults(event))


def _is_right(event: Event) -> bool:
    """Whether all types fit. It runs for every event, so it does not say what is wrong."""
    if type(event) is not Event or type(event.type) is not str or type(event.value) not in _NUMBERS:
        return False
    if not isfinite(event.value) or type(event.timestamp) is not datetime or event.timestamp.tzinfo is None:
        return False
    duration, dimensions = event.duration_ms, event.dimensions
    if duration is not None and (type(duration) not in _NUMBERS or not isfinite(duration)):
        return False
    if type(dimensions) is not ReadOnlyDict or type(event.metadata_json) is not str:
        return False
    for name, value in dimensions.items():  # noqa: SIM110 - a generator costs twice as much
        if type(name) is not str or not _is_scalar(value):
            return False
    return True


def _is_scalar(value: Any) -> bool:
    kind = type(value)
    if kind is float:
        return isfinite(value)
    return -(2**63) <= value < 2**63 if kind is int else kind in _SCALARS


def _event_faults(event: Any) -> Iterator[str]:
    if type(event) is not Event:
        yield f": got {_name(event)} (must be Event)"
        return
    if type(event.type) is not str:
        yield f".type: got {_name(event.type)} (must be str)"
    for name, optional in (("value", False), ("duration_ms", True)):
        number: Any = getattr(event, name)
        if not (_is_finite(number) or (optional and number is None)):
            yield f".{name}: got {_number(number)} (must be a finite number{' or None' if optional else ''})"
    if type(event.timestamp) is not datetime or event.timestamp.tzinfo is None:
        yield f".timestamp: got {_time(event.timestamp)} (must be an aware datetime)"
    for name, value in event.dimensions.items():
        if type(name) is not str:
            yield f".dimensions: got a name of type {_name(name)} (must be str)"
        elif not _is_scalar(value):
            got = "an int over 64 bits" if type(value) is int else _number(value)
            yield f".dimensions[{name[:MAX_SHOWN]!a}]: got {got} (must be str, a 64-bit int, a finite float, bool or None)"
    yield ": its fields are not of their classes"  # the only fault that remains


def _metric_faults(batch: MetricBatch) -> Iterator[str]:
    if type(batch.points) is not int or batch.points < 0:
        yield f"points: got {_number(batch.points)} (must be a number of data points)"
    if type(batch.request) is not bytes:
        yield f"request: got {_name(batch.request)} (must be bytes)"
        return
    try:
        points = count_points(ExportMetricsServiceRequest.FromString(batch.request))
    except DecodeError:
        yield "request: cannot be read (must be an ExportMetricsServiceRequest)"
    else:
        if points != batch.points:
            yield f"points: got {batch.points} (the request has {points})"


def _context_fault(context: Context) -> str | None:
    """The first value in the context that cannot be counted or answered, and why; None if all can."""
    for name in ("received", "rejected", "faults", "warned"):
        if type(getattr(context, name)) is not int or getattr(context, name) < 0:
            return f"context.{name}: got {_number(getattr(context, name))} (must be a number of items)"
    if context.rejected > context.received:
        return f"context.received: got {context.received} (must be at least the {context.rejected} rejected items)"
    for name in ("errors", "warnings"):
        lines = getattr(context, name)
        if type(lines) is not list or not all(type(line) is str for line in lines):
            return f"context.{name}: got {_name(lines)} (must be a list of str)"
    if (fault := _request_id_fault(context.request_id)) is not None:
        return fault
    if (fault := caller_fault(context)) is not None:
        return fault
    use = context.idempotency
    if use is not None and (
        type(use) is not Idempotency or [type(each) for each in msgspec.structs.astuple(use)] != _USE
    ):
        return f"context.idempotency: got {_name(use)} (must be Idempotency or None)"
    try:
        _encode((context.errors, context.warnings, context.request_id, use))
    except UnicodeEncodeError as error:
        return f"context: {error} (must be Unicode)"
    return None


_USE = [str, str, bytes]


def _request_id_fault(request_id: object) -> str | None:
    if type(request_id) is not str:
        return f"context.request_id: got {_name(request_id)} (must be str)"
    if not request_id.isprintable():
        return "context.request_id: got a control character or a lone surrogate (must be printable)"
    return None


def caller_fault(context: Context) -> str | None:
    """What is wrong with the caller that a component wrote into the context, or None."""
    caller = context.caller
    if caller is None:
        return None
    if type(caller) is not Caller:
        return f"context.caller: got {_name(caller)} (must be Caller or None)"
    if type(caller.bucket) is not TokenBucket:
        return f"context.caller.bucket: got {_name(caller.bucket)} (must be TokenBucket)"
    for name in ("service", "key_id", "owner"):
        if type(getattr(caller, name)) is not str:
            return f"context.caller.{name}: got {_name(getattr(caller, name))} (must be str)"
    return None


def _is_finite(value: Any) -> bool:
    return type(value) in _NUMBERS and isfinite(value)


def _name(value: object) -> str:
    """The name of a value's class. Its content may be a secret, and its `repr` runs a plugin's code."""
    return type(value).__name__


def _number(value: object) -> str:
    return str(value) if type(value) is float and not isfinite(value) else _name(value)


def _time(value: object) -> str:
    return "a naive datetime" if type(value) is datetime else _name(value)


def _shown(error: BaseException) -> str:
    return str(error) if isinstance(error, _Fault | msgspec.MsgspecError) else f"{type(error).__name__}: {error}"
