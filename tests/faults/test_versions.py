"""Data of another version: of an earlier one all is read, of a later one nothing is touched.

`golden/` holds what earlier versions left when they were killed: their journal and their database as SQL, with 5 events stored and 20 that
wait. `dead_letters` also has a dead letter with the values 100 and 101, in journal format 1. Whoever changes the form of either adds what
the version before it leaves.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from plugins.extensions.api_keys.keys import digest, owner
from tests.books import lines
from tests.running import KEY, OURS, command, free_port, process, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60)]

GOLDEN = Path(__file__).with_name("golden")
EVENTS = 25
EVENT = {"type": "custom", "value": 1}
DIMENSIONS = {"tool_name": "é", "success": True, "n": None, "count": 2**40}
KEYED = {
    "service": "golden",
    "version": "1.2.3",
    "instance_id": "i",
    "metrics": [
        {
            "type": "tool_execution",
            "value": value,
            "duration_ms": 1.5,
            "timestamp": "2026-11-23T12:00:00Z",
            "dimensions": DIMENSIONS,
            "metadata": {"id": value, "deep": {"a": [1, 2.5, "x", None]}},
        }
        for value in (3, 4)
    ],
}
"""What was pushed under the idempotency key `golden`."""


def lay_out(golden: Path, folder: Path) -> None:
    """The files that a version has left."""
    (folder / "journal").mkdir()
    for name, path in (("journal-events", folder / "journal" / "events.db"), ("metrics", folder / "metrics.db")):
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript((golden / f"{name}.sql").read_text(encoding="utf-8"))
    with closing(sqlite3.connect(folder / "journal" / "events.db")) as connection, connection:
        # They were pushed with another API key, and may be forgotten after a day.
        today, mine = int(time.time() * 1000), owner(digest(KEY))
        connection.execute("UPDATE idempotency SET at_ms = ?, owner = ?", (today, mine))


def flush(base: str) -> None:
    answer = httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=30)
    assert answer.json()["status"] == "success"


def replayed(folder: Path) -> list[int]:
    """Mark every dead letter for a replay. Returns the values that they hold, as `dead-letters show` prints them."""
    path, found = folder / "journal" / "events.db", list[int]()
    if rows(path, "SELECT count(*) FROM dead_letters") == [(0,)]:
        return found
    for id, items in rows(path, "SELECT id, items FROM dead_letters"):
        for action in ("show", "replay"):
            typed = [*OURS, "dead-letters", action, f"events:{id}", "--config", "production"]
            environ = command(folder)[1]
            done = subprocess.run(typed, env=environ, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            if action == "show":
                events = json.loads(done.stdout)["batch"]["events"]
                assert len(events) == items
                found += [event["metadata"]["id"] for event in events]
    return found


def wait_until_replayed(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while rows(folder / "metrics-journal" / "events.db", "SELECT count(*) FROM dead_letters WHERE replay = 1") != [
        (0,)
    ]:
        assert time.monotonic() < deadline, "the marked dead letters were not replayed"
        time.sleep(0.05)


def what_is_wrong(folder: Path) -> list[str]:
    """Start on what is there, have it stored, replay the dead letters, push again what has a key, and look at every event."""
    dead = replayed(folder)
    with process(folder) as (running, base):
        if dead:
            wait_until_replayed(folder)
        headers = {"X-API-Key": KEY, "Idempotency-Key": "golden"}
        answer = httpx.post(f"{base}/metrics", content=json.dumps(KEYED), headers=headers)
        flush(base)
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
    found = rows(folder / "metrics.db", "SELECT value, duration_ms, dimensions, metadata FROM metrics ORDER BY id")
    wrong = []
    if [value for value, *_ in found if value < EVENTS] != list(range(EVENTS)) or len(found) != EVENTS + len(dead):
        wrong.append("lost, twice or out of order")
    if {value for value, *_ in found if value >= EVENTS} != set(dead):
        wrong.append("a dead letter")
    if (answer.status_code, answer.json().get("accepted"), answer.headers.get("idempotent-replay")) != (200, 2, "true"):
        wrong.append("an idempotency key")
    for value, duration, dimensions, metadata in found:
        if json.loads(dimensions) != DIMENSIONS:
            wrong.append(f"{value}: {dimensions}")
        if (duration, json.loads(metadata)) != (1.5, {"id": value, "deep": {"a": [1, 2.5, "x", None]}}):
            wrong.append(f"{value}: {duration}, {metadata}")
    if any(line.pending or line.difference for line in lines(folder / "metrics-journal" / "events.db")):
        wrong.append("the books")
    return wrong


@pytest.mark.parametrize("golden", sorted(GOLDEN.iterdir()), ids=lambda path: path.name)
def test_the_journal_of_an_earlier_version_is_read_to_the_last_event(tmp_path: Path, golden: Path) -> None:
    lay_out(golden, tmp_path)
    assert what_is_wrong(tmp_path) == []


def test_a_version_that_cannot_read_one_of_its_rows_is_found(tmp_path: Path) -> None:
    lay_out(GOLDEN / "first", tmp_path)
    with closing(sqlite3.connect(tmp_path / "journal" / "events.db")) as connection, connection:
        connection.execute("UPDATE journal SET payload = x'c1', crc = crc + 1 WHERE first = 4")
    assert what_is_wrong(tmp_path) == ["lost, twice or out of order"]


def test_a_version_that_does_not_know_its_idempotency_keys_is_found(tmp_path: Path) -> None:
    lay_out(GOLDEN / "first", tmp_path)
    with closing(sqlite3.connect(tmp_path / "journal" / "events.db")) as connection, connection:
        connection.execute("UPDATE idempotency SET digest = substr(digest, 2)")
    assert what_is_wrong(tmp_path) == ["an idempotency key"]


def digests(path: Path) -> dict[str, str]:
    """Of a database and its write-ahead log."""
    files = (path, Path(f"{path}-wal"))
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in files if each.exists()}


def start(folder: Path) -> subprocess.CompletedProcess[str]:
    called, environ = command(folder, METRICS_SERVICE_HOST="127.0.0.1", METRICS_SERVICE_PORT=str(free_port()))
    return subprocess.run(called, env=environ, capture_output=True, text=True, timeout=30, check=False)


LATER = {
    "metrics.db": (
        "INSERT INTO schema_migrations VALUES (9999, 'from_the_future', 'x', '2050-01-01')",
        "has schema version 9999",
        "DELETE FROM schema_migrations WHERE version = 9999",
    ),
    "metrics-journal/events.db": (
        "UPDATE journal SET schema = 3; PRAGMA user_version = 3",
        "has form 3, and this version knows 2",
        "UPDATE journal SET schema = 2; PRAGMA user_version = 2",
    ),
    "metrics-journal/events.db with other tables": (
        "ALTER TABLE journal RENAME COLUMN schema TO form; PRAGMA user_version = 3",
        "has form 3, and this version knows 2",
        "ALTER TABLE journal RENAME COLUMN form TO schema; PRAGMA user_version = 2",
    ),
}
"""By file, what a later version has done to it, what is said of that, and how it is undone."""


@pytest.mark.parametrize("name", LATER)
def test_a_schema_of_a_later_version_is_refused_and_every_file_stays_as_it_is(tmp_path: Path, name: str) -> None:
    change, said, undo = LATER[name]
    with process(tmp_path, FLUSH_INTERVAL_SECONDS="3600") as (running, base):
        push = {"service": "test", "metrics": [EVENT] * 3}
        assert httpx.post(f"{base}/metrics", json=push, headers={"X-API-Key": KEY}).status_code == 200
        running.kill()  # so that what it has accepted is still in the journal
        running.wait()
    path = tmp_path / name.split()[0]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(change)
    before = digests(path)
    ended = start(tmp_path)
    assert (ended.returncode, said in ended.stderr) == (78, True), ended.stderr
    assert digests(path) == before
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(undo)
    with process(tmp_path) as (_, base):  # the control: a version that it knows, it does change
        flush(base)
        assert digests(path) != before
    assert rows(tmp_path / "metrics.db", "SELECT count(*) FROM metrics") == [(3,)]
