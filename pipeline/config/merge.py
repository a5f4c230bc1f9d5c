"""Several files to one tree: mappings merge deeply, lists and scalars are replaced, and what comes later wins."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from pipeline.component import Kind
from pipeline.config.problems import Mark, Problems
from pipeline.config.source import MAX_DEPTH, MapNode, Node, ScalarNode, parse_yaml

OVERRIDE = Mark("--set")

_BODIES = (
    *((f"{kind}s",) for kind in Kind),
    *((f"{kind}s", "*") for kind in Kind),
    ("service",),
    ("service", "log"),
    ("service", "pipelines"),
    ("service", "pipelines", "*"),
)
"""Where a mapping is meant even if nothing is written, as in `debug:` for a component without options."""


def merge(below: MapNode, above: MapNode) -> MapNode:
    """One tree over another. A mapping keeps the mark of where it first appeared."""
    items = dict(below.items)
    for key, value in above.items.items():
        under = items.get(key)
        items[key] = merge(under, value) if isinstance(under, MapNode) and isinstance(value, MapNode) else value
    return MapNode(below.mark, items)


def with_bodies(tree: MapNode) -> MapNode:
    """The same tree, in which a section or a component without a body has an empty one, so that it changes nothing below."""
    return reduce(_with_body, _BODIES, tree)


def parse_overrides(texts: Sequence[str], problems: Problems) -> list[MapNode]:
    """The trees that `path=value` from the command line stand for; the values are YAML."""
    trees = []
    for text in texts:
        path, equals, value = text.partition("=")
        steps = tuple(path.strip().split("."))
        if not equals or len(steps) > MAX_DEPTH or not all(steps):
            problems.add(OVERRIDE, (), f"must be path=value, got {path!r} (for example receivers.http.port=8890)")
            continue
        node = parse_yaml(value, OVERRIDE, problems, steps)
        if node is not None:
            trees.append(with_bodies(_under(steps, node)))
    return trees


def _under(steps: Sequence[str], node: Node) -> MapNode:
    """The tree that holds nothing but this node, at that place."""
    first, *rest = steps
    return MapNode(OVERRIDE, {first: _under(rest, node) if rest else node})


def _with_body(tree: MapNode, way: Sequence[str]) -> MapNode:
    first, rest = way[0], way[1:]
    changed = {}
    for key, value in tree.items.items():
        if first not in ("*", key):
            continue
        if rest and isinstance(value, MapNode):
            changed[key] = _with_body(value, rest)
        elif not rest and isinstance(value, ScalarNode) and value.value is None and not value.failed:
            changed[key] = MapNode(value.mark, {})
    return MapNode(tree.mark, {**tree.items, **changed})
