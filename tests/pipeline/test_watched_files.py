"""What is wrong with the files of an open database, and what of its usual life is not."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.watched_files import WatchedFiles


class Opened:
    """A database in WAL mode that is open, and its files."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "data" / "a.db"
        self.path.parent.mkdir()
        self.connection = self.connect()
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA wal_autocheckpoint=0")
        self.connection.execute("CREATE TABLE rows (content)")
        self.mark = self.path.with_suffix(".mark")
        self.mark.write_bytes(bytes(4096))
        self.write(20)
        self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self.write(20)
        self.files = WatchedFiles(self.path, {self.mark: 4096}, copy=self.nothing, checkpoint=self.done)
        self.files.begin()

    async def nothing(self, target: Path) -> None:
        """It is not asked to."""

    async def done(self) -> bool:
        """Neither is this."""
        return True

    def connect(self) -> sqlite3.Connection:
        """Another connection of this process."""
        return sqlite3.connect(self.path, isolation_level=None)

    def write(self, rows: int) -> None:
        """Commit each of these rows."""
        for _ in range(rows):
            self.connection.execute("INSERT INTO rows VALUES (randomblob(3000))")

    @property
    def wrong(self) -> list[str]:
        """The names of the files that are not as they should be, and what is wrong."""
        faults = self.files.examine()
        assert faults is not None
        return [f"{fault.path.name} {fault.problem.value}" for fault in faults]

    def end(self, *ends: str) -> Path:
        """One of the files."""
        return Path("".join((str(self.path), *ends)))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path)
    yield opened
    opened.connection.close()


def checkpoint_elsewhere(opened: Opened, mode: str) -> None:
    with closing(opened.connect()) as other:
        other.execute(f"PRAGMA wal_checkpoint({mode})")


def shrink(opened: Opened) -> None:
    opened.connection.execute("DELETE FROM rows")
    with closing(opened.connect()) as other:
        other.execute("VACUUM")
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def limit_the_log(opened: Opened) -> None:
    opened.connection.execute("PRAGMA journal_size_limit=8192")
    opened.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    opened.write(1)


@pytest.mark.parametrize(
    "usual",
    [
        lambda opened: None,
        lambda opened: opened.write(200),
        lambda opened: opened.connection.execute("PRAGMA wal_checkpoint(PASSIVE)"),
        lambda opened: opened.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)"),
        lambda opened: checkpoint_elsewhere(opened, "RESTART"),
        lambda opened: checkpoint_elsewhere(opened, "TRUNCATE"),
        limit_the_log,
        shrink,
        lambda opened: opened.mark.write_bytes(bytes(5000)),
    ],
    ids=[
        "nothing",
        "writes",
        "passive",
        "truncate",
        "restart elsewhere",
        "truncate elsewhere",
        "limit",
        "vacuum",
        "mark",
    ],
)
def test_usual_changes_are_not_faults(opened: Opened, usual: Callable[[Opened], object]) -> None:
    usual(opened)
    assert opened.wrong == []
    opened.write(1)
    assert opened.wrong == []


def cut_and_write(opened: Opened) -> None:
    os.truncate(opened.end("-wal"), 0)
    opened.write(1)


def overwrite(opened: Opened) -> None:
    """Restore a backup that has as many pages into the same file."""
    with closing(opened.connect()) as other:
        other.execute("PRAGMA wal_checkpoint(PASSIVE)")
        assert opened.wrong == []
        other.execute("VACUUM INTO ?", (str(opened.mark.with_suffix(".backup")),))
    opened.path.write_bytes(opened.mark.with_suffix(".backup").read_bytes())


@pytest.mark.parametrize(
    ("accident", "wrong"),
    [
        (lambda opened: opened.path.unlink(), "a.db is missing"),
        (lambda opened: opened.end("-wal").unlink(), "a.db-wal is missing"),
        (lambda opened: opened.end("-shm").unlink(), "a.db-shm is missing"),
        (lambda opened: opened.mark.unlink(), "a.mark is missing"),
        (lambda opened: opened.path.parent.rename(opened.path.parents[1] / "b"), "data is missing"),
        (lambda opened: opened.mark.rename(opened.end("-wal")), "a.db-wal was replaced by another file"),
        (lambda opened: os.truncate(opened.path, 0), "a.db was truncated"),
        (lambda opened: os.truncate(opened.path, 8192), "a.db was truncated"),
        (lambda opened: os.truncate(opened.end("-wal"), 0), "a.db-wal was truncated"),
        (lambda opened: os.truncate(opened.end("-wal"), 50_000), "a.db-wal was truncated"),
        (cut_and_write, "a.db-wal was truncated"),
        (overwrite, "a.db was overwritten"),
        (lambda opened: os.truncate(opened.mark, 100), "a.mark was truncated"),
    ],
)
def test_each_accident_is_found(opened: Opened, accident: Callable[[Opened], object], wrong: str) -> None:
    accident(opened)
    assert wrong in opened.wrong


def test_a_truncated_index_is_found_before_sqlite_touches_it(opened: Opened) -> None:
    size = opened.end("-shm").stat().st_size
    os.truncate(opened.end("-shm"), 0)
    try:
        assert opened.wrong == ["a.db-shm was truncated"]
    finally:
        os.truncate(opened.end("-shm"), size)  # SQLite has it mapped: closing would end this process


def test_a_file_that_is_back_is_right_again(opened: Opened) -> None:
    other = opened.path.with_name("other")
    opened.path.rename(other)
    assert opened.wrong == ["a.db is missing"]
    other.rename(opened.path)
    assert opened.wrong == []


def test_nothing_is_reported_while_the_owner_replaces_the_files(opened: Opened) -> None:
    opened.files.pause()
    opened.path.unlink()
    assert opened.files.examine() is None
    opened.mark.rename(opened.path)
    opened.files.begin()
    assert opened.wrong == []


def test_no_lock_of_sqlite_is_lost(opened: Opened) -> None:
    opened.connection.execute("BEGIN IMMEDIATE")
    assert opened.wrong == []
    # Locks are those of a process: only another one can tell.
    script = (
        "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute('BEGIN IMMEDIATE')"
    )
    called = subprocess.run(
        [sys.executable, "-c", script, str(opened.path)], capture_output=True, text=True, check=False
    )
    assert "database is locked" in called.stderr
