"""Everything on the port but the push, on both servers."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import ADMIN_KEY, Running, running, without_blocks

pytestmark = pytest.mark.anyio

METRIC = {"type": "auth_request", "value": 1.0}
ADMIN = {"X-API-Key": ADMIN_KEY}


async def test_health_is_exactly_this(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        del service.client.headers["X-API-Key"]
        answer = await service.client.get("/health")
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
        assert answer.content == b'{"status":"healthy","service":"metrics-collection"}'


async def test_health_is_503_while_nothing_can_be_accepted(tmp_path: Path, server: str) -> None:
    """The journal is full: the database, which another program has locked, takes nothing out of it."""
    small = "processors.batch.max_bytes=1MiB"
    async with running(tmp_path, server, small, "extensions.database.connection_timeout=60") as service:
        padding = {f"m{number}": "x" * 1000 for number in range(30)}
        status = 200
        with service.locked():
            while status == 200:
                answer = await service.push(*[{**METRIC, "metadata": padding}] * 10)
                status = answer.status_code
            assert status == 503
            assert int(answer.headers["Retry-After"]) >= 1
            assert "X-RateLimit-Limit" in answer.headers
            answer = await service.client.get("/health")
            assert answer.status_code == 503
            assert answer.content == b'{"status":"unhealthy","service":"metrics-collection"}'
            ready = await service.client.get("/health/ready")
            assert ready.status_code == 503
            assert "full" in ready.json()["components"]["journal/events"]
            assert (await service.client.get("/health/live")).status_code == 200


async def test_kubernetes_learns_of_the_process_and_of_every_component(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        del service.client.headers["X-API-Key"]
        live = await service.client.get("/health/live")
        assert (live.status_code, live.json()) == (200, {"status": "alive"})
        ready = await service.client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        components = ready.json()["components"]
        assert {
            "receiver/http",
            "processor/auth",
            "processor/rate_limit",
            "processor/validate",
            "processor/batch",
            "exporter/sqlite",
            "extension/database",
            "extension/api_keys",
            "extension/retention",
            "journal/events",
        } <= set(components)
        assert set(without_blocks(components).values()) == {"ok"}


async def test_the_root_says_what_this_is_and_where_everything_is(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        del service.client.headers["X-API-Key"]
        about = (await service.client.get("/")).json()
        assert set(about) == {"service", "version", "status", "endpoints"}
        assert (about["service"], about["status"]) == ("MCP Metrics Collection Service", "running")
        assert about["version"] == version("mcp-metrics-service")
        assert about["endpoints"]["metrics"] == "/metrics"
        assert about["endpoints"]["health"] == "/health"
        for path in about["endpoints"].values():  # each is there: with the wrong method or without a key, but there
            assert (await service.client.get(re.sub("{.*?}", "metrics", path))).status_code in (200, 401, 405), path


async def test_openapi_forbids_no_push_that_an_option_allows(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server, "processors.validate.max_metrics=10001") as service:
        assert (await service.push(*[METRIC] * 10_001)).status_code == 200
        document = (await service.client.get("/openapi.json")).json()
        content = document["paths"]["/metrics"]["post"]["requestBody"]["content"]
        metrics = content["application/json"]["schema"]["properties"]["metrics"]
        assert metrics["minItems"] == 1
        assert metrics.get("maxItems", 10_001) >= 10_001


async def test_openapi_describes_every_route(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        del service.client.headers["X-API-Key"]
        document = (await service.client.get("/openapi.json")).json()
        assert document["openapi"].startswith("3.")
        assert document["info"]["version"] == version("mcp-metrics-service")
        described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
        assert {
            ("POST", "/metrics"),
            ("POST", "/flush"),
            ("GET", "/rate-limit"),
            ("GET", "/health"),
            ("GET", "/health/live"),
            ("GET", "/health/ready"),
            ("GET", "/"),
            ("GET", "/openapi.json"),
            ("GET", "/docs"),
            ("GET", "/admin/retention/preview"),
            ("POST", "/admin/retention/cleanup"),
            ("GET", "/admin/retention/policies"),
            ("PUT", "/admin/retention/policies/{table}"),
            ("GET", "/admin/database/stats"),
            ("GET", "/admin/database/size"),
        } == described
        for method, path in described:  # what it says of keys is so
            needs_key = "security" in document["paths"][path][method.lower()]
            answer = await service.client.request(method, path.replace("{table}", "metrics"))
            assert (answer.status_code == 401) == needs_key, path
        example = document["paths"]["/metrics"]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert (await service.client.post("/metrics", json=example, headers=ADMIN)).status_code == 200


async def test_docs_are_a_page_that_loads_nothing(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        answer = await service.client.get("/docs")
        assert answer.headers["Content-Type"].startswith("text/html")
        assert "/admin/retention/policies/{table}" in answer.text
        assert not re.search(r"src=|<script|<link|https?://", answer.text)


async def test_docs_are_off_in_production(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server, config="production", METRICS_SERVICE_HOST="127.0.0.1") as service:
        assert (await service.client.get("/docs")).status_code == 404
        about = (await service.client.get("/")).json()
        assert "/docs" not in about["endpoints"].values()
        assert "/docs" not in (await service.client.get("/openapi.json")).json()["paths"]


async def test_flush_answers_when_all_that_was_accepted_is_stored(tmp_path: Path, server: str) -> None:
    never = ("processors.batch.size=1000000", "processors.batch.flush_interval=1h")
    async with running(tmp_path, server, *never) as service:
        for pushed in (3, 6):
            for _ in range(3):
                assert (await service.push(METRIC)).status_code == 200
            answer = await service.client.post("/flush")
            assert (answer.status_code, answer.json()) == (
                200,
                {"status": "success", "message": "Metrics flushed to storage"},
            )
            assert service.rows() == [(pushed,)]


async def with_old_rows(service: Running) -> None:
    """Two metrics of 100 days ago and one of now, stored."""
    old = (datetime.now(UTC) - timedelta(days=100)).isoformat()
    await service.push({**METRIC, "timestamp": old}, {**METRIC, "timestamp": old}, METRIC)
    await service.flush()


async def call(service: Running, method: str, path: str, **arguments: Any) -> Any:
    """What an admin's call gives."""
    answer: httpx.Response = await service.client.request(method, path, headers=ADMIN, **arguments)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_admin_sees_and_changes_what_is_kept(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        await with_old_rows(service)
        policies = await call(service, "GET", "/admin/retention/policies")
        assert policies["metrics"] == {
            "table_name": "metrics",
            "retention_days": 90,
            "is_active": True,
            "timestamp_column": "timestamp",
        }
        preview = await call(service, "GET", "/admin/retention/preview?table_name=metrics")
        assert set(preview) == {"metrics"}
        assert set(preview["metrics"]) == {
            "retention_days", "records_to_delete", "total_records", "oldest_record_to_delete",
            "newest_record_to_delete", "cutoff_date", "percentage_to_delete",
        }  # fmt: skip
        assert (preview["metrics"]["records_to_delete"], preview["metrics"]["total_records"]) == (2, 3)
        assert set(await call(service, "GET", "/admin/retention/preview")) == set(policies)

        changed = await call(service, "PUT", "/admin/retention/policies/metrics", json={"retention_days": 120})
        assert changed == policies["metrics"] | {"retention_days": 120}
        preview = await call(service, "GET", "/admin/retention/preview?table_name=metrics")
        assert preview["metrics"]["records_to_delete"] == 0
        changed = await call(service, "PUT", "/admin/retention/policies/metrics?retention_days=99&is_active=false")
        assert changed == policies["metrics"] | {"retention_days": 99, "is_active": False}


async def test_an_admin_cleans_up_dry_unless_told_otherwise(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        await with_old_rows(service)
        fields = {"table", "status", "records_deleted", "duration_seconds", "retention_days"}
        everything = await call(service, "POST", "/admin/retention/cleanup")
        assert set(everything) == {"total_records_processed", "duration_seconds", "tables"}
        assert everything["tables"]["metrics"]["status"] == "dry_run"
        assert set(everything["tables"]["metrics"]) == fields
        assert service.rows() == [(3,)]
        done = await call(service, "POST", "/admin/retention/cleanup", json={"table_name": "metrics", "dry_run": False})
        assert set(done) == fields
        assert (done["table"], done["status"], done["records_deleted"]) == ("metrics", "completed", 2)
        assert service.rows() == [(1,)]
        done = await call(service, "POST", "/admin/retention/cleanup?table_name=metrics&dry_run=no")
        assert done["records_deleted"] == 0


async def test_an_admin_sees_how_much_there_is(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        await with_old_rows(service)
        stats = (await call(service, "GET", "/admin/database/stats"))["metrics"]
        assert set(stats) == {"rows", "oldest", "newest", "rows_per_day"}
        assert stats["rows"] == 3
        assert stats["oldest"] < stats["newest"]
        size = await call(service, "GET", "/admin/database/size")
        assert {"file_bytes", "wal_bytes", "free_pages"} <= set(size)
        assert size["file_bytes"] == service.database.stat().st_size


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/admin/retention/preview?table_name=nothing", b"", 422),
        ("POST", "/admin/retention/cleanup?dry_run=perhaps", b"", 422),
        ("POST", "/admin/retention/cleanup", b"{", 400),
        ("POST", "/admin/retention/cleanup", b"[]", 422),
        ("PUT", "/admin/retention/policies/nothing?retention_days=1", b"", 422),
        ("PUT", "/admin/retention/policies/metrics", b"", 422),
        ("PUT", "/admin/retention/policies/metrics?retention_days=0", b"", 422),
        ("PUT", "/admin/retention/policies/metrics?days=1", b"", 422),
    ],
)
async def test_what_an_admin_gets_wrong_is_said_in_the_usual_form(
    tmp_path: Path, server: str, method: str, path: str, content: bytes, status: int
) -> None:
    async with running(tmp_path, server) as service:
        answer = await service.client.request(method, path, content=content, headers=ADMIN)
        assert answer.status_code == status
        assert set(answer.json()) == {"detail", "status_code", "request_id"}
        assert isinstance(answer.json()["detail"], str)
