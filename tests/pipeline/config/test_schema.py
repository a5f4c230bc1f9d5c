"""The JSON Schema for editors."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pipeline.config.schema import json_schema
from tests.pipeline.config.plugins import registry

SCHEMA = json_schema(registry())


def options(section: str, id_: str) -> dict[str, Any]:
    """The schema of a component's options."""
    patterns = SCHEMA["properties"][section]["patternProperties"]
    (found,) = [schema for pattern, schema in patterns.items() if re.search(pattern, id_)]
    name = found["anyOf"][0]["$ref"].removeprefix("#/$defs/")
    body = SCHEMA["$defs"][name]
    assert isinstance(body, dict)
    return body


def test_it_is_json() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def test_every_section_and_only_those_are_allowed() -> None:
    assert set(SCHEMA["properties"]) == {
        "extends",
        "receivers",
        "processors",
        "exporters",
        "connectors",
        "extensions",
        "service",
    }
    assert SCHEMA["additionalProperties"] is False


@pytest.mark.parametrize("id_", ["send", "send/company-1"])
def test_a_component_is_found_by_its_id(id_: str) -> None:
    assert set(options("exporters", id_)["properties"]) >= {"endpoint", "retry", "enabled"}


@pytest.mark.parametrize("id_", ["send/", "send/a/b", "sender", "series"])
def test_what_is_no_id_matches_nothing(id_: str) -> None:
    assert not [one for one in SCHEMA["properties"]["exporters"]["patternProperties"] if re.search(one, id_)]


def test_a_component_needs_no_body() -> None:
    for schema in SCHEMA["properties"]["exporters"]["patternProperties"].values():
        assert {"type": "null"} in schema["anyOf"]


def test_text_is_allowed_wherever_something_may_be_substituted() -> None:
    fields = options("exporters", "send")["properties"]
    for name in ("limit", "size", "timeout", "verify", "ratio", "compression"):
        assert '"type": "string"' in json.dumps(fields[name]), name
    attempts = SCHEMA["$defs"]["Retry"]["properties"]["attempts"]
    assert attempts["default"] == 3
    assert attempts["anyOf"] == [{"type": "integer"}, {"type": "string"}]


def test_unknown_options_are_not_allowed_and_none_is_required() -> None:
    send = options("exporters", "send")
    assert send["additionalProperties"] is False
    assert '"required"' not in json.dumps(SCHEMA)


def test_models_of_one_name_stay_apart() -> None:
    assert options("receivers", "http")["properties"].keys() != options("receivers", "push")["properties"].keys()


def test_the_default_of_a_secret_is_masked() -> None:
    assert "changeme" not in json.dumps(SCHEMA)
