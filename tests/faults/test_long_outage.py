"""An exporter whose other side refuses connections for three days, with pushes coming in all the time: nothing is given up.

The clock is the event loop's, put forward wherever everybody waits (tests/faults/clock.py), so backoffs are the real ones. With its
negative control: one that gives up after five minutes, as others do, must be found.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline import Delivery, EventBatch, Permanent
from pipeline.attempts import LONGEST_BACKOFF, Attempts
from tests.faults.clock import run_fast
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.pipeline.test_delivery import Sink, delivering
from tests.pipeline.test_journal import append, batch_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 900))]

HOURS = 3600.0
PUSHES = sized(800, 10_000)
"""That many during an outage, evenly."""


@dataclass
class Outage:
    """What one outage showed. Times are the loop's, in seconds."""

    tries: list[float] = field(default_factory=list)
    """When the exporter was handed something while the other side was away."""
    acknowledged: list[float] = field(default_factory=list)
    deliveries: list[list[float]] = field(default_factory=list)
    """What the other side got, in its order."""
    bytes: int = 0
    """In the journal, when the other side was back."""
    seconds: float = 0
    """Until everything was delivered then."""

    @property
    def delivered(self) -> list[float]:
        """What the other side got, each at its first time."""
        return list(dict.fromkeys(value for each in self.deliveries for value in each))

    @property
    def twice(self) -> set[float]:
        """What it got more than once."""
        counts = Counter(value for each in self.deliveries for value in each)
        return {value for value, count in counts.items() if count > 1}


async def outage(folder: Path, hours: float, pushes: int, appending: set[float]) -> Outage:
    """Have the other side away for that long, and lose its first answer when it is back."""
    loop = asyncio.get_running_loop()
    report, back = Outage(), loop.time() + hours * HOURS
    answers = iter(["lost"])

    def other_side(delivery: Delivery) -> None:
        if loop.time() < back:
            report.tries.append(loop.time())
            raise ConnectionRefusedError("connection refused")
        report.deliveries.append([each.events[0].value for each in delivery.batches if isinstance(each, EventBatch)])
        if next(answers, None):
            raise ConnectionResetError("connection reset")

    sink = Sink(refuse=other_side)
    async with delivering(folder, sink) as (journal, delivery):
        for value in range(pushes):
            appending.add(value)
            await append(journal, batch_of(value))
            appending.clear()
            report.acknowledged.append(value)
            await asyncio.sleep(hours * HOURS / pushes)
        report.bytes = journal.bytes
        await append(journal, batch_of(pushes))
        report.acknowledged.append(pushes)
        async with asyncio.timeout(3 * LONGEST_BACKOFF):
            while delivery.workers[0].position < journal.last:  # noqa: ASYNC110 - time costs nothing
                await asyncio.sleep(1)
        report.seconds = loop.time() - back
    return report


def live_through(folder: Path, hours: float, pushes: int) -> Outage:
    """Run an outage in a loop whose clock stands only while a push is being made durable."""
    appending: set[float] = set()
    return run_fast(outage(folder, hours, pushes, appending), lambda: bool(appending))


@pytest.fixture(autouse=True)
def seldom_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether dead letters were marked is asked every few seconds; in three days that is most of the work."""
    monkeypatch.setattr("pipeline.replay.LOOK_EVERY", 3600.0)


def test_three_days_without_the_other_side_cost_nothing(tmp_path: Path, report: Report) -> None:
    found = live_through(tmp_path, 72, PUSHES)
    waits = [after - before for before, after in pairwise(found.tries)]
    report(
        simulated_hours=72,
        tries=len(found.tries),
        longest_wait=f"{max(waits):.1f} s",
        then_all_within=f"{found.seconds:.1f} s",
    )
    lost = len(set(found.acknowledged) - set(found.delivered))
    report(acknowledged=len(found.acknowledged), lost=lost, forwarded_twice=len(found.twice), journal_bytes=found.bytes)
    assert found.delivered == found.acknowledged
    assert found.twice <= set(found.deliveries[0])
    assert len(found.deliveries[0]) > 0
    assert max(waits) < LONGEST_BACKOFF + 5, "it stopped trying"
    assert min(waits[10:]) > LONGEST_BACKOFF / 2 - 5, "it tries too often"
    assert found.bytes > PUSHES * len("custom")


def test_an_exporter_that_gives_up_after_five_minutes_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    note = Attempts._note

    def give_up(attempts: Attempts, error: Exception) -> None:
        note(attempts, error)
        if attempts.failed_tries > 10:
            raise Permanent("no more retries left")

    monkeypatch.setattr(Attempts, "_note", give_up)
    found = live_through(tmp_path, 1, 100)
    lost = set(found.acknowledged) - set(found.delivered)
    assert lost
    report(control="found", lost=len(lost))
