"""JSON Schema of a configuration file, for editors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic.json_schema import models_json_schema

from pipeline.component import Declaration
from pipeline.config.check import SECTIONS
from pipeline.config.model import ServiceSettings
from pipeline.registry import Registry

_SUBSTITUTION = {"type": "string", "pattern": r"\$\{"}
_NAME = "(/[A-Za-z0-9_-]+)?"
_NESTED_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_NESTED_MAPS = ("properties", "patternProperties", "$defs")
_NESTED = ("items", "additionalProperties")


def json_schema(registry: Registry) -> dict[str, Any]:
    """The schema of a whole file, with the components of this registry.

    Wherever a single value is expected, text is allowed too: a substitution, or a form like `10MB` that the field reads.
    Nothing is required, since what one file leaves out another may hold.
    """
    models = [declaration.config for declaration in registry.declarations.values()]
    inputs: list[tuple[Any, Literal["validation"]]] = [
        (one, "validation") for one in dict.fromkeys([*models, ServiceSettings])
    ]
    references, schema = models_json_schema(inputs, ref_template="#/$defs/{model}")
    properties: dict[str, Any] = {
        "extends": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    }
    for section, kind in SECTIONS.items():
        declared = [one for (kind_, _), one in sorted(registry.declarations.items()) if kind_ is kind]
        properties[section] = _section(declared, references)
    properties["service"] = _or_empty(references[ServiceSettings, "validation"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of the metrics service",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": {name: _with_text(body) for name, body in schema.get("$defs", {}).items()},
    }


def _section(declared: list[Declaration], references: dict[Any, Any]) -> dict[str, Any]:
    patterns = {f"^{one.type}{_NAME}$": _or_empty(references[one.config, "validation"]) for one in declared}
    return {"type": ["object", "null"], "patternProperties": patterns, "additionalProperties": False}


def _or_empty(reference: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [reference, {"type": "null"}]}


def _with_text(schema: Any) -> Any:
    """The same schema, in which text may stand for every single value."""
    if not isinstance(schema, dict):
        return schema
    changed = {word: value for word, value in schema.items() if word != "required"}
    for word in _NESTED_MAPS:
        if word in changed:
            changed[word] = {name: _with_text(one) for name, one in changed[word].items()}
    for word in _NESTED_LISTS:
        if word in changed:
            changed[word] = [_with_text(one) for one in changed[word]]
    for word in _NESTED:
        if word in changed:
            changed[word] = _with_text(changed[word])
    text = _text_for(schema)
    if text is None:
        return changed
    notes = {word: changed.pop(word) for word in ("title", "description", "default") if word in changed}
    return {**notes, "anyOf": [changed, text]}


def _text_for(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The text that may stand for a value of this schema, or None if it is text anyway or a collection."""
    if schema.get("type") in ("integer", "number", "boolean"):
        return {"type": "string"}
    limited = any(word in schema for word in ("enum", "const", "pattern", "minLength", "maxLength"))
    return _SUBSTITUTION if limited else None
