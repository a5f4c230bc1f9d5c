"""The log lines of pushes that were refused: who was turned away, and nothing of what they must not show."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline.logs import JsonFormatter
from plugins.extensions.api_keys.keys import new_key
from tests.running import running

pytestmark = pytest.mark.anyio


def refused(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The records of pushes that were refused."""
    return [record for record in caplog.get_records("call") if record.getMessage() == "Refused metrics"]


async def test_no_part_of_a_key_that_stands_for_a_type_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    key = new_key()
    async with running(tmp_path) as service:
        answer = await service.push({"type": f"Bearer {key}", "value": 1})
    assert answer.status_code == 422
    (record,) = refused(caplog)
    line = JsonFormatter().format(record)
    assert "must be a configured type, got 'Bearer mcp_metrics_***" in line
    assert key[12:16] not in line


async def test_a_refused_page_is_logged_like_a_refused_push(
    tmp_path: Path, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(tmp_path, server, METRICS_TRUSTED_PROXIES="127.0.0.1") as service:
        service.client.headers["X-Forwarded-For"] = "198.51.100.7"
        for key in ("nobody's", await service.make_key("ingest")):
            await service.client.get("/admin/retention/preview", headers={"X-API-Key": key})
        await service.client.get("/health/ready", headers={"X-API-Key": "nobody's"})
    lines = [vars(each) for each in caplog.get_records("call") if each.getMessage() == "Refused request"]
    said = [(line["status"], line["peer"], line["path"], line["service"]) for line in lines]
    path = "/admin/retention/preview"
    assert said == [(401, "198.51.100.7", path, None), (403, "198.51.100.7", path, "test")]


async def test_who_is_turned_away_has_an_address_and_nobody_else(
    tmp_path: Path, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    metric = {"type": "custom", "value": 1}
    async with running(tmp_path, server, METRICS_TRUSTED_PROXIES="127.0.0.1") as service:
        service.client.headers["X-Forwarded-For"] = "198.51.100.7"
        poor = await service.make_key("ingest", rate_limit=1)
        for key in ("nobody's", await service.make_key("admin"), poor, poor):
            await service.client.post(
                "/metrics", json={"service": "a", "metrics": [metric]}, headers={"X-API-Key": key}
            )
        await service.push({"type": "no such", "value": 1})
    pushes = [vars(record) for record in caplog.get_records("call") if record.name == "receiver.http"]
    assert [(push["status"], push.get("peer")) for push in pushes if "status" in push] == [
        (401, "198.51.100.7"),
        (403, "198.51.100.7"),
        (200, None),
        (429, "198.51.100.7"),
        (422, None),
    ]
