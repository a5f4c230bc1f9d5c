"""What is wrong with a configuration, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import ConfigError

Steps = tuple[str | int, ...]
"""The way from the top of a configuration to a place in it: keys of mappings and indexes of lists."""


@dataclass(frozen=True, order=True)
class Mark:
    """A place in a configuration: the file as the user named it (or `--set`, or the variable), and the line, from 1."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Problem:
    """`path: what is wrong, quoted (what would be right)`, after its place."""

    mark: Mark
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.path}: {self.message}" if self.path else f"{self.mark}: {self.message}"


class Problems:
    """Everything that was found wrong so far, so that it can be said at once."""

    def __init__(self) -> None:
        self._found: list[Problem] = []

    def add(self, mark: Mark, steps: Steps, message: str) -> None:
        """Note one problem, once, on one line."""
        problem = Problem(mark, joined(steps), " ".join(message.split("\n")))
        if problem not in self._found:
            self._found.append(problem)

    def raise_any(self, files: Iterable[str] = ()) -> None:
        """Raise `ConfigError` if there is a problem: in the order of `files`, those of other places behind, by line."""
        if self._found:
            order = {file: number for number, file in enumerate(files)}
            raise ConfigError(
                sorted(self._found, key=lambda one: (order.get(one.mark.file, len(order)), one.mark.line))
            )


def joined(steps: Steps) -> str:
    """The path as it is shown: `service.pipelines.events.processors[1]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def known(word: str, names: Iterable[str], label: str = "known", near_from: float = 0.6) -> str:
    """What would have been right in place of `word`: the nearest of the names, or all of them.

    `near_from` is how alike two words must be to be near, from 0 to 1 (`difflib`).
    """
    names = sorted(names)
    near = difflib.get_close_matches(word, names, n=1, cutoff=near_from)
    return f"(did you mean {near[0]!r}?)" if near else f"({label}: {', '.join(names) or 'none'})"
