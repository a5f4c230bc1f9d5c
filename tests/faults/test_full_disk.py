"""A full disk: pushes are refused, nothing that was answered 200 is lost, and room is all it takes to go on.

With negative controls: a service that answers 200 whether its commit succeeded or not, one that does not try again, and one that has no
reserve to delete with.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import httpx
import pytest

from tests.faults.changed import plugin
from tests.faults.filling import Ballast, settle
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.small_disk import HOLD, RECOVERY, Victim, ext4, started, tmpfs, victim
from tests.programs import need
from tests.running import KEY, process

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 600))]

MIB = 2**20
ONE = {"service": "test", "metrics": [{"type": "custom", "value": 1}]}


def reserve(size: str) -> tuple[str, str]:
    """The arguments for a reserve of that size."""
    return "--set", f"processors.batch.reserve={size}"


def push_old(base: str) -> None:
    """Push what retention will delete."""
    metric = {"type": "custom", "value": 1, "timestamp": "2020-01-01T00:00:00Z", "metadata": {"padding": "x" * 900}}
    for _ in range(10):
        body = {"service": "test", "metrics": [metric] * 50}
        httpx.post(f"{base}/metrics", json=body, headers={"X-API-Key": KEY}, timeout=10).raise_for_status()


def recover(found: Victim) -> dict[str, int | str]:
    """There is room again: what there is to report."""
    seconds = found.pushers.wait_for(200, more=1, seconds=RECOVERY)
    found.end()
    accepted, refused = len(found.pushers.acknowledged), found.pushers.statuses[503]
    return {
        "acknowledged": accepted,
        "refused": refused,
        "lost": 0,
        "recovered within": f"{seconds:.2f} s",
        "books": "exact",
    }


def hold(found: Victim, seconds: int, *, refusing: bool) -> None:
    """There is no room for a while: it lives, and refuses."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found.check_alive()
        if refusing:
            assert found.health()[0] == 503
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("small", "size", "seconds"),
    [(ext4, "8MiB", HOLD), (tmpfs, "0", HOLD), (tmpfs, "8MiB", 2), (ext4, "0", 2)][: sized(2, 4)],
)
def test_a_full_disk_is_refused_for_as_long_as_it_lasts(
    tmp_path: Path, small: Callable[[Path], AbstractContextManager[Path]], size: str, seconds: int, report: Report
) -> None:
    with small(tmp_path) as data, victim(tmp_path, data, *reserve(size)) as found:
        push_old(found.base)
        settle(found.base, 20)
        ballast = Ballast(data / "ballast")
        ballast.fill()
        found.pushers.wait_for(503, more=20, seconds=RECOVERY)
        assert "disk" in found.wait_until_unhealthy()
        hold(found, seconds, refusing=size != "0")
        # Deleting takes room, too: without a reserve there is none.
        assert found.clean_up() == (503 if size == "0" else 200)
        ballast.remove()
        report(full_seconds=seconds, **recover(found))


def test_on_a_disk_that_is_nearly_full_a_service_starts_shows_what_it_has_and_refuses(tmp_path: Path) -> None:
    with tmpfs(tmp_path) as data:
        with process(tmp_path, *reserve("8MiB"), SQLITE_DB_PATH=str(data / "metrics.db")) as (running, base):
            push_old(base)
            running.send_signal(signal.SIGTERM)
            assert running.wait(20) == 0
        ballast = Ballast(data / "ballast")
        for room in (6 * MIB, 0):
            ballast.fill(leaving=room)
            with started(tmp_path, data, *reserve("8MiB")) as found:
                assert "disk" in found.wait_until_unhealthy()
                found.check_alive()
                answer = httpx.post(f"{found.base}/metrics", json=ONE, headers={"X-API-Key": KEY}, timeout=5)
                assert answer.status_code == 503
                ballast.remove()
                with found.pushers:
                    found.pushers.wait_for(200, more=1, seconds=RECOVERY)
                found.pushers.ending = True


def test_at_a_limit_for_files_nothing_is_lost(tmp_path: Path, report: Report) -> None:
    """SQLite calls that an I/O error, as it does a quota."""
    prlimit = need("prlimit", "util-linux")
    with tmpfs(tmp_path) as data, victim(tmp_path, data, *reserve("1MiB")) as found:
        limit = [prlimit, "--pid", str(found.running.pid)]
        largest = max(each.stat().st_size for each in data.rglob("*") if each.is_file())
        subprocess.run([*limit, f"--fsize={largest + 65536}:unlimited"], check=True)
        found.pushers.wait_for(503, more=20, seconds=20)
        found.check_alive()
        subprocess.run([*limit, "--fsize=unlimited:unlimited"], check=True)
        report(**recover(found))


def test_without_room_for_one_more_file_all_goes_on(tmp_path: Path) -> None:
    with tmpfs(tmp_path, ",nr_inodes=60") as data, victim(tmp_path, data, *reserve("1MiB")) as found:
        with suppress(OSError):
            for number in range(60):
                (data / f"{number}").touch()
        assert os.statvfs(data).f_ffree == 0
        found.pushers.wait_for(200, more=50, seconds=10)
        assert found.health() == (200, "ok")
        found.end()


LIAR = """
from pipeline import hookimpl
from pipeline.committer import Committer

commit = Committer._commit


def commit_or_not(self, records):
    done = commit(self, records)
    done.answers = [(record, record.outcome) for record in records]
    return done


Committer._commit = commit_or_not


@hookimpl
def declare_components():
    return []
"""
"""A service that answers 200, whether the commit succeeded or not."""

QUITTER = """
import pipeline.journal
from pipeline import hookimpl

refusal = pipeline.journal.Journal.refusal


def refusal_for_ever(self):
    failed = self._committer and self._committer.failure
    self.gave_up = getattr(self, "gave_up", None) or failed
    return self.gave_up or refusal(self)


pipeline.journal.Journal.refusal = refusal_for_ever


@hookimpl
def declare_components():
    return []
"""
"""A service that does not try again after a commit that failed."""


def fill_and_recover(folder: Path, wrong: str) -> None:
    with tmpfs(folder) as data, victim(folder, data, *reserve("0"), *plugin(folder, wrong)) as found:
        ballast = Ballast(data / "ballast")
        ballast.fill()
        found.wait_until_unhealthy()
        found.pushers.wait_for(200 if wrong is LIAR else 503, more=10, seconds=RECOVERY)
        ballast.remove()
        recover(found)


WRONG = [(LIAR, "lost|books_intake_difference"), (QUITTER, "200 did not come")]


@pytest.mark.parametrize(("wrong", "finding"), WRONG[: sized(1, 2)])
def test_the_same_full_disk_finds_a_service_that_lies_and_one_that_gives_up(
    tmp_path: Path, wrong: str, finding: str, report: Report
) -> None:
    with pytest.raises(AssertionError, match=finding):
        fill_and_recover(tmp_path, wrong)
    report(control="found")
