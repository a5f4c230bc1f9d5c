"""The journal's SQLite file: what the committer writes into it.

It belongs to the committer's thread and uses plain sqlite3, since a hop a statement would cost more than the statement.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import books, dead_letters, identity
from pipeline.books import Account, Cursor
from pipeline.data import Batch, Idempotency, Outcome, Position
from pipeline.errors import Conflict
from pipeline.failed_sync import is_failed_sync
from pipeline.idempotency import Keys
from pipeline.journal_format import SCHEMA, Group, checksum, encode_group
from pipeline.journal_opening import OpenedJournal

CHECKPOINT_BYTES = 16 * 2**20
LOG_BYTES = 24 * 2**20
"""How large the write-ahead log may be: dead letters and idempotency keys write more than is reckoned with."""
COMMIT_BYTES = 4 * 4096
"""About what a commit writes to the WAL besides the payload: the pages of the tables' edges."""
TRIM_ROWS = 2048
TRIM_COMMITS = 64
TRIM_BYTES = 2**20
"""Rows are deleted after so many commits, or bytes: one by one, that would write as many pages as storing them did."""

_log = logging.getLogger("journal")


@dataclass
class JournalFile(OpenedJournal):
    """The writing side.

    Triggers keep up what the fields say, so that storing a group can be a single statement: each one gives the GIL up and must win it
    back from a busy event loop. After a rollback the fields are read from the file again.
    """

    def __post_init__(self) -> None:
        self._log_path = Path(f"{self.path}-wal")

    _untrimmed_commits: int = 0
    _untrimmed_bytes: int = 0
    _uncheckpointed: int = 0
    _log_limit: int = LOG_BYTES
    _keys: Keys = field(default_factory=Keys)

    def begin(self) -> None:
        """Begin a transaction."""
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Commit the transaction."""
        self._connection.execute("COMMIT")

    def write(self, encoded: Sequence[bytes], batches: Sequence[Batch], costs: Sequence[int] = ()) -> Group:
        """Write one row that holds these batches; outside of a transaction, that is one by itself. `costs` are theirs in memory."""
        first = self.last + 1
        payload = encode_group(encoded)
        group = Group(first, self.last + len(encoded), batches, sum(map(len, batches)), len(payload), costs)
        self._connection.execute(
            "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)",
            (first, len(encoded), group.items, _now_ms(), SCHEMA, checksum(first, payload), payload),
        )
        self.last = group.last
        self.held += group.size
        self.items += group.items
        self._untrimmed_commits += 1
        self._untrimmed_bytes += group.size
        self._uncheckpointed += group.size + COMMIT_BYTES
        return group

    def probe(self) -> None:
        """Write something, to learn whether writing works again."""
        self._connection.execute("UPDATE state SET last = last")

    def remembered(self, use: Idempotency) -> Outcome | Conflict | None:
        """What the request that used this idempotency key before was answered, if one did."""
        return self._keys.remembered(self._connection, use)

    def remember(self, use: Idempotency, outcome: Outcome) -> None:
        """Record the use of an idempotency key that is not remembered."""
        self._keys.remember(self._connection, use, outcome)

    def forget_keys(self, coming: int) -> int:
        """Make room for so many idempotency keys. Returns how many were forgotten before their day for that."""
        return self._keys.forget(self._connection, coming)

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

    def forget(self, exporter: str) -> None:
        """Delete an exporter's cursor."""
        self._connection.execute("DELETE FROM cursors WHERE exporter = ?", (exporter,))

    def items_after(self, position: int) -> int:
        """How many items that are still there follow that position."""
        return books.items_after(self._connection, position)

    def bytes_after(self, position: int) -> int:
        """How many bytes the rows have that hold what follows that position."""
        return books.bytes_after(self._connection, position)

    @property
    def trimmed(self) -> int:
        """The last position that was trimmed."""
        return self._trimmed

    def rewind(self, exporter: str, account: Account, own: Position, here: int) -> Account:
        """See `identity.rewind`."""
        return identity.rewind(self._connection, exporter, account, own, self._trimmed, here)

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
               RETURNING length(payload), items, first + count - 1""",
            (upto, upto, rows),
        ).fetchall()
        for size, items, last in trimmed:
            self.held -= size
            self._trimmed_items += items
            self._trimmed = max(self._trimmed, last)
        self._untrimmed_commits = self._untrimmed_bytes = 0
        return len(trimmed) == rows

    def checkpoint_if_due(self) -> None:
        """Keep the write-ahead log small. PASSIVE waits for nobody; one that fails is tried again after the next commit.

        Raises `sqlite3.Error` if the main file cannot be synchronised: that must not be tried again.
        """
        if self._uncheckpointed > CHECKPOINT_BYTES or self._log_size() > self._log_limit:
            if not self.allows_checkpoint():
                return
            try:
                ((busy, log, moved),) = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            except sqlite3.Error as error:
                if is_failed_sync(error):
                    raise
                _log.warning("%s: cannot checkpoint: %s", self.path, error)
            else:
                # What a reader needs stays in the log: it is not tried again for every commit.
                complete = not busy and log == moved
                self._uncheckpointed = 0 if complete else CHECKPOINT_BYTES // 2
                self._log_limit = LOG_BYTES if complete else self._log_size() + CHECKPOINT_BYTES // 2
                self._mark.synchronise()

    def checkpoint_all(self) -> bool:
        """Move all of the write-ahead log into the file. False if others keep it from that. Raises `sqlite3.Error`."""
        ((busy, log, moved),) = self._connection.execute("PRAGMA wal_checkpoint(FULL)")
        return not busy and bool(log == moved)

    def _log_size(self) -> int:
        try:
            return self._log_path.stat().st_size
        except OSError:
            return 0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
