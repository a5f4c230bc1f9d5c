"""Reads the deployment guide that this service was specified by, which is not part of this repository, and our map of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDE = Path(os.environ.get("DEPLOYMENT_GUIDE") or ROOT.parent / "shared" / "seed" / "deployment-guide.md")
"""Where the variable says, else beside the checkout. Without a copy, what reads it is skipped."""
MAP = ROOT / "docs" / "guide-map.md"
SHORTEST = 5
"""So many characters at least stand before the ellipsis of an item that is cut short."""

Section = tuple[str, list[str]]
"""A heading, and the items below it."""

_HEADING = re.compile(r"^#{2,4} (.+)$")
_FENCE = re.compile(r"^```(\w*)")
_STEP = re.compile(r"^(?:\d+\.|-) \*\*(.+?)\*\*")
_CHECK = re.compile(r"^- ✅ (.+)$")
_VARIABLE = re.compile(r"^\| `(.+?)` \| `(.+?)` \|")
_FILE = re.compile(r"^# (\.env|Dockerfile|/?[\w./-]+\.\w+|/[\w./-]+)$")
_COMMENT = re.compile(r"^(#(?!!)|--( |$))")
_PUNCTUATION = re.compile(r"^([^\w#]*|(?:- )?[\w-]+:|\"\w+\": [\[{]|</\w+>|\w+ ?\{?\})$")
"""Lines that open or close something: brackets, a key of YAML or JSON without a value, `</VirtualHost>`."""


def sections_of_guide(text: str) -> list[Section]:
    """Every heading, with what is below it: steps, items of checklists, variables and their defaults, and each line of code.

    In a block of code, a comment that is a file's name is the item of that file; other comments are left out.
    """
    found: list[Section] = []
    in_code, joined = False, ""
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if _FENCE.match(line):
            in_code = not in_code
        elif in_code:
            joined = f"{joined} {' '.join(line.split())}".strip()
            if joined.endswith("\\"):
                joined = joined[:-1].strip()
                continue
            _add(found, _of_code(joined))
            joined = ""
        elif heading:
            found.append((heading[1], []))
        else:
            _add(found, _of_prose(line))
    return [section for section in found if section[0] != "Table of Contents"]


def _add(found: Sequence[Section], items: Iterator[str]) -> None:
    for item in items:
        if item not in found[-1][1]:
            found[-1][1].append(item)


def _of_code(line: str) -> Iterator[str]:
    if file := _FILE.match(line):
        yield file[1]
    elif not _COMMENT.match(line) and not _PUNCTUATION.match(line):
        yield line


def _of_prose(line: str) -> Iterator[str]:
    if found := _CHECK.match(line) or _STEP.match(line):
        yield found[1]
    elif variable := _VARIABLE.match(line):
        yield from variable.groups()


Row = tuple[list[str], str]
"""Items, and what they are here."""


def sections_of_map(text: str) -> list[tuple[str, list[Row]]]:
    """Every heading of the map, with the rows of its table."""
    found: list[tuple[str, list[Row]]] = []
    for line in text.splitlines():
        if heading := _HEADING.match(line):
            found.append((heading[1], []))
        elif line.startswith("| `"):
            quoted, here = re.split(r"(?<!\\)\|", line)[1:3]
            items = re.findall(r"`([^`]+)`", quoted.replace("\\|", "|"))
            found[-1][1].append((items, here.strip().replace("\\|", "|")))
    return found


def names(item: str, line: str) -> bool:
    """Whether an item of the map, which may be cut short by an ellipsis, is this line of the guide."""
    start, cut, rest = item.partition("…")
    return line.startswith(start) and len(start) >= SHORTEST if cut and not rest else item == line


def missing(guide: list[Section], mapped: list[tuple[str, list[Row]]]) -> list[tuple[str, str]]:
    """What the guide says and the map does not name in the same place: heading and item."""
    return [
        (heading, line)
        for (heading, lines), (_, rows) in zip(guide, mapped, strict=True)
        for line in lines
        if not any(names(item, line) for items, _ in rows for item in items)
    ]
