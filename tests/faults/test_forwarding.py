"""`kill -9` while requests to a collector are on their way: every event that was answered 200 arrives there, and few of them twice.

With its negative control: a service that moves on before the collector has answered must be caught.
"""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from anyio.from_thread import start_blocking_portal
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tests.collector import Collector, grpc_collector, http_collector, points_of
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.running import KEY, process

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(240, 1800))]

ROUNDS = sized(4, 12)
CLIENTS = 8
METRICS = 5
SAVED_EVERY = 1.0
"""Seconds of requests that may come twice, beside the one that was on its way."""
SLACK = 0.5
"""Seconds that a save may take on a busy machine."""
CONFIG = """
extends: production
exporters:
  otlp/events:
    endpoint: ${env:OTEL_OTLP_ENDPOINT}
    protocol: ${env:OTEL_EXPORTER_OTLP_PROTOCOL:-}
service:
  pipelines:
    events: {exporters: [series, otlp/events]}
    metrics: {exporters: [prometheus]}
"""


@dataclass
class Books:
    """The ids of pushes that were answered 200, when each request came and what was in it; and of each life of the service, when it
    was killed and how many requests had come by the next one's start."""

    acknowledged: set[str] = field(default_factory=set)
    requests: list[tuple[float, list[str]]] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def note(self, request: ExportMetricsServiceRequest) -> web.Response | None:
        """A request that the collector takes."""
        ids = [str(dict(attributes)["id"]) for _, _, attributes, _, _ in points_of(request)]
        self.requests.append((time.monotonic(), ids))
        return None

    @property
    def arrived(self) -> Counter[str]:
        """How often each event came."""
        return Counter(each for _, ids in self.requests for each in ids)

    @property
    def lost(self) -> set[str]:
        """Events that were acknowledged and did not come."""
        return {f"{push}-{place}" for push in self.acknowledged for place in range(METRICS)} - self.arrived.keys()

    def ages_of_what_came_twice(self) -> list[float]:
        """How long before a kill each event had come that came again; but for those of the last request of each life."""
        seen: dict[str, int] = {}
        found = []
        for number, (_, ids) in enumerate(self.requests):
            for each in ids:
                before = seen.get(each)
                if before is not None:
                    life = bisect_right(self.ends, before)
                    assert life < len(self.ends), "it came twice without a kill"
                    if before != self.ends[life] - 1:
                        found.append(self.kills[life] - self.requests[before][0])
                seen[each] = number
        return found


def push(base: str, books: Books, number: int, ended: threading.Event) -> None:
    """Push unique events until the service dies."""
    with httpx.Client(base_url=base, headers={"X-API-Key": KEY}, timeout=5) as client:
        while not ended.is_set():
            name = f"{number}-{random.getrandbits(48):x}"
            metrics = [
                {"type": "custom", "value": 1, "dimensions": {"id": f"{name}-{place}"}} for place in range(METRICS)
            ]
            try:
                answer = client.post("/metrics", content=json.dumps({"service": "test", "metrics": metrics}))
            except httpx.TransportError:
                return
            if answer.status_code == 200:
                books.acknowledged.add(name)


@contextmanager
def collecting(protocol: str) -> Iterator[Collector]:
    """A collector in a thread of its own."""
    stand_in = grpc_collector() if protocol == "grpc" else http_collector()
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(stand_in) as collector:
        yield collector


@contextmanager
def service(folder: Path, collector: Collector, protocol: str) -> Iterator[str]:
    """One that forwards every event; killed at the end."""
    (folder / "forwarding.yaml").write_text(CONFIG)
    variables = {"OTEL_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    with process(
        folder, config=str(folder / "forwarding.yaml"), FLUSH_INTERVAL_SECONDS="0.05", BATCH_SIZE="20", **variables
    ) as (_, base):
        yield base


def load_and_kill(folder: Path, collector: Collector, protocol: str, books: Books, seconds: float) -> None:
    """Push for that long, and kill the service under it."""
    ended = threading.Event()
    with service(folder, collector, protocol) as base:
        clients = [threading.Thread(target=push, args=(base, books, n, ended), daemon=True) for n in range(CLIENTS)]
        for each in clients:
            each.start()
        time.sleep(seconds)  # the moment of the kill is the point of the test
    books.kills.append(time.monotonic())
    ended.set()
    for each in clients:
        each.join(timeout=10)
    time.sleep(0.2)  # for the collector to take what was on its way
    books.ends.append(len(books.requests))


def drain(folder: Path, collector: Collector, protocol: str) -> None:
    """Start once more, and have everything delivered."""
    with service(folder, collector, protocol) as base:
        httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=sized(60, 600)).raise_for_status()


@pytest.mark.alone
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_kill_9_loses_nothing_and_sends_little_twice(tmp_path: Path, protocol: str, report: Report) -> None:
    books = Books()
    with collecting(protocol) as collector:
        collector.answer_http = collector.answer_grpc = books.note  # type: ignore[assignment]
        for _ in range(ROUNDS):
            load_and_kill(tmp_path, collector, protocol, books, random.uniform(1.2, 2.5))
        drain(tmp_path, collector, protocol)
    twice = books.arrived.total() - len(books.arrived)
    report(
        kills=ROUNDS,
        acknowledged=len(books.acknowledged),
        lost_events=len(books.lost),
        forwarded_twice=twice,
        books="exact",
    )
    assert len(books.acknowledged) > 20 * ROUNDS
    assert books.lost == set()
    assert max(books.ages_of_what_came_twice(), default=0) <= SAVED_EVERY + SLACK
    # At the most once for every kill.
    assert max(books.arrived.values()) <= 1 + ROUNDS


def test_a_service_that_moves_on_before_the_answer_is_caught(tmp_path: Path, report: Report) -> None:
    books = Books()
    with collecting("http/protobuf") as collector:
        drain(tmp_path, collector, "http/protobuf")  # to have a place of its own
        collector.answer_http = lambda request: web.Response(status=503)
        load_and_kill(tmp_path, collector, "http/protobuf", books, 1.0)
        with closing(sqlite3.connect(tmp_path / "metrics-journal" / "events.db")) as connection, connection:
            moved = connection.execute(
                "UPDATE cursors SET position = (SELECT max(position) FROM cursors) + 5 WHERE exporter = 'exporter.otlp/events'"
            )
            assert moved.rowcount == 1
        collector.answer_http = books.note
        with pytest.raises(AssertionError, match=r"events\.db"):  # the service's own books show it too
            drain(tmp_path, collector, "http/protobuf")
    assert books.lost != set()
    report(control="found", lost_events=len(books.lost))
