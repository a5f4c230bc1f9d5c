"""What our code imports is declared, and does not merely come along with something else."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"pipeline", "plugins"}
PARTS = {"opentelemetry-exporter-otlp-proto-common": "opentelemetry-exporter-otlp"}
"""Distributions that are declared by the one that gathers them."""


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports whatever happens: not in a function, nor in a `try` or an `if`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def name(requirement: str) -> str:
    """The distribution that is required, as all of them are written in one way."""
    return re.split(r"[><=\[; ]", requirement)[0].lower().replace("_", "-")


FOREIGN = {
    module: path.relative_to(ROOT)
    for ours in sorted(OURS)
    for path in (ROOT / ours).rglob("*.py")
    for module in imports(path)
    if module.partition(".")[0] not in sys.stdlib_module_names | OURS
}


@pytest.fixture(scope="module")
def owners() -> dict[Path, str]:
    """The distribution of each file that is installed."""
    return {
        Path(str(each.locate_file(file))): name(each.metadata["Name"])
        for each in distributions()
        for file in each.files or ()
        if file.suffix in (".py", ".so")
    }


@pytest.mark.parametrize("module", sorted(FOREIGN))
def test_what_is_imported_is_declared(module: str, owners: dict[Path, str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    }
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    owner = owners[Path(spec.origin)]
    assert PARTS.get(owner, owner) in {name(each) for each in required}, FOREIGN[module]
