"""The page of guarantees: every line names tests that exist, and no test of faults is without a line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import tests.faults

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guarantees.md"
FAULTS = ROOT / "tests" / "faults"
LINK = re.compile(r"\]\(\.\./(tests/[\w/]+\.py)#(\w+)\)")
ROWS = [
    line
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and not re.match(r"\|[- |]+\|$|.*\| shown by \|$|\| \| `power_loss`", line)
]


def names_in(path: Path) -> set[str]:
    """The names of its tests."""
    found = ast.parse(path.read_text(encoding="utf-8")).body
    functions = (each for each in found if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
    return {each.name for each in functions if each.name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip().replace(" ", "-")[:60])
def test_every_line_names_tests_that_exist(row: str) -> None:
    linked = LINK.findall(row)
    assert linked, "names no test"
    assert len(linked) == row.count(".py"), "a link without the name of a test"
    for file, name in linked:
        assert name in names_in(ROOT / file), f"{file} has no {name}"


def test_no_test_of_faults_is_without_a_line() -> None:
    named = set(LINK.findall(PAGE.read_text(encoding="utf-8")))
    there = {(str(path.relative_to(ROOT)), name) for path in FAULTS.glob("test_*.py") for name in names_in(path)}
    assert sorted(there - named) == []


def test_the_list_of_faults_names_tests_that_exist() -> None:
    assert tests.faults.__doc__ is not None
    named = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", tests.faults.__doc__)
    assert len(named) > 40
    for file, name in named:
        assert not name or name in names_in(ROOT / file), f"{file} has no {name}"
