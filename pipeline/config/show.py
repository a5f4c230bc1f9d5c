"""The resolved configuration as YAML: with where each value came from, and without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from pipeline.config.annotations import SECRETS
from pipeline.config.check import SECTIONS
from pipeline.config.model import Configuration
from pipeline.config.source import ListNode, MapNode, Node, ScalarNode

MASK = "***"
"""What stands for a secret."""

_BARE = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def print_config(configuration: Configuration) -> str:
    """Every component that is configured, used or not, with all its options, and the section `service`.

    Read again it means the same, except for secrets, which are masked.
    """
    sections: dict[str, Any] = {name: {} for name in SECTIONS}
    for (kind, id_), spec in configuration.configured.items():
        sections[f"{kind}s"][id_] = spec.config
    written = {name: bodies for name, bodies in sections.items() if bodies}
    lines = _mapping({**written, "service": configuration.settings}, configuration.tree, "")
    return "\n".join(lines) + "\n"


def _mapping(value: Mapping[str, Any], node: Node | None, indent: str) -> list[str]:
    lines = []
    for key, item in value.items():
        lines += _entry(f"{indent}{_text(key)}:", item, _child(node, key), f"{indent}  ")
    return lines


def _entry(head: str, value: Any, node: Node | None, indent: str) -> list[str]:
    """The lines of one value behind `head`, which is a key or the dash of a list."""
    value = _opened(value)
    if isinstance(value, Mapping) and value:
        return [head, *_mapping(value, node, indent)]
    if isinstance(value, list) and any(isinstance(_opened(item), (Mapping, list)) for item in value):
        lines = [head]
        for index, item in enumerate(value):
            lines += _entry(f"{indent}-", item, _child(node, index), f"{indent}  ")
        return lines
    shown = f"[{', '.join(_scalar(item) for item in value)}]" if isinstance(value, list) else _scalar(value)
    return [f"{head} {shown}  # {_origin(node)}"]


def _opened(value: Any) -> Any:
    """A model as a mapping of its fields, any other collection as a mapping or a list."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {field.alias or name: getattr(value, name) for name, field in fields}
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return list(value) if isinstance(value, tuple) else value


def _scalar(value: Any) -> str:
    if isinstance(value, SECRETS):
        return _text(MASK)
    if isinstance(value, Mapping):
        return "{}"
    value = to_jsonable_python(value, fallback=str)
    if isinstance(value, str):
        return _text(value.replace("$", "$$"))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


def _text(text: str) -> str:
    if _BARE.fullmatch(text) and text.lower() not in _WORDS:
        return text
    characters = json.dumps(text, ensure_ascii=False)
    return "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in characters)


def _child(node: Node | None, step: str | int) -> Node | None:
    if isinstance(node, MapNode):
        return node.items.get(str(step))
    if isinstance(node, ListNode) and isinstance(step, int):
        return node.items[step] if step < len(node.items) else None
    return node


def _origin(node: Node | None) -> str:
    if node is None:
        return "default"
    items = node.items if isinstance(node, ListNode) else (node,)
    used = [name for item in items if isinstance(item, ScalarNode) for name in item.used]
    empty = " (empty)" if isinstance(node, ScalarNode) and node.whole and not node.text else ""
    return ", ".join(dict.fromkeys([*used, f"{node.mark}{empty}"]))
