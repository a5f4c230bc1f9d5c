"""A network that goes down and comes up again between a service, its clients and its collector: nothing is lost, and little is sent twice.

It is a network of the test's own, with nothing but loopback. With its negative control: a service that takes an error for success must be
found.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tests.collector import ids_of
from tests.faults.filling import Pushers, faults_of, settle
from tests.faults.sizes import sized
from tests.faults.test_collectors import CONFIG
from tests.faults.test_forwarding import collecting
from tests.programs import lacking, need
from tests.running import process, rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 600))]

CLONE_NEWNET = 0x40000000
BREAKS = sized(2, 4)
DOWN = sized(2, 10)
"""Seconds."""
SLOW = 0.3
"""Seconds that the collector takes for each request, so that something is always on its way."""
WRONG = """
from pipeline import hookimpl
from plugins.exporters.otlp.exporter import OtlpExporter

export, lost = OtlpExporter.export, []


async def try_once(self, delivery):
    try:
        await export(self, delivery)
        if lost and lost.pop():
            await export(self, delivery)
    except Exception:
        lost.append(delivery)


OtlpExporter.export = try_once


@hookimpl
def declare_components():
    return []
"""
"""A service that takes every error for success, and sends something else twice, so that as many arrive as there are."""


def ip(*words: str) -> None:
    subprocess.run([need("ip", "iproute2"), *words], check=True, capture_output=True)


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and all threads and processes that it starts, have a network of their own."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            lacking("needs the right to make a network of its own: run it as root")
        try:
            ip("link", "set", "lo", "up")
            yield
        finally:
            assert libc.setns(home, CLONE_NEWNET) == 0
    finally:
        os.close(home)


@dataclass
class Seen:
    """What became of events while the network went down and up."""

    faults: dict[str, set[str]]
    """What is wrong with what is stored."""
    stored: set[str]
    """The ids of the events there."""
    requests: list[list[str]]
    """Those in each request that the collector took."""

    @property
    def arrived(self) -> Counter[str]:
        """How often each came."""
        return Counter(id for ids in self.requests for id in ids)

    @property
    def twice(self) -> int:
        """How many came again."""
        return self.arrived.total() - len(self.arrived)


def broken(folder: Path, *arguments: str, breaks: int = 1) -> Seen:
    """Load while the network goes down and up so many times."""
    endpoint = "endpoint: ${env:OTEL_OTLP_ENDPOINT}"
    (folder / "own.yaml").write_text(CONFIG.replace(endpoint, f"{endpoint}\n    timeout: 1s"))
    requests: list[list[str]] = []

    async def note(request: ExportMetricsServiceRequest) -> None:
        requests.append(ids_of(request))
        await anyio.sleep(SLOW)

    with own_network(), collecting("http/protobuf") as collector:
        collector.answer_http = note
        variables = {"OTEL_OTLP_ENDPOINT": collector.url}
        with process(
            folder, *arguments, config=str(folder / "own.yaml"), FLUSH_INTERVAL_SECONDS="0.05", **variables
        ) as (_, base):
            with Pushers(base) as pushers:
                pushers.ending = True  # clients see it too
                for _ in range(breaks):
                    pushers.wait_for(200, 50, 30)
                    ip("link", "set", "lo", "down")
                    time.sleep(DOWN)
                    ip("link", "set", "lo", "up")
                pushers.wait_for(200, 50, 30)
            settle(base, 60)
    stored = {str(id) for (id,) in rows(folder / "metrics.db", "SELECT json_extract(dimensions, '$.id') FROM metrics")}
    return Seen(faults_of(pushers, folder / "metrics.db"), stored, requests)


def test_a_network_that_comes_and_goes_loses_nothing_and_sends_little_twice(tmp_path: Path) -> None:
    seen = broken(tmp_path, breaks=BREAKS)
    assert seen.faults == {}
    assert seen.arrived.keys() == seen.stored
    assert seen.twice <= BREAKS * max(map(len, seen.requests))


def test_a_service_that_takes_an_error_for_success_is_found(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrong.py").write_text(WRONG)
    seen = broken(tmp_path, "--plugins-dir", str(tmp_path / "plugins"))
    assert seen.stored - seen.arrived.keys() != set()
