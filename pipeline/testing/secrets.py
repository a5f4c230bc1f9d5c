"""Finds the options of a model that hold secrets, and gives them values."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from pipeline.config.annotations import SECRETS, alternatives, is_class, options
from pipeline.config.problems import Steps

DEEPEST = 8
"""Models inside of models; one that holds itself goes on for ever."""
_NAMES = re.compile(r"(.*_)?(password|passphrase|secret|token|credentials?|api_?key)")


def places(annotation: Any, steps: Steps = ()) -> Iterator[tuple[Steps, list[Any]]]:
    """Every place in a value of this type where something stands, with the types that it may have."""
    if len(steps) > DEEPEST:
        return
    found = alternatives(annotation)
    yield steps, found
    for one in found:
        arguments = [each for each in get_args(one) if each is not Ellipsis]
        if is_class(one, BaseModel):
            for name, inner in options(one).items():
                yield from places(inner, (*steps, name))
        elif is_class(one, Mapping) and arguments:
            yield from places(arguments[-1], (*steps, "name"))
        elif is_class(one, Collection) and arguments:
            yield from places(arguments[0], (*steps, 0))


def secret_places(model: type[BaseModel]) -> list[Steps]:
    """Where a model holds what is typed as a secret."""
    return [steps for steps, found in places(model) if any(is_class(one, SECRETS) for one in found)]


def careless_places(model: type[BaseModel]) -> list[Steps]:
    """Where a model holds text that is called as a secret is, and is not typed as one."""
    return [
        steps
        for steps, found in places(model)
        if any(one in (str, bytes) for one in found) and _NAMES.fullmatch(_name(steps))
    ]


def _name(steps: Steps) -> str:
    return next((step for step in reversed(steps) if isinstance(step, str) and step != "name"), "")


def planted(value: Any, steps: Steps, secret: str) -> Any:
    """A copy of the options with the secret at that place."""
    if not steps:
        return secret
    first, *rest = steps
    if isinstance(first, int):
        return [planted(None, tuple(rest), secret)]
    outer = copy.deepcopy(dict(value)) if isinstance(value, Mapping) else {}
    outer[first] = planted(outer.get(first), tuple(rest), secret)
    return outer
