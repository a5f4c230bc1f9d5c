from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import DimensionValue, Event
from plugins.connectors.series.config import SeriesConfig
from plugins.connectors.series.table import OVERFLOW, Series, TypeTable, parse_name

NOW = datetime(2026, 11, 23, tzinfo=UTC)
RULE = {"counter": "calls_total", "histogram": "call_duration_seconds", "gauge": "last_call", "labels": ["tool", "ok"]}


def make_table(
    changed: list[Series] | None = None, rule: dict[str, Any] | None = None, now: int = 1_000, **limits: Any
) -> TypeTable:
    config = SeriesConfig.model_validate({"types": {"call": rule or RULE}, **limits})
    told = [] if changed is None else changed
    return TypeTable("call", config, lambda: now, told.append)


def event(value: float = 1.0, duration_ms: float | None = None, **dimensions: DimensionValue) -> Event:
    return Event("call", value, NOW, duration_ms, dimensions)


def shown(table: TypeTable) -> dict[tuple[str, ...], float]:
    """The counter by the values of service, tool and ok."""
    return {
        tuple(dict(labels).get(name, "") for name in ("service", "tool", "ok")): series.total
        for labels, series in table.series.items()
    }


def test_events_of_the_same_labels_are_one_series() -> None:
    table = make_table()
    for value in (1.0, 2.5):
        table.add("web", event(value, tool="search", ok=True))
    table.add("web", event(tool="search", ok=False))
    assert shown(table) == {("web", "search", "true"): 3.5, ("web", "search", "false"): 1.0}


def test_values_that_python_takes_for_equal_are_different_labels() -> None:
    table = make_table()
    for value in (True, 1, 1.0, "1"):
        table.add("web", event(tool=value))
    assert shown(table) == {("web", "true", "_unset"): 1, ("web", "1", "_unset"): 2, ("web", "1.0", "_unset"): 1}


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (None, "_unset"),
        ("", "_unset"),
        ("a b", "a_b"),
        ('x"} 1\nfake 2', "x___1_fake_2"),
        ("\u2028\x00é", "___"),
        ("y" * 200, "y" * 96),
        (-1.5, "-1.5"),
        (2**62, str(2**62)),
    ],
)
def test_the_value_of_a_label_is_bounded_in_characters_and_length(value: DimensionValue, label: str) -> None:
    table = make_table()
    table.add("web", event(tool=value))
    assert shown(table) == {("web", label, "_unset"): 1}


def test_past_the_cardinality_values_are_folded_and_counted() -> None:
    table = make_table(max_label_cardinality=2)
    for tool in "abcdea":
        table.add("web", event(tool=tool))
    tools = {tool: total for (_, tool, _), total in shown(table).items()}
    assert tools == {"a": 2, "b": 1, "_other": 3}
    assert table.folded == 3


def test_past_the_limit_of_series_one_takes_the_rest() -> None:
    table = make_table(max_series=2)
    for tool in "abcda":
        table.add("web", event(tool=tool))
    assert table.series[OVERFLOW].total == 2
    assert table.active == 3
    assert table.overflowed == 2


def test_what_is_remembered_of_labels_as_they_came_is_bounded() -> None:
    table = make_table(max_series=10)
    for number in range(1000):
        table.add("web", event(tool=f"a{' ' * (number % 90)}{number}"))
        table.add("web", event(tool=f"b{number}"))
        table.add("web", event(tool=f"a{' ' * number}"))
    assert len(table._known) <= 10


def test_a_negative_value_is_not_added_and_is_counted() -> None:
    table = make_table()
    table.add("web", event(-3.0))
    table.add("web", event(2.0))
    assert list(shown(table).values()) == [2.0]
    assert table.negative == 1
    (series,) = table.series.values()
    assert series.last == 2.0


@pytest.mark.parametrize("counter", [{}, {"counter": "latencies_total"}])
def test_a_negative_value_is_not_observed_and_counted_once(counter: dict[str, str]) -> None:
    table = make_table(rule={"histogram": "latency_seconds", "observes": "value", **counter})
    for value in (-0.1, 0.3):
        table.add("web", event(value))
    (series,) = table.series.values()
    assert (sum(series.counts), series.sum, table.negative) == (1, 0.3, 1)


def test_a_counter_of_events_counts_whatever_their_value_is() -> None:
    table = make_table(rule={"counter": "events_total", "counts": "events", "gauge": "last"})
    for value in (-5.0, 0.0, 9.0, -1e12):
        table.add("web", event(value))
    (series,) = table.series.values()
    assert (series.total, series.last, table.negative) == (4, -1e12, 0)


def test_a_histogram_observes_durations_in_seconds_where_there_are_any() -> None:
    table = make_table(buckets=[0.1, 1.0])
    for duration in (100.0, 100.1, None, 5000.0):
        table.add("web", event(duration_ms=duration))
    (series,) = table.series.values()
    assert series.counts == [1, 1, 1]
    assert series.sum == pytest.approx(5.2001)


def test_a_change_is_told_once_until_it_was_dealt_with() -> None:
    changed: list[Series] = []
    table = make_table(changed)
    table.add("web", event())
    changed[0].unemitted = changed[0].unsaved = True
    table.add("web", event())
    assert len(changed) == 1
    changed[0].unsaved = False
    table.add("web", event())
    assert len(changed) == 2


values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(-2, 2), st.text(max_size=4), st.sampled_from("abcdefgh")
)
events = st.builds(event, st.floats(-5, 1e12), st.one_of(st.none(), st.floats(0, 86_400_000)), tool=values, ok=values)
LIMITS: dict[str, Any] = {"max_series": 6, "max_label_cardinality": 4, "max_label_length": 3}


@given(st.lists(events, max_size=60))
def test_whatever_comes_nothing_is_lost_and_the_limits_hold(pushed: list[Event]) -> None:
    table = make_table(**LIMITS)
    for each in pushed:
        table.add("web", each)
    series = table.series.values()
    assert sum(one.total for one in series) == pytest.approx(sum(each.value for each in pushed if each.value >= 0))
    durations = [each.duration_ms / 1000 for each in pushed if each.duration_ms is not None]
    buckets: Counter[int] = Counter()
    for one in series:
        buckets.update(dict(enumerate(one.counts)))
    assert +buckets == Counter(bisect_left(table.bounds, duration) for duration in durations)
    assert sum(one.sum for one in series) == pytest.approx(sum(durations))
    assert len(series) <= LIMITS["max_series"] + 1
    for name in ("service", "tool", "ok"):
        found = {dict(labels).get(name, "") for labels in table.series} - {"_other", "_unset", ""}
        assert len(found) <= LIMITS["max_label_cardinality"]
        assert all(re.fullmatch(r"[A-Za-z0-9\-_.:/]{1,3}", value) for value in found)


@given(st.lists(events, max_size=40), st.lists(events, max_size=40))
def test_a_table_that_was_saved_and_restored_goes_on_as_if_nothing_had_been(
    first: list[Event], then: list[Event]
) -> None:
    whole, before, after = (make_table(**LIMITS) for _ in range(3))
    for each in first:
        whole.add("web", each)
        before.add("web", each)
    for series in before.series.values():
        type_, labels = parse_name(series.name)
        assert type_ == "call"
        after.restore(labels, series.record())
    for each in then:
        whole.add("web", each)
        after.add("web", each)
    assert {labels: series.record() for labels, series in after.series.items()} == {
        labels: series.record() for labels, series in whole.series.items()
    }


def test_a_histogram_whose_buckets_changed_starts_anew_and_its_counter_goes_on() -> None:
    before, after = make_table(buckets=[1.0]), make_table(buckets=[1.0, 2.0], now=2000)
    before.add("web", event(duration_ms=5))
    (series,) = before.series.values()
    after.restore(series.labels, series.record())
    (restored,) = after.series.values()
    assert (restored.total, restored.counts, restored.sum) == (1, [0, 0, 0], 0)
    assert restored.started == series.started, "a start that moved would have its collector count the total again"
    assert restored.histogram_started == 2000


def test_series_of_labels_that_the_configuration_no_longer_has_are_kept() -> None:
    changed: list[Series] = []
    before, after = make_table(), make_table(changed, {"counter": "calls_total", "labels": ["ok"]}, max_series=1)
    before.add("web", event(tool="search", ok=True))
    (series,) = before.series.values()
    after.restore(series.labels, series.record())
    assert [(each.labels, each.total) for each in changed] == [(series.labels, 1)], "it is shown"
    after.add("web", event(tool="search", ok=True))
    assert shown(after) == {("web", "", "true"): 1}, "and takes nobody's place"
    assert after.active == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counter": "1st"}, "'1st' is no name for a metric"),
        ({"counter": "a\n"}, "is no name for a metric"),
        ({"labels": ["le"]}, "'le' is a label that is given already"),
        ({"labels": ["a\n"]}, "is no name for a label"),
        ({"labels": ["__name__"]}, "'__name__' is no name for a label"),
        ({"labels": [""]}, "'' is no name for a label"),
        ({"labels": ["a", "a"]}, "'a' is there twice"),
        ({"histogram": "x", "gauge": "x"}, "'x' is a histogram and a gauge"),
    ],
)
def test_a_table_that_would_break_a_scrape_is_a_mistake_in_the_configuration(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        SeriesConfig.model_validate({"types": {"call": change}})


@pytest.mark.parametrize("buckets", [[], [1, 1], [2, 1], [1, float("inf")], [float("nan")]])
def test_buckets_must_ascend(buckets: list[float]) -> None:
    with pytest.raises(ValidationError, match="are no bounds"):
        SeriesConfig.model_validate({"types": {}, "buckets": buckets})
