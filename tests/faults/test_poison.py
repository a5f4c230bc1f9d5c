"""One event of a thousand that a collector never takes: the others arrive, it is kept, and arrives once its cause is mended.

The service is killed with `kill -9` while it looks for it. With its negative control: one that throws it away must be found.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pipeline.dead_letters import DeadLetter
from tests.collector import Collector, points_of
from tests.faults.changed import plugin
from tests.faults.report import Report
from tests.faults.test_forwarding import CONFIG, collecting
from tests.running import KEY, environment, process
from tests.test_cli_dead_letters import letters

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

EVENTS = 1000
POISON = EVENTS * 2 // 5
BEFORE_THE_KILL = EVENTS // 2
WRONG = """
import pipeline.dead_letters
from pipeline import hookimpl

bury = pipeline.dead_letters.bury
pipeline.dead_letters.bury = lambda connection, exporter, refused, most: bury(connection, exporter, [], most)


@hookimpl
def declare_components():
    return []
"""
"""A service that keeps nothing of what is refused for good, and says that it does."""


STUBBORN = """
from pipeline import Permanent, Retryable, hookimpl
from plugins.exporters.otlp.exporter import OtlpExporter

export = OtlpExporter.export


async def never_give_up(self, delivery):
    try:
        await export(self, delivery)
    except Permanent as error:
        raise Retryable(str(error))


OtlpExporter.export = never_give_up


@hookimpl
def declare_components():
    return []
"""
"""A service that tries again for ever what is refused for good."""
PROMPT = 5.0
"""Seconds that what comes behind the poison may take on a busy machine; on one that is not, a second."""


@dataclass
class Picky:
    """What a collector has taken, which refuses every request with the poison in it until it is mended."""

    arrived: set[str] = field(default_factory=set)
    refused: threading.Event = field(default_factory=threading.Event)
    complete: threading.Event = field(default_factory=threading.Event)
    mended: bool = False

    def answer(self, request: ExportMetricsServiceRequest) -> web.Response | None:
        """Take a request, or refuse it for good."""
        ids = {str(dict(attributes)["id"]) for _, _, attributes, _, _ in points_of(request)}
        if str(POISON) in ids and not self.mended:
            self.refused.set()
            return web.Response(status=400, text="not this one")
        self.arrived |= ids
        if len(self.arrived) == EVENTS:
            self.complete.set()
        return None


@contextmanager
def service(folder: Path, collector: Collector, *arguments: str) -> Iterator[httpx.Client]:
    """One that forwards every event; killed at the end."""
    (folder / "forwarding.yaml").write_text(CONFIG)
    variables = {"OTEL_OTLP_ENDPOINT": collector.url, "FLUSH_INTERVAL_SECONDS": "0.05", "BATCH_SIZE": "100"}
    with (
        process(folder, *arguments, config=str(folder / "forwarding.yaml"), **variables) as (_, base),
        httpx.Client(base_url=base, headers={"X-API-Key": KEY}, timeout=30) as client,
    ):
        yield client


def push(client: httpx.Client, numbers: range) -> None:
    """These events, ten at a time."""
    for first in range(numbers.start, numbers.stop, 10):
        metrics = [
            {"type": "custom", "value": 1, "dimensions": {"id": str(number)}} for number in range(first, first + 10)
        ]
        client.post("/metrics", json={"service": "test", "metrics": metrics}).raise_for_status()


def poisoned(folder: Path, collector: Collector, picky: Picky, *arguments: str) -> list[DeadLetter]:
    """Push all, with a kill where the poison is looked for; the dead letters once everything else has arrived."""
    with service(folder, collector, *arguments) as client:
        push(client, range(BEFORE_THE_KILL))
        assert picky.refused.wait(20)
    with service(folder, collector, *arguments) as client:
        push(client, range(BEFORE_THE_KILL, EVENTS))
        assert client.post("/flush").json()["status"] == "success"
    assert picky.arrived == {str(number) for number in range(EVENTS)} - {str(POISON)}
    return letters(folder / "metrics-journal" / "events.db")


def test_one_poison_of_a_thousand_is_kept_across_kill_9_and_arrives_once_it_is_mended(tmp_path: Path) -> None:
    picky = Picky()
    with collecting("http/protobuf") as collector:
        collector.answer_http = picky.answer
        (letter,) = poisoned(tmp_path, collector, picky)
        assert (letter.exporter, letter.items) == ("exporter.otlp/events", 1)
        assert "not this one" in letter.reason
        picky.mended = True
        typed = [sys.executable, "-m", "pipeline.cli", "dead-letters", "replay", "--all", "--config", "production"]
        environ = {**os.environ, **environment(tmp_path)}
        subprocess.run(typed, env=environ, check=True, capture_output=True, timeout=60)
        with service(tmp_path, collector) as client:
            assert picky.complete.wait(20)
            assert client.post("/flush").json()["status"] == "success"
    assert picky.arrived == {str(number) for number in range(EVENTS)}


def test_a_service_that_throws_the_poison_away_is_found(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrong.py").write_text(WRONG)
    picky = Picky()
    with collecting("http/protobuf") as collector:
        collector.answer_http = picky.answer
        assert poisoned(tmp_path, collector, picky, "--plugins-dir", str(tmp_path / "plugins")) == []


def behind_the_poison(folder: Path, *arguments: str) -> float | None:
    """How long after the first refusal of the poison all that was pushed behind it has arrived; None if that takes too long."""
    picky, numbers = Picky(), range(POISON + 10, POISON + 20)
    with collecting("http/protobuf") as collector:
        collector.answer_http = picky.answer
        with service(folder, collector, *arguments) as client:
            push(client, range(POISON, POISON + 10))
            assert picky.refused.wait(20)
            began = time.monotonic()
            push(client, numbers)
            while not {str(number) for number in numbers} <= picky.arrived:
                if time.monotonic() - began > PROMPT:
                    return None
                time.sleep(0.01)
            return time.monotonic() - began


def test_what_comes_behind_a_poison_is_not_held_up(tmp_path: Path, report: Report) -> None:
    took = behind_the_poison(tmp_path)
    assert took is not None
    report(arrived_after=f"{took:.2f} s")


def test_a_service_that_tries_the_poison_for_ever_is_found(tmp_path: Path) -> None:
    assert behind_the_poison(tmp_path, *plugin(tmp_path, STUBBORN)) is None
