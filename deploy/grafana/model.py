"""Grafana's JSON model of a dashboard, as far as the dashboards here need it: that of Grafana 10 and newer.

Tables in YAML say what is shown (service.yaml, traffic.yaml); this module says how that is written, and where it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

SCHEMA_VERSION = 39
"""That of Grafana 10.4; newer ones migrate it when they read it."""
WIDTH = 24
"""Of Grafana's grid."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

QUANTILES = (0.5, 0.95, 0.99)
SMALL = {"width": 4, "height": 4}

Json = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One panel, as it stands in the table."""

    title: str
    unit: str
    """Grafana's name of it."""
    kind: str = "timeseries"
    """Grafana's name of the panel's type."""
    about: str = ""
    query: str = ""
    """The expression, where there is one and needs no legend."""
    queries: Mapping[str, str] = field(default_factory=dict)
    """Expressions by their legends."""
    quantiles: str = ""
    """The buckets of a histogram of which a few quantiles are shown."""
    width: int = 8
    height: int = 8
    stacked: bool = False
    high: tuple[float, ...] = ()
    """From where on it is yellow, if there are two, and red."""
    low: tuple[float, ...] = ()
    """From where on it is no more red, and if there are two no more yellow."""
    words: Mapping[float, tuple[str, str]] = field(default_factory=dict)
    """What a value is called, and its colour."""

    @property
    def asked(self) -> list[tuple[str, str]]:
        """All expressions, each with its legend."""
        rate = f"sum by (le) (rate({self.quantiles}[$__rate_interval]))"
        shown = [(f"histogram_quantile({q}, {rate})", f"p{q * 100:g}") for q in QUANTILES] if self.quantiles else []
        return [
            *((text, legend) for legend, text in self.queries.items()),
            *shown,
            *([(self.query, "")] * bool(self.query)),
        ]


def dashboard(table: str) -> Json:
    """A dashboard of a table in YAML. It can be imported and provisioned: its data source is a variable."""
    read = yaml.safe_load(table.replace("$select", yaml.safe_load(table)["select"]))
    return {
        "annotations": {"list": []},
        "description": read["about"],
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [{"asDropdown": False, "tags": ["metrics-service"], "title": "", "type": "dashboards"}],
        "panels": list(_placed(read["rows"])),
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": ["metrics-service"],
        "templating": {"list": [_source(), *(_variable(**each) for each in read["variables"])]},
        "time": {"from": "now-6h", "to": "now"},
        "timepicker": {},
        "timezone": "",
        "title": read["title"],
        "uid": read["uid"],
        "version": 1,
        "weekStart": "",
    }


def text_of(one: Json) -> str:
    """A dashboard as a file: a panel a line, so that a change shows as that of its panel."""
    panels = ",\n  ".join(json.dumps(panel, sort_keys=True) for panel in one["panels"])
    frame = json.dumps({**one, "panels": []}, indent=1, sort_keys=True)
    return frame.replace('"panels": []', f'"panels": [\n  {panels}\n ]') + "\n"


def _source() -> Json:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}}


def _variable(name: str, query: str, several: bool = False) -> Json:
    chosen: Json = {"includeAll": True, "allValue": ".*", "multi": True} if several else {}
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "A"},
        "refresh": 2,  # with the time range
        "sort": 1,
        "current": {"text": "All", "value": "$__all"} if several else {},
        **chosen,
    }


def _placed(rows: Iterable[Json]) -> Iterator[Json]:
    """The panels of each row from left to right, one line below the other."""
    id = y = 0
    for row in rows:
        id += 1
        at = _at(0, y, WIDTH, 1)
        yield {"id": id, "type": "row", "title": row["row"], "collapsed": False, "panels": [], "gridPos": at}
        x, y, height = 0, y + 1, 0
        for said in row["panels"]:
            panel = Panel(**{**(SMALL if said.get("kind") == "stat" else {}), **said})
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            id += 1
            yield {"id": id, "gridPos": _at(x, y, panel.width, panel.height), **_panel(panel)}
            x, height = x + panel.width, max(height, panel.height)
        y += height


def _at(x: int, y: int, width: int, height: int) -> Json:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
        "targets": list(_targets(panel)),
    }


def _targets(panel: Panel) -> Iterator[Json]:
    now = panel.kind in ("stat", "bargauge")
    for number, (expression, legend) in enumerate(panel.asked):
        yield {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend,
            "format": "heatmap" if panel.kind == "heatmap" else "time_series",
            "instant": now,
            "range": not now,
        }


def _field(panel: Panel) -> Json:
    shown: Json = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": _steps(panel)}}
    if panel.unit == "percentunit":
        shown |= {"min": 0} if panel.kind == "timeseries" else {"min": 0, "max": 1}
    if panel.words:
        options = {str(value): {"text": text, "color": colour} for value, (text, colour) in panel.words.items()}
        shown["mappings"] = [{"type": "value", "options": options}]
    if panel.kind == "timeseries":
        shown |= {"color": {"mode": "palette-classic"}, "min": 0}
        shown["custom"] = {
            "drawStyle": "line",
            "fillOpacity": 30 if panel.stacked else 10,
            "lineWidth": 1,
            "showPoints": "never",
            "stacking": {"group": "A", "mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "dashed" if panel.high else "off"},
        }
    elif panel.kind != "heatmap":
        shown["color"] = {"mode": "thresholds"}
    return shown


def _steps(panel: Panel) -> list[Json]:
    bounds = panel.high or panel.low
    colours = ["green", "yellow", "red"] if len(bounds) > 1 else ["green", "red"]
    if panel.low:
        colours.reverse()
    return [{"color": colour, "value": value} for colour, value in zip(colours, (None, *bounds), strict=False)]


def _options(panel: Panel) -> Json:
    reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    listed = {
        "calcs": ["mean", "max", "lastNotNull"],
        "displayMode": "table",
        "placement": "bottom",
        "showLegend": True,
    }
    options: dict[str, Json] = {
        "timeseries": {"legend": listed, "tooltip": {"mode": "multi", "sort": "desc"}},
        "stat": {
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "reduceOptions": reduced,
            "textMode": "auto",
        },
        "bargauge": {
            "displayMode": "basic",
            "orientation": "horizontal",
            "reduceOptions": reduced,
            "showUnfilled": True,
        },
        "state-timeline": {
            "mergeValues": True,
            "rowHeight": 0.8,
            "showValue": "never",
            "legend": {**listed, "displayMode": "list"},
        },
        "heatmap": {
            "calculate": False,
            "cellGap": 1,
            "color": {"exponent": 0.5, "mode": "scheme", "scheme": "Oranges", "steps": 64},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "show": True, "yHistogram": False},
            "yAxis": {"axisPlacement": "left", "unit": panel.unit},
        },
    }
    return options[panel.kind]  # fmt: skip
