"""Opening the journal's SQLite file: held against the mark that is kept outside of it, and set aside if it is damaged.

    the file is                                       and then
    missing, or another one                           refused (78): a person must decide
    of a later version                                refused (78), and left as it is
    the right one, but ends below the mark            gone on with above the mark; what is missing is counted
    damaged, or empty                                 set aside; what can be read of it goes into a new one, and the rest is counted

Nobody can tell more of a journal without a mark than whether exporters have passed its end (`pipeline/worker.py`).
"""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pipeline import books, dead_letters, identity
from pipeline.data import Store
from pipeline.errors import StartError
from pipeline.failed_sync import is_failed_sync, write_again
from pipeline.files import CANNOT_CREATE
from pipeline.findings import looking_at
from pipeline.high_water import HighWaterMark, Mark
from pipeline.journal_format import SCHEMA, TABLES, Durability, write_lost
from pipeline.salvage import Damaged, finish, is_damage, is_schema_damage, place_everybody, set_aside
from pipeline.watched_files import WatchedFiles

T = TypeVar("T")

REPLACED = 78
"""EX_CONFIG of sysexits.h: a person must decide."""
LATEST_SCHEMA = 1000
"""A file that says more than that is damaged, and not from the future."""
LOG_KEPT = 16 * 2**20
"""Bytes: how large the write-ahead log's file may stay when it is begun anew."""
SET_ASIDE_EVERY = 60.0
"""Seconds between two times that a file is set aside. Where a new one is damaged so soon, another would not help."""

_log = logging.getLogger("journal")


@dataclass
class OpenedJournal:
    """The file and what is known of it."""

    path: Path
    durability: Durability
    files: WatchedFiles | None = None
    """What is examined while the file is open."""
    last: int = 0
    """The last position given."""
    held: int = 0
    """Bytes: the payload that has not been trimmed."""
    items: int = 0
    """How many items have ever been stored."""
    stores: dict[str, Store] = field(default_factory=dict)
    """The stores that it belongs to, by holder (`pipeline/identity.py`)."""
    _connection: sqlite3.Connection = field(init=False)
    _mark: HighWaterMark = field(init=False)
    _identity: bytes = field(init=False, default=b"")
    _noted: Mark = field(default_factory=Mark)
    _trimmed: int = 0
    _trimmed_items: int = 0
    _damage: Exception | None = None
    _set_aside_at: float = -math.inf

    def open(self, *, accept_reset: bool = False) -> None:
        """Open or create the file, and find where it ends; set it aside if it is damaged.

        Raises `StartError` if it is gone or another one, unless `accept_reset`, and `sqlite3.Error` or `OSError`.
        """
        self._mark = HighWaterMark(self.path.with_suffix(".mark"))
        self._noted = self._mark.open()
        finish(self.path)
        if self._noted.last and not accept_reset and not self.path.exists():
            raise self._replaced(0)
        self._refuse_a_later_form()
        try:
            if self._noted.last and self.path.exists() and not self.path.stat().st_size:
                raise Damaged("the file is empty")
            self._connect()
            self._check(self._noted)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if not is_damage(error) and not is_schema_damage(error):
                raise
            self.set_aside(error)
        self._compare(self._noted, accept_reset=accept_reset)
        self.note()
        if self.files is not None:
            self.files.begin()

    def _refuse_a_later_form(self) -> None:
        """Raise `StartError` if a later version has written the file, before anything in it is changed.

        Both the file and its newest row must say so, or it has other tables: what one of them says alone may be damage.
        """
        with suppress(sqlite3.Error, OSError, UnicodeDecodeError), looking_at(self.path) as connection:
            ((form,),) = connection.execute("PRAGMA user_version")
            if not SCHEMA < form < LATEST_SCHEMA:
                return
            try:
                row = connection.execute("SELECT schema FROM journal ORDER BY first DESC LIMIT 1").fetchone() or (form,)
            except sqlite3.OperationalError as error:
                row = (form if is_schema_damage(error) else 0,)
            if row == (form,):
                raise StartError(
                    f"the journal {self.path} has form {form}, and this version knows {SCHEMA} at the most"
                    " (go back to the version that wrote it, or take the backup that was made before)",
                    REPLACED,
                )

    def _connect(self) -> None:
        self._connection = sqlite3.connect(self.path, isolation_level=None, timeout=5)
        try:
            self.path.chmod(0o640)
            if self._connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
                raise StartError(
                    f"the journal {self.path} cannot have a write-ahead log there (put it on a local disk)",
                    CANNOT_CREATE,
                )
            # NORMAL, not OFF: a power cut may cost the newest answers, but never the file.
            synchronous = "FULL" if self.durability is Durability.POWER_LOSS else "NORMAL"
            self._connection.execute(f"PRAGMA synchronous={synchronous}")
            self._connection.execute("PRAGMA wal_autocheckpoint=0")
            self._connection.execute(f"PRAGMA journal_size_limit={LOG_KEPT}")
            self._connection.execute("BEGIN IMMEDIATE")
            write_again(Path(f"{self.path}-wal"))
            self._connection.execute("ROLLBACK")
            dead_letters.update(self._connection)
            books.update(self._connection)
            has_identity = self._connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'identity'").fetchone()
            self._connection.executescript(TABLES + books.TABLES + dead_letters.TABLES)
            if has_identity is None:  # whatever becomes of the write-ahead log, the file must be known for what it is
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if self._connection.execute("PRAGMA user_version").fetchone() != (SCHEMA,):
                self._connection.execute(f"PRAGMA user_version={SCHEMA}")
            ((self._identity,),) = self._connection.execute("SELECT journal FROM identity")
            self.stores = identity.recorded(self._connection)
            self._read_state()
            self._find_beginning()
        except BaseException:
            self._connection.close()
            raise

    def _read_state(self) -> None:
        self.last, self.held = self._connection.execute("SELECT last, bytes FROM state").fetchone()
        self.items = books.journaled(self._connection)
        self._trimmed, self._trimmed_items = self._noted.trimmed, self._noted.trimmed_items

    def _find_beginning(self) -> None:
        """See where the rows begin, and how many items were trimmed before."""
        ((first,),) = self._connection.execute("SELECT min(first) FROM journal")
        self._trimmed = self.last if first is None else first - 1
        self._trimmed_items = self.items - books.items_after(self._connection, self._trimmed)

    def _check(self, known: Mark) -> None:
        """Raise `Damaged` if what it says of itself is not what it holds."""
        row = "SELECT first + count - 1 FROM journal ORDER BY first DESC LIMIT 1"
        ((end,),) = self._connection.execute(row).fetchall() or [(None,)]
        if (end or 0) > self.last or self.held < 0 or (end is None and self.held):
            raise Damaged("the positions, or the bytes, are wrong")
        if self._identity == known.journal and self._trimmed == known.trimmed and self.last >= known.last:
            more = known.trimmed_items - self._trimmed_items
            # The mark may be from before a power cut, and then says nothing of what came after it.
            if more and self.last == known.last:
                raise Damaged(f"it holds {more} items more than it should")

    def _compare(self, known: Mark, *, accept_reset: bool) -> None:
        """Hold what the file says against the mark that was kept outside of it."""
        same = known.journal == self._identity
        if known.last and not same:
            if not accept_reset:
                self._connection.close()
                raise self._replaced(self.last) if known.last > self.last else self._another()
            self.skip_to(max(known.last, self.last))
        elif known.last > self.last:
            lost = max(0, known.items - self.items)
            _log.error(
                "%s ends at position %d, but %d is known to have been reached: its end is damaged, and %d items are missing%s",
                *(self.path, self.last, known.last, lost),
                "" if self.durability is Durability.POWER_LOSS else f", as durability {self.durability} allows",
            )
            self._connection.execute("BEGIN IMMEDIATE")
            write_lost(self._connection, self.last + 1, known.last, lost)
            place_everybody(self._connection, known.last)
            self._connection.execute("COMMIT")
        elif same and known.last == self.last and known.items != self.items:
            _log.error("%s: the number of items was damaged: %d, not %d", self.path, known.items, self.items)
            self._connection.execute("UPDATE journaled SET items = ?", (known.items,))
        else:
            return
        self._read_state()
        self._find_beginning()

    def _replaced(self, last: int) -> StartError:
        return StartError(
            f"the journal {self.path} has reached position {self._noted.last}, says {self.path.with_suffix('.mark')}, but ends at {last}:"
            " it was lost or replaced (put the right one back, or run with --accept-journal-reset)",
            REPLACED,
        )

    def _another(self) -> StartError:
        return StartError(
            f"the journal {self.path} is another one than {self.path.with_suffix('.mark')} was written for: one of them was replaced"
            " (put the right one back, or run with --accept-journal-reset)",
            REPLACED,
        )

    @property
    def id(self) -> str:
        """The journal's identity, in hexadecimal."""
        return self._identity.hex()

    def record_store(self, holder: str, store: Store) -> None:
        """Record that the journal belongs to this store of this holder."""
        identity.record(self._connection, holder, store)
        self.stores[holder] = store

    def skip_to(self, position: int) -> None:
        """Go on counting from that position."""
        self._connection.execute("UPDATE state SET last = ?", (position,))
        self.last = position

    def note(self) -> None:
        """Note outside of the file how far it has got."""
        self._noted = Mark(self._identity, self.last, self.items, self._trimmed, self._trimmed_items)
        self._mark.note(self._noted)

    def rollback(self) -> None:
        """Undo the transaction, in the file and in the fields."""
        if self._damage is not None:
            self.set_aside(self._damage)
        # After SQLITE_FULL SQLite may have rolled back by itself (docs/decisions/0008-an-error-is-not-a-no.md).
        elif self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._read_state()

    def report(self, error: Exception) -> None:
        """Raise what somebody who reads the file has met, for the committer to see to."""
        raise error

    def set_aside(self, error: Exception) -> None:
        """Go on with a new file that holds what can be read of this one, which is damaged.

        Raises what keeps it from that; or `error`, if it was tried just before.
        """
        if time.monotonic() - self._set_aside_at < SET_ASIDE_EVERY:
            raise error
        self._damage, self._set_aside_at = error, time.monotonic()
        if self.files is not None:
            self.files.pause()
        _log.error("%s is damaged: %s", self.path, error)
        if hasattr(self, "_connection"):
            self._connection.close()
        aside = set_aside(self.path, self._noted)
        _log.error("%s was set aside as %s", self.path, aside)
        self._connect()
        self._damage = None
        self.note()
        if self.files is not None:
            self.files.begin()

    def allows_checkpoint(self) -> bool:
        """Whether a checkpoint may be made: one of a log that was truncated would damage the database."""
        return self.files is None or self.files.allows_checkpoint()

    def use(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function with the connection."""
        return function(self._connection)

    def close(self) -> None:
        """Move everything into the main file, if that works, and close it. Raises `sqlite3.Error` if it cannot be synchronised."""
        try:
            if self.allows_checkpoint():
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            if is_failed_sync(error):
                raise  # closing would try again
            _log.warning("%s: the write-ahead log is left for the next start: %s", self.path, error)
        self._connection.close()
        self._mark.close()
