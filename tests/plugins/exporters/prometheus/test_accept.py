"""What is asked for by `Accept` and `Accept-Encoding`: whatever a client sends, it is answered in a format that there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.exporters.prometheus.accept import accepts_gzip, choose_format
from plugins.exporters.prometheus.exposition import Format

OPENMETRICS = "application/openmetrics-text"
weights = st.sampled_from(["0", "0.5", "1", "1.0", "0.001", "", "nan", "inf", "-1", "1e9", "x", "²", "0.5;q=1"])


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", Format.TEXT),
        ("*/*", Format.TEXT),
        ("text/plain", Format.TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", Format.TEXT),
        ("application/json", Format.TEXT),
        (OPENMETRICS, Format.OPENMETRICS),
        ("APPLICATION/OpenMetrics-Text; Version=1.0.0", Format.OPENMETRICS),
        (
            f"{OPENMETRICS};version=1.0.0;q=0.5,{OPENMETRICS};version=0.0.1;q=0.4,text/plain;q=0.3,*/*;q=0.2",
            Format.OPENMETRICS,
        ),
        (
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,"
            f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=1.0.0;q=0.4,*/*;q=0.2",
            Format.OPENMETRICS,
        ),
        (f"text/plain;version=0.0.4;q=1,{OPENMETRICS};q=0.5", Format.TEXT),
        (f"{OPENMETRICS};q=0", Format.TEXT),
        (f"{OPENMETRICS};q=x, text/plain;q=0.1", Format.TEXT),
        (f"{OPENMETRICS} ; q = 0.9 , text/plain ; q = 0.8", Format.OPENMETRICS),
    ],
)
def test_the_format_is_what_weighs_most(accept: str, expected: Format) -> None:
    assert choose_format(accept) is expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP;Q=0.5", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("*", True),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("gzip;q=nan", False),
        ("*;q=0", False),
        ("xgzip", False),
    ],
)
def test_gzip_is_used_if_it_is_asked_for(header: str, expected: bool) -> None:
    assert accepts_gzip(header) is expected


@given(st.text(max_size=60) | st.text('*/;=,q0.1" \t\ntexplain', max_size=60))
def test_any_header_is_answered(header: str) -> None:
    assert choose_format(header) in Format
    assert accepts_gzip(header) in (True, False)


@given(st.lists(st.tuples(st.sampled_from([OPENMETRICS, "text/plain", "image/png"]), st.integers(0, 1000)), max_size=5))
def test_the_order_of_alternatives_does_not_matter(alternatives: list[tuple[str, int]]) -> None:
    parts = [f"{name};q={weight / 1000}" for name, weight in alternatives]
    assert choose_format(",".join(parts)) is choose_format(",".join(reversed(parts)))
    heaviest = {name: max(weight for each, weight in alternatives if each == name) for name, _ in alternatives}
    wanted = heaviest.get(OPENMETRICS, 0) > heaviest.get("text/plain", 0)
    assert choose_format(",".join(parts)) is (Format.OPENMETRICS if wanted else Format.TEXT)


@given(weights)
def test_a_weight_that_cannot_be_read_asks_for_nothing(weight: str) -> None:
    readable = weight in ("0.5", "1", "1.0", "0.001", "0.5;q=1")
    assert choose_format(f"{OPENMETRICS};q={weight}") is (Format.OPENMETRICS if readable else Format.TEXT)
    assert accepts_gzip(f"gzip;q={weight}") is readable
