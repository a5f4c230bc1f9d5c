"""A service without any database: pre-shared keys, series and forwarding work, and `kill -9` costs nothing."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from tests.collector import Collector, http_collector, ids_of
from tests.faults.changed import plugin
from tests.running import ADMIN_KEY, KEY, OURS, command, free_port, process
from tests.scrapes import samples

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

CONFIGURATION = """
receivers:
  http: {host: 127.0.0.1, port: "${env:METRICS_SERVICE_PORT}"}
processors:
  auth:
  rate_limit:
  validate:
  batch: {flush_interval: 0.1s}
exporters:
  prometheus: {host: 127.0.0.1, port: "${env:OTEL_PROMETHEUS_PORT}"}
  otlp: {endpoint: "${env:OTEL_OTLP_ENDPOINT}"}
connectors:
  series:
    types:
      custom: {counter: custom_total, counts: events, labels: [kind]}
extensions:
  api_keys: {admin_key: "${env:METRICS_ADMIN_KEY}"}
service:
  extensions: [api_keys]
  pipelines:
    events: {receivers: [http], processors: [auth, rate_limit, validate, batch], exporters: [series, otlp]}
    metrics: {receivers: [series], processors: [batch], exporters: [prometheus]}
"""
ROUNDS, PUSHES = 3, 10


@contextmanager
def collecting() -> Iterator[Collector]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(http_collector()) as collector:
        yield collector


@contextmanager
def service(
    folder: Path, collector: Collector, port: int, *arguments: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    (folder / "service.yaml").write_text(CONFIGURATION)
    variables = {"OTEL_OTLP_ENDPOINT": collector.url, "OTEL_PROMETHEUS_PORT": str(port)}
    variables |= {"METRICS_JOURNAL_DIR": str(folder / "metrics-journal")}  # where the test looks for the journals
    with process(folder, *arguments, config="service.yaml", **variables) as running:
        yield running


def push(base: str, id: str) -> None:
    """Push one event with a pre-shared key."""
    document = {"service": "test", "metrics": [{"type": "custom", "value": 1, "dimensions": {"kind": "a", "id": id}}]}
    httpx.post(f"{base}/metrics", json=document, headers={"X-API-Key": KEY}).raise_for_status()


def counted(port: int) -> float:
    """The counter that Prometheus sees."""
    shown = samples(httpx.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text, prefix="custom_total")
    return sum(shown.values())


def push_and_kill(folder: Path, collector: Collector, port: int, round: int, *arguments: str) -> None:
    with service(folder, collector, port, *arguments) as (running, base):
        for number in range(PUSHES):
            push(base, f"{round}-{number}")
        running.send_signal(signal.SIGKILL)
        running.wait()


def test_without_a_database_kill_9_costs_no_event_and_lowers_no_counter(tmp_path: Path) -> None:
    port = free_port()
    with collecting() as collector:
        for round in range(ROUNDS):
            push_and_kill(tmp_path, collector, port, round)
        with service(tmp_path, collector, port) as (running, base):
            push(base, "last")
            answer = httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=30)
            assert answer.json()["status"] == "success"
            assert counted(port) == ROUNDS * PUSHES + 1
            with_admin = httpx.post(
                f"{base}/metrics", json={"service": "test", "metrics": []}, headers={"X-API-Key": ADMIN_KEY}
            )
            assert with_admin.status_code != 401
            unknown = httpx.post(f"{base}/metrics", json={}, headers={"X-API-Key": KEY + "x"})
            assert (unknown.status_code, unknown.json()["detail"]) == (401, "Invalid API key")
            running.terminate()
            assert running.wait(timeout=20) == 0
        forwarded = {id for request in collector.taken for id in ids_of(request)}
        assert forwarded == {f"{round}-{number}" for round in range(ROUNDS) for number in range(PUSHES)} | {"last"}
        with service(tmp_path, collector, port):
            assert counted(port) == ROUNDS * PUSHES + 1
    assert not (tmp_path / "metrics.db").exists()
    assert {each.name for each in (tmp_path / "metrics-journal").glob("*.db")} == {
        "events.db",
        "metrics.db",
        "state.db",
    }


FORGETFUL = """
from pipeline import hookimpl
from pipeline.saved_state import StateFile

save = StateFile.save
StateFile.save = lambda self, owner, positions, records: save(self, owner, positions, {})


@hookimpl
def declare_components():
    return []
"""


def test_a_service_that_saves_no_state_is_found(tmp_path: Path) -> None:
    port = free_port()
    forgetful = plugin(tmp_path, FORGETFUL)
    with collecting() as collector:
        with service(tmp_path, collector, port, *forgetful) as (running, base):
            push(base, "one")
            assert counted(port) == 1
            running.terminate()  # after a stop, the journal keeps nothing that `series` has taken
            running.wait(timeout=20)
        with service(tmp_path, collector, port, *forgetful):
            assert counted(port) == 0


@pytest.mark.parametrize("arguments", [("create", "--service", "a"), ("list",), ("revoke", "1"), ("rotate", "1")])
def test_commands_for_keys_say_in_one_line_that_there_is_no_database(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "service.yaml").write_text(CONFIGURATION)
    variables = {"OTEL_OTLP_ENDPOINT": "http://127.0.0.1:9", "METRICS_SERVICE_PORT": "1"}
    _, environ = command(tmp_path, **variables)
    called = [*OURS, "keys", *arguments, "--config", "service.yaml"]
    done = subprocess.run(called, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: keys are kept in a database, and the configuration has no extension")
    assert done.stderr.count("\n") == 1
    assert json.dumps([each.name for each in tmp_path.iterdir()]) == '["service.yaml"]'


def test_validate_and_doctor_accept_it(tmp_path: Path) -> None:
    (tmp_path / "service.yaml").write_text(CONFIGURATION)
    variables = {"OTEL_OTLP_ENDPOINT": "http://127.0.0.1:9", "METRICS_SERVICE_PORT": "1"}
    _, environ = command(tmp_path, **variables)
    for name in ("validate", "doctor"):
        called = [*OURS, name, "--config", "service.yaml"]
        done = subprocess.run(called, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        assert name == "doctor" or (done.returncode, done.stdout) == (0, "valid: 2 pipelines, 8 components\n")
        assert "no backups" not in done.stdout
        assert "no retention" not in done.stdout
