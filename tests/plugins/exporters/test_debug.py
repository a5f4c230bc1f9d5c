"""Printing what passes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from pipeline import Batch, Delivery, Event, EventBatch, MetricBatch
from pipeline.testing import NopHost
from plugins.exporters.debug import DebugConfig, DebugExporter

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
EVENTS = EventBatch(
    "auth-server",
    [Event("custom", 1.5, NOON), Event("auth_request", 2.0, NOON, 3.0, {"method": "call\n\x1b[31m"})],
    NOON,
    "req_1",
)


async def printed(capsys: pytest.CaptureFixture[str], verbosity: str, *batches: Batch) -> str:
    """What one delivery prints."""
    exporter = DebugExporter("debug", DebugConfig.model_validate({"verbosity": verbosity}), NopHost())
    await exporter.start()
    await exporter.export(Delivery("events", 0, len(batches), batches))
    await exporter.stop()
    return capsys.readouterr().out


async def test_basic_is_a_line_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert await printed(capsys, "basic", EVENTS, EVENTS) == "events: 2 events of auth-server (req_1)\n" * 2


async def test_detailed_is_a_line_an_event_too_with_control_characters_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await printed(capsys, "detailed", EVENTS) == (
        "events: 2 events of auth-server (req_1)\n"
        "  2026-07-01T12:00:00+00:00 custom 1.5 {}\n"
        "  2026-07-01T12:00:00+00:00 auth_request 2.0 {'method': 'call\\n\\x1b[31m'}\n"
    )


@pytest.mark.parametrize("verbosity", ["basic", "detailed"])
async def test_otlp_metrics_are_counted(capsys: pytest.CaptureFixture[str], verbosity: str) -> None:
    assert await printed(capsys, verbosity, MetricBatch(b"", 7, NOON)) == "events: 7 data points\n"


async def test_a_delivery_without_batches_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert await printed(capsys, "detailed") == ""


def test_detailed_is_the_default_and_another_word_is_refused() -> None:
    assert DebugConfig().verbosity == "detailed"
    with pytest.raises(ValidationError):
        DebugConfig.model_validate({"verbosity": "loud"})
