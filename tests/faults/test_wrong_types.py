"""A plugin emits wrong types for some pushes while 32 clients push, and the service is killed: no other client loses an event.

With its negative controls: a service that does not check what the plugin emits, and one that also reads a row of the journal all or
nothing.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.faults.changed import plugin
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.running import KEY, process, rows

CLIENTS = 32
ROUNDS = sized(2, 20)
ACKNOWLEDGED = sized(100, 300)
"""Pushes that are answered 200 in a round before the kill."""
SPOILED = 7
"""One push of so many asks for a wrong type."""

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120 + 30 * ROUNDS)]

SPOILING = """
from datetime import date, datetime
from decimal import Decimal
from itertools import count

from pipeline import *

numbers = count()
WRONG = (
    lambda batch: None,
    lambda batch: [batch],
    lambda batch: list(batch.events),
    lambda batch: batch.events[0],
    lambda batch: "batch",
    lambda batch: MetricBatch(b"", 1, batch.received_at),
    lambda batch: batch.replace(service=5),
    lambda batch: batch.replace(received_at=None),
    lambda batch: batch.replace(key_service=b"x"),
    lambda batch: of_event(batch, value="12.5"),
    lambda batch: of_event(batch, value=None),
    lambda batch: of_event(batch, value=float("nan")),
    lambda batch: of_event(batch, type=None),
    lambda batch: of_event(batch, type="\\ud83c"),
    lambda batch: of_event(batch, timestamp="yesterday"),
    lambda batch: of_event(batch, timestamp=datetime(2026, 1, 1)),
    lambda batch: of_event(batch, duration_ms=Decimal(1)),
    lambda batch: of_event(batch, dimensions={"day": datetime(2026, 1, 1)}),
    lambda batch: of_event(batch, dimensions={"tags": ["a"]}),
    lambda batch: of_event(batch, dimensions={"nested": {"a": 1}}),
    lambda batch: of_event(batch, dimensions={1: "x"}),
    lambda batch: of_event(batch, dimensions={"n": 2**70}),
    lambda batch: of_event(batch, metadata="{"),
    lambda batch: batch.replace(events=[None]),
)


def of_event(batch, **changes):
    return batch.replace(events=[event.replace(**changes) for event in batch.events])


class Spoiling(Processor[ComponentConfig]):
    '''Emits wrong types for the pushes that ask for it.'''

    async def process(self, batch, context):
        if batch.events[0].dimensions.get("spoil"):
            return WRONG[next(numbers) % len(WRONG)](batch)
        return batch


@hookimpl
def declare_components():
    return [Declaration("spoiling", Spoiling, ComponentConfig, takes=frozenset({Signal.EVENTS}))]
"""
UNCHECKED = """

import pipeline.chain
import pipeline.checked_entry

pipeline.checked_entry.Entry.checked = lambda self, produced, context: produced[-1].batch
"""
"""A service that looks at the class of a batch only."""
ALL_OR_NOTHING = """
import msgspec
import pipeline.books
import pipeline.journal_reader
from pipeline.data import Batch

decode = msgspec.msgpack.Decoder(list[Batch]).decode
pipeline.journal_reader.decode_group = pipeline.books.decode_group = lambda payload, items=None: decode(payload)
"""
"""A service that decodes a row as one."""
CONFIG = """
extends: production
processors:
  spoiling:
  batch: {size: 1000000, flush_interval: 1h}
service:
  pipelines:
    events: {processors: [auth, rate_limit, validate, spoiling, batch]}
"""
"""What is accepted waits in the journal until the service is killed, so that the next one must read it from there."""


@dataclass
class Clients:
    """32 clients, each with one connection, and what they know."""

    address: str
    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    spoiled: set[str] = field(default_factory=set)
    """Pushes that asked for a wrong type."""
    statuses: Counter[int] = field(default_factory=Counter)
    enough: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    goal: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    threads: list[threading.Thread] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def push(self, pushes: int) -> None:
        """Begin, until so many pushes more are acknowledged, and go on until `join`."""
        self.goal = len(self.acknowledged) + pushes
        self.enough.clear()
        self.ended.clear()
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(CLIENTS)]
        for each in self.threads:
            each.start()

    def join(self) -> None:
        """End."""
        self.ended.set()
        for each in self.threads:
            each.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=20)
        while not self.ended.is_set():
            number = next(self.numbers)
            id, spoil = f"p{number}", number % SPOILED == 0
            with self.lock:
                self.sent.add(id)
                if spoil:
                    self.spoiled.add(id)
            metric = {"type": "custom", "value": 1, "dimensions": {"spoil": spoil}, "metadata": {"id": id}}
            body = json.dumps({"service": "test", "metrics": [metric]})
            try:
                connection.request("POST", "/metrics", body, {"X-API-Key": KEY})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):  # it was killed
                connection.close()
                self.ended.wait(0.02)
                continue
            with self.lock:
                self.statuses[answer.status] += 1
                if answer.status == 200:
                    self.acknowledged.add(id)
                    if len(self.acknowledged) >= self.goal:
                        self.enough.set()
        connection.close()


@dataclass
class Found:
    """What one run has shown."""

    clients: Clients
    missing: set[str]
    twice: set[str]
    log: str


def run(folder: Path, rounds: int, *changes: str) -> Found:
    """Push and kill so many times, then have everything stored."""
    (folder / "own.yaml").write_text(CONFIG)
    arguments = (*plugin(folder, "".join((SPOILING, *changes))), "--config", str(folder / "own.yaml"))
    clients = Clients("")
    for _ in range(rounds):
        with process(folder, *arguments) as (running, base):
            clients.address = base.removeprefix("http://")
            clients.push(ACKNOWLEDGED)
            assert clients.enough.wait(60), clients.statuses
            os.killpg(running.pid, signal.SIGKILL)  # while they push
            running.wait()
            clients.join()
    with process(folder, *arguments) as (running, base):
        answer = httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=60)
        assert answer.status_code == 200, answer.text
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
    ids = "SELECT iif(json_valid(metadata), json_extract(metadata, '$.id'), metadata) FROM metrics"
    stored = Counter(id for (id,) in rows(folder / "metrics.db", ids))
    twice = {id for id, times in stored.items() if times > 1}
    return Found(clients, clients.acknowledged - stored.keys(), twice, (folder / "service.log").read_text())


def test_no_client_loses_an_event_whatever_a_plugin_emits_for_another(tmp_path: Path, report: Report) -> None:
    found = run(tmp_path, ROUNDS)
    clients = found.clients
    report(rounds=ROUNDS, sent=len(clients.sent), acknowledged=len(clients.acknowledged), spoiled=len(clients.spoiled))
    report(answers=dict(sorted(clients.statuses.items())), missing=len(found.missing), twice=len(found.twice))
    assert (found.missing, found.twice) == (set(), set())
    assert clients.acknowledged.isdisjoint(clients.spoiled)
    assert set(clients.statuses) == {200, 500}
    assert clients.statuses[500] >= 24, "every wrong type was emitted"
    assert "processor spoiling: invalid batch: " in found.log
    assert "damaged" not in found.log
    path = tmp_path / "journal" / "events.db"
    path = path if path.exists() else next(tmp_path.glob("*journal*/events.db"))
    assert rows(path, "SELECT count(*) FROM dead_letters") == [(0,)]


def test_a_service_that_does_not_check_what_a_plugin_emits_is_found(tmp_path: Path, report: Report) -> None:
    found = run(tmp_path, 1, UNCHECKED)
    report(missing=len(found.missing), of_the_plugin=len(found.missing & found.clients.spoiled))
    assert found.missing
    assert found.missing <= found.clients.spoiled, "each batch is decoded by itself: no other is lost"


def test_a_service_that_also_reads_a_row_all_or_nothing_is_found(tmp_path: Path, report: Report) -> None:
    found = run(tmp_path, 1, UNCHECKED, ALL_OR_NOTHING)
    others = found.missing - found.clients.spoiled
    report(missing=len(found.missing), of_others=len(others))
    assert others, "other clients' events are lost"
