"""Names and labels: always such as Prometheus takes, and the ones that the specification of OpenTelemetry gives."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from prometheus_client.parser import parse_labels

from plugins.exporters.prometheus.names import (
    MAX_HELP,
    MAX_NAME,
    help_text,
    label_name,
    label_text,
    label_value,
    metric_name,
)

text = (
    st.text(max_size=20) | st.text('ab_:0 .é\n"\\', max_size=8) | st.sampled_from(["le", "__name__", "x" * 300, "le\n"])
)
units = st.sampled_from(["", "1", "s", "ms", "By", "%", "{requests}", "s\n"]) | text
reserved_labels = st.sampled_from([None, "le", "quantile"])
pairs = st.lists(st.tuples(text, text), max_size=6)


@given(text, units, st.booleans())
def test_a_metric_has_a_valid_name_or_none(name: str, unit: str, counter: bool) -> None:
    found = metric_name(name, unit, counter=counter)
    if found is None:
        assert name in ("", "_total") or len(name) + 20 > MAX_NAME
    else:
        assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", found)
        assert len(found) <= MAX_NAME
        assert not counter or found.endswith("_total")


@given(text, units, st.booleans())
def test_a_name_that_was_made_is_kept_as_it_is(name: str, unit: str, counter: bool) -> None:
    """So whoever sends on what was scraped adds nothing."""
    found = metric_name(name, unit, counter=counter)
    assert found is None or metric_name(found, unit, counter=counter) == found


@pytest.mark.parametrize(
    ("name", "unit", "counter", "expected"),
    [
        ("http.server.duration", "s", False, "http_server_duration_seconds"),
        ("http.server.duration", "ms", False, "http_server_duration_milliseconds"),
        ("requests", "", True, "requests_total"),
        ("requests_total", "", True, "requests_total"),
        ("requests_total", "", False, "requests_total"),
        ("sent", "By", True, "sent_bytes_total"),
        ("sent_bytes_total", "By", True, "sent_bytes_total"),
        ("in_flight", "1", False, "in_flight"),
        ("in_flight", "{requests}", False, "in_flight"),
        ("9lives", "", False, "_9lives"),
        ("", "s", False, None),
        ("mcp:rule", "", False, "mcp:rule"),
        ("größe\n", "", False, "gr__e_"),
        ("", "", True, None),
        ("_total", "", True, None),
        ("x" * MAX_NAME, "", False, "x" * MAX_NAME),
        ("x" * MAX_NAME, "", True, None),
    ],
)
def test_a_metric_is_called_as_the_specification_says(
    name: str, unit: str, counter: bool, expected: str | None
) -> None:
    assert metric_name(name, unit, counter=counter) == expected


@given(text, reserved_labels)
def test_a_label_has_a_valid_name_that_is_not_reserved(key: str, reserved: str | None) -> None:
    found = label_name(key, reserved)
    assert re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", found)
    assert not found.startswith("__")
    assert found != reserved


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("http.method", "http_method"),
        ("", "_"),
        ("__name__", "_name__"),
        ("____", "_"),
        ("0", "_0"),
        ("le", "exported_le"),
        ("le\n", "le_"),
        ('a="x",b', "a__x__b"),
    ],
)
def test_a_label_is_called_as_its_key_as_far_as_that_can_be(key: str, expected: str) -> None:
    assert label_name(key, "le") == expected


@given(pairs, reserved_labels)
def test_labels_are_read_back_by_the_parser_of_the_client(
    attributes: list[tuple[str, str]], reserved: str | None
) -> None:
    shown, count = label_text(attributes, reserved)
    expected: dict[str, list[str]] = {}
    for key, value in sorted(attributes):
        expected.setdefault(label_name(key, reserved), []).append(value)
    joined = {name: ";".join(values) for name, values in expected.items()}
    readable = {name: _without_controls(value) for name, value in joined.items() if value}
    assert {name: _without_controls(value) for name, value in parse_labels(shown, openmetrics=True).items()} == readable
    assert count == len(readable)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", shown)


def _without_controls(value: str) -> str:
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", "\ufffd", value)


@given(st.lists(st.tuples(st.text("ab._", max_size=2), st.sampled_from(["x", "y"])), max_size=4), st.randoms())
def test_equal_labels_read_the_same_whatever_their_order(attributes: list[tuple[str, str]], random: Any) -> None:
    """Or a scrape would have the same sample twice: `a.b`, `a_a` and `a_b`, `a_a` are sorted differently."""
    shuffled = random.sample(attributes, len(attributes))
    assert label_text(shuffled, None) == label_text(attributes, None)
    unique = {label_name(key, None): (key, value) for key, value in attributes}
    cleaned = [(name, value) for name, (_, value) in unique.items()]
    assert label_text(cleaned, None) == label_text(list(unique.values()), None)


def test_values_of_keys_that_become_one_are_joined_in_the_order_of_the_keys() -> None:
    assert label_text([("a_b", "2"), ("a.b", "1"), ("a-b", "0")], None) == ('a_b="0;1;2"', 1)


@given(st.text(max_size=30), st.booleans())
def test_a_description_is_one_line(description: str, openmetrics: bool) -> None:
    shown = help_text(description, openmetrics=openmetrics)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", shown)
    unescaped = re.sub(r'\\([\\n"])' if openmetrics else r"\\([\\n])", lambda each: each[1].replace("n", "\n"), shown)
    assert unescaped == _without_controls(description)


def test_a_description_is_cut_where_it_gets_long() -> None:
    assert len(help_text("x" * 100_000, openmetrics=False)) == MAX_HELP


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (AnyValue(), ""),
        (AnyValue(string_value="a\n"), "a\n"),
        (AnyValue(bool_value=True), "true"),
        (AnyValue(bool_value=False), "false"),
        (AnyValue(int_value=-(2**63)), "-9223372036854775808"),
        (AnyValue(double_value=1.5), "1.5"),
        (AnyValue(double_value=float("nan")), "nan"),
        (AnyValue(bytes_value=b"\xff\x00"), '"/wA="'),
        (AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue()])), "[1,null]"),
        (
            AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="a", value=AnyValue(double_value=float("inf")))])),
            '{"a":null}',
        ),
    ],
)
def test_an_attribute_is_text(value: AnyValue, expected: str) -> None:
    assert label_value(value) == expected


@given(st.recursive(st.none() | st.booleans() | text, lambda inner: st.lists(inner, max_size=3), max_leaves=5))
def test_a_nested_attribute_is_json(value: Any) -> None:
    nested = AnyValue(array_value=ArrayValue(values=[_any(value)]))
    assert json.loads(label_value(nested)) == [value]


def _any(value: Any) -> AnyValue:
    match value:
        case None:
            return AnyValue()
        case bool():
            return AnyValue(bool_value=value)
        case str():
            return AnyValue(string_value=value)
        case _:
            return AnyValue(array_value=ArrayValue(values=[_any(each) for each in value]))
