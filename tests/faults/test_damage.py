"""One damaged byte, or a file that was cut off, after `kill -9`: the service starts, loses what was hit and no more, and says how much.

Most of it within this process, where it is quick; some with the real one. With negative controls: checksums that nobody looks at, and
losses that nobody counts.
"""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from pipeline.journal_format import write_lost
from tests.books import lines
from tests.faults.damage import BATCHES, BEHIND, PER_PAGE, crashed, flip, go_on, truncate
from tests.faults.sizes import sized
from tests.running import KEY, process, rows

pytestmark = [pytest.mark.faults, pytest.mark.anyio, pytest.mark.timeout(sized(120, 1800))]

CASES = sized(12, 400)
"""Of flips, and as many of truncations."""
WHERE = ((BATCHES // 2, ""), (BATCHES, ""), (0, "-wal"), (BATCHES // 2, "-wal"))
"""Where the last checkpoint was, and which of the files is damaged."""

Damage = Callable[[Path, random.Random], str]


async def damage_all(folder: Path, damage: Damage, cases: int, seed: str) -> list[str]:
    """Do that to copies of crashed journals. Returns what is wrong with what came of it."""
    chance, found, most = random.Random(seed), [], 0
    left = {}
    for at in {at for at, _ in WHERE}:
        (folder / str(at)).mkdir()
        left[at] = await crashed(folder / str(at), at)
    for number in range(cases):
        at, end = WHERE[number % len(WHERE)]
        copy = folder / f"case {number}"
        shutil.copytree(left[at], copy)
        what = f"checkpoint at {at}, {damage(copy / f'events.db{end}', chance)}"
        outcome = await go_on(copy)
        lost = outcome.lost(BEHIND)
        found += [f"{what}: {wrong}" for wrong in outcome.wrong()]
        if damage is flip and not end and lost > PER_PAGE:
            found.append(f"{what}: lost {lost} batches")
        if end and lost > BATCHES - at:
            found.append(f"{what}: lost {lost} batches, some of which were not in the log")
        most = max(most, lost)
        shutil.rmtree(copy)
    print(f"\n{cases} cases, at the most {most} of {BATCHES} batches lost")  # noqa: T201
    return found


@pytest.mark.parametrize("damage", [flip, truncate], ids=lambda damage: damage.__name__)
async def test_damage_costs_what_it_hit_and_that_is_counted(tmp_path: Path, damage: Damage) -> None:
    seed = f"{damage.__name__} {sized(0, time.time_ns())}"
    assert await damage_all(tmp_path, damage, CASES, seed) == [], seed


async def test_a_journal_that_looks_at_no_checksum_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def believe(first: object, count: object, items: object, crc: object, payload: object) -> bool:
        return isinstance(payload, bytes) and bool(payload)

    for module in ("journal_reader", "salvage"):
        monkeypatch.setattr(f"pipeline.{module}.is_right", believe)
    assert any("never pushed" in wrong for wrong in await damage_all(tmp_path, flip, 12, "believe"))


async def test_a_journal_that_does_not_count_what_it_lost_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hush(connection: sqlite3.Connection, first: int, last: int, items: int) -> None:
        write_lost(connection, first, last, 0)

    for module in ("journal_opening", "salvage"):
        monkeypatch.setattr(f"pipeline.{module}.write_lost", hush)
    assert any("count as missing" in wrong for wrong in await damage_all(tmp_path, truncate, 8, "hush"))


PUSHES, METRICS = 40, 2
UNTAKEN = {"FLUSH_INTERVAL_SECONDS": "3600", "OTEL_PROMETHEUS_ENABLED": "false"}
SIZE = ("--set", "processors.batch.size=100000")


@pytest.fixture(scope="module")
def untaken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a service leaves that was killed with all that was pushed in its journal alone."""
    folder = tmp_path_factory.mktemp("untaken")
    with (
        process(folder, *SIZE, **UNTAKEN) as (running, base),
        httpx.Client(base_url=base, headers={"X-API-Key": KEY}) as client,
    ):
        for number in range(PUSHES):
            metrics = [{"type": "custom", "value": number, "metadata": {"n": f"{number:0400}"}}] * METRICS
            assert client.post("/metrics", json={"service": "test", "metrics": metrics}).status_code == 200
        running.kill()
    return folder


def start_again(folder: Path) -> tuple[int, int]:
    """Start, push once more and flush: how many rows there are, and how many items are missing by the books."""
    began = time.monotonic()
    with (
        process(folder, *SIZE, **UNTAKEN) as (running, base),
        httpx.Client(base_url=base, headers={"X-API-Key": KEY}) as client,
    ):
        assert time.monotonic() - began < 10
        push = {"service": "test", "metrics": [{"type": "custom", "value": 1}]}
        assert client.post("/metrics", json=push, timeout=5).status_code == 200
        assert client.post("/flush", timeout=30).json()["status"] == "success"
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
    (line,) = (line for line in lines(folder / "metrics-journal" / "events.db") if line.exporter == "exporter.sqlite")
    assert (line.difference, line.pending) == (0, 0)
    ((stored, different),) = rows(
        folder / "metrics.db", "SELECT count(*), count(DISTINCT value || metadata) FROM metrics"
    )
    assert stored == (different - 1) * METRICS + 1, "stored in part or twice"
    return stored - 1, line.account.missing


def in_the_middle_of_the_log(journal: Path) -> None:
    log = Path(f"{journal}-wal")
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)


def without_a_log(journal: Path) -> None:
    Path(f"{journal}-wal").unlink()


def empty(journal: Path) -> None:
    journal.write_bytes(b"")


def wrong_header(journal: Path) -> None:
    with closing(sqlite3.connect(journal)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with journal.open("r+b") as file:
        file.write(bytes(64))


def no_database(journal: Path) -> None:
    journal.write_bytes(random.Random(1).randbytes(50_000))
    without_a_log(journal)


def other_files(journal: Path) -> None:
    journal.with_name("reserve.bin").write_bytes(b"x")
    journal.with_suffix(".lock").write_bytes(b"\xff" * 100)
    journal.with_suffix(".mark").write_bytes(b"\xff" * 100)


SOME, ALL, NONE = range(1, PUSHES), range(PUSHES, PUSHES + 1), range(1)
"""How many pushes may be lost."""


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (in_the_middle_of_the_log, SOME),
        (without_a_log, ALL),
        (empty, range(PUSHES + 1)),
        (wrong_header, NONE),
        (no_database, ALL),
        (other_files, NONE),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_service_goes_on_with_a_damaged_journal(
    tmp_path: Path, untaken: Path, damage: Callable[[Path], None], lost: range
) -> None:
    shutil.copytree(untaken, tmp_path, dirs_exist_ok=True)
    journal = tmp_path / "metrics-journal" / "events.db"
    damage(journal)
    stored, missing = start_again(tmp_path)
    assert stored + missing == PUSHES * METRICS
    assert missing // METRICS in lost
    set_aside = [each for each in journal.parent.glob("events.db.corrupt-*") if not each.name.endswith("-wal")]
    assert len(set_aside) == (damage in (empty, wrong_header, no_database))
    log = (tmp_path / "service.log").read_text()
    assert "Traceback" not in log
    assert missing == 0 or f"{missing} " in log
