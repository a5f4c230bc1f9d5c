"""What a sync that has failed leaves behind, and what is done about it (docs/decisions/0017-after-a-failed-sync.md).

Linux keeps the pages that it could not write and takes them for clean: a sync that is tried again succeeds and writes nothing. Only what
is written again before that reaches the disk.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import NoReturn

IO_ERROR = 74
"""EX_IOERR of sysexits.h."""
DRAIN_SECONDS = 0.5
"""What is on its way to clients gets so long before the process ends."""
_BLOCK = 2**20


def is_failed_sync(error: BaseException) -> bool:
    """Whether SQLite could not synchronise a file."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_FSYNC


def write_again(log: Path) -> None:
    """Write SQLite's write-ahead log over itself, and synchronise it: what the last process committed may be in the page cache alone.

    Nobody may write to the database meanwhile: the caller holds its write lock. A log that is not there is none. Raises `OSError`.
    """
    try:
        descriptor = os.open(log, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        position = 0
        while block := os.pread(descriptor, _BLOCK, position):
            position += os.pwrite(descriptor, block, position)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def end_process(reason: str, code: int = IO_ERROR) -> NoReturn:
    """End the process with that exit code, soon, and without closing any file. Not to be called on the event loop's thread.

    For when SQLite cannot synchronise a database after a checkpoint: it would try again and, when that succeeds, throw away the log that
    holds what the disk does not. The next start begins with the whole log.
    """
    logging.getLogger("service").critical("ends itself, to start anew from what is on the disk: %s", reason)
    leave(code)


def leave(code: int) -> NoReturn:
    """End the process like `end_process`, without a line in the log."""
    time.sleep(DRAIN_SECONDS)
    logging.shutdown()
    os._exit(code)
