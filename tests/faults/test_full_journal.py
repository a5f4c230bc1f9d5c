"""A journal that is full: pushes are refused and cost nothing, and once its exporter works again, all that was answered arrives once.

With its negative controls: a journal that knows no limit, and an exporter that stores what it says it has not, must be found.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.running import KEY, process, rows, scraped, until
from tests.scrapes import total

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 600))]

MIB = 2**20
LIMIT = sized(6, 16) * MIB
ABOVE = 26 * MIB
"""What the files may hold beyond the limit: a write-ahead log of 16 MiB before it is checkpointed, the commit that went over that (8 MiB
at the most), and pages."""
GROUP = 2**16
"""What one commit may hold here: a push or two of those that fill it, or one of the small ones of each client."""
MORE = sized(2000, 10_000)
CLIENTS = 8
METRICS = 20
FILLING = "x" * 900
"""In every metric of the pushes that fill the journal."""

GATE = '''
"""An exporter that takes nothing while the file `closed` is there, and then writes down the ids that it takes."""

from pathlib import Path

import pipeline.attempts
from pipeline import ComponentConfig, Declaration, Exporter, Retryable, Signal, hookimpl

pipeline.attempts.LONGEST_BACKOFF = 0.5  # a minute is too long for a test to wait


class Gate(Exporter[ComponentConfig]):
    """Writes down what it takes."""

    async def export(self, delivery):
        """Write down the ids, unless it is closed."""
        ids = [event.metadata["id"] for batch in delivery.batches for event in batch.events]
        WRITES_FIRST and self.write(ids)
        if Path("closed").exists():
            raise Retryable("the other side is stopped")
        WRITES_FIRST or self.write(ids)

    def write(self, ids):
        with Path("taken").open("a") as file:
            file.writelines(f"{id}\\n" for id in ids)


@hookimpl
def declare_components():
    """Declares `gate`."""
    return [Declaration("gate", Gate, ComponentConfig, takes=frozenset({Signal.EVENTS}))]
'''
WITHOUT_LIMIT = """

from dataclasses import replace
from plugins.processors.batch import BatchProcessor

as_it_is = BatchProcessor.journal_settings
BatchProcessor.journal_settings = lambda batch: replace(as_it_is(batch), max_bytes=2**40)
"""
CONFIG = f"""
extends: production
processors: {{batch: {{max_bytes: {LIMIT}, size: 1000, flush_interval: 0.2s}}}}
exporters: {{gate: }}
service:
  pipelines:
    events:
      exporters: [sqlite, series, gate]
"""


@dataclass
class Run:
    """What one run showed."""

    accepted: set[str] = field(default_factory=set)
    """The ids of the metrics that were answered 200."""
    after_full: Counter[int] = field(default_factory=Counter)
    """The statuses of what was pushed when the journal was full."""
    wrong_answers: list[str] = field(default_factory=list)
    health: tuple[int, Any] = (0, None)
    ready: tuple[int, Any] = (0, None)
    counted: float = 0
    """The most bytes that the journal said it holds."""
    growth: int = 0
    """Bytes of resident memory, while pushes were refused."""
    files: int = 0
    """Bytes of the journal's files when it was full."""
    taken: Counter[str] = field(default_factory=Counter)
    """How often the exporter took each metric."""
    stored: Counter[str] = field(default_factory=Counter)
    """How often the database has it, which was never stopped."""


@contextmanager
def gated(folder: Path, plugin: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """A service one of whose exporters is stopped as long as there is `closed`."""
    (folder / "plugins").mkdir()
    (folder / "plugins" / "gate.py").write_text(plugin)
    (folder / "full.yaml").write_text(CONFIG)
    (folder / "closed").touch()
    arguments = ("--plugins-dir", str(folder / "plugins"))
    with (
        process(folder, *arguments, config=str(folder / "full.yaml")) as (running, base),
        httpx.Client(base_url=base, headers={"X-API-Key": KEY}, timeout=30) as client,
    ):
        yield running, client


def push(client: httpx.Client, name: str, metrics: int, filling: str) -> tuple[list[str], httpx.Response]:
    """One push of metrics that each have an id."""
    ids = [f"{name}-{place}" for place in range(metrics)]
    items = [{"type": "custom", "value": 1, "metadata": {"id": id, "filling": filling}} for id in ids]
    return ids, client.post("/metrics", content=json.dumps({"service": "test", "metrics": items}))


def is_refusal(answer: httpx.Response) -> bool:
    """Whether that is what docs/api.md says of a full journal."""
    body = answer.json()
    return (
        int(answer.headers.get("retry-after", "0")) >= 1
        and body.keys() == {"detail", "status_code", "request_id"}
        and body["status_code"] == 503
        and "journal is full" in body["detail"]
        and body["request_id"] == answer.headers["x-request-id"]
    )


def memory(running: subprocess.Popen[bytes]) -> int:
    """Bytes that are resident now."""
    status = Path(f"/proc/{running.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def counted_bytes(client: httpx.Client) -> float:
    """What the journal says that it holds."""
    base = str(client.base_url).rstrip("/")
    return total(httpx.get(scraped[base], timeout=30).raise_for_status().text, "journal_bytes", pipeline="events")


def fill(client: httpx.Client, report: Run) -> None:
    """Push until the journal is full, or holds twice what it may."""
    for number in range(2 * LIMIT // (METRICS * len(FILLING))):
        ids, answer = push(client, f"fill-{number}", METRICS, FILLING)
        if answer.status_code == 503:
            return
        assert answer.status_code == 200
        report.accepted.update(ids)


def push_more(client: httpx.Client, report: Run, count: int) -> None:
    """Push on, from several clients at once."""
    lock = threading.Lock()

    def one(number: int) -> None:
        ids, answer = push(client, f"more-{number}", 1, "")
        with lock:
            report.after_full[answer.status_code] += 1
            if answer.status_code == 200:
                report.accepted.update(ids)
            elif not is_refusal(answer):
                report.wrong_answers.append(answer.text)

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(one, range(count)))


def fill_and_release(folder: Path, plugin: str, more: int) -> Run:
    """Fill the journal of a service whose exporter is stopped, push on, let the exporter go on, and count."""
    report = Run()
    with gated(folder, plugin) as (running, client):
        fill(client, report)
        report.counted = counted_bytes(client)
        push_more(client, report, 200)  # what is needed once to refuse
        report.counted = max(report.counted, counted_bytes(client))
        before = memory(running)
        push_more(client, report, more)
        report.growth = memory(running) - before
        report.files = sum(file.stat().st_size for file in (folder / "metrics-journal").glob("events.db*"))
        health, ready = client.get("/health"), client.get("/health/ready")
        report.health, report.ready = (health.status_code, health.json()), (ready.status_code, ready.json())
        (folder / "closed").unlink()
        anyio.run(until, lambda: client.get("/health").status_code == 200)
        ids, answer = push(client, "last", METRICS, "")
        assert answer.status_code == 200
        report.accepted.update(ids)
        anyio.run(until, lambda: client.post("/flush").json()["status"] == "success")
    report.taken = Counter((folder / "taken").read_text().split())
    query = "SELECT json_extract(metadata, '$.id'), count(*) FROM metrics GROUP BY 1"
    report.stored = Counter(dict(rows(folder / "metrics.db", query)))
    return report


def test_a_full_journal_refuses_and_loses_nothing(tmp_path: Path, report: Report) -> None:
    found = fill_and_release(tmp_path, GATE.replace("WRITES_FIRST", "False"), MORE)
    report(
        acknowledged=len(found.accepted),
        answers_when_full=dict(found.after_full),
        memory=f"{found.growth / MIB:+.1f} MiB",
    )
    report(files=f"{found.files / MIB:.1f} MiB for a limit of {LIMIT / MIB:.0f}")
    report(
        lost=len(found.accepted - found.stored.keys()), stored_twice=(found.stored - Counter(found.accepted)).total()
    )
    assert found.after_full == {503: MORE + 200}
    assert found.wrong_answers == []
    assert found.health == (503, {"status": "unhealthy", "service": "metrics-collection"})
    assert found.ready[0] == 503
    assert "journal is full" in found.ready[1]["components"]["journal/events"]
    assert "cannot deliver since" in found.ready[1]["components"]["exporter/gate"]
    assert found.growth < 20 * MIB
    assert found.files < LIMIT + ABOVE
    assert 0.9 * LIMIT < found.counted < LIMIT + GROUP
    assert found.taken == found.stored == Counter(dict.fromkeys(found.accepted, 1))


def test_a_journal_without_a_limit_is_found(tmp_path: Path, report: Report) -> None:
    found = fill_and_release(tmp_path, GATE.replace("WRITES_FIRST", "False") + WITHOUT_LIMIT, 100)
    assert found.after_full[200] == 300
    assert found.counted > LIMIT + GROUP
    assert found.health[0] == 200
    report(control="found", accepted_beyond_the_limit=found.after_full[200])


def test_an_exporter_that_stores_what_it_says_it_has_not_is_found(tmp_path: Path, report: Report) -> None:
    found = fill_and_release(tmp_path, GATE.replace("WRITES_FIRST", "True"), 100)
    assert found.taken.keys() == found.accepted
    assert found.taken != found.stored
    report(control="found", taken_twice=(found.taken - found.stored).total())
