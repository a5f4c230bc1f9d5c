"""Which files make a configuration: those that were asked for, and those that they extend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

import pipeline
from pipeline.config.merge import merge, with_bodies
from pipeline.config.problems import Mark, Problems, known
from pipeline.config.source import ListNode, MapNode, Node, ScalarNode, read_yaml

VARIABLE = "METRICS_CONFIG"
"""The variable that names the configuration when nothing else does."""

SHIPPED = ("development", "staging", "production")
"""The names that stand for a file of `shipped_folder()`; the first is what runs if nobody names any."""


def shipped_folder() -> Path:
    """Where the shipped configuration is: inside the installed package, or beside it in a checkout."""
    package = Path(pipeline.__file__).parent
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parent / "config"


def asked_files(files: Sequence[str], environ: Mapping[str, str]) -> list[tuple[str, Mark]]:
    """The files to read, each with the place that named it."""
    if files:
        return [(file, Mark(file)) for file in files]
    named = environ.get(VARIABLE, "")
    return [(named, Mark(VARIABLE))] if named else [(SHIPPED[0], Mark(SHIPPED[0]))]


class FileReader:
    """Reads files with what they extend. `names` are all that were read, `failed` says whether one could not be."""

    def __init__(self, problems: Problems) -> None:
        self.names: list[str] = []
        self.failed = False
        self._problems = problems
        self._read: dict[Path, MapNode] = {}

    def read(self, name: str, asked: Mark, folder: Path = Path(), below: tuple[Path, ...] = ()) -> MapNode:
        """The file's tree over those of the files it extends. `below` are the files that led here by `extends`."""
        path = _find(name, folder)
        if path.resolve() in below:
            ring = " -> ".join(file.name for file in (*below[below.index(path.resolve()) :], path))
            self._problems.add(asked, ("extends",), f"goes round in a circle: {ring}")
            return MapNode(asked, {})
        if path.resolve() not in self._read:
            self._read[path.resolve()] = self._load(path, name, asked, (*below, path.resolve()))
        return self._read[path.resolve()]

    def _load(self, path: Path, name: str, asked: Mark, chain: tuple[Path, ...]) -> MapNode:
        if path.name == name and "." not in name and not path.exists():
            self._problems.add(
                asked, (), f"there is no file and no shipped configuration {name!r} {known(name, SHIPPED)}"
            )
            tree = None
        else:
            tree = read_yaml(path, str(path), asked, self._problems)
        if tree is None:
            self.failed = True
            return MapNode(asked, {})
        self.names.append(str(path))
        own = MapNode(tree.mark, {key: value for key, value in tree.items.items() if key != "extends"})
        extended = (self.read(one.text, one.mark, path.parent, chain) for one in self._extends(tree))
        return reduce(merge, [*extended, with_bodies(own)])

    def _extends(self, tree: MapNode) -> list[ScalarNode]:
        node: Node | None = tree.items.get("extends")
        listed = node.items if isinstance(node, ListNode) else [node] if node else []
        found = [one for one in listed if isinstance(one, ScalarNode) and isinstance(one.value, str)]
        if len(found) < len(listed) and node:
            self._problems.add(node.mark, ("extends",), "must be the path of a file, or a list of them")
        return found


def _find(name: str, folder: Path) -> Path:
    """The path of a file, relative if it is below the working directory, since that is how marks show it."""
    path = shipped_folder() / f"{name}.yaml" if name in SHIPPED else folder / name
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
