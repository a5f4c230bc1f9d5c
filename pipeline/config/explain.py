"""pydantic's errors as problems: located, in the words of our error sentence, and without secrets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel

from pipeline.config.annotations import alternatives, is_class, is_secret, options
from pipeline.config.problems import Problems, Steps, known
from pipeline.config.source import ListNode, MapNode, Node, ScalarNode, mark_at

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

LONGEST_QUOTE = 80

_CONTAINERS = {
    "model_type": "a mapping", "dict_type": "a mapping", "mapping_type": "a mapping", "model_attributes_type": "a mapping",
    "list_type": "a list", "tuple_type": "a list", "set_type": "a list", "frozen_set_type": "a list",
}  # fmt: skip


_EXPLAINED = {"missing", "extra_forbidden", "value_error", "assertion_error"}
"""Errors whose sentence already says what was found."""


def quoted(node: Node) -> str:
    """A value as YAML would write it, not too long; only the sort of a collection."""
    if isinstance(node, MapNode):
        return "a mapping"
    if isinstance(node, ListNode):
        return "a list"
    if node.value is None or isinstance(node.value, bool):
        return {None: "null", True: "true", False: "false"}[node.value]
    shown = repr(node.value)
    return shown if len(shown) <= LONGEST_QUOTE else f"{shown[:LONGEST_QUOTE]}…"


class Explanation:
    """What is wrong with the options in `node`, which stand at `steps` and were checked by `model`.

    No sentence holds one of the `secrets`.
    """

    def __init__(self, model: type[BaseModel], node: MapNode, steps: Steps, secrets: Sequence[str]) -> None:
        self._model = model
        self._node = node
        self._steps = steps
        self._secrets = secrets

    def of(self, errors: Sequence[ErrorDetails], problems: Problems) -> None:
        """Note every error; what the members of a union say of one value becomes one sentence."""
        places: dict[Steps, list[ErrorDetails]] = {}
        for error in errors:
            places.setdefault(self._way(error), []).append(error)
        for way, found in places.items():
            node = self._at(way)
            if isinstance(node, ScalarNode) and node.failed:
                continue
            message = " or ".join(dict.fromkeys(self._sentence(error, way, node) for error in found))
            if node and not any(error["type"] in _EXPLAINED for error in found):
                message += self._got(found, way, node)
            if any(secret in message for secret in self._secrets):
                message = "is not valid (the reason holds a secret and is not shown)"
            if isinstance(node, ScalarNode) and node.used:
                message += f" (from {', '.join(name.removeprefix('env ') for name in node.used)})"
            problems.add(mark_at(self._node, way), (*self._steps, *way), message)

    def _way(self, error: ErrorDetails) -> Steps:
        """The error's place in the YAML. pydantic's own has the names of union members in it."""
        way: Steps = ()
        for step in error["loc"]:
            if self._at((*way, step)) is not None:
                way = (*way, step)
        if error["type"] == "missing" and error["loc"][-1:] != way[-1:]:
            way = (*way, error["loc"][-1])
        return way

    def _at(self, way: Steps) -> Node | None:
        node: Node | None = self._node
        for step in way:
            if isinstance(node, MapNode):
                node = node.items.get(str(step))
            elif isinstance(node, ListNode) and isinstance(step, int) and step < len(node.items):
                node = node.items[step]
            else:
                return None
        return node

    def _sentence(self, error: ErrorDetails, way: Steps, node: Node | None) -> str:
        kind, text = error["type"], error["msg"]
        if kind == "missing":
            return "is missing (must be set)" if node is None else "must be set, and what it is set to is empty"
        if kind == "extra_forbidden":
            names = [
                name for one in alternatives(self._model, way[:-1]) if is_class(one, BaseModel) for name in options(one)
            ]
            return f"is not a known option {known(str(way[-1]), names)}"
        if kind in _CONTAINERS:
            return f"must be {_CONTAINERS[kind]}"
        if kind == "string_type":
            return "must be text"
        text = text.removeprefix("Value error, ").removeprefix("Assertion failed, ").split(", unable to", 1)[0]
        text = re.sub(r"^(Input|Value|String|List|Dictionary|Tuple|Set|Number) should ", "must ", text)
        return text if kind in _EXPLAINED else text[:1].lower() + text[1:]

    def _got(self, found: Sequence[ErrorDetails], way: Steps, node: Node) -> str:
        if is_secret(alternatives(self._model, way)):
            return ""
        if isinstance(node, ScalarNode) and any(error["type"] in _CONTAINERS for error in found):
            return ", got a single value"
        return f", got {quoted(node)}"
