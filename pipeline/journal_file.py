"""The journal's SQLite file: what the committer writes into it.

It belongs to the committer's thread and uses plain sqlite3, since a hop a statement would cost more than the statement.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline import books, dead_letters
from pipeline.books import Cursor
from pipeline.data import Batch, Idempotency, Outcome
from pipeline.errors import Conflict
from pipeline.failed_sync import is_failed_sync, write_again
from pipeline.journal_format import SCHEMA, TABLES, Durability, Group, checksum, encode_group

CHECKPOINT_BYTES = 16 * 2**20
COMMIT_BYTES = 4 * 4096
"""About what a commit writes to the WAL besides the payload: the pages of the tables' edges."""
TRIM_ROWS = 2048
TRIM_COMMITS = 64
TRIM_BYTES = 2**20
"""Rows are deleted after so many commits, or bytes: one by one, that would write as many pages as storing them did."""
REMEMBER_KEYS_MS = 24 * 3600 * 1000

_log = logging.getLogger("journal")


_encode_outcome = msgspec.msgpack.Encoder().encode
_decode_outcome = msgspec.msgpack.Decoder(Outcome).decode


@dataclass
class JournalFile:
    """The writing side.

    Triggers keep up what the fields below say, so that storing a group can be a single statement: each one gives the GIL up and
    must win it back from a busy event loop. After a rollback the fields are read from the file again.
    """

    path: Path
    durability: Durability
    last: int = 0
    """The last position given."""
    held: int = 0
    """Bytes: the payload that has not been trimmed."""
    _untrimmed_commits: int = 0
    _untrimmed_bytes: int = 0
    _uncheckpointed: int = 0

    def open(self) -> None:
        """Open or create the file, and find where it ends."""
        self._connection = sqlite3.connect(self.path, isolation_level=None, timeout=5)
        self.path.chmod(0o640)
        self._connection.execute("PRAGMA journal_mode=WAL")
        # NORMAL, not OFF: a power cut may cost the newest answers, but never the file.
        synchronous = "FULL" if self.durability is Durability.POWER_LOSS else "NORMAL"
        self._connection.execute(f"PRAGMA synchronous={synchronous}")
        self._connection.execute("PRAGMA wal_autocheckpoint=0")
        self._connection.execute("BEGIN IMMEDIATE")
        write_again(Path(f"{self.path}-wal"))
        self._connection.execute("ROLLBACK")
        dead_letters.update(self._connection)
        books.update(self._connection)
        self._connection.executescript(TABLES + books.TABLES + dead_letters.TABLES)
        self._read_state()

    def _read_state(self) -> None:
        self.last, self.held = self._connection.execute("SELECT last, bytes FROM state").fetchone()

    def close(self) -> None:
        """Move everything into the main file, if that works, and close it. Raises `sqlite3.Error` if it cannot be synchronised."""
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            if is_failed_sync(error):
                raise  # closing would try again
            _log.warning("%s: the write-ahead log is left for the next start: %s", self.path, error)
        self._connection.close()

    def begin(self) -> None:
        """Begin a transaction."""
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Commit the transaction."""
        self._connection.execute("COMMIT")

    def rollback(self) -> None:
        """Undo the transaction, in the file and in the fields."""
        # After SQLITE_FULL SQLite may have rolled back by itself (docs/decisions/0008-an-error-is-not-a-no.md).
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._read_state()

    def write(self, encoded: Sequence[bytes], batches: Sequence[Batch]) -> Group:
        """Write one row that holds these batches; outside of a transaction, that is one by itself."""
        first = self.last + 1
        payload = encode_group(encoded)
        group = Group(first, self.last + len(encoded), batches, sum(map(len, batches)), len(payload))
        self._connection.execute(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)",
            (first, len(encoded), group.items, _now_ms(), SCHEMA, checksum(first, payload), payload),
        )
        self.last = group.last
        self.held += group.size
        self._untrimmed_commits += 1
        self._untrimmed_bytes += group.size
        self._uncheckpointed += group.size + COMMIT_BYTES
        return group

    def skip_to(self, position: int) -> None:
        """Go on counting from that position."""
        self._connection.execute("UPDATE state SET last = ?", (position,))
        self.last = position

    def probe(self) -> None:
        """Write something, to learn whether writing works again."""
        self._connection.execute("UPDATE state SET last = last")

    def remembered(self, use: Idempotency) -> Outcome | Conflict | None:
        """What the request that used this idempotency key before was answered, if one did."""
        row = self._connection.execute(
            "SELECT digest, outcome FROM idempotency WHERE owner = ? AND key = ? AND at_ms > ?",
            (use.owner, use.key, _now_ms() - REMEMBER_KEYS_MS),
        ).fetchone()
        if row is None:
            return None
        if row[0] != use.digest:
            return Conflict("Idempotency-Key was already used with another body")
        outcome = _decode_outcome(row[1])
        outcome.repeated = True
        return outcome

    def remember(self, use: Idempotency, outcome: Outcome) -> None:
        """Record the key's use, and forget those that are older than a day."""
        now = _now_ms()
        self._connection.execute("DELETE FROM idempotency WHERE at_ms <= ?", (now - REMEMBER_KEYS_MS,))
        row = (use.owner, use.key, now, use.digest, _encode_outcome(outcome))
        self._connection.execute("INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?)", row)

    def position_after(self, size: int, upto: int) -> int:
        """Up to which position the oldest rows hold that many bytes together, or those that end at or before `upto`; 0 if none does."""
        position = 0
        query = "SELECT first + count - 1, length(payload) FROM journal ORDER BY first"
        with closing(self._connection.execute(query)) as rows:
            for last, held in rows:
                if size <= 0 or last > upto:
                    break
                position, size = last, size - held
        return position

    def save_cursors(self, cursors: Mapping[str, Cursor]) -> None:
        """Save the cursors of these exporters, but for those that are further already."""
        for exporter, cursor in cursors.items():
            books.save(self._connection, exporter, cursor)

    def place(self, exporter: str, cursor: Cursor) -> None:
        """Put an exporter's cursor where it begins."""
        books.place(self._connection, exporter, cursor)

    def cursors(self) -> dict[str, Cursor]:
        """All saved cursors, by exporter."""
        return books.saved(self._connection)

    def journaled(self) -> int:
        """How many items have ever been stored."""
        return books.journaled(self._connection)

    def forget(self, exporter: str) -> None:
        """Delete an exporter's cursor."""
        self._connection.execute("DELETE FROM cursors WHERE exporter = ?", (exporter,))

    def items_after(self, position: int) -> int:
        """How many items that are still there follow that position."""
        return books.items_after(self._connection, position)

    def bytes_after(self, position: int) -> int:
        """How many bytes the rows have that hold what follows that position."""
        return books.bytes_after(self._connection, position)

    def bury(
        self, exporter: str, cursor: Cursor | None, refused: Sequence[dead_letters.Refused], max_bytes: int
    ) -> dead_letters.Evicted:
        """Keep dead letters, within `max_bytes` for all of the file, and move their exporter's cursor, unless it keeps its own."""
        evicted = dead_letters.bury(self._connection, exporter, refused, max_bytes)
        if cursor is not None:
            self.save_cursors({exporter: cursor})
        return evicted

    def settle_replay(self, id: int, refusal: str | None) -> None:
        """A dead letter was handed to its exporter again, which has taken it (None) or refused it again."""
        if refusal is None:
            dead_letters.drop(self._connection, [id])
        else:
            dead_letters.refuse_again(self._connection, id, refusal)

    @property
    def worth_trimming(self) -> bool:
        """Whether so much was written since the last trim that it may be worth another."""
        return self._untrimmed_commits >= TRIM_COMMITS or self._untrimmed_bytes >= TRIM_BYTES

    def trim(self, upto: int) -> bool:
        """Delete the rows that end at or before that position. Returns whether there may be more: one commit deletes twice as many
        as were written since the last time, so that no push waits for a long one, and `TRIM_ROWS` if there were none."""
        rows = min(2 * self._untrimmed_commits or TRIM_ROWS, TRIM_ROWS)
        trimmed = self._connection.execute(
            """DELETE FROM journal WHERE first IN
               (SELECT first FROM journal WHERE first <= ? AND first + count - 1 <= ? ORDER BY first LIMIT ?)
               RETURNING length(payload)""",
            (upto, upto, rows),
        ).fetchall()
        self.held -= sum(size for (size,) in trimmed)
        self._untrimmed_commits = self._untrimmed_bytes = 0
        return len(trimmed) == rows

    def checkpoint_if_due(self) -> None:
        """Keep the write-ahead log small. PASSIVE waits for nobody; one that fails is tried again after the next commit.

        Raises `sqlite3.Error` if the main file cannot be synchronised: that must not be tried again.
        """
        if self._uncheckpointed > CHECKPOINT_BYTES:
            try:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as error:
                if is_failed_sync(error):
                    raise
                _log.warning("%s: cannot checkpoint: %s", self.path, error)
            else:
                self._uncheckpointed = 0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
