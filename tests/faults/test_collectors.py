"""A collector that takes a part for good, and one that never answers: what the first refused is counted and not sent again, and the
second holds up nobody but itself.

Each with its negative control: a collector whose refusal is one to try again, and a service whose exporters wait for each other.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import httpx
import pytest
from aiohttp import web

from tests.collector import Collector
from tests.faults.filling import METRICS, Pushers
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.test_forwarding import collecting
from tests.running import KEY, free_port, process, rows
from tests.scrapes import total

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 1200))]

CONFIG = """
extends: production
exporters:
  otlp/events:
    endpoint: ${env:OTEL_OTLP_ENDPOINT}
service:
  pipelines:
    events: {exporters: [sqlite, series, otlp/events]}
    metrics: {exporters: [prometheus]}
"""
COLLECTOR = {"exporter": "otlp/events", "pipeline": "events"}
STORE = {"exporter": "sqlite", "pipeline": "events"}
ISOLATED = 1.0
"""Seconds that the store may be behind, beside its flush interval."""
SLOWER = 3
"""Times that a push may take what it takes beside a collector that works, on a machine that does other things as well."""
UNNOTICED = 0.05
"""Seconds; what a push takes less than is not compared."""
FLUSHED = 5
"""Seconds within which a flush says what does not work."""
WRONG = """
import asyncio

from pipeline import hookimpl
from pipeline.handover import Handover

deliver, one_at_a_time = Handover.deliver, asyncio.Lock()


async def wait_for_others(self, delivery):
    async with one_at_a_time:
        await deliver(self, delivery)


Handover.deliver = wait_for_others


@hookimpl
def declare_components():
    return []
"""
"""A service that delivers to one exporter after the other."""


@dataclass
class Forwarding:
    """A service that stores and forwards."""

    base: str
    scraped: str

    def scrape(self) -> str:
        return httpx.get(self.scraped, timeout=30).raise_for_status().text

    def flush(self) -> str:
        try:
            answer = httpx.post(f"{self.base}/flush", headers={"X-API-Key": KEY}, timeout=FLUSHED)
        except httpx.TimeoutException:
            return "no answer"
        return str(answer.json()["status"])


@contextmanager
def service(folder: Path, endpoint: str, *arguments: str, **variables: str) -> Iterator[Forwarding]:
    (folder / "own.yaml").write_text(CONFIG)
    port = free_port()
    chosen = {"OTEL_PROMETHEUS_PORT": str(port), "OTEL_OTLP_ENDPOINT": endpoint, **variables}
    with process(folder, *arguments, config=str(folder / "own.yaml"), **chosen) as (_, base):
        yield Forwarding(base, f"http://127.0.0.1:{port}/metrics")


def a_hundred(folder: Path, collector: Collector) -> tuple[int, float, float]:
    """Have a hundred events sent, then start once more: how many requests that made, how many were sent, and how many rejected."""
    with service(folder, collector.url, FLUSH_INTERVAL_SECONDS="3600", BATCH_SIZE="1000") as forwarding:
        push = {"service": "test", "metrics": [{"type": "custom", "value": 1}] * 100}
        answer = httpx.post(f"{forwarding.base}/metrics", json=push, headers={"X-API-Key": KEY})
        assert answer.status_code == 200
        deadline = time.monotonic() + 20
        while forwarding.flush() != "success":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        text = forwarding.scrape()
        time.sleep(1.2)  # until the cursor is saved, so that the kill at the end sends nothing again
    with service(folder, collector.url) as forwarding:
        assert forwarding.flush() == "success"
    sent = total(text, "otelcol_exporter_sent_items_total", **COLLECTOR)
    return collector.requests, sent, total(text, "otlp_rejected_items_total", exporter="otlp/events")


def test_of_a_hundred_seven_that_are_rejected_are_counted_and_not_sent_again(tmp_path: Path) -> None:
    with collecting("http/protobuf") as collector:
        collector.response.partial_success.rejected_data_points = 7
        requests, sent, rejected = a_hundred(tmp_path, collector)
    assert (requests, sent - rejected, rejected) == (1, 93, 7)


def test_a_refusal_that_is_sent_again_is_found(tmp_path: Path) -> None:
    with collecting("http/protobuf") as collector:
        answers = iter([web.Response(status=503, headers={"Retry-After": "1"})])
        collector.answer_http = lambda request: next(answers, None)
        assert a_hundred(tmp_path, collector) == (2, 100, 0)


@dataclass
class Behind:
    """How far exporters were behind, in seconds, look by look."""

    store: list[float] = field(default_factory=list)
    collector: list[float] = field(default_factory=list)


def percentile(took: list[float], at: int) -> float:
    """What so many percent took less than."""
    return quantiles(took, n=100)[at - 1]


@contextmanager
def looking(scrape: Callable[[], str]) -> Iterator[Behind]:
    """Look all the time."""
    behind, ended = Behind(), threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            try:
                text = scrape()
            except httpx.HTTPStatusError:
                continue  # 503: it has yet to catch up with the last run
            behind.store.append(total(text, "exporter_lag_seconds", **STORE))
            behind.collector.append(total(text, "exporter_lag_seconds", **COLLECTOR))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield behind
    finally:
        ended.set()
        thread.join()


def beside_a_black_hole(folder: Path, seconds: int, *arguments: str) -> tuple[Behind, Pushers, str, int]:
    """Load on a service whose collector takes connections and never answers: what was seen, what was answered, what a flush said, and how
    many events the store has."""
    # A flush waits for an answer as long as the exporter does, until the first did not come.
    arguments = ("--set", "exporters.otlp/events.timeout=3s", *arguments)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=16) as hole,
        service(folder, f"http://127.0.0.1:{hole.getsockname()[1]}", *arguments, FLUSH_INTERVAL_SECONDS="0.2") as found,
    ):
        with looking(found.scrape) as behind, Pushers(found.base) as pushers:
            time.sleep(seconds)
        said = found.flush()
        ((stored,),) = rows(folder / "metrics.db", "SELECT count(*) FROM metrics")
    return behind, pushers, said, stored


def pushed_without(folder: Path, seconds: int) -> list[float]:
    """What pushes took while the collector took everything."""
    folder.mkdir()
    with (
        collecting("http/protobuf") as collector,
        service(folder, collector.url, FLUSH_INTERVAL_SECONDS="0.2") as found,
        looking(found.scrape),
        Pushers(found.base) as pushers,
    ):
        time.sleep(seconds)
    return pushers.took


@pytest.mark.alone
def test_a_collector_that_never_answers_holds_up_neither_the_store_nor_a_push(tmp_path: Path, report: Report) -> None:
    without = pushed_without(tmp_path / "without", sized(4, 60))
    behind, pushers, said, stored = beside_a_black_hole(tmp_path, sized(4, 120))
    assert (pushers.wrong, set(pushers.statuses)) == ([], {200})
    assert max(behind.collector) > 2, "the fault was there"
    ratios = {at: percentile(pushers.took, at) / percentile(without, at) for at in (50, 99)}
    report(pushes=len(pushers.took), **{f"p{at}": f"{ratio:.2f} times" for at, ratio in ratios.items()})
    assert all(percentile(pushers.took, at) < SLOWER * max(percentile(without, at), UNNOTICED) for at in ratios), ratios
    assert max(behind.store) < ISOLATED + 0.2
    assert (said, stored) == ("partial", METRICS * len(pushers.acknowledged))


def test_a_service_whose_exporters_wait_for_each_other_is_found(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrong.py").write_text(WRONG)
    _, pushers, said, stored = beside_a_black_hole(tmp_path, 4, "--plugins-dir", str(tmp_path / "plugins"))
    assert (said, stored) != ("partial", METRICS * len(pushers.acknowledged))
