"""Files of a running service are removed, moved, replaced or truncated: within a second pushes are refused; nothing acknowledged is lost.

SOAK runs every file with every accident, idle and under load, and 50 random rounds. The negative control is a service that examines
nothing.
"""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from itertools import product
from pathlib import Path

import httpx
import pytest

from tests.faults.changed import BUSY
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.vanishing import (
    BLIND,
    FILES,
    IO_ERROR,
    Accident,
    Data,
    TimedPushers,
    accident_under_load,
    accident_when_idle,
    move,
    moved,
    overwrite,
    remove,
    replace,
    started_again,
    truncate,
)
from tests.running import KEY, environment, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 1800))]

ROUNDS = sized(3, 50)
CASES: list[tuple[str, Accident, bool]] = [
    ("metrics.db", remove, True),
    ("metrics.db", replace, False),
    ("metrics.db-wal", remove, True),
    ("metrics-journal/events.db", remove, True),
    ("metrics-journal/events.db-wal", replace, True),
    ("", remove, True),
]
if sized(0, 1):
    CASES = list(product(FILES, (remove, replace), (True, False)))
BACK = [("metrics.db", True), ("metrics-journal", False)] if sized(1, 0) else list(product(FILES, (True, False)))
CUT = [("metrics.db-wal", True), ("metrics.db", False), ("metrics-journal/events.mark", True)]
if sized(0, 1):
    CUT = list(product([name for name in FILES if "." in name and not name.endswith(".lock")], (True, False)))
HOLDS_NOTHING = (".mark", "-shm")
"""Files that hold no events: their loss costs none."""


def name_of(value: object) -> str:
    """How a case is called."""
    return getattr(value, "__name__", None) or {True: "load", False: "idle", "": "data"}.get(value, str(value))


@pytest.mark.parametrize(("name", "accident", "load"), CASES, ids=name_of)
def test_a_file_that_is_gone_ends_the_service_and_loses_nothing(
    tmp_path: Path, name: str, accident: Accident, load: bool, report: Report
) -> None:
    data = Data.made(tmp_path)
    path = data.path / name
    pushers = (accident_under_load if load else accident_when_idle)(data, path, accident)
    assert data.problems == []
    first, last = (line for line in data.lines("presence") if str(path) in line)
    assert "pushes are refused" in first
    assert "the service ends" in last
    started_again(data, pushers)
    assert data.problems == []
    report(acknowledged=len(pushers.acknowledged), lost=0)


@pytest.mark.parametrize(("name", "load"), BACK, ids=name_of)
def test_a_file_that_comes_back_is_used_again(tmp_path: Path, name: str, load: bool) -> None:
    data = Data.made(tmp_path)
    path = data.path / name
    meet = accident_under_load if load else accident_when_idle
    pushers = meet(data, path, move, back=lambda: moved(path).rename(path))
    assert data.problems == []
    refused, accepted = data.lines("presence")
    assert str(path) in refused
    assert "accepted" in accepted
    started_again(data, pushers)
    assert data.problems == []
    assert data.copies() == []


@pytest.mark.parametrize(("name", "load"), CUT, ids=name_of)
def test_a_file_that_is_truncated_ends_the_service(tmp_path: Path, name: str, load: bool) -> None:
    data = Data.made(tmp_path)
    meet = accident_under_load if load else accident_when_idle
    pushers = meet(data, data.path / name, truncate)
    assert data.problems == []
    if name == "metrics.db":
        assert data.refused_start()
    elif name.endswith(HOLDS_NOTHING):
        started_again(data, pushers)
        assert data.problems == []


@pytest.mark.parametrize("load", [True, False][: sized(1, 2)], ids=name_of)
def test_a_database_that_is_overwritten_ends_the_service_and_needs_a_person(tmp_path: Path, load: bool) -> None:
    data = Data.made(tmp_path)
    (accident_under_load if load else accident_when_idle)(data, data.path / "metrics.db", overwrite)
    assert data.problems == []
    assert data.refused_start()
    assert [*data.path.glob("metrics.db-wal.replaced-*")]


def one_round(data: Data, name: str, accident: Accident) -> int:
    """Something happens to a file under load; then it is put back, or replaced by its copy. Returns how many pushes were acknowledged."""
    path = data.path / name
    pushers = accident_under_load(data, path, accident)
    if accident is move and name in ("", "metrics-journal"):  # a person finds it
        for copy in data.copies():
            shutil.rmtree(copy)
        if path.exists():
            shutil.rmtree(path)
        moved(path).rename(path)
    started_again(data, pushers)
    return len(pushers.acknowledged)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_random_file_disappears_under_load(tmp_path: Path, number: int, report: Report) -> None:
    chance = random.Random(f"{number} {sized(0, time.time_ns())}")
    name, accident = chance.choice(FILES), chance.choice((remove, move, replace))
    data = Data.made(tmp_path)
    acknowledged = one_round(data, name, accident)
    assert data.problems == [], (name, accident)
    report(rounds=1, acknowledged=acknowledged, lost=0)


def test_the_same_finds_a_service_that_examines_nothing(tmp_path: Path, report: Report) -> None:
    data = Data.made(tmp_path, BLIND)
    pushers = accident_under_load(data, data.path / "metrics.db", remove)
    assert any("acknowledged" in problem for problem in data.problems)
    assert data.copies() == []
    with pytest.raises(AssertionError, match=r"metrics\.db is missing"):
        started_again(data, pushers)
    report(control="found")


def test_a_stop_while_a_file_is_missing_saves_its_content(tmp_path: Path) -> None:
    data = Data.made(tmp_path)
    with data.service() as (running, base), TimedPushers(base, pace=0.02) as pushers:
        pushers.wait_for(200, more=100, seconds=20)
        pushers.ending = True
        (data.path / "metrics.db").unlink()
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == IO_ERROR
    started_again(data, pushers)
    assert data.problems == []


def run(data: Data, *arguments: str) -> None:
    """A command beside the service."""
    environ = environment(data.folder, SQLITE_DB_PATH=str(data.path / "metrics.db"))
    called = [sys.executable, "-m", "pipeline.cli", *arguments, "--config", "production"]
    subprocess.run(called, env=environ, cwd=data.folder, check=False, capture_output=True, timeout=60)


def look_with_sqlite(file: Path, *statements: str) -> None:
    """Another program uses a database."""
    with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement).fetchall()


def test_usual_work_is_not_taken_for_an_accident(tmp_path: Path, report: Report) -> None:
    """Checkpoints, commands and other programs beside the service, a reload, SIGSTOP, and a journal that is set aside."""
    data = Data.made(tmp_path, BUSY)
    database, journal = data.path / "metrics.db", data.path / "metrics-journal" / "events.db"
    until = time.monotonic() + sized(0, 600)
    with data.service() as (running, base), TimedPushers(base, pace=0.01) as pushers:
        rounds = 0
        while rounds == 0 or time.monotonic() < until:
            rounds += 1
            run(data, "keys", "create", "--service", "another")
            run(data, "migrate", "up")
            run(data, "backup", str(tmp_path / "backups"))
            run(data, "doctor")
            for file in (database, journal):
                look_with_sqlite(file, "SELECT count(*) FROM sqlite_schema", "PRAGMA wal_checkpoint(TRUNCATE)")
            look_with_sqlite(database, "PRAGMA wal_checkpoint(RESTART)", "VACUUM")
            (data.path / "metrics-journal" / "reserve.bin").unlink(missing_ok=True)
            running.send_signal(signal.SIGHUP)
            pushers.wait_for(200, more=200, seconds=30)
            running.send_signal(signal.SIGSTOP)
            time.sleep(1.5)
            running.send_signal(signal.SIGCONT)
            pushers.wait_for(200, more=200, seconds=30)
        pushers.end()
        assert httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=60).json()["status"] == "success"
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
    assert data.lines("presence") == []
    assert pushers.statuses.keys() == {200}
    ((stored,),) = rows(database, "SELECT count(*) FROM metrics")
    assert stored == 2 * len(pushers.acknowledged)
    report(rounds=rounds, acknowledged=len(pushers.acknowledged), alarms=0)
