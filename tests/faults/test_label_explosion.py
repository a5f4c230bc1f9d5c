"""Events whose label never has the same value twice: all are stored, and a scrape stays small, as does the process.

With its negative control: series without a limit must be found.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.test_bombs import memory_of
from tests.running import KEY, free_port, process, rows
from tests.scrapes import samples, total

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 600))]

EVENTS = sized(200_000, 1_000_000)
A_PUSH = 10_000
SHOWN = 150
"""Values of a label, beside the one that takes the rest."""
GROWTH = 50 * 2**20
"""Bytes that it may cost, beside what storing as many events costs."""
SCRAPES = 5
SLOWEST = 2.5
"""Seconds that one may take on a busy machine: ten times what it may on one that is not."""
UNLIMITED = (
    "--set",
    "connectors.series.max_label_cardinality=1000000",
    "--set",
    "connectors.series.max_series=1000000",
)


@dataclass
class Seen:
    """What became of them."""

    series: int
    counted: float
    scrape: int
    """Bytes."""
    grown: int
    """Bytes of the process, from the first tenth to the last."""
    seconds: list[float]
    """What some scrapes took."""
    stored: int


def explode(folder: Path, events: int, *arguments: str) -> Seen:
    """Push so many events of as many values."""
    port = free_port()
    with (
        process(folder, *arguments, OTEL_PROMETHEUS_PORT=str(port)) as (running, base),
        httpx.Client(base_url=base, headers={"X-API-Key": KEY}, timeout=60) as client,
    ):
        before = 0
        for number in range(events // A_PUSH):
            push(client)
            if number == events // A_PUSH // 10:
                flush(client)
                before = memory_of(running.pid)
        flush(client)
        grown = memory_of(running.pid) - before
        answers = [httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).raise_for_status() for _ in range(SCRAPES)]
        ((stored,),) = rows(folder / "metrics.db", "SELECT count(*) FROM metrics")
    text = answers[-1].text
    shown = samples(text, prefix="mcp_custom_events_total")
    seconds = [answer.elapsed.total_seconds() for answer in answers]
    return Seen(len(shown), total(text, "mcp_custom_events_total"), len(text), grown, seconds, stored)


def push(client: httpx.Client) -> None:
    metrics = [
        {"type": "custom", "value": 1, "dimensions": {"metric_name": f"v{random.getrandbits(48):x}"}}
        for _ in range(A_PUSH)
    ]
    client.post("/metrics", content=json.dumps({"service": "test", "metrics": metrics})).raise_for_status()


def flush(client: httpx.Client) -> None:
    deadline = time.monotonic() + 60
    while client.post("/flush").json()["status"] != "success":
        assert time.monotonic() < deadline


def test_labels_without_end_are_stored_and_bounded_in_a_scrape(tmp_path: Path, report: Report) -> None:
    seen = explode(tmp_path, EVENTS)
    report(
        values=EVENTS,
        series=seen.series,
        grown=f"{seen.grown / 2**20:+.1f} MiB",
        scrape=f"{1000 * max(seen.seconds):.0f} ms",
    )
    assert (seen.stored, seen.counted) == (EVENTS, EVENTS)
    assert seen.series <= SHOWN + 1
    assert seen.scrape < 500_000
    assert seen.grown < GROWTH
    assert max(seen.seconds) < SLOWEST


def test_series_without_a_limit_are_found(tmp_path: Path, report: Report) -> None:
    seen = explode(tmp_path, 5 * A_PUSH, *UNLIMITED)
    report(control="found", grown=f"{seen.grown / 2**20:+.1f} MiB")
    assert seen.series > SHOWN + 1
    assert seen.scrape > 500_000
    assert seen.grown > GROWTH
