"""The options of a component, or of the service: nodes to plain data, checked by a pydantic model.

What the model says of a field decides how a scalar is read there: a field for text gets it as it was written, and an empty
substitution is the field's "off".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, TypeVar

import pydantic
from pydantic import BaseModel

from pipeline.config.annotations import SECRETS, alternatives, is_class, is_secret
from pipeline.config.explain import Explanation
from pipeline.config.problems import Problems, Steps
from pipeline.config.source import ListNode, MapNode, Node, ScalarNode
from pipeline.errors import in_a_line

M = TypeVar("M", bound=BaseModel)

_TEXT = (str, PurePath, type(None), *SECRETS)
_LEFT_OUT = object()


def validate(model: type[M], node: MapNode, steps: Steps, problems: Problems) -> M | None:
    """The model's instance for this mapping, or None after every problem with it was noted."""
    secrets = tuple(_secrets(node, [model]))
    try:
        return model.model_validate(_plain(node, [model]))
    except pydantic.ValidationError as error:
        Explanation(model, node, steps, secrets).of(error.errors(include_url=False), problems)
    except (Exception, SystemExit, BaseExceptionGroup) as error:
        reason = in_a_line(error)
        shown = type(error).__name__ if any(secret in reason for secret in secrets) else reason
        problems.add(node.mark, steps, f"cannot be checked, because {model.__name__} failed: {shown}")
    return None


def _plain(node: Node, types: list[Any]) -> Any:
    """What pydantic is given for a node where the model wants one of these types."""
    if isinstance(node, MapNode):
        pairs = ((key, _plain(item, _inside(types, key))) for key, item in node.items.items())
        return {key: value for key, value in pairs if value is not _LEFT_OUT}
    if isinstance(node, ListNode):
        values = (_plain(item, _inside(types, index)) for index, item in enumerate(node.items))
        return [value for value in values if value is not _LEFT_OUT]
    if node.failed:
        return _LEFT_OUT
    if node.whole and node.value == "" and types:
        return _off(types)
    if types and all(is_class(one, _TEXT) for one in types) and node.value is not None:
        return node.text
    return node.value


def _off(types: list[Any]) -> Any:
    """What an empty substitution means: nothing if the field can be that, no text, or the default."""
    if Any in types or type(None) in types:
        return None
    return "" if str in types else _LEFT_OUT


def _secrets(node: Node, types: list[Any]) -> Iterator[str]:
    """The texts in this node that belong to fields which must not be shown, or stand where such a field is."""
    if isinstance(node, ScalarNode):
        if is_secret(types) and node.text:
            yield node.text
            yield repr(node.text)[1:-1]
        return
    items = node.items.items() if isinstance(node, MapNode) else enumerate(node.items)
    for step, item in items:
        yield from _secrets(item, types if is_secret(types) else _inside(types, step))


def _inside(types: list[Any], step: str | int) -> list[Any]:
    return [found for one in types for found in alternatives(one, (step,))]
