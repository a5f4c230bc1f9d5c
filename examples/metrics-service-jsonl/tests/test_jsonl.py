"""What the exporter `jsonl` promises, and what it does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pipeline import Batch, Delivery, MetricBatch, Permanent, Retryable
from pipeline.testing import ExporterConformance, NopHost, event_batch, metric_batch

import metrics_service_jsonl
from metrics_service_jsonl import JsonlConfig, JsonlExporter


class TestJsonl(ExporterConformance):
    """What the service relies on."""

    plugin = metrics_service_jsonl
    type = "jsonl"

    def options(self, folder: Path) -> Mapping[str, Any]:
        """A file that no other test writes."""
        return {"path": folder / "events.jsonl"}


def export(path: Path, *batches: Batch) -> None:
    """Hand these batches to an exporter for that file."""
    exporter = JsonlExporter("jsonl", JsonlConfig(path=path), NopHost())
    asyncio.run(exporter.export(Delivery("events", 0, len(batches), batches)))


def test_every_event_becomes_a_line_behind_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    export(path, event_batch(1.0, 2.0), event_batch(3.0, service="söme\nservice"))
    export(path, event_batch(4.0))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["value"] for line in lines] == [1.0, 2.0, 3.0, 4.0]
    assert lines[2]["service"] == "söme\nservice"
    assert lines[0] == {
        "timestamp": "2026-07-01T12:00:00+00:00",
        "service": "test",
        "type": "custom",
        "value": 1.0,
        "duration_ms": 12.5,
        "dimensions": {"method": "call"},
        "metadata": {},
        "version": None,
        "instance_id": None,
        "key_service": None,
        "request_id": "req_1",
        "received_at": "2026-07-01T12:00:00+00:00",
    }


def test_a_request_of_metrics_becomes_a_line_of_otlp_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    export(path, metric_batch(1.0, 2.0, name="calls_total"))
    (line,) = path.read_text(encoding="utf-8").splitlines()
    (resource,) = json.loads(line)["resourceMetrics"]
    (metric,) = resource["scopeMetrics"][0]["metrics"]
    assert metric["name"] == "calls_total"
    assert metric["sum"]["aggregationTemporality"] == 2
    assert [point["asDouble"] for point in metric["sum"]["dataPoints"]] == [1.0, 2.0]


def test_half_a_line_that_a_crash_has_left_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"value":1.0}\n{"val')
    export(path, event_batch(2.0))
    first, torn, last = path.read_text().splitlines()
    assert [json.loads(line)["value"] for line in (first, last)] == [1.0, 2.0]
    assert torn == '{"val'


def test_a_full_disk_is_tried_again_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(Retryable, match="'/dev/full': No space left on device"):
        export(Path("/dev/full"), event_batch(1.0))
    with pytest.raises(Retryable, match="no_folder"):
        export(tmp_path / "no_folder" / "events.jsonl", event_batch(1.0))


def test_what_json_cannot_say_is_refused_for_good_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    good = event_batch(1.0)
    for bad in (event_batch(float("nan")), MetricBatch(b"no request", 1, good.received_at)):
        with pytest.raises(Permanent):
            export(path, good, bad)
    assert not path.exists()
