"""The rules for one metric. A fault is `.path: what is wrong (what would be right)`; the caller puts `metrics[i]` before it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from pipeline import Event
from plugins.processors.validate.document import (
    DimensionValue,
    Milliseconds,
    Name,
    PushedMetric,
    Value,
)

MAX_METADATA_TEXT = 1000
MAX_DEPTH = 32
"""How deep a metadata value may be nested; what reads it back must not run out of stack."""

Faults = list[str]

_FIELDS: dict[str, tuple[Any, str]] = {
    "type": (str, "a string"),
    "value": (Value, "a number from -1e12 to 1e12"),
    "duration_ms": (Milliseconds | None, "a number from 0 to 86400000"),
    "timestamp": (str | None, "a string with an ISO 8601 time"),
}
_encode = msgspec.json.Encoder().encode


def to_event(metric: PushedMetric, types: frozenset[str], received_at: datetime, latest: datetime) -> Event | Faults:
    """The event of a metric whose fields have the right types, or what else is wrong with it."""
    faults: Faults = []
    if metric.type not in types:
        faults.append(f".type: must be a configured type, got {_shown(metric.type)} ({', '.join(sorted(types))})")
    timestamp = received_at
    if metric.timestamp is not None:
        parsed = parse_timestamp(metric.timestamp)
        if parsed is None:
            faults.append(f".timestamp: must be an ISO 8601 time, got {_shown(metric.timestamp)}")
        elif parsed > latest:
            faults.append(f".timestamp: must not be more than 5 minutes ahead, got {_shown(metric.timestamp)}")
        else:
            timestamp = parsed
    dimensions = metric.dimensions or {}
    for key in dimensions:
        # Exactly [A-Za-z_][A-Za-z0-9_]*, without a regular expression.
        if not (key.isascii() and key.isidentifier()):
            faults.append(f".dimensions: names must be [A-Za-z_][A-Za-z0-9_]*, got {_shown(key)}")
    metadata = metric.metadata or {}
    if metadata:
        faults += _metadata_faults(metadata)
    if faults:
        return faults
    return Event(metric.type, metric.value, timestamp, metric.duration_ms, dimensions, metadata)


def parse_timestamp(text: str) -> datetime | None:
    """An ISO 8601 time, UTC unless it names a zone; None if it is not one."""
    try:
        parsed = datetime.fromisoformat(text)
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _metadata_faults(metadata: dict[str, Any]) -> Iterator[str]:
    for key, value in metadata.items():
        if isinstance(value, str):
            if len(value) > MAX_METADATA_TEXT:
                yield f".metadata.{_shown(key)}: must be at most {MAX_METADATA_TEXT} characters as text"
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                yield f".metadata.{_shown(key)}: integers must fit 64 bits"
        elif isinstance(value, list | dict):
            yield from (f".metadata.{_shown(key)}: {fault}" for fault in _nested_faults(value))


def _nested_faults(value: list[Any] | dict[str, Any]) -> Iterator[str]:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        if any(isinstance(each, int) and not -(2**63) <= each < 2**63 for each in level):
            yield "integers must fit 64 bits"
            return
        nested = [each for each in level if isinstance(each, list | dict)]
        level = [inner for each in nested for inner in (each.values() if isinstance(each, dict) else each)]
        if not level:
            break
    else:
        yield f"must not be nested deeper than {MAX_DEPTH}"
        return
    if len(_encode(value).decode()) > MAX_METADATA_TEXT:
        yield f"must be at most {MAX_METADATA_TEXT} characters as text"


def check_metric(metric: Any) -> PushedMetric | Faults:
    """The metric, if all its fields have the right types, or one line for each that has not."""
    if not isinstance(metric, dict):
        return [f": must be an object, got {_kind(metric)}"]
    faults: Faults = []
    for name, (kind, right) in _FIELDS.items():
        if name not in metric:
            if name in ("type", "value"):
                faults.append(f".{name}: is missing (must be {right})")
        elif not _fits(metric[name], kind):
            faults.append(f".{name}: must be {right}, got {_shown(metric[name])}")
    faults += _mapping_faults(".dimensions", metric.get("dimensions"), 20, DimensionValue)
    faults += _mapping_faults(".metadata", metric.get("metadata"), 30, Any)
    return faults or msgspec.convert(metric, PushedMetric)


def _mapping_faults(path: str, mapping: Any, most: int, kind: Any) -> Iterator[str]:
    if mapping is None:
        return
    if not isinstance(mapping, dict):
        yield f"{path}: must be an object, got {_kind(mapping)}"
        return
    if len(mapping) > most:
        yield f"{path}: must have at most {most} entries, got {len(mapping)}"
    for key, value in mapping.items():
        if not _fits(key, Name):
            yield f"{path}: names must be 1 to 50 characters, got {_shown(key)}"
        if not _fits(value, kind):
            right = "a string of at most 200, a 64-bit integer, a number, a boolean or null"
            yield f"{path}.{_shown(key)}: must be {right}, got {_shown(value)}"


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, OverflowError):
        return False
    return True


def _shown(value: Any) -> str:
    """A value as an answer may show it: quoted, escaped, and cut."""
    if isinstance(value, list | dict):
        return _kind(value)
    text = ascii(value)
    return text if len(text) <= 64 else f"{text[:60]}…"


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else _shown(value)
