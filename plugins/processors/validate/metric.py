"""The rules for one metric. A fault is `.path: what is wrong (what would be right)`; the caller puts `metrics[i]` before it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw

from pipeline import Event
from plugins.processors.validate.document import (
    MAX_DIMENSIONS,
    MAX_METADATA,
    MAX_SHOWN,
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


class Rules(NamedTuple):
    """What depends on the configuration and the request. A timestamp may not be later than `latest`."""

    types: frozenset[str]
    received_at: datetime
    latest: datetime


_encode = msgspec.json.Encoder().encode


def to_event(metric: PushedMetric, rules: Rules) -> Event | Faults:
    """The event of a metric whose fields have the right types, or what else is wrong with it."""
    faults: Faults = []
    if metric.type not in rules.types:
        right = ", ".join(sorted(rules.types))
        faults.append(f".type: must be a configured type, got {_quoted(metric.type)} ({right})")
    timestamp = rules.received_at
    if metric.timestamp is not None:
        parsed = parse_timestamp(metric.timestamp)
        if parsed is None:
            faults.append(f".timestamp: must be an ISO 8601 time, got {_quoted(metric.timestamp)}")
        elif parsed > rules.latest:
            faults.append(f".timestamp: must not be more than 5 minutes ahead, got {_quoted(metric.timestamp)}")
        else:
            timestamp = parsed
    dimensions = metric.dimensions or {}
    for key in dimensions:
        # Exactly [A-Za-z_][A-Za-z0-9_]*, without a regular expression.
        if not (key.isascii() and key.isidentifier()):
            faults.append(f".dimensions: names must be [A-Za-z_][A-Za-z0-9_]*, got {_quoted(key)}")
    metadata = metric.metadata or {}
    if metadata:
        faults += _metadata_faults(metadata)
    if faults:
        return faults
    text = _encode(metadata).decode() if metadata else "{}"
    return Event(metric.type, metric.value, timestamp, metric.duration_ms, dimensions, text)


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
                yield f".metadata.{_quoted(key)}: must be at most {MAX_METADATA_TEXT} characters as text"
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                yield f".metadata.{_quoted(key)}: integers must fit 64 bits"
        elif isinstance(value, list | dict):
            yield from (f".metadata.{_quoted(key)}: {fault}" for fault in _nested_faults(value))


def _nested_faults(value: list[Any] | dict[str, Any]) -> Iterator[str]:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        if len(level) > MAX_METADATA_TEXT:  # each is a character at the least
            break
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
    if level or len(_encode(value).decode()) > MAX_METADATA_TEXT:
        yield f"must be at most {MAX_METADATA_TEXT} characters as text"


class _RawMetric(msgspec.Struct, gc=False):
    """A metric with its fields not looked into; a missing one is empty."""

    type: Raw = Raw()
    value: Raw = Raw()
    duration_ms: Raw = Raw()
    timestamp: Raw = Raw()
    dimensions: Raw = Raw()
    metadata: Raw = Raw()


_read_metric = msgspec.json.Decoder(_RawMetric).decode
_read_mapping = msgspec.json.Decoder(dict[str, Raw] | None).decode
_REQUIRED = ("type", "value")
_FIELDS = {
    "type": (msgspec.json.Decoder(str).decode, "a string"),
    "value": (msgspec.json.Decoder(Value).decode, "a number from -1e12 to 1e12"),
    "duration_ms": (msgspec.json.Decoder(Milliseconds | None).decode, "a number from 0 to 86400000"),
    "timestamp": (msgspec.json.Decoder(str | None).decode, "a string with an ISO 8601 time"),
}
_MAPPINGS = {
    "dimensions": (
        MAX_DIMENSIONS,
        msgspec.json.Decoder(DimensionValue).decode,
        "a string of at most 200 characters, a 64-bit integer, a number, a boolean or null",
    ),
    "metadata": (MAX_METADATA, msgspec.json.Decoder().decode, "a JSON value with numbers that fit 64 bits"),
}


def check_metric(metric: Raw, rules: Rules) -> Event | Faults:
    """The event of any JSON value, or every fault in it. Of a mapping that has too many entries only that is said.

    Raises `msgspec.DecodeError` for what is not JSON.
    """
    try:
        raw = _read_metric(metric)
    except msgspec.ValidationError:
        return [f": must be an object, got {_shown(metric)}"]
    faults: Faults = []
    read: dict[str, Any] = {}
    for name, (decode, right) in _FIELDS.items():
        field: Raw = getattr(raw, name)
        try:
            if field:
                read[name] = decode(field)
            elif name in _REQUIRED:
                faults.append(f".{name}: is missing (must be {right})")
        except msgspec.ValidationError:
            faults.append(f".{name}: must be {right}, got {_shown(field)}")
    for name in _MAPPINGS:
        read[name], wrong = _check_mapping(name, getattr(raw, name))
        faults += wrong
    if not faults:
        return to_event(PushedMetric(**read), rules)
    # Something good in the place of what is bad, so that the other rules find what else there is.
    rest = to_event(PushedMetric(**{"type": next(iter(rules.types)), "value": 0.0, **read}), rules)
    return faults if isinstance(rest, Event) else faults + rest


def _check_mapping(name: str, field: Raw) -> tuple[dict[str, Any], Faults]:
    """The good entries, and what is wrong with the others."""
    most, decode, right = _MAPPINGS[name]
    try:
        entries = _read_mapping(field or b"null") or {}
    except msgspec.ValidationError:
        return {}, [f".{name}: must be an object, got {_shown(field)}"]
    if len(entries) > most:
        return {}, [f".{name}: must have at most {most} entries, got {len(entries)}"]
    good: dict[str, Any] = {}
    faults: Faults = []
    for key, value in entries.items():
        fits = _fits_name(key)
        if not fits:
            faults.append(f".{name}: names must be 1 to 50 characters, got {_quoted(key)}")
        try:
            decoded = decode(value)
        except msgspec.ValidationError:
            faults.append(f".{name}.{_quoted(key)}: must be {right}, got {_shown(value)}")
        else:
            if fits:
                good[key] = decoded
    return good, faults


def _fits_name(key: str) -> bool:
    try:
        msgspec.convert(key, Name)
    except msgspec.ValidationError:
        return False
    return True


def _quoted(text: str) -> str:
    """Text as an answer may show it: quoted, escaped, and cut."""
    shown = ascii(text[:MAX_SHOWN])
    return shown if len(text) <= MAX_SHOWN and len(shown) <= MAX_SHOWN else f"{shown[: MAX_SHOWN - 4]}…"


def _shown(value: Raw) -> str:
    """Any JSON value as an answer may show it."""
    text = bytes(value)
    if text[:1] == b'"':
        return _quoted(msgspec.json.decode(text))
    if text[:1] in (b"{", b"["):
        return "an object" if text[:1] == b"{" else "a list"
    return text.decode() if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 4].decode()}…"
