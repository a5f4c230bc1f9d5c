"""What flows a second, from two scrapes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.exporters.prometheus.rates import Samples, by_label, rates, read_samples, total

ACCEPTED = "otelcol_receiver_accepted_items_total"
counts = st.integers(0, 10**12).map(float)


def scrape(value: float, name: str = ACCEPTED) -> Samples:
    return {(name, frozenset({("pipeline", "events")})): value}


@given(earlier=counts, grown=counts, seconds=st.floats(0.01, 1000))
def test_a_counter_flows_by_what_it_grew(earlier: float, grown: float, seconds: float) -> None:
    assert rates(scrape(earlier), scrape(earlier + grown), seconds) == scrape(grown / seconds)


@given(later=counts, more=counts.filter(bool), seconds=st.floats(0.01, 1000))
def test_a_counter_that_went_back_counts_from_zero(later: float, more: float, seconds: float) -> None:
    assert rates(scrape(later + more), scrape(later), seconds) == scrape(later / seconds)


def test_a_counter_that_is_new_counts_from_zero_and_one_that_is_gone_shows_as_nothing() -> None:
    assert rates({}, scrape(6), 2) == scrape(3)
    assert rates(scrape(6), {}, 2) == {}


@pytest.mark.parametrize("suffix", ["_sum", "_count"])
def test_of_a_histogram_the_sum_and_the_count_flow(suffix: str) -> None:
    name = f"http_request_duration_seconds{suffix}"
    assert rates(scrape(1, name), scrape(2, name), 0.5) == scrape(2, name)


def test_a_gauge_does_not_flow() -> None:
    assert rates(scrape(1, "journal_bytes"), scrape(2, "journal_bytes"), 1) == {}


def test_only_the_telemetry_of_the_service_is_read() -> None:
    text = (
        "# TYPE journal_bytes gauge\n"
        'journal_bytes{pipeline="a"} 1.5\n'
        'mcp_auth_requests_total{service="s"} 7\n'
        "this is no sample\n"
        'http_request_duration_seconds_bucket{le="+Inf",method="GET"} 3\n'
        'http_request_duration_seconds_count{method="GET"} 3\n'
    )
    assert read_samples(text) == {
        ("journal_bytes", frozenset({("pipeline", "a")})): 1.5,
        ("http_request_duration_seconds_count", frozenset({("method", "GET")})): 3.0,
    }


@given(st.text(st.characters(exclude_characters='\\"\n', codec="utf-8")), counts)
def test_every_label_comes_back(label: str, value: float) -> None:
    text = f'exporter_working{{exporter="{label}"}} {value}\n'
    assert read_samples(text) == {("exporter_working", frozenset({("exporter", label)})): value}


@given(st.lists(st.sampled_from([*'{}",=\\# 1a\t\n', "journal_bytes", 'a="b"'])).map("".join))
def test_what_is_no_exposition_raises_only_what_it_says(text: str) -> None:
    with suppress(ValueError, IndexError):
        read_samples(f"journal_bytes{text}")


def test_sums_are_by_label_and_only_of_what_matches() -> None:
    text = 'http_x{a="1",b="1"} 1\nhttp_x{a="1",b="2"} 2\nhttp_x{a="2",b="2"} 4\nhttp_xy{a="1"} 8\n'
    samples = read_samples(text.replace("http_x", "http_request_x"))
    assert by_label(samples, "http_request_x", "a") == {"1": 3, "2": 4}
    assert by_label(samples, "http_request_x", "a", b="2") == {"1": 2, "2": 4}
    assert total(samples, "http_request_x", b="2") == 6
    assert total(samples, "http_request_x", b="3") is None
