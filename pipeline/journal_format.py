"""The form of a journal: the tables of its SQLite file, and the rows that hold what was accepted."""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, cast

import msgspec

from pipeline import idempotency, identity
from pipeline.data import Batch, DimensionValue, Event, EventBatch, MetricBatch

SCHEMA = 2
"""The format of the tables and of the payload. Stored in the file (`user_version`) and with each row, so that a later program can read an
earlier one's journal, and an earlier program leaves a later one's alone.

Format 1 stored the metadata of an event as a MessagePack map, format 2 stores it as JSON text. Both are read."""

_TABLES = """
CREATE TABLE IF NOT EXISTS journal (
    first INTEGER PRIMARY KEY, count INTEGER NOT NULL, items INTEGER NOT NULL, at_ms INTEGER NOT NULL,
    schema INTEGER NOT NULL, crc INTEGER NOT NULL, payload BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS state (
    id INTEGER PRIMARY KEY CHECK (id = 1), last INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO state VALUES (1, 0, 0);
CREATE TRIGGER IF NOT EXISTS journal_grows AFTER INSERT ON journal BEGIN
    UPDATE state SET last = new.first + new.count - 1, bytes = bytes + length(new.payload);
END;
CREATE TRIGGER IF NOT EXISTS journal_shrinks AFTER DELETE ON journal BEGIN
    UPDATE state SET bytes = bytes - length(old.payload);
END;
CREATE TABLE IF NOT EXISTS identity (id INTEGER PRIMARY KEY CHECK (id = 1), journal BLOB NOT NULL) STRICT;
INSERT OR IGNORE INTO identity VALUES (1, randomblob(16));
"""
TABLES = _TABLES + idempotency.TABLES + identity.TABLES


class Durability(StrEnum):
    """What an answered request survives."""

    POWER_LOSS = "power_loss"
    """Answered after fdatasync."""
    CRASH = "crash"
    """Answered when the operating system has it: survives `kill -9`, not a power cut."""
    NONE = "none"
    """Answered from memory."""


class _Event1(msgspec.Struct, array_like=True, gc=False):
    """An event as format 1 stored it."""

    type: str
    value: float
    timestamp: datetime
    duration_ms: float | None
    dimensions: dict[str, DimensionValue]
    metadata: dict[str, Any]


class _EventBatch1(msgspec.Struct, array_like=True, tag="events"):
    """A batch as format 1 stored it: the fields of `EventBatch`, with its defaults."""

    service: str
    events: list[msgspec.Raw]
    """Decoded one by one: the objects of their metadata may take twenty times as much memory as they do here."""
    received_at: datetime
    request_id: str = ""
    version: str | None = None
    instance_id: str | None = None
    key_service: str | None = None


_decode_anything = msgspec.msgpack.Decoder().decode
_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode: Callable[[bytes | msgspec.Raw], Batch] = msgspec.msgpack.Decoder(Batch).decode
_decode_1 = msgspec.msgpack.Decoder(_EventBatch1 | MetricBatch).decode
_decode_event_1 = msgspec.msgpack.Decoder(_Event1).decode


@dataclass(frozen=True)
class Unreadable:
    """A batch of a row that is intact, but that this version cannot read: an earlier version stored what a plugin had produced.

    `items` is the number of its items, as far as it is known.
    """

    payload: bytes
    reason: str
    items: int

    def __len__(self) -> int:
        return self.items


@dataclass
class Group:
    """Consecutive batches of one row, from `first` to `last`; `size` is that of the payload in bytes."""

    first: int
    last: int
    batches: Sequence[Batch | Unreadable]
    items: int
    size: int
    costs: Sequence[int] = ()
    """The memory of each batch, in bytes."""


def encode_group(encoded: Sequence[bytes]) -> bytes:
    """One MessagePack array of batches that are encoded already."""
    return b"".join((b"\xdd", len(encoded).to_bytes(4, "big"), *encoded))


def decode_group(
    payload: bytes,
    items: int | None = None,
    skipped: int = 0,
    enough: Callable[[Batch | Unreadable], bool] = lambda batch: False,
) -> list[Batch | Unreadable]:
    """The batches of a row behind the first `skipped`, until one is `enough`. Each is decoded by itself, so that one that cannot be read
    costs no other.

    `items` is the number of items of the row. Unreadable batches that cannot be counted share the rest of it.
    Raises `msgspec.MsgspecError` if it is not a row.
    """
    batches: list[Batch | Unreadable] = []
    uncounted = False
    raws = _split(payload)
    for raw in raws[skipped:]:
        try:
            batch: Batch | Unreadable = decode_batch(raw)
        except msgspec.MsgspecError as error:
            count = _count(raw)
            uncounted |= count is None
            batch = Unreadable(bytes(raw), str(error), count or 0)
        batches.append(batch)
        if enough(batch):
            break
    if uncounted:
        shares = _shares(raws, items or 0)
        for place, batch in enumerate(batches, skipped):
            if place in shares:
                batches[place - skipped] = replace(cast("Unreadable", batch), items=shares[place])
    return batches


def _shares(raws: Sequence[msgspec.Raw], items: int) -> dict[int, int]:
    """The number of items of each batch that cannot be counted, by place: an equal part of the rest of the row."""
    uncounted = []
    for place, raw in enumerate(raws):
        try:
            items -= len(decode_batch(raw))
        except msgspec.MsgspecError:
            count = _count(raw)
            items -= count or 0
            if count is None:
                uncounted.append(place)
    rest = max(0, items)
    of = len(uncounted)
    return {place: rest * (number + 1) // of - rest * number // of for number, place in enumerate(uncounted)}


def _count(raw: msgspec.Raw) -> int | None:
    """How many items a batch holds, as an earlier version counted them, or None."""
    try:
        found = _decode_anything(raw)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):  # a key of a map, say, that cannot be one
        return None
    if isinstance(found, list) and len(found) > 2:
        if found[0] == "events" and isinstance(found[2], list):
            return len(found[2])
        if found[0] == "metrics" and isinstance(found[2], int) and found[2] >= 0:
            return found[2]
    return None


def decode_batch(payload: bytes | msgspec.Raw) -> Batch:
    """A batch in format 2 or 1. Raises `msgspec.MsgspecError` if it is neither.

    A dead letter does not say its format, and no batch with an event fits both: the metadata is a map in one and text in the other.
    """
    try:
        return _decode(payload)
    except msgspec.ValidationError as error:
        try:
            batch = _decode_1(payload)
            return batch if isinstance(batch, MetricBatch) else _of_format_1(batch)
        except (msgspec.ValidationError, TypeError, ValueError, OverflowError):
            raise error from None
    except UnicodeDecodeError as error:
        raise msgspec.ValidationError(str(error)) from None


def _of_format_1(batch: _EventBatch1) -> EventBatch:
    events = [Event(*msgspec.structs.astuple(_decode_event_1(event))) for event in batch.events]
    return EventBatch(
        batch.service,
        events,
        batch.received_at,
        batch.request_id,
        batch.version,
        batch.instance_id,
        batch.key_service,
    )


def checksum(first: int, payload: bytes) -> int:
    """CRC-32 over the position and the payload, so that a payload in the wrong row is noticed too."""
    return zlib.crc32(payload, first & 0xFFFFFFFF)


def is_right(first: object, count: object, items: object, crc: object, payload: object) -> bool:
    """Whether a row is as it was written; what was read of a damaged file may be of any type."""
    if not (isinstance(first, int) and isinstance(payload, bytes) and isinstance(items, int) and items >= 0):
        return False
    return checksum(first, payload) == crc and int.from_bytes(payload[1:5], "big") == count


def write_lost(connection: sqlite3.Connection, first: int, last: int, items: int) -> None:
    """Write a row for batches that are lost, which exporters pass over, counting its items as missing: without content, and with a checksum
    that fits none."""
    connection.execute(
        "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, x'')",
        (first, last - first + 1, items, time.time_ns() // 1_000_000, SCHEMA, ~checksum(first, b"") & 0xFFFFFFFF),
    )
