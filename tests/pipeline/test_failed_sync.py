"""Writing a log over itself, and what counts as a failed sync. What both are for: tests/faults/test_io_error.py."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from pipeline.failed_sync import is_failed_sync, write_again


def test_a_log_is_written_whole_and_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "a.db-wal"
    held = os.urandom(3 * 2**20 + 5)
    log.write_bytes(held)
    written: list[int] = []
    pwrite = os.pwrite

    def write(descriptor: int, data: bytes, offset: int) -> int:
        written.append(pwrite(descriptor, data, offset))
        return written[-1]

    monkeypatch.setattr(os, "pwrite", write)
    write_again(log)
    assert log.read_bytes() == held
    assert sum(written) == len(held)


def test_a_log_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    write_again(tmp_path / "a.db-wal")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_sync_is_told_from_other_errors() -> None:
    failed, full = sqlite3.OperationalError("I/O"), sqlite3.OperationalError("full")
    failed.sqlite_errorcode, full.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_FULL
    assert is_failed_sync(failed)
    assert not is_failed_sync(full)
    assert not is_failed_sync(sqlite3.ProgrammingError("without a code"))
    assert not is_failed_sync(OSError())
