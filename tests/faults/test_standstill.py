"""A process that stands still for a while, and a second one that wants the same data: nothing is lost, nothing is sent twice, and who was
there first goes on as if nothing had been.

Each with its negative control: one that is killed as it stands still and had answered from memory, and one without a lock.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.collector import ids_of
from tests.faults.filling import Pushers, faults_of, metrics_of, settle
from tests.faults.sizes import sized
from tests.faults.test_collectors import CONFIG
from tests.faults.test_forwarding import collecting
from tests.running import KEY, command, free_port, process, wait_until_healthy

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 300))]

STANDSTILL = sized(3, 30)
"""Seconds."""
RECOVERED = 2
"""Seconds after which nobody notices anything any more."""
LOCKLESS = """
from pipeline import hookimpl
from pipeline.files import FileLock

FileLock.acquire = lambda self: None


@hookimpl
def declare_components():
    return []
"""
"""A service that takes no lock."""


def test_who_stood_still_goes_on_and_sends_no_more_than_one_request_twice(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(CONFIG)
    with collecting("http/protobuf") as collector:
        variables = {"OTEL_OTLP_ENDPOINT": collector.url, "FLUSH_INTERVAL_SECONDS": "0.1"}
        with process(tmp_path, config=str(tmp_path / "own.yaml"), **variables) as (running, base):
            with Pushers(base) as pushers:
                pushers.wait_for(200, 50, 20)
                pushers.ending = True  # clients may give up waiting for so long
                running.send_signal(signal.SIGSTOP)
                time.sleep(STANDSTILL)
                running.send_signal(signal.SIGCONT)
                time.sleep(RECOVERED)
                pushers.ending = False
                before = pushers.statuses.copy()
                pushers.wait_for(200, 50, 20)
            assert (pushers.statuses - before).keys() == {200}
            assert pushers.wrong == []
            settle(base, 20)
    assert faults_of(pushers, tmp_path / "metrics.db") == {}
    requests = [ids_of(request) for request in collector.taken]
    arrived = Counter(id for ids in requests for id in ids)
    assert set(metrics_of(*pushers.acknowledged)) - arrived.keys() == set(), "lost"
    assert arrived.keys() - set(metrics_of(*pushers.sent)) == set(), "never sent"
    assert arrived.total() - len(arrived) <= max(map(len, requests)), "twice"


def killed_as_it_stands_still(folder: Path, *arguments: str) -> dict[str, set[str]]:
    """What is wrong with what is stored then."""
    with process(folder, *arguments, FLUSH_INTERVAL_SECONDS="0.1") as (running, base), Pushers(base) as pushers:
        pushers.wait_for(200, 50, 20)
        pushers.ending = True
        running.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        running.kill()
    with process(folder) as (_, base):
        settle(base, 20)
    return faults_of(pushers, folder / "metrics.db")


def test_who_is_killed_as_it_stands_still_has_lost_nothing(tmp_path: Path) -> None:
    assert killed_as_it_stands_still(tmp_path) == {}


def second(folder: Path, *arguments: str) -> int | None:
    """Start a second service on the same data: its exit code, or None if it runs."""
    port = free_port()
    ports = {"METRICS_SERVICE_PORT": str(port), "OTEL_PROMETHEUS_PORT": str(free_port())}
    called, environ = command(folder, *arguments, METRICS_SERVICE_HOST="127.0.0.1", **ports)
    with (folder / "second.log").open("ab") as log:
        other = subprocess.Popen(called, env=environ, stderr=log, cwd=folder)
    try:
        with suppress(AssertionError):  # it ended
            wait_until_healthy(f"http://127.0.0.1:{port}", other, folder / "second.log")
        return other.poll()
    finally:
        other.kill()
        other.wait()


def test_a_second_process_is_turned_away_and_the_first_notices_nothing(tmp_path: Path) -> None:
    with process(tmp_path, FLUSH_INTERVAL_SECONDS="0.1") as (running, base):
        with Pushers(base) as pushers:
            pushers.wait_for(200, 20, 20)
            assert second(tmp_path) == 73
            assert f"is held by process {running.pid}" in (tmp_path / "second.log").read_text()
            pushers.wait_for(200, 20, 20)
        assert (pushers.wrong, set(pushers.statuses)) == ([], {200})
        settle(base, 20)
    assert faults_of(pushers, tmp_path / "metrics.db") == {}


def test_a_second_process_beside_one_without_a_lock_is_found(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrong.py").write_text(LOCKLESS)
    with process(tmp_path, "--plugins-dir", str(tmp_path / "plugins")) as (_, base):
        assert httpx.get(f"{base}/health", headers={"X-API-Key": KEY}).status_code == 200
        assert second(tmp_path) is None
