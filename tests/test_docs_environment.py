"""docs/environment.md says what a variable may hold: each default is a value that changes nothing, each unit the one that counts."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipeline.config.files import SHIPPED
from pipeline.config.load import load_configuration
from pipeline.config.model import Configuration
from tests.test_docs import DOCS, REGISTRY

ROWS = [
    [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
    for line in (DOCS / "environment.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]
IN_TIME = [(row[0], row[1], found[1]) for row in ROWS if (found := re.search(r"\bin (\w*seconds)\b", row[-1]))]
SECONDS = {"seconds": 1.0, "milliseconds": 0.001}


def options(configuration: Configuration) -> dict[str, Any]:
    """Every option of the components and of the service, as loaded."""
    configured = {f"{kind}s.{id_}": spec.config.model_dump() for (kind, id_), spec in configuration.configured.items()}
    return {**configured, "service": configuration.settings.model_dump()}


@pytest.mark.parametrize(("number", "name"), list(enumerate(SHIPPED)))
def test_a_variable_that_is_set_to_its_default_changes_nothing(number: int, name: str) -> None:
    unset = options(load_configuration([name], [], {}, REGISTRY))
    assert len(ROWS) > 30
    for variable, _, *rest in ROWS:
        if (default := rest[number]) != "none":
            assert options(load_configuration([name], [], {variable: default}, REGISTRY)) == unset, variable


@pytest.mark.parametrize(("variable", "sets", "unit"), IN_TIME, ids=[variable for variable, _, _ in IN_TIME])
def test_a_number_is_in_the_unit_that_the_page_says(variable: str, sets: str, unit: str) -> None:
    section, *component, option = sets.split(".")
    found = options(load_configuration(["production"], [], {variable: "7000"}, REGISTRY))
    assert found[".".join([section, *component])][option] == pytest.approx(7000 * SECONDS[unit])


def test_some_are_in_seconds_and_some_in_milliseconds() -> None:
    assert {unit for _, _, unit in IN_TIME} == SECONDS.keys()
