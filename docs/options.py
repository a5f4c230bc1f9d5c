"""How the reference pages write an option: its type, its limits, its default, as YAML has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from docs.markdown import table
from pipeline.config.annotations import SECRETS, alternatives, is_class
from pipeline.config.fields import ComponentConfig, parse_boolean, parse_duration, parse_size

_PARSED = {parse_size: "size", parse_duration: "duration", parse_boolean: "boolean"}
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "text", Path: "path"}
_SIZES = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6, "KB": 10**3}
_DURATIONS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_LIMITS = {"ge": "{} or more", "gt": "more than {}", "le": "at most {}", "min_length": "at least {} long"}


def parser(field: FieldInfo) -> str | None:
    """How the text of an option is read, where that is more than its type says."""
    functions = [each.func for each in field.metadata if isinstance(each, BeforeValidator)]
    return next((_PARSED[each] for each in functions if each in _PARSED), None)


def _type(field: FieldInfo) -> str:
    parsed = parser(field)
    name = parsed or " or ".join(_name(each) for each in alternatives(field.annotation) if each is not NoneType)
    limits = [
        (words, getattr(each, limit))
        for each in field.metadata
        for limit, words in _LIMITS.items()
        if hasattr(each, limit)
    ]
    # That a size or a duration is not negative needs no saying.
    said = [words.format(shown(limit, parsed)) for words, limit in limits if limit or parsed is None]
    return ", ".join([name, *said])


def _name(one: Any) -> str:
    if get_origin(one) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(one))
    if is_class(one, StrEnum):
        return " or ".join(f"`{value}`" for value in one)
    if is_class(one, Mapping):
        return f"mapping of names to {_item(get_args(one)[1])}"
    if is_class(one, (tuple, list)):
        return f"list of {_item(get_args(one)[0])}"
    return "secret" if is_class(one, SECRETS) else _PLAIN.get(one, "any value")


def _item(annotation: Any) -> str:
    """What a mapping or a list holds; that there are several alternatives is for the description to say."""
    found = alternatives(annotation)
    return _name(found[0]) if len(found) == 1 else "any value"


def shown(value: Any, parsed: str | None = None) -> str:
    """A value as it may stand in YAML; nothing for none."""
    if value is None:
        return ""
    if parsed in ("size", "duration"):
        units = _SIZES if parsed == "size" else _DURATIONS
        unit = next((unit for unit, size in units.items() if value and value % size == 0), "")
        return f"{value / units.get(unit, 1):g}{unit}"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    text = shown(field.get_default(call_default_factory=True), parser(field))
    return f"`{text}`" if text else "none"


def options(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every option of a model, those of models in it by their path."""
    for name, field in model.model_fields.items():
        inner = next(_models(field.annotation), None)
        if inner is not None:
            yield from options(inner[1], f"{prefix}{name}{inner[0]}.")
        elif prefix or name not in ComponentConfig.model_fields:
            yield f"{prefix}{name}", field


def _models(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The models that a value of this type is, or holds under names, or in a list; with what is added to its path."""
    for outer in alternatives(annotation):
        path, inside = "", [outer]
        if is_class(outer, Mapping):
            path, inside = ".ID", alternatives(outer, ("ID",))
        elif is_class(outer, (tuple, list)):
            path, inside = "[]", alternatives(outer, (0,))
        yield from ((path, each) for each in inside if is_class(each, BaseModel))


def option_table(model: type[BaseModel]) -> str:
    """Every option of a model, with its type, its default and its meaning."""
    rows = [[f"`{name}`", _type(field), _default(field), field.description or ""] for name, field in options(model)]
    return table(["option", "type", "default", "meaning"], rows) if rows else "It has no options."
