"""Draws the graph of a configuration as text."""

from __future__ import annotations

from pipeline.component import Kind
from pipeline.config.model import Configuration, PipelineSpec


def draw(configuration: Configuration) -> str:
    """The extensions, then one picture a pipeline, upstream first. Connectors are marked with `*`."""
    blocks = []
    if configuration.extensions:
        blocks.append("extensions: " + ", ".join(spec.id for spec in configuration.extensions))
    blocks += [_draw_pipeline(configuration, spec) for spec in configuration.pipelines]
    if any(kind is Kind.CONNECTOR for kind, _ in configuration.components):
        blocks.append("* a connector: the exporter of one pipeline is the receiver of another")
    return "\n\n".join(blocks)


def _draw_pipeline(configuration: Configuration, spec: PipelineSpec) -> str:
    def name(id: str) -> str:
        return f"{id}*" if (Kind.CONNECTOR, id) in configuration.components else id

    sources = [name(id) for id in spec.receivers] or ["(no receiver)"]
    targets = [name(id) for id in spec.exporters]
    middle = " ─▶ ".join(spec.processors)
    width = max(map(len, sources))
    height = max(len(sources), len(targets))
    lines = []
    for row in range(height):
        left = sources[row].ljust(width) if row < len(sources) else " " * width
        right = targets[row] if row < len(targets) else ""
        joint_in = _joint(row, len(sources), "─▶ ", "─┬▶ ", "─┤  ", "─┘  ") if row < len(sources) else ""
        joint_out = _joint(row, len(targets), " ─▶ ", " ─┬▶ ", "  ├▶ ", "  └▶ ") if right else ""
        centre = middle if row == 0 else " " * len(middle)
        gap = " " * (4 if len(sources) > 1 else 3)
        lines.append(f"  {left} {joint_in or gap}{centre}{joint_out}{right}".rstrip())
    return f"pipeline {spec.id}\n" + "\n".join(lines)


def _joint(row: int, count: int, only: str, first: str, between: str, last: str) -> str:
    if count == 1:
        return only
    if row == 0:
        return first
    return last if row == count - 1 else between
