"""YAML text to nodes that know their place.

Plain scalars are read by the core schema of YAML 1.2: numbers, `true`, `false` and `null` are what they look like, everything
else (`on`, `yes`, dates) stays text, and the field that takes it decides. A scalar keeps the text as it was written, so
that a field that wants text gets `010` as `010`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from pipeline.config.problems import Mark, Problems, Steps

MAX_DEPTH = 64
"""How deeply collections may nest. PyYAML's C composer recurses and would overflow the stack."""
MAX_NODES = 50_000
"""How large one file may get when its aliases are expanded."""

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    "null": None, "Null": None, "NULL": None, "~": None, "": None,
}  # fmt: skip

_WRONG_TAG = {f"{_TAG}{kind}": f"is not what !!{kind} can be" for kind in ("int", "float", "bool", "null")}
"""What to say of a tag that its value does not fit. Other tags are not quoted: a secret may begin with an exclamation mark."""

Plain = str | int | float | bool | None


@dataclass(frozen=True)
class ScalarNode:
    """One value. `text` is how it was written; `used` names the variables and files that were put into it.

    `whole` says that it was exactly one substitution, `failed` that its substitution went wrong, which was reported.
    """

    mark: Mark
    value: Plain
    text: str
    whole: bool = False
    used: tuple[str, ...] = ()
    failed: bool = False


@dataclass(frozen=True)
class ListNode:
    """A list of nodes."""

    mark: Mark
    items: tuple[Node, ...]


@dataclass(frozen=True)
class MapNode:
    """A mapping. The mark of a value is that of its key, which is where a person looks for it."""

    mark: Mark
    items: dict[str, Node]


Node = ScalarNode | ListNode | MapNode


def read_yaml(path: Path, name: str, asked: Mark, problems: Problems) -> MapNode | None:
    """The file's top-level mapping; an empty file is an empty one. None after a problem that leaves nothing to go on with.

    `name` is how marks call the file, `asked` the place that named it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problems.add(asked, (), f"cannot read {name!r}: {(error.strerror or str(error)).lower()}")
        return None
    except UnicodeDecodeError:
        problems.add(Mark(name), (), "is not UTF-8 text")
        return None
    node = parse_yaml(text, Mark(name, 1), problems)
    if node is None or isinstance(node, MapNode):
        return node
    if isinstance(node, ScalarNode) and node.text == "":
        return MapNode(node.mark, {})
    problems.add(node.mark, (), "must be a mapping with sections such as receivers and service")
    return None


def parse_yaml(text: str, start: Mark, problems: Problems, steps: Steps = ()) -> Node | None:
    """The one document in `text`, which begins at `start` and stands at `steps`.

    None after a problem that leaves nothing to go on with.
    """
    try:
        _check_depth(text)
        document = yaml.compose(text, Loader=_Loader)
        return _Converter(start, problems).convert(document, steps) if document else ScalarNode(start, None, "")
    except _BoundError as error:
        problems.add(_line(start, error.line), steps, str(error))
    except (yaml.YAMLError, UnicodeError) as error:
        line, reason = _explained(error, text)
        problems.add(_line(start, line), steps, f"is not YAML: {reason}")
    return None


def mark_at(node: Node, steps: Steps) -> Mark:
    """The mark of the deepest node on this way that there is."""
    for step in steps:
        if isinstance(node, MapNode) and step in node.items:
            node = node.items[str(step)]
        elif isinstance(node, ListNode) and isinstance(step, int) and step < len(node.items):
            node = node.items[step]
        else:
            break
    return node.mark


class _Loader(yaml.CBaseLoader):
    """Splits text into nodes, and resolves plain scalars by the core schema."""


for _name, _regexp, _first in (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(f"(?:{_INT.pattern})$"), list("-+0123456789")),
    ("float", re.compile(f"(?:{_FLOAT.pattern})$"), list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_TAG + _name, _regexp, _first)


class _BoundError(Exception):
    """The text is well formed and more than anybody means."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH and event.start_mark:
            raise _BoundError(f"is nested more than {MAX_DEPTH} deep", event.start_mark.line)


def _explained(error: Exception, text: str) -> tuple[int, str]:
    """The line, from 0, and what is wrong with it."""
    line, reason = 0, "a character that is not Unicode"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        reason = ", ".join(part for part in (error.context, error.problem) if part)
    elif isinstance(error, yaml.reader.ReaderError):
        line = text.encode().count(b"\n", 0, error.position)
        reason = f"{error.reason} (character {error.character})"
    hint = " (indent with spaces, not tabs)" if "cannot start any token" in reason and _tabs(text, line) else ""
    return line, f"{reason}{hint}"


def _tabs(text: str, line: int) -> bool:
    lines = text.split("\n")
    return line < len(lines) and "\t" in lines[line]


def _line(start: Mark, line: int) -> Mark:
    return replace(start, line=start.line + line if start.line else 0)


class _Converter:
    """From PyYAML's nodes to ours: bounded, without tags, each key once."""

    def __init__(self, start: Mark, problems: Problems) -> None:
        self._start = start
        self._problems = problems
        self._count = 0

    def convert(self, node: yaml.Node, steps: Steps, mark: Mark | None = None) -> Node:
        self._count += 1
        if self._count > MAX_NODES or len(steps) > MAX_DEPTH:
            message = f"is too large: over {MAX_NODES} values, or over {MAX_DEPTH} deep, when aliases are put in"
            raise _BoundError(message, node.start_mark.line)
        mark = mark or self._mark(node)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, steps, mark)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            items = (self.convert(item, (*steps, index)) for index, item in enumerate(node.value))
            return ListNode(mark, tuple(items))
        return self._scalar(node, steps, mark)

    def _mark(self, node: yaml.Node) -> Mark:
        return _line(self._start, node.start_mark.line)

    def _mapping(self, node: yaml.MappingNode, steps: Steps, mark: Mark) -> MapNode:
        items: dict[str, Node] = {}
        for key, value in node.value:
            at = self._mark(key)
            if not isinstance(key, yaml.ScalarNode):
                self._problems.add(at, steps, "must have text as its keys")
            elif key.value in items:
                first = items[key.value].mark
                self._problems.add(at, (*steps, key.value), f"is there twice (first at {first})")
            else:
                items[key.value] = self.convert(value, (*steps, key.value), at)
        return MapNode(mark, items)

    def _scalar(self, node: yaml.Node, steps: Steps, mark: Mark) -> ScalarNode:
        text = node.value if isinstance(node, yaml.ScalarNode) else ""
        try:
            return ScalarNode(mark, _value(node.tag, text), text)
        except ValueError:
            self._problems.add(
                mark, steps, _WRONG_TAG.get(node.tag, "has a tag (must be plain data; text with ! needs quotes)")
            )
            return ScalarNode(mark, None, text, failed=True)


def _value(tag: str, text: str) -> Plain:
    kind = tag.removeprefix(_TAG)
    if kind == "str":
        return text
    if kind in ("bool", "null") and text in _WORDS and (_WORDS[text] is None) == (kind == "null"):
        return _WORDS[text]
    if kind == "int" and _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if kind == "float" and _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    raise ValueError
