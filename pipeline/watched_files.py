"""The files that one owner has open, and whether they are still the ones at their paths (docs/decisions/0027-presence.md).

A file is examined by `stat` on its path, and its content by reading from the descriptor that SQLite itself has: closing another
descriptor of a database drops SQLite's locks in this process.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

Identity = tuple[int, int]
"""Device and inode."""

_HEADER, _SHARED_HEADER, _INDEX_HEADER, _LOG_HEADER, _FRAME_HEADER = 100, 96, 136, 32, 24
"""Bytes: of a database, of the log's index (two copies of 48, then what checkpoints note), of the log, and of each page in the log."""
_MAGIC = b"SQLite format 3\0"
_LOG_MAGIC = (0x377F0682, 0x377F0683)
_TRIES = 5
"""How often the log's index is read when it changes meanwhile."""


class Role(Enum):
    """What a file is to its owner."""

    FOLDER = "folder"
    DATABASE = "database"
    LOG = "write-ahead log"
    INDEX = "index of the write-ahead log"
    OTHER = "file"


class Problem(Enum):
    """What is wrong with a file. The value completes the sentence that begins with its path."""

    MISSING = "is missing"
    REPLACED = "was replaced by another file"
    TRUNCATED = "was truncated"
    OVERWRITTEN = "was overwritten"
    UNKNOWN = "cannot be examined"


@dataclass(frozen=True)
class Fault:
    """What is wrong with one file."""

    path: Path
    role: Role
    problem: Problem
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.path} {self.problem.value}{self.detail and f': {self.detail}'}"


Copy = Callable[[Path], Awaitable[None]]
Checkpoint = Callable[[], Awaitable[bool]]


class WatchedFiles:
    """The files of a SQLite database that is open in WAL mode, and files beside it. Any thread may call the methods."""

    def __init__(
        self,
        database: Path,
        others: Mapping[Path, int] | None = None,
        *,
        copy: Copy,
        checkpoint: Checkpoint,
        can_repair: bool = False,
    ) -> None:
        """`others` maps each further file to its least size in bytes. `can_repair` tells whether the next start detects a database that was
        truncated or overwritten and continues with the rest.

        `copy` writes the content of the open database, page by page, into a new file; `checkpoint` moves all of the write-ahead log into
        the database and tells whether that succeeded. Both may raise anything.
        """
        self.database = database.absolute()
        self.folder = self.database.parent
        self.log, self.index = Path(f"{self.database}-wal"), Path(f"{self.database}-shm")
        self.copy, self.checkpoint, self.can_repair = copy, checkpoint, can_repair
        self._least = {path.absolute(): size for path, size in (others or {}).items()}
        self._roles = {
            self.folder: Role.FOLDER,
            self.database: Role.DATABASE,
            self.log: Role.LOG,
            self.index: Role.INDEX,
        }
        self._roles |= dict.fromkeys(self._least, Role.OTHER)
        self._known: dict[Path, Identity] = {}
        self._descriptors: dict[Path, int] = {}
        self._size = self._index_size = 0
        self._header = (b"", b"")
        """The last checkpoint, and the database's header after it."""
        self._version = 0
        self._watched = False

    def begin(self) -> None:
        """Remember the files at the paths as the right ones. Call it right after they were opened, by name.

        Files that do not exist, other than the database, are not watched.
        """
        self.pause()
        known: dict[Path, Identity] = {}
        for path in self._roles:
            try:
                there = path.stat()
            except OSError:
                if path == self.database:
                    known[path] = (0, 0)
                continue
            known[path] = (there.st_dev, there.st_ino)
        self._known, self._descriptors = known, {}
        self._size, self._index_size = (_size(path) for path in (self.database, self.index))
        self._header = (b"", b"")
        self._database_problem()
        self._watched = True

    def pause(self) -> None:
        """Report nothing until `begin`: the owner is about to close or replace the files."""
        self._watched = False
        self._version += 1

    @property
    def version(self) -> int:
        """Changes with every `begin` and `pause`."""
        return self._version

    def examine(self) -> list[Fault] | None:
        """What is wrong; None if the owner closes or replaces the files now, or has not opened them."""
        version = self._version
        if not self._watched:
            return None
        faults = self._examine_paths() or self._examine_content()
        return faults if self._version == version else None

    def _examine_paths(self) -> list[Fault]:
        faults = []
        for path, known in list(self._known.items()):
            role = self._roles[path]
            try:
                there = path.stat()
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    faults.append(Fault(path, role, Problem.MISSING))
                else:
                    faults.append(Fault(path, role, Problem.UNKNOWN, error.strerror or str(error)))
            else:
                if (there.st_dev, there.st_ino) != known:
                    faults.append(Fault(path, role, Problem.REPLACED))
                elif role is Role.OTHER and there.st_size < self._least[path]:
                    faults.append(Fault(path, role, Problem.TRUNCATED))
            if faults and role is Role.FOLDER:
                break  # its files went with it
        return faults

    def _examine_content(self) -> list[Fault]:
        faults = []
        if (problem := self._database_problem()) is not None:
            faults.append(Fault(self.database, Role.DATABASE, problem))
        size = _size(self.index)
        if size < self._index_size:
            faults.append(Fault(self.index, Role.INDEX, Problem.TRUNCATED))
        elif not self.log_is_whole():
            faults.append(Fault(self.log, Role.LOG, Problem.TRUNCATED))
        self._index_size = max(self._index_size, size)
        return faults

    def _database_problem(self) -> Problem | None:
        """Whether the database was cut or overwritten in place.

        It may become smaller by a VACUUM only, and then its header says so. Its header changes by a checkpoint only, and each
        checkpoint leaves a trace in the log's index.
        """
        before, header = self._last_checkpoint(), self._read(self.database, _HEADER)
        if header is None:
            return None
        if len(header) < _HEADER or not header.startswith(_MAGIC):
            return Problem.TRUNCATED
        size = _size(self.database)
        (page,) = struct.unpack_from(">H", header, 16)
        (pages,) = struct.unpack_from(">I", header, 28)
        if size < self._size and size < pages * (65536 if page == 1 else page):
            return Problem.TRUNCATED
        if before is not None and before == self._last_checkpoint():
            if self._header[0] == before and self._header[1] != header:
                return Problem.OVERWRITTEN
            self._header = (before, header)
        self._size = size
        return None

    def _last_checkpoint(self) -> bytes | None:
        """What changes with each checkpoint; None while one is in progress, or if it is unknown."""
        index = self._read(self.index, _INDEX_HEADER)
        if index is None or len(index) < _INDEX_HEADER:
            return None
        moved, attempted = index[96:100], index[128:132]
        return index[32:40] + moved if moved == attempted else None

    def allows_checkpoint(self) -> bool:
        """Whether the database and its log belong together, as far as their content shows. Ask before each checkpoint."""
        return self._database_problem() is None and self.log_is_whole()

    def log_is_whole(self) -> bool:
        """Whether the write-ahead log holds what its index says.

        A log that was truncated grows again with the next commit, and begins with a hole: a checkpoint would copy it into the database.
        """
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(0.001)  # a commit changes both copies of the index, one after the other
            index = self._read(self.index, _SHARED_HEADER)
            if index is None or len(index) < _SHARED_HEADER:
                return True  # unknown
            copy = index[:48]
            if copy != index[48:]:
                continue
            page, frames = struct.unpack_from("=HI", copy, 14)
            if not copy[12] or not frames:
                return True
            log, size = self._read(self.log, _LOG_HEADER), self._open_size(self.log)
            if log is None or size is None:
                return True
            page = (page & 0xFE00) + ((page & 1) << 16)
            if len(log) == _LOG_HEADER and size >= _LOG_HEADER + frames * (page + _FRAME_HEADER):
                (magic,) = struct.unpack_from(">I", log)
                if magic in _LOG_MAGIC and log[16:24] == copy[32:40]:
                    return True
            if self._read(self.index, _SHARED_HEADER) == index:
                return False
        return True

    def _open_size(self, path: Path) -> int | None:
        try:
            there = os.fstat(self._descriptors[path])
        except (OSError, KeyError):
            return None
        return there.st_size if (there.st_dev, there.st_ino) == self._known.get(path) else None

    def _read(self, path: Path, size: int) -> bytes | None:
        """The first bytes of a file, by a descriptor of this process that is open already; None if there is none."""
        known = self._known.get(path)
        for found in (self._descriptors.get(path), None):
            descriptor = found
            if found is None and (descriptor := self._find(path)) is None:
                return None
            assert descriptor is not None
            try:
                # Its owner may close it, and another file get its number, at any moment.
                content = os.pread(descriptor, size, 0)
                there = os.fstat(descriptor)
            except OSError:
                continue
            if (there.st_dev, there.st_ino) == known:
                return content
        return None

    def _find(self, path: Path) -> int | None:
        known = self._known.get(path)
        try:
            descriptors = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
        except OSError:
            return None
        for descriptor in descriptors:
            try:
                there = os.fstat(descriptor)
            except OSError:
                continue
            if (there.st_dev, there.st_ino) == known:
                self._descriptors[path] = descriptor
                return descriptor
        self._descriptors.pop(path, None)
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
