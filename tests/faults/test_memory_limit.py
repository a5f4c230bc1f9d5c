"""Bodies that cost more than they look, on a service that may have little memory: it stays up or it ends, and what it had answered 200
is stored.

With its negative control: one that answers for what it does not store must be found.
"""

from __future__ import annotations

import resource
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.faults.filling import Pushers, faults_of, settle
from tests.faults.test_bombs import AT_A_TIME, throw_all
from tests.running import process

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

ROOM = 32 * 2**20
"""Bytes of address space that are left to a service that has started."""
WRONG = """
import itertools

from pipeline import hookimpl
from pipeline.journal import Journal

append, number = Journal.append, itertools.count(1)


async def append_or_not(self, batch, context, *told):
    if next(number) % 20 == 0:
        return context.outcome(context.received)
    return await append(self, batch, context, *told)


Journal.append = append_or_not


@hookimpl
def declare_components():
    return []
"""
"""A service that now and then answers 200 and has nothing to store it with."""
KINDS = ("gzip", "as large as may be", "plain", "metrics")


def limit(running: subprocess.Popen[bytes], room: int) -> None:
    """Leave it that much more than it has."""
    pages = int(Path(f"/proc/{running.pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + room
    resource.prlimit(running.pid, resource.RLIMIT_AS, (most, most))


def works_or_ends(running: subprocess.Popen[bytes], pushers: Pushers) -> None:
    """Wait for one or the other: a service that does neither helps nobody."""
    deadline, before = time.monotonic() + 30, pushers.statuses[200]
    while running.poll() is None and pushers.statuses[200] < before + 50:
        assert time.monotonic() < deadline, "it neither works nor ends"
        time.sleep(0.05)


def bombed(folder: Path, *arguments: str) -> dict[str, set[str]]:
    """Bombs and good pushes on a service with so little memory: what is wrong with what is stored then."""
    with process(folder, *arguments, METRICS_SERVER="uvicorn", FLUSH_INTERVAL_SECONDS="0.1") as (running, base):  # noqa: SIM117
        with Pushers(base) as pushers:
            pushers.wait_for(200, 50, 20)
            limit(running, ROOM)
            for kind in KINDS:
                with suppress(OSError, IndexError, AssertionError):  # it may have ended, or answer nothing
                    throw_all(httpx.URL(base).port or 0, kind, AT_A_TIME)
            works_or_ends(running, pushers)
            pushers.ending = True
    with process(folder) as (_, base):
        settle(base, 20)
    gave_up = {each for each in pushers.statuses if 400 <= each < 500 and each != 408}
    assert gave_up == set(), "a client that is told so does not try again"
    return faults_of(pushers, folder / "metrics.db")


def test_with_little_memory_nothing_that_was_acknowledged_is_lost(tmp_path: Path) -> None:
    assert bombed(tmp_path) == {}
    assert "MemoryError" in (tmp_path / "service.log").read_text(), "the fault was there"


def test_the_same_finds_a_service_that_answers_for_what_it_has_no_memory_for(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrong.py").write_text(WRONG)
    assert "lost" in bombed(tmp_path, "--plugins-dir", str(tmp_path / "plugins"))
