"""`kill -9` of commands that write: a migration is applied or not, a backup is whole or not there, and the next run completes.

With its negative controls: a migrator without transactions, and a backup that is written under its own name.
"""

from __future__ import annotations

import gzip
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.faults.changed import plugin
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.running import OURS, environment, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 600))]

KILL = """
import os
import signal

from pipeline import hookimpl
import plugins.extensions.database.migrator as migrator

Connection = migrator.aiosqlite.Connection
execute, count = Connection.execute, 0


async def execute_or_die(self, statement, *parameters):
    global count
    writes = not statement.lstrip().upper().startswith(("SELECT", "PRAGMA"))
    count += writes
    if writes and count == AT:
        os.kill(os.getpid(), signal.SIGKILL)
    return await execute(self, statement, *parameters)


Connection.execute = execute_or_die


@hookimpl
def declare_components():
    return []
"""
"""A command that is killed before its statement number AT that writes."""
WITHOUT_TRANSACTIONS = """
from contextlib import asynccontextmanager


@asynccontextmanager
async def immediate(connection):
    yield


migrator.immediate = immediate
"""
IN_PLACE = """
import sys
from contextlib import contextmanager

import plugins.extensions.database.backup_command
from pipeline import hookimpl


@contextmanager
def under_its_own_name(path):
    yield path


sys.modules["plugins.extensions.database.backup"]._whole_or_not_there = under_its_own_name


@hookimpl
def declare_components():
    return []
"""
MOMENTS = (11,)
"""Which of these statements the command does not get to; with SOAK, every one."""
ROWS = 20_000
"""Of 400 bytes that do not compress well, so that a backup takes a while."""
BACKUPS = sized(1, 10)
"""At each moment of a backup."""


def called(folder: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    """A command, and its environment."""
    variables = environment(folder, METRICS_BACKUP_DIR=str(folder / "backups"))
    return [*OURS, *words, "--config", "production"], os.environ | variables


def run(folder: Path, *words: str) -> int:
    """Its exit code."""
    typed, environ = called(folder, *words)
    return subprocess.run(typed, cwd=folder, env=environ, capture_output=True, timeout=60, check=False).returncode


def made_with_rows(folder: Path, count: int, *words: str) -> None:
    """A database with the first migrations and so many rows."""
    assert run(folder, "migrate", "up", *words) == 0
    add = """INSERT INTO metrics (request_id, service, timestamp, metric_type, value, metadata, created_at)
        VALUES ('r', 'test', '2026-01-01T00:00:00Z', 'custom', ?, hex(randomblob(200)), '2026-01-01T00:00:00Z')"""
    with closing(sqlite3.connect(folder / "metrics.db")) as connection, connection:
        connection.executemany(add, ((value,) for value in range(count)))


def schema_of(folder: Path) -> list[tuple[str, str]]:
    """What there is, and how it was made; and the numbers of the migrations."""
    made = rows(folder / "metrics.db", "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
    return [*made, *rows(folder / "metrics.db", "SELECT version, name FROM schema_migrations ORDER BY 1")]


def killed_at(database: Path, folder: Path, moment: int, text: str = "") -> bool:
    """Kill a migration of a copy of that database before that statement, and run it again: whether it got so far. Fails if its ten rows
    are gone, or the second run does not go on where the first ended."""
    folder.mkdir()
    shutil.copy(database, folder)
    ended = run(folder, "migrate", "up", *plugin(folder, KILL.replace("AT:", f"{moment}:") + text))
    assert ended in (0, -signal.SIGKILL)
    assert run(folder, "migrate", "up") == 0, f"after a kill before statement {moment}"
    assert rows(folder / "metrics.db", "SELECT value FROM metrics ORDER BY 1") == [(value,) for value in range(10)]
    return ended != 0


def test_a_migration_that_is_killed_is_applied_or_not_and_the_next_run_goes_on(tmp_path: Path, report: Report) -> None:
    made_with_rows(tmp_path, 10, "--to", "1")
    (tmp_path / "before").mkdir()
    before = Path(shutil.copy(tmp_path / "metrics.db", tmp_path / "before"))
    assert run(tmp_path, "migrate", "up") == 0
    kills = 0
    for moment in MOMENTS if sized(1, 0) else itertools.count(1):
        folder = tmp_path / str(moment)
        if not killed_at(before, folder, moment):
            break
        kills += 1
        assert schema_of(folder) == schema_of(tmp_path)
    assert kills >= len(MOMENTS)
    report(kills=kills)


def test_a_migrator_without_transactions_is_found(tmp_path: Path) -> None:
    made_with_rows(tmp_path, 10, "--to", "1")
    with pytest.raises(AssertionError, match="after a kill before statement"):
        killed_at(tmp_path / "metrics.db", tmp_path / "wrong", 6, WITHOUT_TRANSACTIONS)


def broken(folder: Path) -> list[str]:
    """The backups of ROWS rows that are not whole."""
    found = []
    for packed in folder.glob("backups/*.gz"):
        copy = folder / "copy.db"
        try:
            copy.write_bytes(gzip.decompress(packed.read_bytes()))
            whole = rows(copy, "SELECT count(*) FROM metrics") + rows(copy, "PRAGMA integrity_check")
        except (EOFError, OSError, sqlite3.DatabaseError) as error:
            whole = [(repr(error),)]
        if whole != [(ROWS,), ("ok",)]:
            found.append(f"{packed.name}: {whole}")
    return found


def kill_while_writing(folder: Path, pattern: str, *words: str) -> None:
    """Kill a backup as soon as it has begun to write a file of that name."""
    typed, environ = called(folder, "backup", *words)
    left = unfinished(folder, pattern)
    running = subprocess.Popen(typed, cwd=folder, env=environ, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    try:
        while not unfinished(folder, pattern) - left:
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        running.kill()
        ended = running.wait()
    assert ended == -signal.SIGKILL


def unfinished(folder: Path, pattern: str) -> set[tuple[str, int]]:
    """Such files that have content, and when that was written; those of one second have the same name."""
    found = set()
    for path in folder.glob(f"backups/{pattern}"):
        with suppress(FileNotFoundError):
            if (there := path.stat()).st_size:
                found.add((path.name, there.st_mtime_ns))
    return found


def test_a_backup_that_is_killed_is_not_taken_for_one_and_the_next_is_whole(tmp_path: Path, report: Report) -> None:
    made_with_rows(tmp_path, ROWS)
    for pattern in (".*.db.unfinished", ".*.db.gz.unfinished") * BACKUPS:  # as it copies, and as it compresses
        kill_while_writing(tmp_path, pattern)
        assert list(tmp_path.glob("backups/*.gz")) == []
        assert list(tmp_path.glob(f"backups/{pattern}")) != []
    assert run(tmp_path, "backup") == 0
    assert len(list(tmp_path.glob("backups/*.gz"))) == 1
    assert broken(tmp_path) == []
    assert list(tmp_path.glob("backups/.*.unfinished")) == [], "what was left is gone"
    assert rows(tmp_path / "metrics.db", "SELECT count(*) FROM metrics") == [(ROWS,)]
    report(kills=2 * BACKUPS)


def test_a_backup_that_is_written_under_its_own_name_is_found(tmp_path: Path) -> None:
    made_with_rows(tmp_path, ROWS)
    kill_while_writing(tmp_path, "*.gz", *plugin(tmp_path, IN_PLACE))
    assert broken(tmp_path) != []
