"""Instruments in a scrape, as the parsers of Prometheus' own client read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from pipeline.telemetry import MOST_LABEL_SETS, Distribution, Instrument, InstrumentKind, Reading, Telemetry

COUNTER, GAUGE, HISTOGRAM = InstrumentKind.COUNTER, InstrumentKind.GAUGE, InstrumentKind.HISTOGRAM
Form = Callable[[Telemetry], list[Metric]]


def text(telemetry: Telemetry) -> list[Metric]:
    return list(parse_text(generate_latest(telemetry.registry).decode()))


def openmetrics(telemetry: Telemetry) -> list[Metric]:
    written: bytes = generate_openmetrics(telemetry.registry)  # type: ignore[no-untyped-call]
    return list(parse_openmetrics(written.decode()))  # type: ignore[no-untyped-call]


@contextmanager
def shown(*instruments: Instrument) -> Iterator[Telemetry]:
    telemetry = Telemetry(instruments, {"service.name": "of-a-test"})
    try:
        yield telemetry
    finally:
        telemetry.close()


def instrument(name: str, kind: InstrumentKind, *readings: Reading) -> Instrument:
    labels = tuple(readings[0][0]) if readings else ()
    return Instrument(name, kind, f"What {name} means.", labels, lambda: readings)


def values(families: list[Metric], name: str) -> dict[frozenset[tuple[str, str]], float]:
    """The samples of that name by their labels. Fails on one that is there twice."""
    found = [
        (frozenset(each.labels.items()), each.value) for one in families for each in one.samples if each.name == name
    ]
    assert len(dict(found)) == len(found), f"{name} is there twice"
    return dict(found)


def labelled(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


def observed(bounds: tuple[float, ...], *seconds: float) -> Distribution:
    distribution = Distribution(bounds)
    for each in seconds:
        distribution.record(each)
    return distribution


@pytest.mark.parametrize("form", [text, openmetrics])
def test_counters_and_gauges_show_under_their_names_with_their_labels(form: Form) -> None:
    sent = instrument("sent_items_total", COUNTER, ({"to": "a", "by": "x"}, 3), ({"to": "b", "by": "x"}, 4))
    free = instrument("free_bytes", GAUGE, ({}, 2.5))
    with shown(sent, free) as telemetry:
        families = form(telemetry)
    assert values(families, "sent_items_total") == {labelled(to="a", by="x"): 3, labelled(to="b", by="x"): 4}
    assert values(families, "free_bytes") == {labelled(): 2.5}
    types = {each.name.removesuffix("_total"): each.type for each in families}
    assert (types["sent_items"], types["free_bytes"]) == ("counter", "gauge")


@pytest.mark.parametrize("form", [text, openmetrics])
def test_a_histogram_shows_cumulative_buckets_with_its_count_and_sum(form: Form) -> None:
    with shown(instrument("wait_seconds", HISTOGRAM, ({"of": "a"}, observed((0.5, 1.0), 0.5, 0.75, 3.0)))) as telemetry:
        families = form(telemetry)
    buckets = {dict(labels)["le"]: value for labels, value in values(families, "wait_seconds_bucket").items()}
    assert buckets == {"0.5": 1, "1.0": 2, "+Inf": 3}
    assert values(families, "wait_seconds_count") == {labelled(of="a"): 3}
    assert values(families, "wait_seconds_sum") == {labelled(of="a"): 4.25}


def test_values_are_read_at_each_scrape() -> None:
    count = 0
    with shown(Instrument("read_total", COUNTER, "Of it.", (), lambda: [({}, count)])) as telemetry:
        assert values(text(telemetry), "read_total") == {labelled(): 0}
        count = 7
        assert values(text(telemetry), "read_total") == {labelled(): 7}


@pytest.mark.parametrize("kind", [COUNTER, GAUGE])
def test_what_several_instruments_say_of_the_same_labels_is_added_up(kind: InstrumentKind) -> None:
    name = "sent_total" if kind is COUNTER else "sent"
    first = instrument(name, kind, ({"a": "1", "b": "1"}, 1), ({"a": "2", "b": "2"}, 10))
    second = instrument(name, kind, ({"b": "1", "a": "1"}, 100))  # in another order
    with shown(first, second) as telemetry:
        assert values(text(telemetry), name) == {labelled(a="1", b="1"): 101, labelled(a="2", b="2"): 10}


def test_what_several_histograms_say_of_the_same_labels_is_added_up() -> None:
    distributions = [observed((1.0,), 0.5, 2.0), observed((1.0,), 0.25)]
    instruments = [instrument("wait_seconds", HISTOGRAM, ({"of": "a"}, each)) for each in distributions]
    with shown(*instruments) as telemetry:
        for _ in range(2):  # a scrape changes nothing
            families = text(telemetry)
            assert values(families, "wait_seconds_count") == {labelled(of="a"): 3}
            assert values(families, "wait_seconds_sum") == {labelled(of="a"): 2.75}
            assert values(families, "wait_seconds_bucket")[labelled(of="a", le="1.0")] == 2


@pytest.mark.parametrize("kind", InstrumentKind)
def test_one_that_cannot_be_read_is_left_out_and_logged_once(
    kind: InstrumentKind, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> list[Reading]:
        raise OSError("cannot be read")

    name = "broken_total" if kind is COUNTER else "broken"
    with shown(Instrument(name, kind, "Of it.", (), broken), instrument("good_total", COUNTER, ({}, 1))) as telemetry:
        for _ in range(3):
            families = text(telemetry)
            assert values(families, "good_total") == {labelled(): 1}
            assert [sample for each in families if each.name.startswith("broken") for sample in each.samples] == []
    assert [each.getMessage() for each in caplog.records] == [f"cannot read {name}"]


def test_one_that_cannot_be_read_does_not_hide_another_of_the_same_name() -> None:
    def broken() -> list[Reading]:
        raise OSError("cannot be read")

    good = instrument("items_total", COUNTER, ({"of": "good"}, 5))
    with shown(Instrument("items_total", COUNTER, "Of it.", ("of",), broken), good) as telemetry:
        assert values(text(telemetry), "items_total") == {labelled(of="good"): 5}


@pytest.mark.parametrize("kind", InstrumentKind)
def test_a_label_that_no_scrape_can_hold_spoils_none(kind: InstrumentKind) -> None:
    value = observed((1.0,), 0.5) if kind is HISTOGRAM else 1
    with shown(instrument("odd", kind, ({"of": "\udc80"}, value)), instrument("good", GAUGE, ({}, 1))) as telemetry:
        families = text(telemetry)
        assert values(families, "good") == {labelled(): 1}
        assert [sample for each in families if each.name.startswith("odd") for sample in each.samples] == []


WRONG: list[Reading] = [({"of": "a"}, 1.0), ({}, observed((1.0,), 0.5)), ({"of": "a"}, observed((2.0,), 0.5))]


@pytest.mark.parametrize("wrong", WRONG, ids=["a number", "without the label", "with other buckets"])
def test_one_that_is_not_what_the_first_of_its_name_is_spoils_no_scrape(wrong: Reading) -> None:
    good = instrument("wait_seconds", HISTOGRAM, ({"of": "a"}, observed((1.0,), 0.5)))
    with shown(good, instrument("wait_seconds", HISTOGRAM, wrong)) as telemetry:
        assert values(text(telemetry), "wait_seconds_count") == {labelled(of="a"): 1}


@pytest.mark.parametrize(("name", "kind"), [("items_total", COUNTER), ("items", GAUGE)])
def test_as_many_label_sets_as_are_allowed_show_and_more_are_folded(name: str, kind: InstrumentKind) -> None:
    def read(many: int) -> dict[frozenset[tuple[str, str]], float]:
        readings: list[Reading] = [({"key": str(number)}, 1) for number in range(many)]
        with shown(instrument(name, kind, *readings)) as telemetry:
            return values(text(telemetry), name)

    assert len(read(MOST_LABEL_SETS)) == MOST_LABEL_SETS
    many = read(MOST_LABEL_SETS + 10)
    assert len(many) == MOST_LABEL_SETS + 1
    folded = labelled(otel_metric_overflow="true", key="")
    assert many[folded] == (10 if kind is COUNTER else 1), "counters are added up, of gauges the last one counts"


def test_every_metric_has_a_help_text_and_the_process_and_the_service_are_among_them() -> None:
    instruments = [
        instrument(f"own_{kind}", kind, ({}, observed((1.0,)) if kind is HISTOGRAM else 1)) for kind in InstrumentKind
    ]
    with shown(*instruments) as telemetry:
        families = text(telemetry)
    assert [each.name for each in families if not each.documentation] == []
    assert {"own_gauge", "own_histogram", "process_resident_memory_bytes", "target_info"} <= {
        each.name for each in families
    }
    (target,) = values(families, "target_info")
    assert ("service_name", "of-a-test") in target


def test_after_close_nothing_is_left_and_closing_again_does_no_harm() -> None:
    with shown(instrument("own", GAUGE, ({}, 1))) as telemetry:
        telemetry.close()


@given(st.lists(st.floats(0, 20)), st.lists(st.floats(0, 20), min_size=1, unique=True).map(sorted))
def test_every_observation_is_in_the_first_bucket_whose_bound_it_does_not_exceed(
    seen: list[float], bounds: list[float]
) -> None:
    distribution = observed(tuple(bounds), *seen)
    for place, bound in enumerate(bounds):
        assert sum(distribution.counts[: place + 1]) == sum(each <= bound for each in seen)
    assert sum(distribution.counts) == len(seen)


@given(st.dictionaries(st.text("abc", min_size=1), st.text(), max_size=3))
def test_any_text_may_be_the_value_of_a_label(labels: Mapping[str, str]) -> None:
    with shown(
        instrument("own", GAUGE, (labels, 1)), instrument("s", HISTOGRAM, (labels, observed((1.0,), 0.5)))
    ) as telemetry:
        for form in (text, openmetrics):
            families = form(telemetry)
            assert values(families, "own") == {frozenset(labels.items()): 1}
            assert values(families, "s_sum") == {frozenset(labels.items()): 0.5}


@pytest.mark.parametrize("name", ["", "1st", "a b", "a\n", "é", "a" * 300, "a-b"])
@pytest.mark.parametrize("kind", list(InstrumentKind))
def test_one_with_a_name_that_cannot_be_shown_is_left_out(
    name: str, kind: InstrumentKind, caplog: pytest.LogCaptureFixture
) -> None:
    with shown(instrument(name, kind), instrument("good", GAUGE, ({}, 1.0))) as telemetry:
        assert values(text(telemetry), "good") == {frozenset(): 1.0}
        assert "is no name for a metric" in caplog.text
