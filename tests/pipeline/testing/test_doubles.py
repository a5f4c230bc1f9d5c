"""The stand-ins, in a real graph and by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pipeline import Context, Delivery, Overloaded, Permanent, Retryable
from pipeline.testing import (
    FailingConfig,
    FailingExporter,
    NopHost,
    RecordingExporter,
    SinkChain,
    doubles,
    event_batch,
    metric_batch,
)
from tests.running import running, until

pytestmark = pytest.mark.anyio

METRIC = {"type": "custom", "value": 1.5}


async def test_the_exporters_stand_in_a_graph(tmp_path: Path) -> None:
    overrides = [
        "exporters.recording=",
        "exporters.failing={times: 2}",
        "service.pipelines.events.exporters=[sqlite, series, recording, failing]",
    ]
    async with running(tmp_path, *overrides, plugins=[doubles]) as service:
        (await service.push(METRIC)).raise_for_status()
        kept = {each.id: each for each in service.service.graph.components() if isinstance(each, RecordingExporter)}
        await until(lambda: all(each.deliveries for each in kept.values()))
        for exporter in kept.values():
            ((event,),) = [[*batch.events] for batch in exporter.batches]  # type: ignore[union-attr]
            assert event.value == 1.5
        assert isinstance(kept["failing"], FailingExporter)
        assert kept["failing"].failures == 2


@pytest.mark.parametrize(("permanent", "error"), [(False, Retryable), (True, Permanent)])
async def test_it_fails_as_often_and_as_it_is_told(permanent: bool, error: type[Exception]) -> None:
    exporter = FailingExporter("failing", FailingConfig(times=2, permanent=permanent, retry_after=3), NopHost())
    delivery = Delivery("events", 0, 1, [event_batch()])
    for count in (1, 2):
        with pytest.raises(error, match=f"^failure {count} of 2$") as caught:
            await exporter.export(delivery)
        assert getattr(caught.value, "retry_after", 3) == 3
    await exporter.export(delivery)
    assert exporter.deliveries == [delivery]


async def test_the_chain_keeps_or_refuses() -> None:
    chain = SinkChain()
    assert (await chain.process(event_batch(1, 2, 3), Context())).accepted == 3
    chain.refusal = Overloaded("full")
    with pytest.raises(Overloaded):
        await chain.process(event_batch(4), Context())
    assert chain.batches == [event_batch(1, 2, 3)]


def test_samples_hold_what_is_asked_for() -> None:
    events = event_batch(1.0, -2.0, type="call", service="web", dimensions={"tool": "x"})
    assert [(each.type, each.value, each.dimensions) for each in events.events] == [
        ("call", 1.0, {"tool": "x"}),
        ("call", -2.0, {"tool": "x"}),
    ]
    assert (events.service, len(event_batch()), len(metric_batch())) == ("web", 2, 2)


def test_a_sample_of_metrics_is_otlp() -> None:
    batch = metric_batch(5.0, 7.0, name="calls_total", labels={"tool": "x"})
    (resource,) = ExportMetricsServiceRequest.FromString(batch.request).resource_metrics
    (metric,) = resource.scope_metrics[0].metrics
    points = [
        (point.as_double, {each.key: each.value.string_value for each in point.attributes})
        for point in metric.sum.data_points
    ]
    assert metric.name == "calls_total"
    assert points == [(5.0, {"tool": "x", "number": "0"}), (7.0, {"tool": "x", "number": "1"})]
    assert batch.points == 2
