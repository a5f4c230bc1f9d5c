"""Syncs that fail, and then a power cut: everything that was answered 200 is stored once (docs/decisions/0017-after-a-failed-sync.md).

With a negative control: a service that answers 200 whether its commit succeeded or not.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.changed import BUSY, plugin
from tests.faults.failing_disk import FailingDisk
from tests.faults.filling import Pushers, faults_of, intact, settle
from tests.faults.power import stop
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.test_full_disk import LIAR
from tests.running import command, free_port, process, wait_until_healthy

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 900))]

RUNS = sized(1, 4)
"""Each with six syncs that fail."""
FILES = sized(1, 2)
"""Of the two databases."""
WAL, DATABASE_WAL = "/metrics-journal/events.db-wal", "/data/metrics.db-wal"
ANY = ""
"""Every file of theirs."""
FIRST = (1, 50, 66) if sized(1, 0) else tuple(range(1, 70, 2))
"""Which sync fails of a first start, which has some sixty, or of the first pushes."""
CANNOT_CREATE, IO_ERROR = 73, 74
"""EX_CANTCREAT and EX_IOERR of sysexits.h."""


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
    syncs = tuple(random.Random(f"{files} {number}").sample(range(50, 100), 6))  # behind those of the start
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


def start_with_a_failing_sync(
    folder: Path, disk: FailingDisk, sync: int, *arguments: str
) -> tuple[int | None, Pushers]:
    """Start it where that sync fails, whichever file it is of, push if it runs, and cut the power: with which code it ended before, if it
    did."""
    port, scraped = free_port(), free_port()
    chosen = {
        "METRICS_SERVICE_PORT": str(port),
        "OTEL_PROMETHEUS_PORT": str(scraped),
        "METRICS_SERVICE_HOST": "127.0.0.1",
    }
    called, environ = command(folder, *arguments, **chosen, **disk.variables(ANY, sync))
    log, pushers = folder / "service.log", Pushers(f"http://127.0.0.1:{port}")
    pushers.ending = True  # it may end meanwhile
    with log.open("ab") as file:
        running = subprocess.Popen(called, env=environ, stderr=file, cwd=folder, start_new_session=True)
    try:
        with suppress(AssertionError):  # it ended
            wait_until_healthy(f"http://127.0.0.1:{port}", running, log)
        with pushers:
            deadline = time.monotonic() + 20
            while running.poll() is None and (disk.failures() < 1 or len(pushers.acknowledged) < 20):
                assert time.monotonic() < deadline, f"{disk.failures()} syncs have failed, {pushers.statuses}"
                time.sleep(0.02)
            ended = running.poll()
    finally:
        running.kill()
        running.wait()
    disk.cut()
    return ended, pushers


@pytest.mark.parametrize("sync", FIRST)
def test_a_sync_that_fails_at_the_start_ends_it_or_costs_nothing(tmp_path: Path, sync: int, report: Report) -> None:
    disk = FailingDisk(tmp_path)
    ended, pushers = start_with_a_failing_sync(tmp_path, disk, sync)
    assert disk.failures() == 1
    assert ended in (None, CANNOT_CREATE, IO_ERROR)
    found = check_stored(tmp_path, disk, pushers)
    report(failed_syncs=1, ended=str(ended), acknowledged=len(pushers.acknowledged), wrong=len(found))
    assert found == {}


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


@pytest.mark.parametrize("file", ["/metrics-journal/events.db", "/metrics.db"])
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
