"""The rules of the tree: who may import whom, and what must be explained."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline
from pipeline import hookspecs

ROOT = Path(__file__).parents[1]
ENGINE = sorted((ROOT / "pipeline").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MARKS = {"faults", "deploy"}
OURS = ("pipeline", "plugins", "tests")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, and whether only for types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}: imports are absolute"
            yield node.module or "", node in typing_only


def package_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("path", ENGINE, ids=named)
def test_the_engine_imports_no_plugin(path: Path) -> None:
    assert {package_of(module) for module, _ in imports(path)} & {"plugins", "tests"} == set()


@pytest.mark.parametrize("path", [*ENGINE, *PLUGINS], ids=named)
def test_what_is_for_tests_is_imported_by_what_is_for_tests_alone(path: Path) -> None:
    if ROOT / "pipeline" / "testing" not in path.parents:
        assert [name for name, _ in imports(path) if re.match(r"pytest\b|pipeline\.testing\b", name)] == []


@pytest.mark.parametrize("path", PLUGINS, ids=named)
def test_a_plugin_imports_of_ours_only_the_public_api_and_its_own_folder(path: Path) -> None:
    kind_and_plugin = path.relative_to(ROOT).with_suffix("").parts[1:3]
    own = ".".join(("plugins", *kind_and_plugin))
    for module, only_for_types in imports(path):
        if package_of(module) in OURS:
            assert (
                module == "pipeline"
                or module == own
                or module.startswith(f"{own}.")
                or (module == "pipeline.cli" and only_for_types)
            ), module


def test_the_walk_finds_the_imports_that_are_not_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pipeline.cli\nelse:\n    import a.b\n"
        "def f():\n    from plugins.x import y\n"
    )
    found = sorted(imports(path))
    assert found == [("a.b", False), ("pipeline.cli", True), ("plugins.x", False), ("typing", False)]


def test_the_public_api_is_what_the_package_imports_sorted() -> None:
    tree = ast.parse((ROOT / "pipeline" / "__init__.py").read_text(encoding="utf-8"))
    imported = [
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert pipeline.__all__ == sorted(set(imported))
    assert len(imported) == len(set(imported))
    assert all(hasattr(pipeline, name) for name in pipeline.__all__)


@pytest.mark.parametrize("path", [path for path in TESTS if path.parent != ROOT / "tests"], ids=named)
def test_every_folder_of_tests_is_a_package(path: Path) -> None:
    assert (path.parent / "__init__.py").exists()


@pytest.mark.parametrize("path", [path for path in TESTS if path.name.startswith("test_")], ids=named)
def test_what_is_marked_is_in_the_folder_of_its_mark_and_nothing_else_is(path: Path) -> None:
    """`make test` leaves these folders out, without a look at what is in them."""
    text = path.read_text(encoding="utf-8")
    marks = {
        mark
        for mark in MARKS
        if re.search(rf"^pytestmark = .*\bpytest\.mark\.{mark}\b", text, re.MULTILINE | re.DOTALL)
    }
    assert marks == {path.relative_to(ROOT / "tests").parts[0]} & MARKS


Function = ast.FunctionDef | ast.AsyncFunctionDef


def unexplained(path: Path) -> Iterator[str]:
    """The public classes, functions and methods without a docstring.

    A hook has that of its specification, and a method that of the base method which it implements.
    """
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | Function) and not hasattr(hookspecs, node.name) and is_silent(node):
            yield node.name
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            bases = getattr(importlib.import_module(module_of(path)), node.name).__mro__[1:]
            for method in node.body:
                inherited = any(getattr(vars(base).get(getattr(method, "name", "")), "__doc__", None) for base in bases)
                if isinstance(method, Function) and not inherited and is_silent(method):
                    yield f"{node.name}.{method.name}"


def is_silent(node: ast.ClassDef | Function) -> bool:
    return not node.name.startswith("_") and not ast.get_docstring(node)


@pytest.mark.parametrize("path", [*ENGINE, *PLUGINS], ids=named)
def test_what_is_public_is_explained(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "the module says what it is for"
    assert list(unexplained(path)) == []


def test_the_walk_finds_what_is_not_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "walked_here.py"
    path.write_text(
        'class A:\n    """Said."""\n    def f(self): ...\n    def _g(self): ...\n    def h(self):\n        """Said."""\n'
        "class B(A):\n    def h(self): ...\ndef f(): ...\ndef _g(): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("tests.test_architecture.ROOT", tmp_path)
    assert list(unexplained(path)) == ["A.f", "B", "f"]
