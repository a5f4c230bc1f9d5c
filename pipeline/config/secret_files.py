"""Which files a configuration has taken secrets from, by `${file:PATH}`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.config.annotations import alternatives, is_secret
from pipeline.config.model import Configuration
from pipeline.config.problems import Steps
from pipeline.config.source import MapNode, Node, ScalarNode

_FILE = "file "


def secret_files(configuration: Configuration) -> Iterator[tuple[str, Path]]:
    """The path of each option that is a secret and came from a file, and that file; of the components that are used."""
    for spec in (*configuration.extensions, *configuration.components.values()):
        section = configuration.tree.items.get(f"{spec.kind}s")
        options = section.items.get(spec.id) if isinstance(section, MapNode) else None
        for steps, scalar in _scalars(options, ()):
            if is_secret(alternatives(type(spec.config), steps)):
                where = ".".join(map(str, (f"{spec.kind}s", spec.id, *steps)))
                yield from ((where, Path(used.removeprefix(_FILE))) for used in scalar.used if used.startswith(_FILE))


def _scalars(node: Node | None, steps: Steps) -> Iterator[tuple[Steps, ScalarNode]]:
    if isinstance(node, ScalarNode):
        yield steps, node
    elif node is not None:
        for step, item in node.items.items() if isinstance(node, MapNode) else enumerate(node.items):
            yield from _scalars(item, (*steps, step))
