"""Instruments as OTLP: every sample that a scrape shows, and nothing else."""

from __future__ import annotations

import time
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric
from prometheus_client import generate_latest

from pipeline.telemetry import MOST_LABEL_SETS, Instrument, InstrumentKind, Reading, Telemetry
from pipeline.telemetry_otlp import telemetry_batch
from tests.collector import data_points
from tests.pipeline.test_telemetry import instrument, observed, shown
from tests.scrapes import Sample, samples, samples_of

COUNTER, GAUGE, HISTOGRAM = InstrumentKind.COUNTER, InstrumentKind.GAUGE, InstrumentKind.HISTOGRAM
CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE

OF_EACH_KIND = (
    instrument("sent_items_total", COUNTER, ({"to": "a", "by": "x"}, 3), ({"to": "b", "by": "x"}, 4)),
    instrument("sent_items_total", COUNTER, ({"to": "a", "by": "x"}, 30)),
    instrument("free_bytes", GAUGE, ({}, 2.5)),
    instrument("working", GAUGE, ({}, True)),
    instrument(
        "wait_seconds", HISTOGRAM, ({"of": "a"}, observed((0.5, 1.0), 0.5, 0.75, 3.0)), ({"of": "ü"}, observed((0.5,)))
    ),
    instrument("wait_seconds", HISTOGRAM, ({"of": "a"}, observed((0.5, 1.0), 0.1))),
)


def read(telemetry: Telemetry) -> ExportMetricsServiceRequest:
    return ExportMetricsServiceRequest.FromString(telemetry_batch(telemetry).request)


def metrics(telemetry: Telemetry) -> dict[str, Metric]:
    """By name. Fails on one that is there twice."""
    (resource,) = read(telemetry).resource_metrics
    (scope,) = resource.scope_metrics
    assert len({each.name for each in scope.metrics}) == len(scope.metrics)
    return {each.name: each for each in scope.metrics}


def scraped(telemetry: Telemetry) -> dict[Sample, float]:
    found = samples(generate_latest(telemetry.registry).decode(), prefix="")
    return {key: value for key, value in found.items() if key[0] != "target_info"}


def of_service(found: dict[Sample, float]) -> dict[Sample, float]:
    return {key: value for key, value in found.items() if not key[0].startswith("process_")}


def test_every_sample_of_a_scrape_is_in_it_under_its_name_and_nothing_else() -> None:
    with shown(*OF_EACH_KIND) as telemetry:
        scrape, sent = scraped(telemetry), samples_of(read(telemetry))
    assert sent.keys() == scrape.keys()
    assert of_service(sent) == of_service(scrape)
    assert of_service(sent)["sent_items_total", frozenset({("to", "a"), ("by", "x")})] == 33


def test_what_is_known_of_the_process_is_what_a_scrape_shows() -> None:
    with shown() as telemetry:
        before, sent, after = scraped(telemetry), samples_of(read(telemetry)), scraped(telemetry)
        kinds = {name: each.WhichOneof("data") for name, each in metrics(telemetry).items()}
    cpu: Sample = ("process_cpu_seconds_total", frozenset())
    start: Sample = ("process_start_time_seconds", frozenset())
    assert before[cpu] <= sent[cpu] <= after[cpu]
    assert sent[start] == before[start]
    assert (kinds["process_cpu_seconds_total"], kinds["process_resident_memory_bytes"]) == ("sum", "gauge")


def test_descriptions_are_those_of_the_instruments() -> None:
    with shown(*OF_EACH_KIND) as telemetry:
        found = metrics(telemetry)
    assert {name: found[name].description for name in ("sent_items_total", "free_bytes", "wait_seconds")} == {
        name: f"What {name} means." for name in ("sent_items_total", "free_bytes", "wait_seconds")
    }
    assert all(each.description for each in found.values())


def test_counters_and_histograms_are_cumulative_since_the_telemetry_was_made() -> None:
    before = time.time_ns()
    with shown(*OF_EACH_KIND) as telemetry:
        made = time.time_ns()
        first = metrics(telemetry)
        second = metrics(telemetry)
    for one in (first, second):
        assert one["sent_items_total"].sum.is_monotonic
        assert one["sent_items_total"].sum.aggregation_temporality == CUMULATIVE
        assert one["wait_seconds"].histogram.aggregation_temporality == CUMULATIVE
    counting = [name for name, each in first.items() if each.WhichOneof("data") != "gauge"]
    starts = {
        each.start_time_unix_nano for one in (first, second) for name in counting for each in data_points(one[name])
    }
    (start,) = starts
    assert before <= start <= made


def test_all_points_of_one_batch_have_the_time_at_which_it_was_made() -> None:
    with shown(*OF_EACH_KIND) as telemetry:
        before = time.time_ns()
        found = metrics(telemetry)
        after = time.time_ns()
    (made,) = {each.time_unix_nano for one in found.values() for each in data_points(one)}
    assert before <= made <= after


def test_a_histogram_has_no_least_and_no_greatest_value_since_nobody_kept_them() -> None:
    with shown(*OF_EACH_KIND) as telemetry:
        points = metrics(telemetry)["wait_seconds"].histogram.data_points
    assert points
    assert not any(each.HasField("min") or each.HasField("max") for each in points)


@pytest.mark.parametrize("value", [1, True, 2.0, 10**30])
def test_every_number_is_a_double(value: float) -> None:
    with shown(instrument("a_total", COUNTER, ({}, value)), instrument("b", GAUGE, ({}, value))) as telemetry:
        found = metrics(telemetry)
    (of_counter,), (of_gauge,) = found["a_total"].sum.data_points, found["b"].gauge.data_points
    assert [each.WhichOneof("value") for each in (of_counter, of_gauge)] == ["as_double"] * 2
    assert (of_counter.as_double, of_gauge.as_double) == (float(value), float(value))


def test_the_number_of_points_is_counted() -> None:
    with shown(*OF_EACH_KIND) as telemetry:
        batch = telemetry_batch(telemetry)
        found = metrics(telemetry)
    assert len(batch) == sum(len(data_points(each)) for each in found.values()) > 6


def test_the_resource_says_whose_it_is() -> None:
    telemetry = Telemetry([], {"service.name": "of-a-test", "service.version": "1.2"})
    try:
        (resource,) = read(telemetry).resource_metrics
    finally:
        telemetry.close()
    has: dict[str, Any] = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert (has["service.name"], has["service.version"]) == ("of-a-test", "1.2")
    assert has["service.instance.id"] == telemetry.resource.attributes["service.instance.id"]


def test_values_are_read_for_each_batch_and_a_scrape_in_between_changes_nothing() -> None:
    count = 0
    with shown(Instrument("read_total", COUNTER, "Of it.", (), lambda: [({}, count)])) as telemetry:
        for count in (1, 5, 7):
            scraped(telemetry)
            assert of_service(samples_of(read(telemetry))) == {("read_total", frozenset()): count}


def test_one_that_cannot_be_read_is_left_out_and_logged_once_for_both(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> list[Reading]:
        raise OSError("cannot be read")

    with shown(
        Instrument("broken_total", COUNTER, "Of it.", (), broken),
        Instrument("broken_seconds", HISTOGRAM, "Of it.", (), broken),
        instrument("good_total", COUNTER, ({}, 1)),
    ) as telemetry:
        for _ in range(2):
            scraped(telemetry)
            assert of_service(samples_of(read(telemetry))) == {("good_total", frozenset()): 1}
    assert sorted(each.getMessage() for each in caplog.records) == [
        "cannot read broken_seconds",
        "cannot read broken_total",
    ]


def test_as_many_label_sets_as_a_scrape_has_are_in_it() -> None:
    readings: list[Reading] = [({"key": str(number)}, 1) for number in range(MOST_LABEL_SETS + 10)]
    with shown(instrument("items_total", COUNTER, *readings)) as telemetry:
        points = metrics(telemetry)["items_total"].sum.data_points
    assert len(points) == MOST_LABEL_SETS + 1
    assert sum(each.as_double for each in points) == MOST_LABEL_SETS + 10
