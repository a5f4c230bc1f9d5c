"""Syncs that fail, and then a power cut: everything that was answered 200 is stored once (docs/decisions/0017-after-a-failed-sync.md).

With a negative control: a service that answers 200 whether its commit succeeded or not.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.failing_disk import FailingDisk
from tests.faults.filling import Pushers, faults_of, intact, settle
from tests.faults.power import stop
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.test_full_disk import LIAR
from tests.faults.test_power_cut import BUSY, plugin
from tests.running import process

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 900))]

RUNS = sized(1, 4)
"""Each with six syncs that fail."""
FILES = sized(1, 2)
"""Of the two databases."""
WAL, DATABASE_WAL = "/journal/events.db-wal", "/data/metrics.db-wal"
IO_ERROR = 74
"""EX_IOERR of sysexits.h."""


@contextmanager
def served(
    folder: Path, disk: FailingDisk, *arguments: str, files: str, syncs: tuple[int, ...] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The service on that disk."""
    variables = disk.variables(files, *syncs)
    with process(folder, *arguments, FLUSH_INTERVAL_SECONDS="0.1", **variables) as started:
        yield started


def check_stored(folder: Path, disk: FailingDisk, pushers: Pushers) -> dict[str, Any]:
    """Start it on a disk that is mended, and see what is there."""
    with process(folder, SQLITE_DB_PATH=str(disk.data / "metrics.db")) as (running, base):
        settle(base, 20)
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
    assert intact(disk.data)
    return faults_of(pushers, disk.data / "metrics.db")


def cut_off(running: subprocess.Popen[bytes], disk: FailingDisk, pushers: Pushers) -> None:
    """The power is cut."""
    stop(running)
    time.sleep(0.1)  # what is on the wire was answered before the cut
    pushers.ending = True
    running.kill()
    running.wait()
    pushers.end()
    disk.cut()


def until_failures(disk: FailingDisk, count: int) -> None:
    """Wait until so many syncs have failed."""
    deadline = time.monotonic() + sized(20, 120)  # an exporter that fails takes its time
    while disk.failures() < count:
        assert time.monotonic() < deadline, f"{disk.failures()} of {count} syncs have failed"
        time.sleep(0.05)


def fail_now_and_then(folder: Path, disk: FailingDisk, files: str, syncs: tuple[int, ...], *arguments: str) -> Pushers:
    """These syncs fail, then all for a while, and then the power is cut."""
    with served(folder, disk, *arguments, files=files, syncs=syncs) as (running, base), Pushers(base) as pushers:
        until_failures(disk, len(syncs))
        pushers.wait_for(200, more=20, seconds=10)
        disk.fail()
        until_failures(disk, len(syncs) + 3)
        if files == WAL:
            health = httpx.get(f"{base}/health/ready", timeout=5)
            assert health.status_code == 503
            assert "the journal cannot be written" in health.json()["components"]["journal/events"]
        disk.recover()
        pushers.wait_for(200, more=20, seconds=5)
        assert pushers.wrong == []
        cut_off(running, disk, pushers)
    return pushers


@pytest.mark.parametrize("number", range(RUNS))
@pytest.mark.parametrize("files", [WAL, DATABASE_WAL][:FILES])
def test_what_a_failed_sync_of_the_log_did_not_write_is_written_again(
    tmp_path: Path, files: str, number: int, report: Report
) -> None:
    disk = FailingDisk(tmp_path)
    syncs = tuple(random.Random(f"{files} {number}").sample(range(30, 80), 6))  # behind those of the start
    pushers = fail_now_and_then(tmp_path, disk, files, syncs)
    assert pushers.statuses[503] > 0 or files != WAL
    found = check_stored(tmp_path, disk, pushers)
    report(failed_syncs=len(syncs), acknowledged=len(pushers.acknowledged), wrong=len(found))
    assert found == {}


def test_the_same_finds_a_service_that_answers_200_although_the_sync_failed(tmp_path: Path, report: Report) -> None:
    disk = FailingDisk(tmp_path)
    pushers = fail_now_and_then(tmp_path, disk, WAL, (), *plugin(tmp_path, LIAR))
    found = check_stored(tmp_path, disk, pushers)
    assert "lost" in found
    report(control="found", lost=len(found.get("lost", ())))


def start_anew(folder: Path, disk: FailingDisk, files: str, *arguments: str) -> dict[str, Any]:
    """Kill it after a sync that failed, start it again, and cut the power: what is wrong then."""
    with served(folder, disk, *arguments, files=files) as (running, base), Pushers(base) as pushers:
        pushers.wait_for(200, more=20, seconds=10)
        disk.fail()
        until_failures(disk, 1)
        pushers.ending = True
        running.kill()
        running.wait()
    disk.recover()
    with served(folder, disk, *arguments, files=files) as (running, base), Pushers(base, pushers) as pushers:
        pushers.wait_for(200, more=50, seconds=10)
        cut_off(running, disk, pushers)
    return check_stored(folder, disk, pushers)


@pytest.mark.parametrize("files", [WAL, DATABASE_WAL][:FILES])
def test_a_start_after_a_failed_sync_builds_on_nothing_that_is_not_on_the_disk(tmp_path: Path, files: str) -> None:
    assert start_anew(tmp_path, FailingDisk(tmp_path), files) == {}


BELIEVER = """
import pipeline.journal_opening
from pipeline import hookimpl

pipeline.journal_opening.write_again = lambda log: None


@hookimpl
def declare_components():
    return []
"""
"""A service that takes what it finds in the log for what is on the disk."""


def test_the_same_start_finds_a_service_that_believes_what_it_reads(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="lost"):
        assert start_anew(tmp_path, FailingDisk(tmp_path), WAL, *plugin(tmp_path, BELIEVER)) == {}


@pytest.mark.parametrize("file", ["/journal/events.db", "/metrics.db"])
def test_a_failed_sync_of_the_file_itself_ends_the_process(tmp_path: Path, file: str) -> None:
    disk = FailingDisk(tmp_path)
    arguments = plugin(tmp_path, BUSY)
    with served(tmp_path, disk, *arguments, files=file) as (running, base), Pushers(base) as pushers:
        pushers.wait_for(200, more=20, seconds=10)
        pushers.ending = True
        disk.fail()
        assert running.wait(20) == IO_ERROR
        pushers.end()
    assert set(pushers.statuses) <= {200, 503}
    disk.cut()
    assert check_stored(tmp_path, disk, pushers) == {}
