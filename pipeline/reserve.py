"""Room that is kept back on the journals' disk. SQLite deletes by writing: on a disk that is quite full, nothing could ever be deleted.

free room >= reserve        all is well; a file holds as much again
free room <  reserve        pushes are refused; what was accepted is delivered with the room that is left
no free room                the file is given up, so that old data can be deleted and exporters can store
free room >= 2 x reserve    the file is made again, and pushes are accepted
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
from collections.abc import Set
from contextlib import suppress
from pathlib import Path

import anyio

from pipeline.errors import StartError
from pipeline.identity import CONFLICT

LOOK_EVERY = 1.0
"""Seconds between two looks at how much room there is."""
NOTHING = 256 * 1024
"""With so little room, in bytes, the next write may be the one that fails."""
ENOUGH_AGAIN = 1.05
"""Of the reserve: so much room there must be before pushes that were refused are accepted again."""
_BLOCK = 2**20
_MAGIC = b"metrics-service reserve of "
"""Begins the header of the file; the identity of the owning database follows. Earlier versions wrote none."""
_OWNER_SIZE = 32
_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CODES = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)

_log = logging.getLogger("journal.reserve")


def is_out_of_room(error: Exception) -> bool:
    """Whether a write may have failed for want of room: SQLite says so of a full disk, and only "I/O error" of a quota or a limit."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in _CODES
    return isinstance(error, OSError) and error.errno in _ERRNOS


class Reserve:
    """The room on the disk of one folder of journals, and the file that keeps some of it back. All sizes are in bytes."""

    def __init__(self, folder: Path, size: int = 0) -> None:
        self.path = folder / "reserve.bin"
        self.size = size
        """How much room there must be for pushes to be accepted, and how large the file is. 0: neither."""
        self.free = 0
        """How much room there was at the last look."""
        self.held = 0
        """How large the file is now."""
        self._owner = b""
        self._is_foreign = False
        """Whether the file belongs to another database."""
        self._low = False
        self._problem: str | None = None
        self._writing = threading.Lock()

    def refusal(self, *, of_pushes: bool) -> str | None:
        """Why nothing more may be stored, or None. What the service makes of accepted pushes may use half of the room that they may not."""
        if not self._low or (not of_pushes and self.free >= self.size // 2):
            return None
        needed = int(ENOUGH_AGAIN * self.size) if self.held else 2 * self.size
        return f"the disk is full: {self.free} bytes are free for {self.path.parent} (must be {needed})"

    def claim(self, owner: str, ours: Set[Path], accept_new: bool = False) -> None:
        """Record in the file which database the folder belongs to. `ours` are the journals and the saved state of that database's service.

        Raises `StartError` if the file belongs to another database, whose journals are in the folder, unless `accept_new`.
        """
        with self._writing:
            self._owner = owner.encode().ljust(_OWNER_SIZE)[:_OWNER_SIZE]
            try:
                with self.path.open("r+b") as file:
                    found = file.read(len(_MAGIC) + _OWNER_SIZE)
                    others = sorted({*self.path.parent.glob("*.db")} - ours)
                    if not accept_new and found.startswith(_MAGIC) and found != _MAGIC + self._owner and others:
                        self._is_foreign = True
                        raise StartError(
                            f"{self.path} belongs to the journal {others[0]} of another database"
                            " (set METRICS_JOURNAL_DIR to a folder of its own)",
                            CONFLICT,
                        )
                    file.seek(0)
                    file.write(_MAGIC + self._owner)
            except OSError:
                return  # it is not there; what else is wrong with it shows when the room is looked at

    async def run(self) -> None:
        """Look again and again, in a thread."""
        while True:
            await anyio.sleep(LOOK_EVERY)
            await anyio.to_thread.run_sync(self.look, abandon_on_cancel=True)

    def make_room(self) -> None:
        """Before anything is opened: give the file up if the disk is full, else a service could not even start."""
        with suppress(OSError):
            if self.size and _room(self.path.parent) < NOTHING:
                self._give_up()

    def look(self) -> None:
        """See how much room there is, and make the file or give it up accordingly."""
        with self._writing:
            try:
                self.free = _room(self.path.parent)
            except OSError as error:
                self._report(f"cannot see how much room there is in {self.path.parent}: {error}")
                return
            made = self._keep_up()
        if self.free < NOTHING:
            self.release()
        needed = int(self.size * (ENOUGH_AGAIN if self._low else 1)) if self.held else 2 * self.size
        self._note(low=not made or self.free < needed)

    def _keep_up(self) -> bool:
        """Make the file if it is not there and there is room for two. False if there is less room for us than the disk says: a quota."""
        try:
            # Of the last run, or one that somebody has deleted since the last look.
            self.held = self.size if self.path.exists() and self.path.stat().st_size == self.size else 0
            if self.held != self.size and self.free >= 2 * self.size:
                self._make()
                self.free = _room(self.path.parent)
        except OSError as error:
            self._report(f"cannot keep {self.size} bytes back in {self.path}: {error}")
            return error.errno not in _ERRNOS
        self._problem = None
        return True

    def release(self) -> None:
        """Give the file up: there was no room for a write. Any thread may call this."""
        with self._writing:
            if self.held:
                _log.error("the disk of %s is full: gave up the reserve of %d bytes", self.path.parent, self.held)
                self._give_up()
                with suppress(OSError):
                    self.free = _room(self.path.parent)
                self._note(low=True)

    def discard(self) -> None:
        """Leave nothing behind: the folder is not used after all."""
        with self._writing, suppress(OSError):
            if not self._is_foreign:
                self._give_up()

    def _note(self, *, low: bool) -> None:
        if low and not self._low:
            _log.error(
                "pushes are refused: %d bytes are free in %s (reserve: %d)", self.free, self.path.parent, self.size
            )
        elif self._low and not low:
            _log.info("pushes are accepted: %d bytes are free in %s", self.free, self.path.parent)
        self._low = low

    def _make(self) -> None:
        """Write the file. Written, and with what no file system compresses: a hole keeps nothing back."""
        self._give_up()
        if not self.size:
            return
        block = os.urandom(_BLOCK)
        try:
            with open(self.path, "xb", opener=_private) as file:
                header = (_MAGIC + self._owner)[: self.size] if self._owner else b""
                file.write(header)
                rest = self.size - len(header)
                file.writelines(block[: rest - start] for start in range(0, rest, _BLOCK))
        except OSError:
            self._give_up()
            raise
        self.held = self.size

    def _give_up(self) -> None:
        self.held = 0
        self.path.unlink(missing_ok=True)

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            _log.warning("%s", problem)
        self._problem = problem


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o640)


def _room(folder: Path) -> int:
    """What whoever is not root may still write there."""
    there = os.statvfs(folder)
    return there.f_bavail * there.f_frsize
