"""What is left open and no more: `durability: crash` under `kill -9`, and a database that is restored from a backup."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.faults.test_kill import METRICS, kill_rounds, stored
from tests.running import KEY, process, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

CRASH = ("--set", "processors.batch.durability=crash")


def test_kill_9_loses_nothing_under_crash_either(tmp_path: Path) -> None:
    books = kill_rounds(tmp_path, 2, "uvicorn", *CRASH)
    found = stored(tmp_path / "metrics.db")
    assert len(books.acknowledged) > 100
    assert books.acknowledged - found.keys() == set(), "lost"
    assert {push for push, count in found.items() if count != METRICS} == set(), "stored in part or twice"


def push(base: str, *names: str) -> None:
    for name in names:
        metric = {"type": "custom", "value": 1, "metadata": {"id": name}}
        answer = httpx.post(
            f"{base}/metrics", json={"service": "test", "metrics": [metric]}, headers={"X-API-Key": KEY}
        )
        assert answer.status_code == 200


def flush(base: str) -> None:
    assert httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=30).json()["status"] == "success"


def restored(folder: Path, journal: str) -> list[str]:
    """What is stored after a restore, of `a` from before the backup, `b` stored after it, and `c` that waited in the journal."""
    with process(folder, FLUSH_INTERVAL_SECONDS="3600") as (running, base):
        push(base, "a")
        flush(base)
        with closing(sqlite3.connect(folder / "metrics.db")) as connection:
            connection.execute("VACUUM INTO ?", (str(folder / "backup.db"),))
        push(base, "b")
        flush(base)
        push(base, "c")
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
    for end in ("", "-wal", "-shm"):
        (folder / f"metrics.db{end}").unlink(missing_ok=True)
    (folder / "backup.db").rename(folder / "metrics.db")
    if journal == "lost":
        for path in (folder / "metrics-journal").iterdir():
            path.unlink()
    arguments = ["--accept-journal-reset"] if journal == "lost" else []
    with process(folder, *arguments) as (_, base):
        push(base, "d")
        flush(base)
    return [str(id) for (id,) in rows(folder / "metrics.db", "SELECT json_extract(metadata, '$.id') FROM metrics")]


def test_a_restored_backup_has_what_it_had_and_gets_what_the_journal_still_holds(tmp_path: Path) -> None:
    found = restored(tmp_path, "kept")
    assert sorted(found) == sorted(set(found)), "stored twice"
    assert {"a", "c", "d"} <= set(found)


def test_a_restore_that_leaves_the_journal_behind_is_found(tmp_path: Path) -> None:
    assert restored(tmp_path, "lost") == ["a", "d"]
