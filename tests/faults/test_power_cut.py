"""Power cuts at random moments: everything that was answered 200 is in SQLite exactly once.

With negative controls: services that answer before their data is on the disk, or trim their journal before the database is.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.faults.changed import BUSY, plugin
from tests.faults.filling import sent_by_the_books
from tests.faults.power import Disk, disk, stop
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.test_kill import Books, client, compared, figures, stored
from tests.running import KEY, command, free_port, process
from tests.scrapes import total

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 300))]

DISKS = sized(2, 10)
"""New ones, in each way to mount them."""
CUTS = sized(2, 5)
"""Of each disk, under load; and as many while the service starts."""
CONTROL_CUTS = 5
"""A service that is wrong on purpose has lost something by then."""
CLIENTS = 24

EAGER = (
    BUSY
    + """
async def open_unsafe(path, timeout):
    writer = await open_writer(path, timeout)
    await writer.execute("PRAGMA synchronous=NORMAL")
    return writer


plugins.extensions.database.extension.open_writer = open_unsafe
plugins.extensions.database.extension.WAL_LIMIT = 2**30
"""
)
"""The same for a service that is wrong on purpose: its database is not on the disk when its journal is trimmed."""


class Victim:
    """A service on a disk whose power is cut, the books of its clients, and what Prometheus has seen."""

    def __init__(self, folder: Path, disk: Disk, *arguments: str) -> None:
        self.books = Books()
        self.shown = 0.0
        """The most events that were counted."""
        self._folder = folder
        self._disk = disk
        self._arguments = arguments
        self._port = free_port()
        self._variables = {
            "SQLITE_DB_PATH": str(disk.folder / "metrics.db"),  # and the journal beside it
            "OTEL_PROMETHEUS_PORT": str(self._port),
            "FLUSH_INTERVAL_SECONDS": "0.2",
        }

    def cut_while_starting(self, after: float) -> None:
        """Start it, and cut that many seconds later."""
        variables = {"METRICS_SERVICE_HOST": "127.0.0.1", "METRICS_SERVICE_PORT": str(free_port()), **self._variables}
        called, environ = command(self._folder, *self._arguments, **variables)
        with (self._folder / "service.log").open("ab") as log:
            running = subprocess.Popen(called, env=environ, stderr=log, cwd=self._folder, start_new_session=True)
        try:
            time.sleep(after)  # the moment of the cut is the point of the test
            stop(running)
            self._disk.copy()
        finally:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
        self._disk.cut()

    def cut_under_load(self, after: float) -> None:
        """Start it, push, and cut that many seconds later."""
        ended = threading.Event()
        with (
            process(self._folder, *self._arguments, **self._variables) as (running, base),
            pushing(base, self.books, ended),
        ):
            time.sleep(after)  # as above
            self.shown = max(self.shown, self._counted())
            stop(running)
            time.sleep(0.1)  # what is on the wire was answered before the cut
            self._disk.copy()
            ended.set()
            running.kill()
        self._disk.cut()

    def recovered(self) -> tuple[Counter[str], float]:
        """Start it and flush: how many rows of each push there are, and how many events are counted."""
        with process(self._folder, *self._arguments, **self._variables) as (_, base):
            answer = httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=60)
            assert answer.json()["status"] == "success"
            self.books.taken = sent_by_the_books(base)
            return stored(self._disk.folder / "metrics.db"), self._counted()

    def _counted(self) -> float:
        while (answer := httpx.get(f"http://127.0.0.1:{self._port}/metrics", timeout=5)).status_code == 503:
            time.sleep(0.01)  # counters that are not yet where they were
        answer.raise_for_status()
        return total(answer.text, "mcp_custom_events_total")


@contextmanager
def pushing(base: str, books: Books, ended: threading.Event) -> Iterator[None]:
    """Clients push until told to end, or until the service dies."""
    clients = [
        threading.Thread(target=client, args=(base, books, number, ended), daemon=True) for number in range(CLIENTS)
    ]
    for each in clients:
        each.start()
    yield
    for each in clients:
        each.join(timeout=10)


@pytest.mark.parametrize("number", range(DISKS))
@pytest.mark.parametrize("data", ["ordered", "writeback"])
def test_a_power_cut_loses_nothing_that_was_acknowledged_and_stores_nothing_twice(
    tmp_path: Path, data: str, number: int, report: Report
) -> None:
    moments = random.Random(f"{data} {number}")
    changed = plugin(tmp_path, BUSY) if number % 2 else ()
    with disk(tmp_path, f"data={data}") as cut_off:
        victim = Victim(tmp_path, cut_off, *changed)
        for _ in range(CUTS):
            victim.cut_while_starting(moments.uniform(0, 1))
            victim.cut_under_load(moments.uniform(0, 1))
            rows, counted = victim.recovered()
            wrong = compared(victim.books, rows)
            assert not any(wrong.values()), wrong
            assert counted == victim.books.taken == rows.total()
            assert counted >= victim.shown
        report(cuts_under_load=CUTS, cuts_at_the_start=CUTS, **figures(victim.books, rows), books="exact")
        assert len(victim.books.acknowledged) > 20 * CUTS


@pytest.mark.parametrize("wrong", ["crash", "none", "eager"])
def test_the_same_cuts_find_a_service_that_does_not_wait_for_the_disk(
    tmp_path: Path, wrong: str, report: Report
) -> None:
    changed = [*plugin(tmp_path, EAGER)] if wrong == "eager" else ["--set", f"processors.batch.durability={wrong}"]
    moments = random.Random(wrong)
    with disk(tmp_path, "data=ordered") as cut_off:
        victim = Victim(tmp_path, cut_off, *changed)
        for cut in range(CONTROL_CUTS):
            victim.cut_under_load(moments.uniform(0.2, 1))
            try:
                rows, _ = victim.recovered()
            except AssertionError as refused:
                if "was replaced by another one" not in str(refused):
                    raise
                # The cut has cost the identity of the database, which the start has noticed.
                report(control="found", cuts=cut + 1)
                return
            if lost := figures(victim.books, rows)["lost"]:
                report(control="found", cuts=cut + 1, lost=lost)
                return
    pytest.fail(f"nothing was lost in {CONTROL_CUTS} cuts")
