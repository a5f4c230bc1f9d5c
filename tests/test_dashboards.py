"""The dashboards of deploy/grafana: what their tables say, in the form that Grafana reads; tests/deploy asks a Prometheus their queries."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest
import yaml

from deploy.grafana.generate import FOLDER, TABLES, made
from tests.promql import asked, unknown

DASHBOARDS: dict[str, dict[str, Any]] = {
    name: json.loads((FOLDER / name).read_text(encoding="utf-8")) for name in TABLES
}
KINDS = {"row", "timeseries", "stat", "bargauge", "heatmap", "state-timeline"}
"""Panel types of Grafana 10 that are not retired; `graph` is."""
UNITS = {"short", "s", "bytes", "percentunit", "reqps", "cps"}
"""Of the ids in @grafana/data's valueFormats."""
COLOURS = {"red", "yellow", "green"}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
BUILT_IN = {"__rate_interval", "__range", "datasource"}


def panels(name: str) -> list[dict[str, Any]]:
    """The panels of a dashboard that show something."""
    return [panel for panel in DASHBOARDS[name]["panels"] if panel["type"] != "row"]


PANELS = [pytest.param(panel, id=f"{name}-{panel['title']}") for name in TABLES for panel in panels(name)]


@pytest.mark.parametrize("name", TABLES)
def test_a_dashboard_is_what_its_table_says(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == made(name), "stale: run `make docs`"


@pytest.mark.parametrize("name", TABLES)
def test_a_dashboard_can_be_imported(name: str) -> None:
    one = DASHBOARDS[name]
    assert one["id"] is None, "an id is the database's own"
    assert re.fullmatch(r"[\w-]{1,40}", one["uid"])
    assert one["title"]
    assert one["schemaVersion"] >= 39
    ids = [panel["id"] for panel in one["panels"]]
    assert len(set(ids)) == len(ids)
    assert min(ids) > 0
    (source, *others) = one["templating"]["list"]
    assert (source["type"], source["name"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert all(each["datasource"] == SOURCE for each in others)


def test_no_two_dashboards_are_the_same_to_grafana() -> None:
    for what in ("uid", "title"):
        assert len({one[what] for one in DASHBOARDS.values()}) == len(DASHBOARDS)


@pytest.mark.parametrize("name", TABLES)
def test_panels_stand_within_the_grid_and_on_nobody_else(name: str) -> None:
    places = [panel["gridPos"] for panel in DASHBOARDS[name]["panels"]]
    for at in places:
        assert min(at.values()) >= 0
        assert at["w"] > 0 < at["h"]
        assert at["x"] + at["w"] <= 24
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_is_one_that_grafana_can_draw(panel: dict[str, Any]) -> None:
    assert panel["type"] in KINDS
    assert panel["datasource"] == SOURCE
    shown = panel["fieldConfig"]["defaults"]
    assert shown["unit"] in UNITS
    steps = shown["thresholds"]["steps"]
    assert steps[0]["value"] is None
    bounds = [step["value"] for step in steps[1:]]
    assert bounds == sorted(bounds)
    assert {step["color"] for step in steps} <= COLOURS
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["datasource"] == SOURCE
        assert target["instant"] is not target["range"]


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_asks_for_metrics_that_there_are(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert asked(target["expr"])
        assert unknown(target["expr"]) == set()


@pytest.mark.parametrize("name", TABLES)
def test_every_variable_is_one_that_the_dashboard_has_and_every_one_is_used(name: str) -> None:
    one = DASHBOARDS[name]
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([one["panels"], one["templating"]]).replace("$__all", "")))
    assert used | BUILT_IN == {each["name"] for each in one["templating"]["list"]} | BUILT_IN


def test_what_is_provisioned_is_what_there_is() -> None:
    sources = yaml.safe_load((FOLDER / "provisioning/datasources/metrics-service.yaml").read_text(encoding="utf-8"))
    (source,) = sources["datasources"]
    assert (source["type"], source["jsonData"]["timeInterval"]) == ("prometheus", "15s")
    read = yaml.safe_load((FOLDER / "provisioning/dashboards/metrics-service.yaml").read_text(encoding="utf-8"))
    (provider,) = read["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"].startswith("/var/lib/grafana/")
