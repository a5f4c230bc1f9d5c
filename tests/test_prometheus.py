"""What is pushed shows on :9465, at once and as a real Prometheus reads it."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pipeline import (
    Batch,
    ComponentConfig,
    Context,
    Declaration,
    Delivery,
    Exporter,
    Processor,
    Retryable,
    Signal,
    hookimpl,
)
from tests.programs import need
from tests.running import KEY, free_port, process, rows, running, until, without_blocks
from tests.scrapes import samples, total

pytestmark = pytest.mark.anyio

AUTH = {"type": "auth_request", "value": 1.0}


@contextmanager
def prometheus(folder: Path, target: int, configuration: Mapping[str, object] | None = None) -> Iterator[str]:
    """A real Prometheus that scrapes that port every second, or has that configuration; yields its base URL."""
    program = need("prometheus")
    port = free_port()
    job = {"job_name": "metrics-service", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    every_second = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
    (folder / "prometheus.yml").write_text(json.dumps(configuration or every_second))
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with (folder / "prometheus.log").open("wb") as log:
        started = subprocess.Popen([program, *options, f"--web.listen-address=127.0.0.1:{port}"], stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        started.kill()
        started.wait()


def query(base: str, expression: str) -> float | None:
    """What an instant query gives, or None while there is nothing."""
    try:
        answer = httpx.get(f"{base}/api/v1/query", params={"query": expression})
    except httpx.TransportError:
        return None
    result = answer.json()["data"]["result"] if answer.status_code == 200 else []
    return float(result[0]["value"][1]) if result else None


def wait_for(base: str, expression: str, expected: float) -> None:
    """Wait until Prometheus says so: it scrapes when it likes."""
    deadline = time.monotonic() + 30
    while (found := query(base, expression)) != expected:
        assert time.monotonic() < deadline, f"{expression} is {found}, not {expected}"
        time.sleep(0.1)


def push_for(seconds: float, base: str) -> None:
    """Push authentication requests of all sorts on one connection."""
    deadline, number = time.monotonic() + seconds, 0
    with httpx.Client(base_url=base, headers={"X-API-Key": KEY}) as client:
        while time.monotonic() < deadline:
            number += 1
            dimensions = {"success": number % 3 > 0, "method": f"m{number % 5}", "server": "s"}
            client.post("/metrics", json={"service": "test", "metrics": [{**AUTH, "dimensions": dimensions}] * 3})


@pytest.mark.timeout(120)
def test_a_real_prometheus_that_scrapes_under_load_counts_what_the_database_holds(tmp_path: Path) -> None:
    port = free_port()
    with (
        process(tmp_path, OTEL_PROMETHEUS_PORT=str(port)) as (_, base),
        prometheus(tmp_path, port) as server,
    ):
        wait_for(server, 'up{job="metrics-service"}', 1)  # its first scrape comes after 5 seconds
        threads = [threading.Thread(target=push_for, args=(4.0, base)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=30).raise_for_status()
        ((stored,),) = rows(tmp_path / "metrics.db", "SELECT count(*) FROM metrics")
        assert stored > 300
        wait_for(server, "sum(mcp_auth_requests_total)", stored)
        assert query(server, "sum(rate(mcp_auth_requests_total[30s]))")
        assert query(server, 'min_over_time(up{job="metrics-service"}[5s])') == 1


def test_what_is_shown_is_to_the_liking_of_promtool(tmp_path: Path) -> None:
    promtool = need("promtool", "prometheus")
    port = free_port()
    with process(tmp_path, OTEL_PROMETHEUS_PORT=str(port)) as (_, base):
        push_for(0.2, base)
        shown = httpx.get(f"http://127.0.0.1:{port}/metrics").content
    checked = subprocess.run([promtool, "check", "metrics"], input=shown, capture_output=True, check=False)
    assert (checked.stdout, checked.stderr, checked.returncode) == (b"", b"", 0)


@pytest.mark.parametrize("durability", ["power_loss", "crash", "none"])
async def test_what_was_answered_200_is_in_the_next_scrape(tmp_path: Path, durability: str) -> None:
    durable = f"processors.batch.durability={durability}"
    async with running(tmp_path, "connectors.series.emit_interval=1h", durable) as service:
        for count in range(1, 6):
            assert (await service.push(AUTH)).status_code == 200
            assert total(await service.scrape(), "mcp_auth_requests_total") == count


TYPES = [
    ("auth_request", {"success": True}, "mcp_auth_requests_total", 2.0, "mcp_auth_request_duration_seconds"),
    ("tool_discovery", {"query": "q"}, "mcp_tool_discovery_total", 2.0, "mcp_tool_discovery_duration_seconds"),
    ("tool_execution", {"tool_name": "t"}, "mcp_tool_executions_total", 2.0, "mcp_tool_execution_duration_seconds"),
    ("registry_operation", {"operation": "o"}, "mcp_registry_operations_total", 2.0, "mcp_registry_operation_duration_seconds"),
    ("health_check", {"healthy": False}, "mcp_health_checks_total", 2.0, "mcp_health_check_duration_seconds"),
    ("protocol_latency", {"flow_step": "f"}, "mcp_protocol_latency_seconds_sum", 2.0, "mcp_protocol_latency_seconds"),
    ("custom", {"metric_name": "n"}, "mcp_custom_events_total", 1.0, None),
    ("custom", {"metric_name": "n"}, "mcp_custom_value", 2.0, None),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "dimensions", "name", "value", "histogram"), TYPES, ids=[each[2] for each in TYPES])
async def test_each_type_shows_as_the_contract_says(
    tmp_path: Path, kind: str, dimensions: dict[str, object], name: str, value: float, histogram: str | None
) -> None:
    async with running(tmp_path) as service:
        await service.push({"type": kind, "value": 2.0, "duration_ms": 40, "dimensions": dimensions})
        text = await service.scrape()
        labels = {
            label: str(each).lower() if isinstance(each, bool) else str(each) for label, each in dimensions.items()
        }
        assert total(text, name, service="test", metric_type=kind, **labels) == value
        if histogram is not None:
            assert total(text, f"{histogram}_count", **labels) == 1
            assert f"# TYPE {histogram} histogram" in text


async def test_after_a_restart_counters_go_on(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        await service.push(AUTH, AUTH)
        before = samples(await service.scrape())
    async with running(tmp_path) as service:
        assert samples(await service.scrape()) == before
        await service.push(AUTH)
        assert total(await service.scrape(), "mcp_auth_requests_total") == 3


async def test_a_type_that_the_configuration_adds_has_series(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        """
extends: development
processors:
  validate:
    types: [auth_request, upload]
connectors:
  series:
    types:
      upload:
        counter: uploads_total
        labels: [bucket]
"""
    )
    async with running(tmp_path, config=str(tmp_path / "own.yaml")) as service:
        await service.push({"type": "upload", "value": 3, "dimensions": {"bucket": "b"}}, AUTH)
        text = await service.scrape()
        assert total(text, "uploads_total", bucket="b", metric_type="upload") == 3
        assert total(text, "mcp_auth_requests_total") == 1


class Faulty(Processor[ComponentConfig]):
    """Raises what no processor should, the first time."""

    raised = False

    async def process(self, batch: Batch, context: Context) -> Batch:
        if not Faulty.raised:
            Faulty.raised = True
            raise ValueError("a bug")
        return batch


class Stuck(Exporter[ComponentConfig]):
    """Takes at once, and never works."""

    at_once = True

    async def export(self, delivery: Delivery) -> None:
        raise Retryable("stuck")


class StuckPlugin:
    """Declares both."""

    @hookimpl
    def declare_components(self) -> Sequence[Declaration]:
        both = frozenset(Signal)
        return [
            Declaration("stuck", Stuck, ComponentConfig, takes=both),
            Declaration("faulty", Faulty, ComponentConfig, takes=both),
        ]


async def test_an_exporter_beside_it_that_is_stuck_keeps_nobody_from_scraping(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    pipelines = "events: {exporters: [sqlite, series, stuck]}\n    metrics: {exporters: [prometheus, stuck]}"
    own.write_text(f"extends: development\nexporters:\n  stuck:\nservice:\n  pipelines:\n    {pipelines}\n")
    for count in (1, 2):  # the second time, it was stuck already at the start
        async with running(tmp_path, config=str(own), plugins=[StuckPlugin()]) as service:
            await service.push(AUTH)
            text = await service.scrape()
            assert total(text, "mcp_auth_requests_total") == count
            assert total(text, "otelcol_exporter_queue_size", exporter="stuck", pipeline="events") == count
            assert total(text, "exporter_working", exporter="stuck") == 0


async def test_a_fault_of_a_processor_of_the_metrics_pipeline_costs_nothing_for_good(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    pipelines = "metrics: {processors: [faulty, batch]}"
    own.write_text(f"extends: development\nprocessors:\n  faulty:\nservice:\n  pipelines:\n    {pipelines}\n")
    Faulty.raised = False
    async with running(tmp_path, config=str(own), plugins=[StuckPlugin()]) as service:
        await service.push(AUTH)
        await until(lambda: Faulty.raised)
        assert total(await service.scrape(), "mcp_auth_requests_total") == 1
        await service.flush()
        states = (await service.client.get("/health/ready")).json()["components"]
        assert without_blocks(states)["connector/series"] == "ok"


async def test_a_metrics_journal_that_is_full_keeps_no_event_from_being_accepted(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    processors = "processors:\n  batch/small:\n    max_bytes: 1MiB\n    folder: FOLDER\nexporters:\n  stuck:\n"
    metrics = "metrics: {processors: [batch/small], exporters: [prometheus, stuck]}"
    processors = processors.replace("FOLDER", str(tmp_path / "small"))
    own.write_text(f"extends: development\n{processors}service:\n  pipelines:\n    {metrics}\n")
    many = [{**AUTH, "dimensions": {"server": f"s{number}"}, "duration_ms": 1} for number in range(140)]
    async with running(
        tmp_path, "connectors.series.emit_interval=0", config=str(own), plugins=[StuckPlugin()]
    ) as service:
        metrics_journal = next(each.journal for each in service.service.graph.pipelines if each.id == "metrics")
        pushes = 0
        while metrics_journal.failure is None:
            assert (await service.push(*many)).status_code == 200
            pushes += 1
            await service.scrape()
        for _ in range(3):
            assert (await service.push(*many)).status_code == 200
        assert (await service.client.get("/health")).status_code == 200
        ready = (await service.client.get("/health/ready")).json()["components"]
        assert "is full" in ready["journal/metrics"]
    async with running(tmp_path) as service:
        assert total(await service.scrape(), "mcp_auth_requests_total") == (pushes + 3) * len(many)
