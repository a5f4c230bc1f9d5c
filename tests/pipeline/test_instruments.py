"""What the engine says of itself equals what was sent to it: the real service, and its scrape."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline import (
    Batch,
    ComponentConfig,
    Context,
    Declaration,
    Delivery,
    Distribution,
    Event,
    EventBatch,
    Exporter,
    InstrumentKind,
    Permanent,
    Processor,
    Retryable,
    Signal,
    hookimpl,
)
from tests.running import Running, running
from tests.scrapes import samples, total

pytestmark = pytest.mark.anyio

IN = {"receiver": "http", "pipeline": "events"}
OUT = {"exporter": "picky", "pipeline": "events"}
BAD = {"type": "auth_request", "value": "many"}

CONFIGURATION = """
extends: development
processors:
  only_high:
exporters:
  picky:
service:
  pipelines:
    events:
      processors: [auth, rate_limit, validate, only_high, batch]
      exporters: [sqlite, series, picky]
"""


def metric(value: float = 2.0) -> dict[str, Any]:
    return {"type": "auth_request", "value": value}


def events_of(batch: Batch) -> list[Event]:
    assert isinstance(batch, EventBatch)
    return list(batch.events)


class NoOptions(ComponentConfig):
    """Nothing to choose."""


class OnlyHigh(Processor[NoOptions]):
    """Leaves out what is not above 1."""

    async def process(self, batch: Batch, context: Context) -> Batch:
        high = [event for event in events_of(batch) if event.value > 1]
        return EventBatch("test", high, batch.received_at)


class Picky(Exporter[NoOptions]):
    """Refuses 13 for good, and 7 for now."""

    async def export(self, delivery: Delivery) -> None:
        values = {event.value for batch in delivery.batches for event in events_of(batch)}
        if 7 in values:
            raise Retryable("not now")
        if 13 in values:
            raise Permanent("never")


class Additions:
    """The plugin that declares both."""

    @hookimpl
    def declare_components(self) -> Sequence[Declaration]:
        events = frozenset({Signal.EVENTS})
        return [
            Declaration("only_high", OnlyHigh, NoOptions, takes=events, gives=events),
            Declaration("picky", Picky, NoOptions, takes=events),
        ]


@asynccontextmanager
async def observed(folder: Path, *overrides: str, **variables: str) -> AsyncIterator[Running]:
    (folder / "own.yaml").write_text(CONFIGURATION)
    async with running(
        folder, *overrides, config=str(folder / "own.yaml"), plugins=[Additions()], **variables
    ) as service:
        yield service


async def test_before_anything_was_sent_everything_is_zero(tmp_path: Path) -> None:
    async with observed(tmp_path) as service:
        text = await service.scrape()
    for name in ("otelcol_receiver_accepted_items_total", "journal_items_total", "otelcol_exporter_sent_items_total"):
        assert set(samples(text, prefix=name).values()) == {0}
    assert samples(text, prefix="otelcol_receiver_refused") == {}


async def test_what_was_accepted_and_what_was_left_out_are_counted(tmp_path: Path) -> None:
    async with observed(tmp_path) as service:
        assert (await service.push(metric(), metric(), metric())).status_code == 200
        assert (await service.push(metric(), BAD, BAD)).json()["rejected"] == 2
        assert (await service.push(BAD, BAD, BAD, BAD)).status_code == 422
        text = await service.scrape()
    assert total(text, "otelcol_receiver_accepted_items_total", **IN) == 4
    assert total(text, "journal_items_total", pipeline="events") == 4
    assert total(text, "otelcol_receiver_refused_items_total", **IN) == 6
    assert total(text, "otelcol_receiver_refused_items_total", reason="invalid", **IN) == 6
    assert total(text, "otelcol_receiver_refused_requests_total", reason="invalid", **IN) == 1


async def test_refused_requests_are_counted_by_reason(tmp_path: Path) -> None:
    async with observed(tmp_path, METRICS_RATE_LIMIT="2") as service:
        await service.push(metric())
        await service.client.post("/metrics", content=b"{")
        for key in ("wrong", "wrong", "wrong"):
            await service.client.post("/metrics", json={}, headers={"X-API-Key": key})
        assert [(await service.push(metric())).status_code for _ in range(2)] == [429, 429]
        found = samples(await service.scrape(), prefix="otelcol_receiver_refused")
    by_reason = {dict(labels)["reason"]: value for (_, labels), value in found.items()}
    assert by_reason == {"malformed": 1, "unauthenticated": 3, "rate_limited": 2}
    # Nobody knows how many items they held.
    assert {name for name, _ in found} == {"otelcol_receiver_refused_requests_total"}


async def test_a_page_that_is_asked_for_without_a_key_counts_as_a_failed_authentication(tmp_path: Path) -> None:
    async with observed(tmp_path) as service:
        await service.client.get("/rate-limit", headers={"X-API-Key": "wrong"})
        text = await service.scrape()
    assert total(text, "otelcol_receiver_refused_requests_total", reason="unauthenticated", **IN) == 1


async def test_what_is_repeated_is_counted_apart(tmp_path: Path) -> None:
    async with observed(tmp_path) as service:
        document = {"service": "test", "metrics": [metric(), metric()]}
        for _ in range(3):
            answer = await service.client.post("/metrics", json=document, headers={"Idempotency-Key": "a"})
            assert answer.status_code == 200
        conflict = {**document, "metrics": [metric()]}
        assert (
            await service.client.post("/metrics", json=conflict, headers={"Idempotency-Key": "a"})
        ).status_code == 409
        text = await service.scrape()
    assert total(text, "otelcol_receiver_accepted_items_total", **IN) == 2
    assert total(text, "receiver_repeated_items_total", **IN) == 4
    assert total(text, "journal_items_total", pipeline="events") == 2
    assert total(text, "otelcol_receiver_refused_items_total", reason="conflict", **IN) == 1


async def test_what_a_processor_leaves_out_is_counted_as_filtered_and_accepted(tmp_path: Path) -> None:
    async with observed(tmp_path) as service:
        assert (await service.push(metric(0), metric(2), metric(1))).json()["accepted"] == 3
        assert (await service.push(metric(0))).json()["accepted"] == 1
        text = await service.scrape()
    filtered = samples(text, prefix="processor_filtered_items_total")
    labels = frozenset({"processor": "only_high", "pipeline": "events"}.items())
    assert filtered == {("processor_filtered_items_total", labels): 3}
    assert total(text, "otelcol_receiver_accepted_items_total", **IN) == 4
    assert total(text, "journal_items_total", pipeline="events") == 1


async def test_every_exporter_says_what_it_has_taken_and_that_nothing_waits(tmp_path: Path) -> None:
    async with observed(tmp_path) as service:
        await service.push(metric(), metric())
        await service.push(metric())
        await service.flush()
        text = await service.scrape()
    for exporter in ("sqlite", "series", "picky"):
        labels = {"exporter": exporter, "pipeline": "events"}
        assert total(text, "otelcol_exporter_sent_items_total", **labels) == 3
        assert total(text, "otelcol_exporter_queue_size", **labels) == 0
        assert total(text, "exporter_queue_bytes", **labels) == 0
        assert total(text, "exporter_lag_seconds", **labels) == 0
        assert total(text, "exporter_working", **labels) == 1
    assert total(text, "journal_oldest_item_age_seconds", pipeline="events") == 0
    assert total(text, "otelcol_exporter_sent_items_total", exporter="prometheus", pipeline="metrics") > 0


async def test_a_dead_letter_is_counted_by_its_items(tmp_path: Path) -> None:
    async with observed(tmp_path) as service:
        await service.push(metric(13), metric(), metric())
        await service.push(metric(), metric())
        await service.flush()
        text = await service.scrape()
    assert total(text, "exporter_dead_lettered_items_total", **OUT) == 1
    assert total(text, "otelcol_exporter_sent_items_total", **OUT) == 4
    assert total(text, "otelcol_exporter_queue_size", **OUT) == 0
    assert total(text, "exporter_failed_deliveries_total", **OUT) == 0
    assert total(text, "exporter_dead_lettered_items_total", exporter="sqlite") == 0


async def test_an_exporter_that_fails_shows_its_tries_and_its_lag_and_nobody_else_does(tmp_path: Path) -> None:
    async with observed(tmp_path) as service:
        await service.push(metric(7), metric())
        assert (await service.client.post("/flush")).json()["status"] == "partial"
        first = await service.scrape()
        second = await service.scrape()
    assert total(first, "exporter_failed_deliveries_total", **OUT) >= 1
    assert total(first, "otelcol_exporter_queue_size", **OUT) == 2
    assert total(first, "exporter_working", **OUT) == 0
    assert 0 < total(first, "exporter_lag_seconds", **OUT) < total(second, "exporter_lag_seconds", **OUT)
    assert total(first, "journal_oldest_item_age_seconds", pipeline="events") > 0
    assert total(first, "exporter_lag_seconds", exporter="sqlite") == 0
    assert total(first, "exporter_working", exporter="sqlite", pipeline="events") == 1


async def test_the_journal_says_what_it_holds_of_how_much(tmp_path: Path) -> None:
    async with observed(tmp_path, "processors.batch.max_bytes=3MB") as service:
        (journal,) = [one.journal for one in service.service.graph.pipelines if one.id == "events"]
        await service.push(metric(7), *[metric()] * 99)
        await service.flush()
        text = await service.scrape()
        assert total(text, "journal_bytes", pipeline="events") == journal.bytes > 100
        assert total(text, "exporter_queue_bytes", **OUT) == journal.bytes
    assert total(text, "journal_limit_bytes", pipeline="events") == 3_000_000
    assert total(text, "journal_accepting", pipeline="events") == 1


async def test_a_journal_that_is_full_is_not_accepting_and_the_refusals_are_overloads(tmp_path: Path) -> None:
    async with observed(tmp_path, "processors.batch.max_bytes=1MiB") as service:
        padding = {f"m{number}": "x" * 1000 for number in range(30)}
        answer = await service.push(metric(7))
        while answer.status_code == 200:
            answer = await service.push(*[{**metric(), "metadata": padding}] * 10)
        text = await service.scrape()
    assert total(text, "journal_accepting", pipeline="events") == 0
    assert total(text, "otelcol_receiver_refused_requests_total", reason="overloaded", **IN) == 1


async def test_what_runs_and_how_late_the_loop_is_are_shown(tmp_path: Path) -> None:
    async with observed(tmp_path, OTEL_SERVICE_NAME="of-a-test") as service:
        text = await service.scrape()
    assert total(text, "build_info") == total(text, "config_info") == 1
    assert total(text, "target_info", service_name="of-a-test") == 1
    assert "# TYPE event_loop_delay_seconds histogram" in text


async def test_every_reading_has_the_labels_and_the_kind_that_its_instrument_declares(tmp_path: Path) -> None:
    async with observed(tmp_path) as service:
        await service.push(metric(13), metric(0), BAD)
        await service.client.get("/rate-limit", headers={"X-API-Key": "wrong"})
        await service.scrape()
        read = {each: list(each.read()) for each in service.service.instruments()}
    nothing_yet = [
        "component_blocked_loop_total",
        "component_blocked_loop_seconds_total",
        "processor_added_items_total",
        "exporter_blocked",
        "listener_refused_total",
        "retention_stopped",
        "prometheus_set_aside_series_total",
    ]
    assert [each.name for each, readings in read.items() if not readings] == nothing_yet
    for each, readings in read.items():
        assert all(tuple(sorted(labels)) == tuple(sorted(each.labels)) for labels, _ in readings), each.name
        is_histogram = each.kind is InstrumentKind.HISTOGRAM
        assert all(isinstance(value, Distribution) is is_histogram for _, value in readings), each.name
        assert each.name.endswith("_total") is (each.kind is InstrumentKind.COUNTER), each.name
        assert each.description.endswith("."), each.name
