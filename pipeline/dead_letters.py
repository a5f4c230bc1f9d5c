"""Dead letters: what an exporter refused for good, kept in its pipeline's journal with the reason.

The journal's own thread uses these functions, and so does `metrics-service dead-letters`, which may run beside the service: each
one is a few statements on a connection whose transaction the caller holds.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from pipeline.data import Batch
from pipeline.journal_format import Unreadable, decode_batch

TABLES = """
CREATE TABLE IF NOT EXISTS dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT, exporter TEXT NOT NULL, position INTEGER NOT NULL, part INTEGER NOT NULL,
    at_ms INTEGER NOT NULL, items INTEGER NOT NULL, reason TEXT NOT NULL, payload BLOB NOT NULL,
    replay INTEGER NOT NULL DEFAULT 0, UNIQUE (exporter, position, part)) STRICT;
CREATE INDEX IF NOT EXISTS dead_letters_to_replay ON dead_letters (id) WHERE replay = 1;
CREATE TABLE IF NOT EXISTS dead_letters_size (id INTEGER PRIMARY KEY CHECK (id = 1), bytes INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO dead_letters_size SELECT 1, coalesce(sum(length(payload)), 0) FROM dead_letters;
CREATE TRIGGER IF NOT EXISTS dead_letters_grow AFTER INSERT ON dead_letters BEGIN
    UPDATE dead_letters_size SET bytes = bytes + length(new.payload);
END;
CREATE TRIGGER IF NOT EXISTS dead_letters_shrink AFTER DELETE ON dead_letters BEGIN
    UPDATE dead_letters_size SET bytes = bytes - length(old.payload);
END;
CREATE TRIGGER IF NOT EXISTS dead_letters_change AFTER UPDATE OF payload ON dead_letters BEGIN
    UPDATE dead_letters_size SET bytes = bytes + length(new.payload) - length(old.payload);
END;
"""

LONGEST_REASON = 4096
"""Characters of a reason that are kept."""

_encode = msgspec.msgpack.Encoder().encode


class Refused(NamedTuple):
    """A batch, or a part of one, that an exporter refused permanently or that cannot be read, and the reason. `position` is the batch's
    position in the journal."""

    position: int
    batch: Batch | Unreadable
    reason: str


class DeadLetter(NamedTuple):
    """One that is kept. `exporter` is `kind.id`, `replay` whether it waits to be handed to it again, `size` in bytes."""

    id: int
    exporter: str
    position: int
    at: datetime
    items: int
    reason: str
    replay: bool
    size: int


class Evicted(NamedTuple):
    """How many dead letters were deleted to make room, and how many items they held."""

    letters: int = 0
    items: int = 0


def bury(connection: sqlite3.Connection, exporter: str, refused: Sequence[Refused], max_bytes: int) -> Evicted:
    """Keep these, each once, and delete the oldest of the file's dead letters as far as they are over `max_bytes` together; the newest
    stays, whatever its size."""
    at_ms = time.time_ns() // 1_000_000
    part, before = 0, None
    for position, batch, reason in refused:
        part = part + 1 if position == before else 0
        before = position
        connection.execute(
            # What is refused again after a crash need not be cut the same: what was refused last is what nobody has taken.
            """INSERT INTO dead_letters (exporter, position, part, at_ms, items, reason, payload)
               VALUES (?, ?, ?, ?, ?, ?, ?)
               ON CONFLICT DO UPDATE SET items = excluded.items, reason = excluded.reason, payload = excluded.payload""",
            (exporter, position, part, at_ms, len(batch), _storable(reason), _payload(batch)),
        )
    ((size,),) = connection.execute("SELECT bytes FROM dead_letters_size")
    if size <= max_bytes:
        return Evicted()
    gone = connection.execute(
        """DELETE FROM dead_letters WHERE id IN (
               SELECT id FROM (SELECT id, sum(length(payload)) OVER (ORDER BY id DESC) AS newer FROM dead_letters)
               WHERE newer > ? AND id < (SELECT max(id) FROM dead_letters))
           RETURNING items""",
        (max_bytes,),
    ).fetchall()
    return Evicted(len(gone), sum(items for (items,) in gone))


def _payload(batch: Batch | Unreadable) -> bytes:
    return batch.payload if isinstance(batch, Unreadable) else _encode(batch)


def listed(connection: sqlite3.Connection, exporter: str | None = None) -> list[DeadLetter]:
    """All dead letters of the file, or those of one exporter, the oldest first."""
    rows = connection.execute(
        """SELECT id, exporter, position, at_ms, items, reason, replay, length(payload) FROM dead_letters
           WHERE ? IS NULL OR exporter = ? ORDER BY id""",
        (exporter, exporter),
    )
    return [
        DeadLetter(id, exporter, position, datetime.fromtimestamp(at_ms / 1000, UTC), items, reason, bool(replay), size)
        for id, exporter, position, at_ms, items, reason, replay, size in rows
    ]


def content(connection: sqlite3.Connection, id: int) -> Batch | None:
    """What was refused; None if there is no such dead letter. Raises `msgspec.MsgspecError` if it is damaged."""
    payload = raw_content(connection, id)
    return None if payload is None else decode_batch(payload)


def raw_content(connection: sqlite3.Connection, id: int) -> bytes | None:
    """The stored bytes; None if there is no such dead letter."""
    row = connection.execute("SELECT payload FROM dead_letters WHERE id = ?", (id,)).fetchone()
    return None if row is None else row[0]


def ask_to_replay(connection: sqlite3.Connection, ids: Sequence[int]) -> int:
    """Have the running service, or the next one, hand these to their exporters again. Returns how many there were."""
    return _each(connection, "UPDATE dead_letters SET replay = 1 WHERE id = ?", ids)


def drop(connection: sqlite3.Connection, ids: Sequence[int]) -> int:
    """Delete these. Returns how many there were."""
    return _each(connection, "DELETE FROM dead_letters WHERE id = ?", ids)


def _each(connection: sqlite3.Connection, sql: str, ids: Sequence[int]) -> int:
    return sum(connection.execute(sql, (id,)).rowcount for id in ids)


def refuse_again(connection: sqlite3.Connection, id: int, reason: str) -> None:
    """It was handed to its exporter again, which refused it again."""
    connection.execute("UPDATE dead_letters SET replay = 0, reason = ? WHERE id = ?", (_storable(reason), id))


def _storable(reason: str) -> str:
    """At the most so long, and without what is no Unicode: it may quote what the other side sent."""
    return reason[:LONGEST_REASON].encode("utf-8", "replace").decode()


def is_outdated(connection: sqlite3.Connection) -> bool:
    """Whether the table is of an earlier version, which the service updates when it starts."""
    columns = [row[1] for row in connection.execute("PRAGMA table_info(dead_letters)")]
    return bool(columns) and "id" not in columns


def update(connection: sqlite3.Connection) -> None:
    """Bring a table of an earlier version to the form above, before `TABLES` is run."""
    if is_outdated(connection):
        connection.executescript(f"""
            BEGIN IMMEDIATE;
            ALTER TABLE dead_letters RENAME TO dead_letters_before;
            {TABLES}
            INSERT INTO dead_letters (exporter, position, part, at_ms, items, reason, payload)
                SELECT exporter, position, 0, at_ms, items, reason, payload FROM dead_letters_before ORDER BY at_ms;
            DROP TABLE dead_letters_before;
            COMMIT;
        """)  # noqa: S608 - constants only
