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
