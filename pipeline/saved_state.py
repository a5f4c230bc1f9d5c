"""Saved state: what components derive from data, in a SQLite file beside the journals that the data comes from.

`state.db` is a file of its own, so that a save of thousands of records delays no commit of a journal. A component's state is in the
folder of the first journal that feeds it. A damaged file is set aside as `state.db.corrupt-<time>`.
"""

from __future__ import annotations

import functools
import logging
import secrets
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import anyio

from pipeline.data import Position, Store
from pipeline.errors import StartError, StateError, StateLost
from pipeline.failed_sync import end_process, is_failed_sync, write_again
from pipeline.files import CANNOT_CREATE, FileLock, make_private_folder, sync_folder
from pipeline.interfaces import FormerState, State
from pipeline.rescue import copy_database, refuse_rescued
from pipeline.salvage import is_damage, is_schema_damage
from pipeline.watched_files import WatchedFiles

T = TypeVar("T")

NAME = "state.db"
FORMAT = 1
"""The version of the tables, stored as `user_version`."""
LOG_BYTES = 4 * 2**20
"""The size of the write-ahead log, in bytes, from which it is checkpointed."""
RECORDS = 250
"""Records a statement: each statement releases the GIL, and the event loop returns it late."""
BUSY_SECONDS = 1.0
"""How long a save waits for another program's lock."""
CONFLICT = 78
"""EX_CONFIG of sysexits.h."""

_TABLES = """
CREATE TABLE identity (
    id INTEGER PRIMARY KEY CHECK (id = 1), store TEXT NOT NULL,
    adopts INTEGER NOT NULL  -- whether state of earlier versions may be copied; not into a file that replaces a damaged one
) STRICT;
CREATE TABLE owners (owner TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE positions (
    owner TEXT NOT NULL, journal TEXT NOT NULL, pipeline TEXT NOT NULL, position INTEGER NOT NULL,
    items INTEGER, PRIMARY KEY (owner, journal, pipeline)) STRICT, WITHOUT ROWID;
CREATE TABLE records (
    owner TEXT NOT NULL, name TEXT NOT NULL, record BLOB NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY (owner, name)) STRICT, WITHOUT ROWID;
"""

_log = logging.getLogger("state")


class Source(NamedTuple):
    """A pipeline that feeds a component: its id, the folder of its journal, and the journal's identity. `store` is the state that the
    journal has recorded for the component; None if the journal is empty, or the component is new to it."""

    pipeline: str
    folder: Path
    journal: str = ""
    store: Store | None = None


class Saved(NamedTuple):
    """What an owner saved last."""

    positions: dict[str, Position]
    records: dict[str, bytes]


class StateFile:
    """One `state.db`. Its methods block; threads that call them at the same time take turns."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.id = ""
        """Its identity, in hexadecimal, once it is open. It survives a copy of the file."""
        self.is_new = False
        """Whether `open` has created it."""
        self._lock = FileLock(self.path.with_suffix(".lock"))
        self._taking_turns = threading.Lock()
        self._log_path = Path(f"{self.path}-wal")
        self._connection: sqlite3.Connection | None = None
        beside = {self._lock.path: 0}
        self.files = WatchedFiles(self.path, beside, copy=self._copy, checkpoint=self._checkpoint_all, can_repair=True)
        """What `Presence` examines while the file is open."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files that it consists of."""
        return (self.path, self._log_path, Path(f"{self.path}-shm"))

    def open(self, recorded: str = "") -> None:
        """Open the file, or create it; set it aside if it is damaged. Does nothing if it is open.

        A new file gets the identity `recorded`, where a journal has recorded one; state of earlier versions is then never copied.

        Raises `StartError` if another process has it, a later version wrote it, or it cannot be created.
        """
        with self._taking_turns:
            if self._connection is not None:
                return
            refuse_rescued([self.path])
            make_private_folder(self.path.parent)
            self._lock.acquire()
            try:
                self.is_new = not self.path.exists()
                self.id = recorded
                try:
                    self._connection = self._connected((recorded, not recorded))
                except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                    if not is_damage(error) and not is_schema_damage(error):
                        raise
                    self._set_aside(error)
                    _log.error("%s: its owners start again from what the journal still holds", self.path)
            except (sqlite3.Error, OSError) as error:
                self._lock.release()
                raise StartError(f"cannot open {self.path}: {error}", CANNOT_CREATE) from None
            except BaseException:
                self._lock.release()
                raise
            self.files.begin()

    def _connected(self, new: tuple[str, bool] = ("", True)) -> sqlite3.Connection:
        """A connection to the file. A new one gets this identity, if it is not empty, and adopts the state of earlier versions or not."""
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
        try:
            self.path.chmod(0o640)
            if connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
                raise StartError(
                    f"{self.path}: the file system has no shared memory for a write-ahead log (must be a local disk)",
                    CANNOT_CREATE,
                )
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.execute(f"PRAGMA journal_size_limit={LOG_BYTES}")
            connection.execute("BEGIN IMMEDIATE")
            write_again(self._log_path)
            connection.execute("ROLLBACK")
            ((format_,),) = connection.execute("PRAGMA user_version")
            if format_ > FORMAT:
                raise StartError(
                    f"{self.path}: has format version {format_} (this version reads up to {FORMAT}; run the version that wrote it)",
                    CONFLICT,
                )
            if rows := connection.execute("PRAGMA quick_check(1)").fetchall():
                ((found,),) = rows
                if found != "ok":
                    raise _Damaged(found)
            if not format_:
                self._create(connection, *new)
            ((self.id,),) = connection.execute("SELECT store FROM identity").fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self, connection: sqlite3.Connection, id: str, adopts: bool) -> None:
        connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={FORMAT}")
        connection.execute("INSERT INTO identity VALUES (1, ?, ?)", (id or secrets.token_hex(16), adopts))
        connection.execute("COMMIT")
        # If the log is lost, the file must still have its tables.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sync_folder(self.path.parent)

    def _set_aside(self, error: BaseException) -> None:
        """Put a new file with the same identity into the place of the damaged one, which is kept."""
        aside = self.path.with_name(f"{NAME}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        _log.error("%s is damaged (%s): set aside as %s", self.path, error, aside)
        self.path.rename(aside)
        with suppress(FileNotFoundError):
            self._log_path.rename(f"{aside}-wal")
        Path(f"{self.path}-shm").unlink(missing_ok=True)
        sync_folder(self.path.parent)
        self._connection = self._connected((self.id, False))

    def adopts(self, owner: str) -> bool:
        """Whether the state of earlier versions is to be copied: never after anything was saved for this owner. Raises `sqlite3.Error`."""
        with self._using() as connection:
            known = connection.execute("SELECT 1 FROM owners WHERE owner = ?", (owner,)).fetchall()
            return not known and connection.execute("SELECT adopts FROM identity").fetchall() == [(1,)]

    def load(self, owner: str, journals: Mapping[str, str]) -> Saved:
        """What this owner saved; for a pipeline with several journals, the position in the one that is given. Raises `sqlite3.Error`."""
        with self._using() as connection:
            query = "SELECT pipeline, position, items, journal FROM positions WHERE owner = ?"
            found = [(pipeline, Position(*rest)) for pipeline, *rest in connection.execute(query, (owner,))]
            rows = connection.execute("SELECT name, record, crc FROM records WHERE owner = ?", (owner,)).fetchall()
        right = {name: record for name, record, crc in rows if crc == _checksum(name, record)}
        if len(right) < len(rows):
            _log.error("%s: %d records of %s are damaged and left out", self.path, len(rows) - len(right), owner)
        # Of several journals, the one that feeds the owner now decides.
        found.sort(key=lambda each: (each[1].journal_id == journals.get(each[0]), each[1].upto))
        return Saved(dict(found), right)

    def save(self, owner: str, positions: Mapping[str, Position], records: Mapping[str, bytes]) -> None:
        """Replace these positions and records of the owner in one durable transaction.

        Raises `sqlite3.Error`, and `StateLost` if the file was damaged: then it is set aside, and the new one is empty.
        """
        with self._using() as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT OR IGNORE INTO owners VALUES (?)", (owner,))
                rows = iter(records.items())
                while chunk := list(islice(rows, RECORDS)):
                    values = [
                        value for name, record in chunk for value in (owner, name, record, _checksum(name, record))
                    ]
                    places = ", ".join(["(?, ?, ?, ?)"] * len(chunk))
                    connection.execute(f"REPLACE INTO records VALUES {places}", values)  # noqa: S608 - constants only
                for pipeline, position in positions.items():
                    key = (owner, position.journal_id, pipeline)
                    connection.execute(
                        "REPLACE INTO positions VALUES (?, ?, ?, ?, ?)", (*key, position.upto, position.items)
                    )
                connection.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                    connection.execute("ROLLBACK")
                if is_damage(error):
                    self.files.pause()
                    connection.close()
                    self._set_aside(error)
                    self.files.begin()
                    raise StateLost(f"{self.path} is damaged: {error}") from error
                raise
            self._checkpoint_if_due(connection)

    def abandon(self) -> None:
        """Close the file, and delete it if `open` has created it."""
        self.close()
        if self.is_new:
            for path in (*self.paths, self._lock.path):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # others keep their files there
                self.path.parent.rmdir()

    def close(self) -> None:
        """Move everything into the main file, if that works, and close it. Safe twice and without `open`."""
        with self._taking_turns:
            connection, self._connection = self._connection, None
            self.files.pause()
            if connection is not None:
                self._checkpoint(connection, "TRUNCATE")
                connection.close()
            self._lock.release()

    async def _copy(self, target: Path) -> None:
        def copy() -> None:
            with self._using() as connection:
                copy_database(connection, target)

        await anyio.to_thread.run_sync(copy)

    async def _checkpoint_all(self) -> bool:
        def checkpoint() -> bool:
            with self._using() as connection:
                ((busy, log, moved),) = connection.execute("PRAGMA wal_checkpoint(FULL)")
            return not busy and bool(log == moved)

        return await anyio.to_thread.run_sync(checkpoint)

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._taking_turns:
            if self._connection is None:
                raise sqlite3.ProgrammingError(f"{self.path} is closed")
            yield self._connection

    def _checkpoint_if_due(self, connection: sqlite3.Connection) -> None:
        with suppress(FileNotFoundError):
            if self._log_path.stat().st_size > LOG_BYTES:
                self._checkpoint(connection, "PASSIVE")

    def _checkpoint(self, connection: sqlite3.Connection, mode: str) -> None:
        if not self.files.allows_checkpoint():
            return  # a damaged log would damage the database
        try:
            connection.execute(f"PRAGMA wal_checkpoint({mode})")
        except sqlite3.Error as error:
            if is_failed_sync(error):
                end_process(f"cannot synchronise {self.path}: {error}")
            _log.warning("checkpoint of %s failed: %s", self.path, error)


def _checksum(name: str, record: bytes) -> int:
    return zlib.crc32(record, zlib.crc32(name.encode()))


class _Damaged(sqlite3.DatabaseError):
    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


class StateFiles:
    """The state files of one service, each opened when it is first needed."""

    def __init__(self, *, accept_reset: bool = False) -> None:
        self.accept_reset = accept_reset
        """Whether state that a journal has recorded may be missing."""
        self.opened: dict[Path, StateFile] = {}
        """By folder."""
        self.of_owner: dict[str, StateFile] = {}
        """The file of each owner that has loaded its state."""

    def file(self, folder: Path) -> StateFile:
        """The file of that folder, which may be closed."""
        return self.opened.setdefault(folder, StateFile(folder))

    async def close(self, recorded: Set[str] | None = None) -> None:
        """Close all of them. Safe twice. After a failed start, new files are deleted whose identities are not among `recorded`."""
        with anyio.CancelScope(shield=True):
            for file in self.opened.values():
                discard = recorded is not None and file.id not in recorded
                await anyio.to_thread.run_sync(file.abandon if discard else file.close)
            self.opened.clear()
            self.of_owner.clear()


class SavedState(State):
    """`State` in `StateFiles`. `sources` are the pipelines that feed an owner, and `former` is where an earlier version kept state."""

    def __init__(
        self,
        files: StateFiles,
        sources: Callable[[str], Sequence[Source]],
        former: Callable[[], FormerState | None] = lambda: None,
    ) -> None:
        self._files = files
        self._sources = sources
        self._former = former

    async def load(self, owner: str) -> tuple[dict[str, Position], dict[str, bytes]]:
        """See `State.load`. The first time, it copies what an earlier version kept in the database."""
        sources = self._sources(owner)
        journals = {source.pipeline: source.journal for source in sources}
        file = self._files.file(sources[0].folder)
        recorded = next((source.store.id for source in sources if source.store is not None), "")
        await anyio.to_thread.run_sync(self._refuse_missing, file, owner, recorded)
        await anyio.to_thread.run_sync(file.open, recorded)
        if await _in_thread(file, file.adopts, owner):
            await self._adopt(file, owner, journals)
        self._files.of_owner[owner] = file
        return await _in_thread(file, file.load, owner, journals)

    def _refuse_missing(self, file: StateFile, owner: str, recorded: str) -> None:
        if not recorded or file.path.exists():
            return
        what = f"{file.path} is missing, but the journal beside it says that the state of {owner} was saved there"
        if not self._files.accept_reset:
            raise StartError(
                f"{what} (put it back, or run with --accept-journal-reset to start its counters again from 0)", CONFLICT
            )
        _log.error("%s: it starts again from what the journal still holds", what)

    def store(self, owner: str) -> Store:
        """See `State.store`."""
        file = self._files.of_owner[owner]
        return Store(file.id, str(file.path))

    async def _adopt(self, file: StateFile, owner: str, journals: Mapping[str, str]) -> None:
        """Copy what the database holds, in one transaction. Afterwards the database is never asked again."""
        former = self._former()
        positions, records = await former.load(owner) if former else ({}, {})
        known = {pipeline: position for pipeline, position in positions.items() if pipeline in journals}
        await _in_thread(file, file.save, owner, known, records)
        if records:
            _log.info("moved %d records of %s from the database to %s", len(records), owner, file.path)

    async def save(self, owner: str, positions: Mapping[str, Position], changed: Mapping[str, bytes]) -> None:
        """See `State.save`."""
        if owner not in self._files.of_owner:
            raise StateError(f"{owner} has not loaded its state, or the service has stopped")
        file = self._files.of_owner[owner]
        await _in_thread(file, file.save, owner, positions, changed)


async def _in_thread(file: StateFile, function: Callable[..., T], *arguments: object) -> T:
    try:
        return await anyio.to_thread.run_sync(functools.partial(function, *arguments))
    except (sqlite3.Error, OSError) as error:
        raise StateError(f"{file.path}: {error}") from error
