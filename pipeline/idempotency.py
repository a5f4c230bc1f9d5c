"""Idempotency keys that clients gave their requests, in the journal's file, so that what is sent again is answered and not stored again.

A key is remembered for a day, or until there is no room: the oldest goes first, of more than `MOST_KEYS` or `MOST_BYTES`. The day goes by a
clock of the journal's own, which runs while the journal is open, never goes back, and goes on after a restart from the newest stamp in the
file (docs/decisions/0020-a-day-of-our-own.md).

All of it is used in the committer's thread, on a connection whose transaction the caller holds.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from pipeline.data import Idempotency, Outcome
from pipeline.errors import Conflict

DAY_MS = 24 * 3600 * 1000
MOST_KEYS = 1_000_000
MOST_BYTES = 256 * 2**20
"""About a million keys of the usual size; an answer with a hundred faults takes as much as a hundred of them."""
MOST_PASSES = 256
"""How often one commit may delete twice as many keys as it has, if there is no room: together more than the largest answer takes."""

_SIZE = "2 * length({0}.owner || {0}.key) + length({0}.digest) + length({0}.outcome) + 32"
"""About what a key takes in the file, in bytes; owner and key stand in the index, too."""

TABLES = f"""
CREATE TABLE IF NOT EXISTS idempotency (
    owner TEXT NOT NULL, key TEXT NOT NULL, at_ms INTEGER NOT NULL, digest BLOB NOT NULL, outcome BLOB NOT NULL,
    PRIMARY KEY (owner, key)) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS idempotency_by_age ON idempotency (at_ms);
CREATE TABLE IF NOT EXISTS remembered (
    id INTEGER PRIMARY KEY CHECK (id = 1), keys INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO remembered SELECT 1, count(*), coalesce(sum({_SIZE.format("idempotency")}), 0)
    FROM idempotency WHERE NOT EXISTS (SELECT 1 FROM remembered);
CREATE TRIGGER IF NOT EXISTS remembered_grows AFTER INSERT ON idempotency BEGIN
    UPDATE remembered SET keys = keys + 1, bytes = bytes + {_SIZE.format("new")};
END;
CREATE TRIGGER IF NOT EXISTS remembered_shrinks AFTER DELETE ON idempotency BEGIN
    UPDATE remembered SET keys = keys - 1, bytes = bytes - ({_SIZE.format("old")});
END;
"""  # noqa: S608 - constants only

_HELD = "SELECT keys, bytes, (SELECT min(at_ms) FROM idempotency) FROM remembered"

_encode_outcome = msgspec.msgpack.Encoder().encode
_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode


@dataclass
class Keys:
    """The keys of one journal. `clock` counts seconds and must be monotonic."""

    clock: Callable[[], float] = time.monotonic
    most: int = MOST_KEYS
    most_bytes: int = MOST_BYTES
    _opened: float = field(init=False)
    _began_ms: int | None = None

    def __post_init__(self) -> None:
        self._opened = self.clock()

    def remembered(self, connection: sqlite3.Connection, use: Idempotency) -> Outcome | Conflict | None:
        """What the request that used this key before was answered, if one did."""
        row = connection.execute(
            "SELECT at_ms, digest, outcome FROM idempotency WHERE owner = ? AND key = ?", (use.owner, use.key)
        ).fetchone()
        if row is None:
            return None
        at_ms, digest, answered = row
        if at_ms <= self._now_ms(connection) - DAY_MS:
            connection.execute("DELETE FROM idempotency WHERE owner = ? AND key = ?", (use.owner, use.key))
            return None
        if digest != use.digest:
            return Conflict("Idempotency-Key was already used with another body")
        outcome = _decode_outcome(answered)
        return msgspec.structs.replace(outcome, repeated=True)

    def remember(self, connection: sqlite3.Connection, use: Idempotency, outcome: Outcome) -> None:
        """Record the use of a key that is not remembered."""
        row = (use.owner, use.key, self._now_ms(connection), use.digest, _encode_outcome(outcome))
        connection.execute("INSERT INTO idempotency VALUES (?, ?, ?, ?, ?)", row)

    def forget(self, connection: sqlite3.Connection, coming: int) -> int:
        """Forget keys that are older than a day, and the oldest if there is no room, before so many more come.

        No more than twice as many at a time, so that no push waits for a long commit. Returns how many were forgotten before their day.
        """
        now = self._now_ms(connection)
        early = 0
        for passes in range(MOST_PASSES):
            keys, size, oldest = connection.execute(_HELD).fetchone()
            full = keys > self.most or size > self.most_bytes
            if not full and (passes or oldest is None or oldest > now - DAY_MS):
                break
            stamps = _delete_oldest(connection, now if full else now - DAY_MS, 2 * coming)
            if not stamps:  # the numbers were damaged
                connection.execute("UPDATE remembered SET keys = 0, bytes = 0")
            early += sum(at_ms > now - DAY_MS for at_ms in stamps)
        return early

    def _now_ms(self, connection: sqlite3.Connection) -> int:
        if self._began_ms is None:
            ((newest,),) = connection.execute("SELECT max(at_ms) FROM idempotency")
            self._began_ms = time.time_ns() // 1_000_000 if newest is None else newest
        return self._began_ms + int((self.clock() - self._opened) * 1000)


def _delete_oldest(connection: sqlite3.Connection, upto_ms: int, most: int) -> list[int]:
    """Returns the stamps of what was deleted."""
    deleted = connection.execute(
        """DELETE FROM idempotency WHERE (owner, key) IN
           (SELECT owner, key FROM idempotency WHERE at_ms <= ? ORDER BY at_ms LIMIT ?) RETURNING at_ms""",
        (upto_ms, most),
    )
    return [at_ms for (at_ms,) in deleted]
