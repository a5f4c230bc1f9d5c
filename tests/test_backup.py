"""A backup under load is one moment's state, whole or not there; restored, nothing is missing that it or the journal holds."""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from pipeline import EventBatch, FileLock
from pipeline.journal_format import decode_group
from tests.faults.test_kill import METRICS, Books, client, stored
from tests.running import KEY, OURS, environment, process

pytestmark = pytest.mark.timeout(120)

NEVER = {"FLUSH_INTERVAL_SECONDS": "3600", "BATCH_SIZE": "1000000"}
"""So that what is accepted stays in the journal."""


def backup(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`metrics-service backup` of the database there, into `backups` beside it."""
    environ = os.environ | environment(folder, METRICS_BACKUP_DIR=str(folder / "backups"))
    command = [*OURS, "backup", "--config", "production", *words]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)


def made(folder: Path) -> list[Path]:
    """The backups that are there, the oldest first."""
    return sorted((folder / "backups").glob("*.gz"))


def unpacked(packed: Path, to: Path) -> Path:
    to.write_bytes(gzip.decompress(packed.read_bytes()))
    return to


@contextmanager
def load(base: str, books: Books) -> Iterator[None]:
    """Four clients that push as fast as they are answered."""
    ended = threading.Event()
    clients = [threading.Thread(target=client, args=(base, books, number, ended), daemon=True) for number in range(4)]
    for each in clients:
        each.start()
    try:
        yield
    finally:
        ended.set()
        for each in clients:
            each.join(10)


def acknowledge(books: Books, more: int) -> set[str]:
    """Wait until so many more pushes were answered 200: all of them until now."""
    wanted, deadline = len(books.acknowledged) + more, time.monotonic() + 30
    while len(books.acknowledged) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return set(books.acknowledged)


def flush(base: str) -> None:
    answer = httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=30)
    assert answer.json()["status"] == "success"


def in_journal(folder: Path) -> set[str]:
    """The pushes that the journal of events holds."""
    with closing(sqlite3.connect(folder / "metrics-journal" / "events.db")) as connection:
        payloads = [payload for (payload,) in connection.execute("SELECT payload FROM journal")]
    batches = [batch for payload in payloads for batch in decode_group(payload)]
    assert all(isinstance(batch, EventBatch) for batch in batches)
    return {str(event.metadata["id"]) for batch in batches for event in batch.events}  # type: ignore[union-attr]


def test_a_backup_under_load_holds_what_was_stored_and_beside_the_journal_nothing_more_is_lost(tmp_path: Path) -> None:
    books, database = Books(), tmp_path / "metrics.db"
    with process(tmp_path, FLUSH_INTERVAL_SECONDS="0.2") as (_, base), load(base, books):
        before = acknowledge(books, 100)
        flush(base)
        ended = backup(tmp_path)
        assert (ended.returncode, ended.stderr) == (0, "")
        after = acknowledge(books, 100)
        flush(base)
    (packed,) = made(tmp_path)
    copy = stored(unpacked(packed, tmp_path / "copy.db"))
    assert before <= copy.keys() <= books.sent
    assert set(copy.values()) == {METRICS}, "a push is there as a whole or not at all"
    assert after - copy.keys(), "it went on, so what is compared can differ"
    with process(tmp_path, **NEVER) as (_, base), load(base, books):
        acknowledge(books, 50)
    held = in_journal(tmp_path)
    assert len(held - copy.keys()) >= 50
    for each in tmp_path.glob("metrics.db*"):
        each.unlink()
    shutil.copy(tmp_path / "copy.db", database)
    with process(tmp_path) as (_, base):
        flush(base)
        rows = stored(database)
        assert rows.keys() == copy.keys() | held
        assert set(rows.values()) == {METRICS}
        earlier = set(books.acknowledged)
        with load(base, books):
            acknowledge(books, 20)
        flush(base)
    assert books.acknowledged - earlier <= stored(database).keys(), "new ones are stored behind the old"


def test_a_database_that_is_damaged_gives_no_backup_and_costs_no_old_one(tmp_path: Path) -> None:
    with process(tmp_path) as (service, base), load(base, books := Books()):
        acknowledge(books, 200)
        flush(base)
        service.terminate()
        service.wait(20)
    old = tmp_path / "backups" / "metrics_20200101_000000.db.gz"
    old.parent.mkdir()
    for each in (old, old.with_name("metrics_20200102_000000.db.gz")):
        each.touch()
    database = tmp_path / "metrics.db"
    with database.open("r+b") as file:
        file.seek(database.stat().st_size // 2)
        file.write(b"\xff" * 20_000)
    ended = backup(tmp_path)
    assert (ended.returncode, ended.stdout) == (73, "")
    assert ended.stderr.startswith(("error: cannot copy the database ", "error: the database "))
    assert len(made(tmp_path)) == 2
    assert [each.name for each in old.parent.iterdir() if "unfinished" in each.name] == []


def empty(folder: Path) -> Path:
    """A database without rows, and the folder of its backups."""
    environ = os.environ | environment(folder)
    subprocess.run([*OURS, "migrate", "up"], env=environ, check=True, capture_output=True)
    (folder / "backups").mkdir()
    return folder / "backups"


def test_old_backups_go_and_those_of_others_stay(tmp_path: Path) -> None:
    folder = empty(tmp_path)
    now = datetime.now(UTC)
    old, recent = (f"metrics_{now - timedelta(days=days):%Y%m%d_%H%M%S}.db.gz" for days in (31, 29))
    others = ["staging_metrics_20200101_000000.db.gz", "metrics_by_hand.db.gz", "metrics_20200101_000000.db"]
    for name in (old, recent, *others, ".metrics_20200101_000000.db.unfinished"):
        (folder / name).touch()
    ended = backup(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[1:] == [f"deleted {folder / old}"]
    names = {each.name for each in folder.iterdir()} - {".metrics.lock"}
    (new,) = names - {recent, *others}
    assert (folder / new).stat().st_mode & 0o777 == 0o640
    assert backup(tmp_path, "--keep", "0").returncode == 0
    assert len([each for each in made(tmp_path) if each.name.startswith("metrics_2")]) == 1, "the newest always stays"


def test_one_backup_at_a_time(tmp_path: Path) -> None:
    lock = FileLock(empty(tmp_path) / ".metrics.lock")
    lock.acquire()
    try:
        ended = backup(tmp_path)
    finally:
        lock.release()
    assert ended.returncode == 73
    assert made(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "extensions.database.backups="], "no folder for the backup (must be named here, or by METRICS_BACKUP_DIR)"),
        ([], "there is no database "),
        (["--keep", "long"], "'long' is no age (for example 30d)"),
    ],
)  # fmt: skip
def test_what_cannot_be_backed_up_is_a_mistake(tmp_path: Path, words: list[str], said: str) -> None:
    ended = backup(tmp_path, *words)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert list(tmp_path.iterdir()) == []
