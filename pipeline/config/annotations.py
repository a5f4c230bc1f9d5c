"""What a pydantic model says of the value at some place in it."""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

import pydantic
from pydantic import BaseModel, SecretBytes, SecretStr

from pipeline.config.problems import Steps

SECRETS = (SecretStr, SecretBytes, pydantic.Secret)


def alternatives(annotation: Any, steps: Steps = ()) -> list[Any]:
    """The types that a value may have at `steps` inside a value of this type, unions taken apart. Empty: nothing known."""
    found = _flat(annotation)
    for step in steps:
        found = [one for outer in found for one in _inside(outer, step)]
    return found


def options(model: type[BaseModel]) -> dict[str, Any]:
    """The names that a model's fields have in a configuration, with their types."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def is_class(one: Any, classes: type | tuple[type, ...]) -> bool:
    """Whether this alternative is a class, or a generic of one, that derives from one of those."""
    origin = get_origin(one) or one
    return isinstance(origin, type) and issubclass(origin, classes)


def is_secret(found: list[Any]) -> bool:
    """Whether a value with these alternatives must not be shown."""
    return any(is_class(one, SECRETS) for one in found)


def _flat(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _flat(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [one for each in get_args(annotation) for one in _flat(each)]
    return [annotation]


def _inside(outer: Any, step: str | int) -> list[Any]:
    if is_class(outer, BaseModel):
        return _flat(options(outer)[str(step)]) if step in options(outer) else []
    arguments = [one for one in get_args(outer) if one is not Ellipsis]
    if is_class(outer, Mapping):
        return _flat(arguments[-1]) if arguments else [Any]
    if is_class(outer, Collection) and arguments:
        fixed = is_class(outer, tuple) and Ellipsis not in get_args(outer) and isinstance(step, int)
        return _flat(arguments[min(int(step), len(arguments) - 1)] if fixed else arguments[0])
    return [Any] if outer is Any else []
