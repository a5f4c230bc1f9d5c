"""The table of `metrics-service top`."""

from __future__ import annotations

from plugins.exporters.prometheus.flow import table
from plugins.exporters.prometheus.rates import rates, read_samples

BEFORE = """
otelcol_receiver_accepted_items_total{pipeline="events",receiver="http"} 100
http_requests_total{endpoint="/metrics",method="POST",status="200"} 10
http_request_duration_seconds_count{endpoint="/metrics",method="POST"} 10
http_request_duration_seconds_sum{endpoint="/metrics",method="POST"} 1
"""
AFTER = """
otelcol_receiver_accepted_items_total{pipeline="events",receiver="http"} 350
otelcol_receiver_accepted_items_total{pipeline="metrics",receiver="series"} 0
otelcol_receiver_refused_items_total{pipeline="events",receiver="http",reason="invalid"} 4
otelcol_receiver_refused_items_total{pipeline="events",receiver="http",reason="overloaded"} 2
otelcol_receiver_refused_requests_total{pipeline="events",receiver="http",reason="unauthenticated"} 3
otelcol_receiver_refused_requests_total{pipeline="events",receiver="http",reason="malformed"} 0
processor_filtered_items_total{pipeline="events",processor="sample"} 5
otelcol_exporter_sent_items_total{exporter="sqlite",pipeline="events"} 20
otelcol_exporter_sent_items_total{exporter="series",pipeline="events"} 500
exporter_dead_lettered_items_total{exporter="sqlite",pipeline="events"} 7
exporter_dead_lettered_items_total{exporter="series",pipeline="events"} 0
otelcol_exporter_queue_size{exporter="sqlite",pipeline="events"} 120
otelcol_exporter_queue_size{exporter="series",pipeline="events"} 0
exporter_lag_seconds{exporter="sqlite",pipeline="events"} 12.34
exporter_lag_seconds{exporter="series",pipeline="events"} 0
exporter_working{exporter="sqlite",pipeline="events"} 0
exporter_working{exporter="series",pipeline="events"} 1
journal_bytes{pipeline="events"} 250
journal_bytes{pipeline="metrics"} 0
journal_limit_bytes{pipeline="events"} 1000
journal_limit_bytes{pipeline="metrics"} 1000
journal_oldest_item_age_seconds{pipeline="events"} 12.34
journal_oldest_item_age_seconds{pipeline="metrics"} 0
prometheus_series{exporter="prometheus"} 42
prometheus_set_aside_series_total{exporter="prometheus",reason="bytes"} 1
prometheus_set_aside_series_total{exporter="prometheus",reason="name"} 2
http_requests_total{endpoint="/metrics",method="POST",status="200"} 18
http_requests_total{endpoint="/metrics",method="POST",status="401"} 1
http_requests_total{endpoint="/flush",method="POST",status="403"} 1
http_request_duration_seconds_count{endpoint="/metrics",method="POST"} 19
http_request_duration_seconds_count{endpoint="/flush",method="POST"} 1
http_request_duration_seconds_sum{endpoint="/metrics",method="POST"} 1.01
http_request_duration_seconds_sum{endpoint="/flush",method="POST"} 0.01
"""
SHOWN = """\
events   http        accepted/s 125.0  refused/s  3.0  refused requests/s: unauthenticated 1.5
         sample      filtered/s   2.5
         journal     full %      25.0  age s     12.3
         sqlite      taken/s     10.0  waiting    120  lag s   12.3  dead letters 7  failing
         series      taken/s    250.0  waiting      0  lag s    0.0  dead letters 0
metrics  series      accepted/s   0.0  refused/s  0.0
         journal     full %       0.0  age s      0.0
HTTP     requests    2xx/s        4.0  4xx/s      1.0  mean ms  2.0
shown    prometheus  series        42  set aside    3
"""


def test_each_component_has_its_line() -> None:
    before, after = read_samples(BEFORE), read_samples(AFTER)
    assert table(after, rates(before, after, 2)) == SHOWN


def test_what_is_missing_shows_as_nothing() -> None:
    after = read_samples(
        'journal_bytes{pipeline="events"} 250\n'
        'otelcol_exporter_sent_items_total{exporter="sqlite",pipeline="events"} 20\n'
        'http_requests_total{endpoint="/metrics",method="POST",status="200"} 18\n'
    )
    assert table(after, rates(after, after, 1)) == (
        "events  journal\n        sqlite    taken/s 0.0\nHTTP    requests  2xx/s   0.0\n"
    )
    assert table({}, {}) == ""


def test_a_journal_without_a_limit_and_a_receiver_without_requests_divide_by_nothing() -> None:
    after = read_samples(
        'journal_bytes{pipeline="a"} 1\njournal_limit_bytes{pipeline="a"} 0\n'
        'http_requests_total{status="200"} 1\n'
        "http_request_duration_seconds_count 1\nhttp_request_duration_seconds_sum 1\n"
    )
    assert table(after, rates(after, after, 1)) == "a     journal\nHTTP  requests  2xx/s 0.0\n"
