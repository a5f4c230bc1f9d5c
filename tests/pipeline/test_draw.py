"""The graph as text, for each shape that a pipeline can have."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.load import load_configuration
from pipeline.draw import draw
from pipeline.registry import load_registry
from tests.pipeline.config.plugins import load

COMPONENTS = """
receivers: {push: , push/second: , push/third: }
processors: {admit: , keep: }
exporters: {drop: , drop/second: , drop/third: }
connectors: {series: }
extensions: {wood: , index: }
service:
  pipelines:
"""

ONE = (
    "events: {receivers: [push], processors: [admit, keep], exporters: [drop]}",
    """
pipeline events
  push ─▶ admit ─▶ keep ─▶ drop
""",
)
FAN_OUT = (
    "events: {receivers: [push], processors: [admit, keep], exporters: [drop, drop/second, drop/third]}",
    """
pipeline events
  push ─▶ admit ─▶ keep ─┬▶ drop
                         ├▶ drop/second
                         └▶ drop/third
""",
)
FAN_IN = (
    "events: {receivers: [push, push/second, push/third], processors: [keep], exporters: [drop]}",
    """
pipeline events
  push        ─┬▶ keep ─▶ drop
  push/second ─┤
  push/third  ─┘
""",
)
BOTH = (
    "events: {receivers: [push, push/second], processors: [keep], exporters: [drop, drop/second, drop/third]}",
    """
pipeline events
  push        ─┬▶ keep ─┬▶ drop
  push/second ─┘        ├▶ drop/second
                        └▶ drop/third
""",
)
CONNECTED = (
    """
    metrics: {receivers: [push/second, series], processors: [keep], exporters: [drop/second]}
    events: {receivers: [push], processors: [admit, keep], exporters: [drop, series]}
""",
    """
pipeline events
  push ─▶ admit ─▶ keep ─┬▶ drop
                         └▶ series*

pipeline metrics
  push/second ─┬▶ keep ─▶ drop/second
  series*     ─┘

* a connector: the exporter of one pipeline is the receiver of another
""",
)


@pytest.mark.parametrize(("pipelines", "drawing"), [ONE, FAN_OUT, FAN_IN, BOTH, CONNECTED])
def test_a_graph_is_drawn_upstream_first_with_its_branches_aligned(
    tmp_path: Path, pipelines: str, drawing: str
) -> None:
    assert draw(load(tmp_path, COMPONENTS + "    " + pipelines.lstrip())) == drawing.strip()


def test_extensions_come_first(tmp_path: Path) -> None:
    drawing = draw(load(tmp_path, f"{COMPONENTS}    {ONE[0]}", overrides=["service.extensions=[wood, index]"]))
    assert drawing == f"extensions: wood, index\n\n{ONE[1].strip()}"


def test_a_pipeline_whose_receiver_is_off_is_drawn_since_it_still_delivers(tmp_path: Path) -> None:
    drawing = draw(load(tmp_path, f"{COMPONENTS}    {ONE[0]}", overrides=["receivers.push.enabled=false"]))
    assert drawing == "pipeline events\n  (no receiver) ─▶ admit ─▶ keep ─▶ drop"


def test_the_shipped_graph_is_drawn(tmp_path: Path) -> None:
    environ = {"SQLITE_DB_PATH": str(tmp_path / "metrics.db")}
    drawing = draw(load_configuration(["production"], [], environ, load_registry(installed=False)))
    assert "\n  http ─▶ auth ─▶ rate_limit ─▶ validate ─▶ batch ─" in drawing
