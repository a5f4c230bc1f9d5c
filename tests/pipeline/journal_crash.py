"""Crashes of a journal within one process: its thread is stopped at a chosen moment, and the files are copied as they are then."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.data import Batch
from pipeline.journal import Journal
from pipeline.journal_format import Group


class Moment(StrEnum):
    """Where in a commit the thread is stopped."""

    BEFORE = "before its row is written"
    WRITTEN = "when its row is written, committed or not"
    UNANSWERED = "when it is committed, and nobody has been answered"


class Crash:
    """Stops the thread of a journal in one of its next commits, until `release`."""

    def __init__(self, journal: Journal, moment: Moment, after_commits: int) -> None:
        """Stop in the commit that follows so many others. Commits that store nothing do not count."""
        assert journal._committer is not None
        committer = journal._committer
        self.reached = asyncio.Event()
        self.in_hand = 0
        """How many batches that commit stores."""
        self.wal_bytes = 0
        """The size of the write-ahead log before it."""
        self._wal = wal_of(journal.path)
        self._moment = moment
        self._commits_left = after_commits
        self._released = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._write, self._back, self._settled = committer._file.write, committer._back, committer._settled
        committer._file.write = self._stop_in_write  # type: ignore[method-assign]
        committer._back = self._stop_before_answers  # type: ignore[method-assign]

    def release(self) -> None:
        """Let the thread go on."""
        self._released.set()

    def _stop_in_write(self, encoded: Sequence[bytes], batches: Sequence[Batch], costs: Sequence[int] = ()) -> Group:
        if not self._commits_left and not self._released.is_set():
            self.in_hand, self.wal_bytes = len(encoded), self._wal.stat().st_size
        self._stop_at(Moment.BEFORE)
        group = self._write(encoded, batches, costs)
        self._stop_at(Moment.WRITTEN)
        return group

    def _stop_before_answers(self, function: Any, *arguments: Any) -> None:
        if function is self._settled and arguments[0].group is not None:
            self._stop_at(Moment.UNANSWERED)
            self._commits_left -= 1
        self._back(function, *arguments)

    def _stop_at(self, moment: Moment) -> None:
        if moment is self._moment and not self._commits_left and not self._released.is_set():
            self._loop.call_soon_threadsafe(self.reached.set)
            self._released.wait()


def wal_of(path: Path) -> Path:
    """The write-ahead log of that database."""
    return Path(f"{path}-wal")


def copy_files(path: Path, folder: Path) -> Path:
    """Copy a database and its write-ahead log as they are, and return the copy. Nobody may write meanwhile."""
    folder.mkdir()
    for source in (path, wal_of(path)):
        if source.exists():
            shutil.copyfile(source, folder / source.name)
    return folder / path.name


def truncate_wal(path: Path, least: int, share: float) -> None:
    """Cut off the end of that database's write-ahead log: of what is beyond `least` bytes, that share is left."""
    if (wal := wal_of(path)).exists():
        size = wal.stat().st_size
        with wal.open("r+b") as file:
            file.truncate(min(size, least + int(share * max(0, size - least))))
