"""Values from the environment and from files, put into the strings of a configuration after it was parsed and merged.

    ${env:NAME}             the variable; a problem if it is unset or empty
    ${env:NAME:-default}    the default, if it is unset or empty
    ${env:NAME:+value}      the value, if it is set and not empty; else nothing
    ${file:PATH}            what the file holds, without its last newline; a problem if that is nothing; relative to the YAML file
    $$                      a dollar sign

Defaults, values and paths may hold substitutions themselves. What a variable or a file holds is never looked into.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.config.problems import Problems, Steps
from pipeline.config.source import ListNode, MapNode, Node

MAX_DEPTH = 20
"""How deeply substitutions may nest."""

_TOKEN = re.compile(r"\$\$|\$\{|\}")
_FORM = re.compile(r"\$\{(env|file):")
_NAMED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)([:}])")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(:[-+]|\})?")
_UNTERMINATED = "has a '${' without its '}' (write $$ for a dollar sign)"


class SubstitutionError(Exception):
    """A string cannot be substituted; the message says why, in the form of a problem."""


@dataclass
class Substituted:
    """The text, whether it was exactly one substitution, and which variables and files went into it."""

    text: str = ""
    whole: bool = False
    used: list[str] = field(default_factory=list)


def substitute_tree(tree: MapNode, environ: Mapping[str, str], problems: Problems) -> MapNode:
    """The same tree with every string substituted. One that cannot be is reported and marked as failed."""
    return _map(tree, environ, problems, ())


def substitute(text: str, environ: Mapping[str, str], folder: Path) -> Substituted:
    """One string. `folder` is what the paths in `${file:}` are relative to.

    Raises `SubstitutionError` for an unset variable, an unreadable or empty file, and what is not one of the forms above.
    """
    return _Reader(text, environ, folder).read()


def _map(node: MapNode, environ: Mapping[str, str], problems: Problems, steps: Steps) -> MapNode:
    items = {key: _node(value, environ, problems, (*steps, key)) for key, value in node.items.items()}
    return MapNode(node.mark, items)


def _node(node: Node, environ: Mapping[str, str], problems: Problems, steps: Steps) -> Node:
    if isinstance(node, MapNode):
        return _map(node, environ, problems, steps)
    if isinstance(node, ListNode):
        items = (_node(item, environ, problems, (*steps, index)) for index, item in enumerate(node.items))
        return ListNode(node.mark, tuple(items))
    if not isinstance(node.value, str) or "$" not in node.value:
        return node
    try:
        found = substitute(node.value, environ, Path(node.mark.file).parent)
    except SubstitutionError as error:
        problems.add(node.mark, steps, str(error))
        return replace(node, failed=True)
    return replace(node, value=found.text, text=found.text, whole=found.whole, used=tuple(found.used))


class _Reader:
    """Reads a string from left to right; `_at` is how far it has come."""

    def __init__(self, text: str, environ: Mapping[str, str], folder: Path) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._environ = environ
        self._folder = folder
        self._used: list[str] = []

    def read(self) -> Substituted:
        if not self._text.startswith("${"):
            return Substituted(self._template(), False, self._used)
        first = self._substitution()
        whole = self._at == len(self._text)
        return Substituted(first + self._template(), whole, self._used)

    def _template(self, *, nested: bool = False) -> str:
        """Text with substitutions, up to the end, or if nested up to and with the closing brace."""
        parts = []
        while token := _TOKEN.search(self._text, self._at):
            parts.append(self._text[self._at : token.start()])
            self._at = token.end()
            if token[0] == "$$":
                parts.append("$")
            elif token[0] == "${":
                self._at = token.start()
                parts.append(self._substitution())
            elif nested:
                return "".join(parts)
            else:
                parts.append("}")
        if nested:
            raise SubstitutionError(_UNTERMINATED)
        parts.append(self._text[self._at :])
        self._at = len(self._text)
        return "".join(parts)

    def _substitution(self) -> str:
        form = _FORM.match(self._text, self._at)
        if not form:
            ended = "}" in self._text[self._at :]
            raise SubstitutionError(_unknown(self._text, self._at) if ended else _UNTERMINATED)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise SubstitutionError(f"nests substitutions more than {MAX_DEPTH} deep")
        self._at = form.end()
        found = self._variable() if form[1] == "env" else self._file(self._template(nested=True))
        self._depth -= 1
        return found

    def _variable(self) -> str:
        match = _VARIABLE.match(self._text, self._at)
        if not match:
            raise SubstitutionError("has no variable's name after '${env:' (must be ${env:NAME})")
        name, operator = match[1], match[2]
        self._at = match.end()
        value = self._environ.get(name, "")
        if value:
            self._used.append(f"env {name}")
        if operator == "}":
            if not value:
                raise SubstitutionError(
                    f"environment variable {name!r} is not set (set it, or give a default: ${{env:{name}:-default}})"
                )
            return value
        if not operator:
            raise SubstitutionError(
                _UNTERMINATED
                if self._at == len(self._text)
                else f"must go on with '}}', ':-' or ':+' after '${{env:{name}'"
            )
        if bool(value) == (operator == ":+"):
            return self._template(nested=True)
        self._skip()
        return value

    def _skip(self) -> None:
        """Pass over the part that is not taken, without a look at the variables that it names."""
        depth = 1
        while depth:
            token = _TOKEN.search(self._text, self._at)
            if not token:
                raise SubstitutionError(_UNTERMINATED)
            depth += {"${": 1, "}": -1}.get(token[0], 0)
            self._at = token.end()

    def _file(self, name: str) -> str:
        path = self._folder / name
        try:
            text = path.read_bytes().decode()
        except OSError as error:
            raise SubstitutionError(f"cannot read the file {str(path)!r}: {(error.strerror or '').lower()}") from None
        except ValueError:
            raise SubstitutionError(f"cannot read the file {str(path)!r}: it does not hold UTF-8 text") from None
        text = re.sub(r"\r?\n\Z", "", text)
        # A variable is often set to nothing on purpose, a file hardly ever: it is a secret that was never written.
        if not text:
            raise SubstitutionError(f"the file {str(path)!r} is empty (must hold the value)")
        self._used.append(f"file {path}")
        return text


def _unknown(text: str, at: int) -> str:
    """What is wrong with this `${`. Quotes names only, since the text around may be a secret."""
    named = _NAMED.match(text, at)
    if named and named[2] == "}":
        return f"unknown substitution '{named[0]}' (must be ${{env:{named[1]}}}; $$ for a dollar sign)"
    name = f" '{named[0]}'" if named else ""
    return f"unknown substitution{name} (must be ${{env:NAME}} or ${{file:PATH}}; $$ for a dollar sign)"
