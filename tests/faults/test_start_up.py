"""How long a start takes, and how much memory: with nothing in the journal, and with much that nobody has taken.

Measured and printed; what is asserted leaves room for a machine that is busy.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from pipeline import DimensionValue, Durability, Event, EventBatch
from pipeline.books import Account, Cursor
from pipeline.journal_file import JournalFile
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.test_full_journal import MIB, memory
from tests.running import process, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 600))]

JOURNAL = sized(200, 1000) * MIB
BATCHES = 50
"""In one row of the journal."""
EVENTS = 100
"""In one batch."""
MOST_SECONDS = 30
MOST_MEMORY = 64 * MIB
"""Beyond that of a service with nothing to do."""
EXPORTERS = ("exporter.sqlite", "connector.series")


@dataclass
class Start:
    """What one start took: seconds until it was ready, and resident memory then."""

    seconds: float
    memory: int


def start(folder: Path, *arguments: str) -> Start:
    """Start a service, and stop it once it is ready."""
    began = time.monotonic()
    with process(folder, *arguments) as (running, _):
        return Start(time.monotonic() - began, memory(running))


def fill_journal(folder: Path) -> int:
    """A journal that every exporter has all before it. Returns how many events that is."""
    (folder / "metrics-journal").mkdir()
    file = JournalFile(folder / "metrics-journal" / "events.db", Durability.CRASH)
    file.open()
    now = datetime.now(UTC)
    dimensions: dict[str, DimensionValue] = {
        "tool_name": "search",
        "server_name": "docs",
        "success": True,
        "method": "tools/call",
    }
    events = [
        Event("tool_execution", 1.0, now, float(n), dimensions, {"trace": f"{n:032x}", "host": "worker-17"})
        for n in range(EVENTS)
    ]
    batch = EventBatch("test", events, now)
    encoded = [msgspec.msgpack.encode(batch)] * BATCHES
    file.begin()
    file.save_cursors(dict.fromkeys(EXPORTERS, Cursor(0, Account())))
    while file.held < JOURNAL:
        file.write(encoded, [batch] * BATCHES)
    file.commit()
    file.close()
    return file.last * EVENTS


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with such a journal, and how many events that holds."""
    folder = tmp_path_factory.mktemp("full")
    return folder, fill_journal(folder)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Start, Start]:
    """The first start of a service with nothing to do, and its second."""
    folder = tmp_path_factory.mktemp("empty")
    return start(folder), start(folder)


def test_a_full_journal_delays_no_start(journal: tuple[Path, int], starts: tuple[Start, Start], report: Report) -> None:
    (full, events), (first, idle) = journal, starts
    ready = start(full)
    report(first_start=f"{first.seconds:.2f} s", empty=f"{idle.seconds:.2f} s and {idle.memory / MIB:.0f} MiB")
    more = f"{(ready.memory - idle.memory) / MIB:+.1f} MiB"
    report(journal=f"{JOURNAL / MIB:.0f} MiB", events=events, with_it=f"{ready.seconds:.2f} s and {more}")
    assert idle.seconds < MOST_SECONDS
    assert ready.seconds < MOST_SECONDS
    assert ready.memory - idle.memory < MOST_MEMORY
    assert rows(full / "metrics-journal" / "events.db", "SELECT last > 0 FROM state") == [(1,)]


WRONG = '''
"""A service that reads its journal into memory before it is ready."""

from pipeline import hookimpl
from pipeline.journal import Journal

open_it = Journal.open


async def open_and_read(journal, **how):
    await open_it(journal, **how)
    journal.all = []
    position = 0
    while position < journal.last:
        delivery = await journal.read(position)
        journal.all.append(delivery)
        position = delivery.upto
        if len(journal.all) > 20:
            break


Journal.open = open_and_read


@hookimpl
def declare_components():
    """Declares nothing."""
    return []
'''


def test_a_service_that_reads_its_journal_first_is_found(
    tmp_path: Path, journal: tuple[Path, int], starts: tuple[Start, Start], report: Report
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrong.py").write_text(WRONG)
    (full, _), (_, idle) = journal, starts
    more = start(full, "--plugins-dir", str(tmp_path / "plugins")).memory - idle.memory
    assert more > MOST_MEMORY
    report(control="found", memory=f"{more / MIB:+.1f} MiB")
