"""Each variable of the deployment guide does what the guide says, shown by what the service then does."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import ADMIN_KEY, KEY, Running, free_port, process, running, until
from tests.scrapes import total

pytestmark = pytest.mark.anyio

METRIC = {"type": "auth_request", "value": 1.0}
ADMIN = {"X-API-Key": ADMIN_KEY}


async def test_sqlite_db_path_is_where_metrics_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "some" / "where" / "else.db"
    async with running(tmp_path, SQLITE_DB_PATH=str(path)) as service:
        await service.push(METRIC)
        await service.flush()
        assert service.database == path
        assert service.rows() == [(1,)]
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.parent.stat().st_mode & 0o777 == 0o750


async def test_metrics_service_host_is_the_address_that_is_bound(tmp_path: Path) -> None:
    async with running(tmp_path, METRICS_SERVICE_HOST="127.0.0.2") as service:
        url = service.client.base_url.copy_with(host="127.0.0.2")
        assert (await service.client.get(f"{url}/health")).status_code == 200
        with pytest.raises(httpx.ConnectError):
            await service.client.get("/health")


async def test_metrics_rate_limit_is_in_requests_a_minute(tmp_path: Path) -> None:
    async with running(tmp_path, METRICS_RATE_LIMIT="2") as service:
        assert [(await service.push(METRIC)).status_code for _ in range(3)] == [200, 200, 429]
        own = {"X-API-Key": await service.make_key(rate_limit=9)}
        answer = await service.client.get("/rate-limit", headers=own)
        assert answer.json()["rate_limit"] == 9, "it is for keys without a limit of their own"


async def test_metrics_retention_days_is_the_default_of_every_policy(tmp_path: Path) -> None:
    async with running(tmp_path, METRICS_RETENTION_DAYS="7") as service:
        policies = (await service.client.get("/admin/retention/policies", headers=ADMIN)).json()
        assert policies["metrics"]["retention_days"] == 7


async def test_batch_size_is_how_many_metrics_are_written_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, BATCH_SIZE="3", FLUSH_INTERVAL_SECONDS="3600") as service:
        for expected in (0, 0, 3):
            assert (await service.push(METRIC)).status_code == 200
            await until(lambda expected=expected: service.rows() == [(expected,)])  # type: ignore[misc]


async def test_flush_interval_seconds_is_how_long_a_metric_waits_at_most(tmp_path: Path) -> None:
    async with running(tmp_path, BATCH_SIZE="1000", FLUSH_INTERVAL_SECONDS="0.5") as service:
        await service.push(METRIC)
        assert service.rows() == [(0,)]
        began = time.monotonic()
        await until(lambda: service.rows() == [(1,)])
        assert 0.3 < time.monotonic() - began < 4


async def test_max_request_size_is_the_largest_body(tmp_path: Path) -> None:
    async with running(tmp_path, MAX_REQUEST_SIZE="1KB") as service:
        document = json.dumps({"service": "test", "metrics": [METRIC]})
        assert (await service.client.post("/metrics", content=document.ljust(1000))).status_code == 200
        assert (await service.client.post("/metrics", content=document.ljust(1001))).status_code == 413


def test_otel_prometheus_port_is_where_series_are_shown(tmp_path: Path) -> None:
    port = free_port()
    with process(tmp_path, OTEL_PROMETHEUS_PORT=str(port)):
        assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 200


def test_otel_prometheus_enabled_decides_whether_anything_listens_there(tmp_path: Path) -> None:
    port = free_port()
    with process(tmp_path, OTEL_PROMETHEUS_PORT=str(port), OTEL_PROMETHEUS_ENABLED="false") as (_, base):
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/metrics")
        push = {"service": "test", "metrics": [METRIC]}
        assert httpx.post(f"{base}/metrics", json=push, headers={"X-API-Key": KEY}).status_code == 200
    assert not (tmp_path / "metrics-journal" / "metrics.db").exists(), (
        "nothing is kept for a pipeline without exporters"
    )


async def test_otel_service_name_is_what_the_service_is_called_in_its_telemetry(tmp_path: Path) -> None:
    async with running(tmp_path, OTEL_SERVICE_NAME="gateway-metrics") as service:
        text = await service.scrape()
        assert total(text, "target_info", service_name="gateway-metrics") == 1


def call(tool: str) -> dict[str, object]:
    """The execution of that tool."""
    return {"type": "tool_execution", "value": 1, "dimensions": {"tool_name": tool}}


async def test_metrics_max_label_cardinality_is_how_many_values_a_label_shows(tmp_path: Path) -> None:
    async with running(tmp_path, METRICS_MAX_LABEL_CARDINALITY="3") as service:
        await service.push(*(call(f"tool-{number}") for number in range(10)))
        text = await service.scrape()
        assert total(text, "mcp_tool_executions_total", tool_name="_other") == 7
        assert total(text, "mcp_tool_executions_total") == 10
        assert total(text, "series_folded_events_total", metric_type="tool_execution") == 7


async def test_metrics_max_label_length_is_where_the_value_of_a_label_is_cut(tmp_path: Path) -> None:
    async with running(tmp_path, METRICS_MAX_LABEL_LENGTH="5") as service:
        await service.push(call("a-long-name"))
        assert total(await service.scrape(), "mcp_tool_executions_total", tool_name="a-lon") == 1


async def service_of(service: Running, key: str) -> Any:
    """Whose this key is."""
    answer = await service.client.get("/rate-limit", headers={"X-API-Key": key})
    return answer.json().get("service"), answer.status_code


async def test_metrics_api_key_variables_are_keys_of_the_services_they_name(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("key-of-the-registry-in-a-file-of-its-own\n")
    keys = {
        "METRICS_API_KEY_MCP_GATEWAY": "key-of-the-gateway-in-the-environment",
        "METRICS_API_KEY_REGISTRY_FILE": str(tmp_path / "key"),
        "METRICS_API_KEY_EMPTY": "",
    }
    async with running(tmp_path, **keys) as service:
        assert await service_of(service, "key-of-the-gateway-in-the-environment") == ("mcp-gateway", 200)
        assert await service_of(service, "key-of-the-registry-in-a-file-of-its-own") == ("registry", 200)
        assert await service_of(service, str(tmp_path / "key")) == (None, 401)
        answer = await service.client.get(
            "/admin/database/size", headers={"X-API-Key": keys["METRICS_API_KEY_MCP_GATEWAY"]}
        )
        assert answer.status_code == 403


async def test_metrics_admin_key_may_everything(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("key-of-the-administrator-in-a-file\n")
    for variables in (
        {"METRICS_ADMIN_KEY": "key-of-the-administrator-in-a-file"},
        {"METRICS_ADMIN_KEY": "", "METRICS_ADMIN_KEY_FILE": str(tmp_path / "key")},
    ):
        async with running(tmp_path, **variables) as service:
            service.client.headers["X-API-Key"] = "key-of-the-administrator-in-a-file"
            assert (await service.client.get("/admin/database/size")).status_code == 200
            assert (await service.push(METRIC)).status_code == 200


async def test_db_connection_timeout_is_how_long_a_lock_is_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path, DB_CONNECTION_TIMEOUT="0.3") as service:
        change = "/admin/retention/policies/metrics?retention_days=5"
        with service.locked():
            began = time.monotonic()
            answer = await service.client.put(change, headers=ADMIN)
            assert 0.3 <= time.monotonic() - began < 4
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) >= 1
            # What is pushed meanwhile is safe in the journal.
            assert (await service.push(METRIC)).status_code == 200
        assert (await service.client.put(change, headers=ADMIN)).status_code == 200
        await service.flush()
        assert service.rows() == [(1,)]


async def test_metrics_journal_dir_is_where_pushes_are_kept_until_they_are_stored(tmp_path: Path) -> None:
    folder = tmp_path / "on" / "another" / "disk"
    async with running(tmp_path, METRICS_JOURNAL_DIR=str(folder)) as service:
        assert (await service.push(METRIC)).status_code == 200
    assert (folder / "events.db").stat().st_size > 0
    assert not (tmp_path / "metrics-journal").exists()
    async with running(tmp_path, METRICS_JOURNAL_DIR=str(folder)) as service:
        await service.flush()
        assert service.rows() == [(1,)]


async def test_metrics_server_chooses_the_server(tmp_path: Path) -> None:
    for name, reason in [("hypercorn", ""), ("uvicorn", "OK")]:
        async with running(tmp_path, METRICS_SERVER=name) as service:
            assert (await service.client.get("/health")).reason_phrase == reason


def log_of_a_run(folder: Path, **variables: str) -> list[str]:
    """What a service writes to its log that starts, refuses one push, and stops."""
    with process(folder, **variables) as (running, base):
        assert httpx.post(f"{base}/metrics", content=b"{}", headers={"X-API-Key": "no"}).status_code == 401
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=20) == 0
    return (folder / "service.log").read_text().splitlines()


def test_log_format_is_one_json_object_a_line_or_text(tmp_path: Path) -> None:
    """And METRICS_SERVICE_PORT is where it listens: `process` sets it."""
    lines = [json.loads(line) for line in log_of_a_run(tmp_path, LOG_FORMAT="json", LOG_LEVEL="info")]
    assert all({"timestamp", "level", "logger", "message"} <= set(line) for line in lines)
    assert {"ready", "stopped"} <= {line["message"] for line in lines}
    (refused,) = [line for line in lines if line["message"] == "Refused metrics"]
    assert refused["status"] == 401
    assert {"request_id", "service", "accepted", "rejected", "duration_ms"} <= set(refused)
    (tmp_path / "service.log").unlink()

    lines_of_text = log_of_a_run(tmp_path, LOG_FORMAT="text", LOG_LEVEL="DEBUG")
    assert any(line.endswith("Refused metrics") or "Refused metrics request_id=" in line for line in lines_of_text)
    assert not any(line.startswith("{") for line in lines_of_text)


def test_log_level_is_the_least_severe_that_is_written(tmp_path: Path) -> None:
    lines = log_of_a_run(tmp_path, LOG_LEVEL="ERROR")
    assert lines == []
