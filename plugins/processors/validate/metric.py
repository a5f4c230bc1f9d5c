"""The rules for one metric. A fault is `.path: what is wrong (what would be right)`; the caller puts `metrics[i]` before it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Raw

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
MAX_RAW_TEXT = 12 * MAX_METADATA_TEXT + 2
"""How many bytes a value of that many characters may have as it is sent: two escapes of six bytes for a character, and the quotes."""
SMALL_METADATA = 64 * 1024
"""Bytes; as objects, so much takes two megabytes at most, and only while its metric is checked."""
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
    metadata = "{}"
    if metric.metadata:
        metadata, wrong = read_metadata(metric.metadata)
        faults += wrong
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


def read_metadata(field: Raw) -> tuple[str, Faults]:
    """The canonical JSON text of a metric's metadata, and what is wrong with it.

    It is encoded from what was decoded: the text that was sent may hold numbers that nothing reads back. Only small metadata is decoded
    as a whole, anything else value by value.
    """
    if len(field) <= SMALL_METADATA:
        try:
            entries = _read_small(field)
        except msgspec.ValidationError:
            return _read_by_value(field)
        if not entries:
            return "{}", []
        faults: Faults = []
        for key, value in entries.items():
            kind = type(value)
            if not ((kind is str and len(value) <= MAX_METADATA_TEXT) or kind is float or value is None):
                faults += _value_faults(key, value)
        return _encode(entries).decode(), faults
    return _read_by_value(field)


def _read_by_value(field: Raw) -> tuple[str, Faults]:
    entries, faults = _read_entries("metadata", field)
    good: dict[str, Any] = {}
    for key, value in entries.items():
        fits = _fits_name(key)
        if not fits:
            faults.append(f".metadata: names must be 1 to 50 characters, got {_quoted(key)}")
        if _is_surely_too_long(value):
            faults.append(_too_long(key))
            continue
        try:
            decoded = _read_value(value)
        except msgspec.ValidationError:
            faults.append(f".metadata.{_quoted(key)}: must be {_JSON_VALUE}, got {_shown(value)}")
            continue
        wrong = list(_value_faults(key, decoded))
        faults += wrong
        if fits and not wrong:
            good[key] = decoded
    return _encode(good).decode(), faults


def _is_surely_too_long(value: Raw) -> bool:
    """Whether a value that was not decoded is longer than any text of the allowed length can be. Space between its parts does not count."""
    text = bytes(value)
    if text[:1] == b'"':
        return len(text) > MAX_RAW_TEXT
    if text[:1] not in (b"[", b"{"):
        return False
    if len(text) > MAX_METADATA_TEXT and sum(map(text.count, (b",", b"[", b"{"))) > MAX_METADATA_TEXT:
        return True
    return len(text) > MAX_RAW_TEXT and len(text.translate(None, b" \t\r\n")) > MAX_RAW_TEXT


def _too_long(key: str) -> str:
    return f".metadata.{_quoted(key)}: must be at most {MAX_METADATA_TEXT} characters as text"


def _value_faults(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) > MAX_METADATA_TEXT:
            yield _too_long(key)
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
_MOST = {"dimensions": MAX_DIMENSIONS, "metadata": MAX_METADATA}
_read_dimension = msgspec.json.Decoder(DimensionValue).decode
_DIMENSION = "a string of at most 200 characters, a 64-bit integer, a number, a boolean or null"
_read_value = msgspec.json.Decoder().decode
_JSON_VALUE = "a JSON value with numbers that fit 64 bits"
_read_small = msgspec.json.Decoder(Annotated[dict[Name, Any], Meta(max_length=MAX_METADATA)] | None).decode


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
    read["dimensions"], wrong = _check_dimensions(raw.dimensions)
    faults += wrong
    read["metadata"] = raw.metadata
    if not faults:
        return to_event(PushedMetric(**read), rules)
    # Something good in the place of what is bad, so that the other rules find what else there is.
    rest = to_event(PushedMetric(**{"type": next(iter(rules.types)), "value": 0.0, **read}), rules)
    return faults if isinstance(rest, Event) else faults + rest


def _check_dimensions(field: Raw) -> tuple[dict[str, Any], Faults]:
    """The good entries, and what is wrong with the others."""
    entries, faults = _read_entries("dimensions", field)
    good: dict[str, Any] = {}
    for key, value in entries.items():
        fits = _fits_name(key)
        if not fits:
            faults.append(f".dimensions: names must be 1 to 50 characters, got {_quoted(key)}")
        try:
            decoded = _read_dimension(value)
        except msgspec.ValidationError:
            faults.append(f".dimensions.{_quoted(key)}: must be {_DIMENSION}, got {_shown(value)}")
        else:
            if fits:
                good[key] = decoded
    return good, faults


def _read_entries(name: str, field: Raw) -> tuple[dict[str, Raw], Faults]:
    """The entries of a mapping, not decoded; none if it is null, no mapping or too large."""
    try:
        entries = _read_mapping(field or b"null") or {}
    except msgspec.ValidationError:
        return {}, [f".{name}: must be an object, got {_shown(field)}"]
    if len(entries) > _MOST[name]:
        return {}, [f".{name}: must have at most {_MOST[name]} entries, got {len(entries)}"]
    return entries, []


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
