"""What the service says of itself, at an OTLP collector."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from prometheus_client import generate_latest

from pipeline import Context, Overloaded, Receiver
from pipeline.graph import Pipeline
from pipeline.testing import NopHost, SinkChain, metric_batch
from plugins.receivers.internal_telemetry import InternalTelemetry, InternalTelemetryConfig
from tests.collector import Collector, data_points, http_collector
from tests.running import Running, free_port, running, until
from tests.scrapes import Sample, samples, samples_of

pytestmark = pytest.mark.anyio

PIPELINE = "metrics/telemetry"
EVENT = {"type": "auth_request", "value": 1}
ACCEPTED: Sample = (
    "otelcol_receiver_accepted_items_total",
    frozenset({("receiver", "http"), ("pipeline", "events")}),
)
OFTEN, NEVER = "receivers.internal_telemetry.interval=20ms", "receivers.internal_telemetry.interval=1h"


def metrics_of(request: ExportMetricsServiceRequest) -> dict[str, Metric]:
    return {
        metric.name: metric
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def own(collector: Collector) -> list[ExportMetricsServiceRequest]:
    """What the service says of itself, in order: a request may hold several batches, if the exporter did not keep up."""
    parts = [
        ExportMetricsServiceRequest(resource_metrics=[each])
        for request in collector.taken
        for each in request.resource_metrics
    ]
    return [each for each in parts if "build_info" in metrics_of(each)]


async def next_own(collector: Collector) -> ExportMetricsServiceRequest:
    """One that was made after now."""
    seen = len(own(collector)) + 2  # the first may have been made already
    await collector.until(lambda: len(own(collector)) >= seen)
    return own(collector)[-1]


def scraped(service: Running) -> dict[Sample, float]:
    found = samples(generate_latest(service.service.telemetry()).decode(), prefix="")
    return {key: value for key, value in found.items() if key[0] != "target_info"}


def pipeline_of(service: Running) -> Pipeline:
    (found,) = (each for each in service.service.graph.pipelines if each.id == PIPELINE)
    return found


def receiver_of(service: Running) -> Receiver[Any]:
    (found,) = (each for each in service.service.graph.components() if each.id == "internal_telemetry")
    assert isinstance(found, Receiver)
    return found


async def test_what_arrives_is_what_a_scrape_shows(tmp_path: Path) -> None:
    async with (
        http_collector() as collector,
        running(tmp_path, OFTEN, OTEL_OTLP_ENDPOINT=collector.url) as service,
    ):
        for number in range(3):
            await service.push(*[EVENT] * (number + 1))
        await service.flush()
        await next_own(collector)  # from now on, no series is new
        before = scraped(service)
        arrived = await next_own(collector)
        after = scraped(service)
        assert samples_of(arrived).keys() == before.keys() == after.keys()
        kinds = {name: metric.WhichOneof("data") for name, metric in metrics_of(arrived).items()}
        for key, value in samples_of(arrived).items():
            if kinds.get(key[0]) != "gauge":  # what only grows, buckets and their sum and count among it
                assert before[key] <= value <= after[key], key
        exact = [key for key in before if kinds.get(key[0]) == "gauge" and key[0].endswith(("_info", "_limit_bytes"))]
        assert len(exact) >= 5
        assert {key: samples_of(arrived)[key] for key in exact} == {key: before[key] for key in exact}
        assert samples_of(arrived)[ACCEPTED] == 6
        assert set(kinds.values()) == {"sum", "gauge", "histogram"}


async def test_start_times_stay_and_times_go_on(tmp_path: Path) -> None:
    async with (
        http_collector() as collector,
        running(tmp_path, OFTEN, OTEL_OTLP_ENDPOINT=collector.url) as service,
    ):
        await service.push(EVENT)
        await collector.until(lambda: len(own(collector)) >= 4)
        starts, times = set(), []
        for request in own(collector):
            found = metrics_of(request).values()
            starts |= {
                each.start_time_unix_nano
                for metric in found
                if metric.WhichOneof("data") != "gauge"
                for each in data_points(metric)
            }
            (time,) = {each.time_unix_nano for metric in found for each in data_points(metric)}
            times.append(time)
        assert len(starts) == 1
        assert times == sorted(set(times))
        assert starts.pop() <= times[0]


async def test_the_resource_is_the_one_that_a_scrape_shows(tmp_path: Path) -> None:
    async with (
        http_collector() as collector,
        running(tmp_path, OFTEN, OTEL_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME="mine") as service,
    ):
        await collector.until(lambda: bool(own(collector)))
        (resource,) = own(collector)[0].resource_metrics
        has = {each.key.replace(".", "_"): each.value.string_value for each in resource.resource.attributes}
        ((_, target),) = samples(await service.scrape(), prefix="target_info")
        assert has == dict(target)
        assert has["service_name"] == "mine"
        assert has["service_version"]
        assert has["service_instance_id"]


async def test_the_interval_is_the_standard_variable_in_milliseconds(tmp_path: Path) -> None:
    async with (
        http_collector() as collector,
        running(tmp_path, OTEL_OTLP_ENDPOINT=collector.url, OTEL_METRIC_EXPORT_INTERVAL="40") as service,
    ):
        assert receiver_of(service).config.interval == 0.04
        await collector.until(lambda: len(own(collector)) >= 3)
    async with running(tmp_path, OTEL_OTLP_ENDPOINT="http://127.0.0.1:9") as service:
        assert receiver_of(service).config.interval == 60


async def test_a_stop_hands_over_a_last_one_which_no_later_start_loses_or_repeats(tmp_path: Path) -> None:
    async with http_collector() as collector:
        async with running(tmp_path, NEVER, OTEL_OTLP_ENDPOINT=collector.url) as service:
            await service.push(EVENT, EVENT)
            await service.flush()
            assert not own(collector)
        async with running(tmp_path, NEVER, OTEL_OTLP_ENDPOINT=collector.url) as service:
            await service.flush()
            await collector.until(lambda: bool(own(collector)))
            (last,) = own(collector)
            assert samples_of(last)[ACCEPTED] == 2
        async with running(tmp_path, NEVER, OTEL_OTLP_ENDPOINT=collector.url) as service:
            await service.flush()
            await collector.until(lambda: len(own(collector)) > 1)
            assert samples_of(own(collector)[1])[ACCEPTED] == 0


async def test_one_exporter_carries_both_pipelines(tmp_path: Path) -> None:
    async with (
        http_collector() as collector,
        running(tmp_path, OFTEN, OTEL_OTLP_ENDPOINT=collector.url) as service,
    ):
        await service.push(EVENT)
        await service.flush()
        found = samples_of(await next_own(collector))
        assert collector.newest("mcp_auth_requests_total")
        sent = {
            dict(labels)["pipeline"]: value
            for (name, labels), value in found.items()
            if name == "otelcol_exporter_sent_items_total" and ("exporter", "otlp") in labels
        }
        assert sent.keys() == {"metrics", PIPELINE}
        assert all(sent.values())


@pytest.mark.parametrize("variables", [{}, {"OTEL_OTLP_ENDPOINT": ""}])
async def test_without_a_collector_there_is_none_of_it(variables: dict[str, str], tmp_path: Path) -> None:
    async with running(tmp_path, **variables) as service:
        assert [each.id for each in service.service.graph.pipelines] == ["events", "metrics"]
        assert "receiver/internal_telemetry" not in service.service.health().components
        assert PIPELINE not in await service.scrape()


async def test_its_failure_is_shown_and_the_service_is_healthy_all_the_same(tmp_path: Path) -> None:
    async with running(tmp_path, NEVER, OTEL_OTLP_ENDPOINT="http://127.0.0.1:9") as service:
        failed = anyio.Event()

        async def fail() -> None:
            failed.set()
            raise RuntimeError("broken")

        service.service.spawn(receiver_of(service), fail)
        await failed.wait()
        await anyio.lowlevel.checkpoint()
        assert service.service.health().components["receiver/internal_telemetry"] == "failed with RuntimeError"
        assert (await service.client.get("/health")).status_code == 200


async def test_a_full_journal_of_its_own_is_shown_logged_once_and_refuses_no_push(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("exporters.otlp.when_full=block", "processors.batch.max_bytes=1MiB", OFTEN)
    async with running(tmp_path, *options, OTEL_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}") as service:
        large = metric_batch(1.0, labels={"long": "x" * 1_000_000})
        chain = pipeline_of(service).chains["internal_telemetry"]
        for _ in range(2):  # the second goes over the limit, or the third does
            with suppress(Overloaded):
                await chain.process(large, Context())
        await until(lambda: chain.counts.refused_requests.get("overloaded", 0) >= 4)
        health = await service.client.get("/health/ready")
        assert health.status_code == 200
        assert service.service.health().components[f"journal/{PIPELINE}"] != "ok"
        assert (await service.push(EVENT)).status_code == 200
    lines = [each for each in caplog.records if each.name == "receiver.internal_telemetry"]
    assert [each.levelname for each in lines] == ["WARNING"]


async def _awaited(task: Callable[[], Awaitable[None]]) -> None:
    await task()


async def test_it_goes_on_after_what_it_could_not_hand_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    host, chain = NopHost(), SinkChain(Overloaded("the journal is full"))
    receiver = InternalTelemetry("internal_telemetry", InternalTelemetryConfig(interval=0.001), host)
    receiver.chain = chain
    await receiver.start()
    (task,) = host.spawned

    def said() -> list[tuple[str, str]]:
        return [(each.levelname, each.getMessage()) for each in caplog.records]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_awaited, task)
        await until(lambda: len(said()) == 1)
        chain.refusal = None
        await until(lambda: len(chain.batches) > 2)
        assert said() == [
            ("WARNING", "left out until it works again: the journal is full"),
            ("INFO", "works again"),
        ]
        chain.refusal = ZeroDivisionError()  # type: ignore[assignment]  # what a plugin gets wrong
        await until(lambda: len(said()) == 3)
        assert caplog.records[-1].exc_info
        chain.refusal, seen = None, len(chain.batches)
        await until(lambda: len(chain.batches) > seen)
        tasks.cancel_scope.cancel()


async def test_a_stop_without_a_start_hands_over_nothing_and_a_second_one_nothing_more() -> None:
    host, chain = NopHost(), SinkChain()
    receiver = InternalTelemetry("internal_telemetry", InternalTelemetryConfig(), host)
    receiver.chain = chain
    await receiver.stop()
    assert chain.batches == []
    await receiver.start()
    await receiver.stop()
    await receiver.stop()
    assert chain.batches == [host.own_batch]
